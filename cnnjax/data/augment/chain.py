"""Augmentation on the device: the string that chains keyed functions of a batch.

Every augmentation is `(key, batch, **literals) -> batch`, see `geometry`, `color`, `policies` and `mixing`.
A batch holds "image" [B, H, W, C], in training also what `batches` gives and "run_key", the same key at every
step. A new one is a function under `@operation(...)`, with a row in `ARGUMENTS` for each new argument name.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.augment import color, geometry, mixing, policies  # noqa: F401 - they register themselves
from cnnjax.data.augment.register import ANY, ARGUMENTS, AUGMENTATIONS, Arguments, Batch, Key, Shape
from cnnjax.errors import UserError, by_name, parse_call, unknown


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A checked chain, `augmentation(key, batch) -> batch`: step i draws from `fold_in(key, i)`."""

    steps: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]  # (name, arguments), with the data set's facts
    spec: str  # normalised, without those facts
    output_shape: Shape  # [H, W, C] of an image after the chain
    takes: str = "uint8"  # the kind of pixel that goes in; others are of floats

    @property
    def training_only(self) -> tuple[str, ...]:
        """The steps that draw, or need more of a batch than its images."""
        return tuple(name for name, _ in self.steps if (step := AUGMENTATIONS[name]).draws or step.needs)

    @property
    def normalization(self) -> np.ndarray | None:
        """float32 [2, C]: mean and std on the scale 0..1 of `normalize`, 0 and 1 without it.

        None if another step normalizes.
        """
        names = [name for name, _ in self.steps if AUGMENTATIONS[name].gives == "normalized"]
        if names and names != ["normalize"]:
            return None
        values = {"mean": 0.0, "std": 1.0, **dict(dict(self.steps).get("normalize", ()))}
        rows = (np.asarray(values[name], np.float32) for name in ("mean", "std"))
        return np.stack([np.broadcast_to(row, self.output_shape[2:]) for row in rows])

    def __call__(self, key: Key, batch: Batch) -> Batch:
        images = jnp.asarray(batch["image"])
        if not jnp.issubdtype(images.dtype, jnp.uint8 if self.takes == "uint8" else jnp.floating):
            given = f"augmentation {self.spec!r} is given {images.dtype} images"
            raise UserError(f"{given}; allowed: {self.takes} pixels; convert them")
        batch = batch | {"image": images}
        for position, (name, arguments) in enumerate(self.steps):
            step = AUGMENTATIONS[name]
            if missing := [entry for entry in step.needs if entry not in batch]:
                raise UserError(f"augmentation {name} needs {', '.join(missing)} with the images")
            batch = step.apply(jax.random.fold_in(key, position), batch, **dict(arguments))
        return batch

    def preprocess(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] alone, with a fixed key, as evaluation and prediction need them."""
        return self(jax.random.key(0), {"image": images})["image"]


def _read_call(text: str) -> tuple[str, dict[str, Any]]:
    """The augmentation's name and its checked arguments as written: `mirror` or `mirror(0.5)`."""
    name, values, named = parse_call(text, "augmentation")
    parameters = list(by_name("augmentation", name, AUGMENTATIONS).parameters)
    if len(values) > len(parameters):
        own = ", ".join(parameters) or "none"
        raise UserError(f"augmentation {name}: {len(values)} values; its arguments: {own}")
    arguments = dict(zip(parameters, values, strict=False))
    for argument, value in named.items():
        if argument not in parameters:
            raise unknown(f"argument of augmentation {name}", argument, parameters)
        if argument in arguments:
            raise UserError(f"augmentation {name}: {argument} is given twice; give it once")
        arguments[argument] = value
    for argument, value in arguments.items():
        arguments[argument] = value = tuple(value) if isinstance(value, list) else value
        is_allowed, words = ARGUMENTS[argument]
        if not is_allowed(value):
            raise UserError(f"augmentation {name}: {argument} = {value!r}; allowed: {words}")
    return name, arguments


def _write_call(name: str, arguments: Arguments) -> str:
    """The call with leading required arguments by position, others by name, no defaults."""
    words, by_position = [], True
    for argument, parameter in AUGMENTATIONS[name].parameters.items():
        by_position = by_position and argument in arguments and parameter.default is parameter.empty
        if argument in arguments and arguments[argument] != parameter.default:
            words.append(("" if by_position else f"{argument}=") + repr(arguments[argument]))
    return f"{name}({', '.join(words)})" if words else name


def _complete(name: str, arguments: Arguments, facts: Arguments) -> dict[str, Any]:
    """All arguments: as given, else the default, else the fact of the data set that has the same name.

    Statistics may be given others than the data set's; the number of classes may not.
    """
    full = {}
    for argument, parameter in AUGMENTATIONS[name].parameters.items():
        value = arguments.get(argument, parameter.default)
        if value is parameter.empty and argument not in facts:
            raise UserError(f"augmentation {name}: {argument} is missing; allowed: {ARGUMENTS[argument][1]}")
        full[argument] = facts[argument] if value is parameter.empty else value
        if argument == "num_classes" and full[argument] != (own := facts.get(argument, value)):
            given = f"augmentation {name}: num_classes = {value}"
            raise UserError(f"{given}; allowed: {own}, as the data set has; leave it out")
    return full


def parse(
    spec: str,
    *,
    image_shape: Sequence[int],
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    covariance: Sequence[Sequence[float]] | None = None,
) -> Augmentation:
    """Reads a chain such as "random_crop(28, padding=2)|mirror|normalize" and checks all of it.

    `image_shape` is [H, W, C] of the images that go in, which are uint8; num_classes and the statistics on
    the scale 0..1 are of the data set, for augmentations whose spec omits them.
    Raises: UserError naming augmentation, argument, value and what is allowed; also if uint8 pixels come out.
    """
    facts: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    facts |= {k: tuple(map(float, v)) for k, v in (("mean", mean), ("std", std)) if v is not None}
    if covariance is not None:
        facts["covariance"] = tuple(tuple(map(float, row)) for row in covariance)
    height, width, channels = map(int, image_shape)
    shape, kind, steps, words = (height, width, channels), "uint8", [], []
    for name, arguments in map(_read_call, spec.split("|") if spec.strip() else []):
        step = AUGMENTATIONS[name]
        if kind not in step.takes:
            given = f"augmentation {name} in {spec!r} works on {' or '.join(step.takes)} pixels"
            later = all(ANY.index(kind) < ANY.index(each) for each in step.takes)
            makes = [n for n, o in AUGMENTATIONS.items() if o.gives in (step.takes if later else [kind])]
            where = f"{'after' if later else 'before'} {' or '.join(makes)}"
            raise UserError(f"{given}; here they are {kind}; put it {where}, or remove it")
        full = _complete(name, arguments, facts)
        try:
            shape = step.output_shape(shape, full)
        except UserError as error:
            raise UserError(f"augmentation {name}: {error}") from None
        kind = step.gives or kind
        steps.append((name, tuple(full.items())))
        words.append(_write_call(name, arguments))
    if kind == "uint8":
        allowed = "a model needs floats; end it with normalize or scale"
        raise UserError(f"augmentation {spec!r} leaves uint8 pixels, and {allowed}")
    return Augmentation(tuple(steps), "|".join(words), shape)


def explicit_spec(augment: Augmentation) -> str:
    """The spec with every argument written out: it can be parsed without the data set."""
    calls = ((name, ", ".join(f"{k}={v!r}" for k, v in arguments)) for name, arguments in augment.steps)
    return "|".join(f"{name}({arguments})" for name, arguments in calls)
