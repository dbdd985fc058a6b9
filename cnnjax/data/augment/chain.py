"""Augmentation on the device: the string that chains keyed functions of a batch.

Every operation is `(key, images [B, H, W, C], **literals) -> images`; one that mixes labels is
`(key, images, labels, **literals) -> (images, labels)`. They live in `geometry`, `color`, `policies` and
`mixing`. A new one is a function under `@operation(...)`, and a row in `ARGUMENTS` for each new argument
name: it is then legal in the string that `parse` checks, as in
`"random_crop(28, padding=2)|mirror|normalize"`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.augment.color import brightness, contrast, hue, normalize, pca_color, saturation, scale
from cnnjax.data.augment.geometry import (
    alternating_flip,
    center_crop,
    cutout,
    mirror,
    random_crop,
    random_erasing,
    random_resized_crop,
    scale_jitter,
)
from cnnjax.data.augment.mixing import cutmix, mixup
from cnnjax.data.augment.policies import rand_augment, trivial_augment
from cnnjax.data.augment.register import ARGUMENTS, AUGMENTATIONS, Examples, Operation, Shape, operation
from cnnjax.errors import UserError, parse_call, unknown

__all__ = [
    "ARGUMENTS",
    "AUGMENTATIONS",
    "Augmentation",
    "Examples",
    "Operation",
    "alternating_flip",
    "brightness",
    "center_crop",
    "contrast",
    "cutmix",
    "cutout",
    "hue",
    "mirror",
    "mixup",
    "normalize",
    "operation",
    "parse",
    "pca_color",
    "rand_augment",
    "random_crop",
    "random_erasing",
    "random_resized_crop",
    "saturation",
    "scale",
    "scale_jitter",
    "trivial_augment",
]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A checked chain of operations: `augmentation(key, images) -> images`.

    Given labels too, it returns `(images, labels)`; `alternating_flip` needs `examples`. Operation i draws
    from `fold_in(key, i)`, so the same key gives the same images. `str()` is the normalised spec.

    Attributes:
      steps: (name, arguments) in order, data set's mean and std filled in.
      spec: the normalised spec.
      output_shape: [H, W, C] of an image after the chain.
      mixes_labels: whether labels must be given, as rows of probabilities [B, K].
    """

    steps: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    spec: str
    output_shape: Shape

    @property
    def mixes_labels(self) -> bool:
        return any(AUGMENTATIONS[name].mixes_labels for name, _ in self.steps)

    @property
    def takes_examples(self) -> bool:
        """Whether `examples` must be given."""
        return any(AUGMENTATIONS[name].takes_examples for name, _ in self.steps)

    def __call__(
        self,
        key: jax.Array,
        images: jax.Array,
        labels: jax.Array | None = None,
        examples: Examples | None = None,
    ) -> Any:
        images, given = jnp.asarray(images), labels is not None
        for position, (name, arguments) in enumerate(self.steps):
            op = AUGMENTATIONS[name]
            step_key = jax.random.fold_in(key, position)
            if op.takes_examples:
                if examples is None:
                    raise UserError(f"augmentation {name} draws by example; pass examples=, or take mirror")
                images = op.apply(step_key, images, examples, **dict(arguments))
            elif not op.mixes_labels:
                images = op.apply(step_key, images, **dict(arguments))
            elif given:
                if labels.ndim == 1:
                    raise UserError(f"augmentation {name} mixes labels; give them as rows of probabilities")
                images, labels = op.apply(step_key, images, labels, **dict(arguments))
            else:
                raise UserError(f"augmentation {name} mixes labels; pass them with the images")
        return (images, labels) if given else images

    def __str__(self) -> str:
        return self.spec


def _read_call(text: str) -> tuple[str, dict[str, Any]]:
    """The operation's name and its checked arguments as written: `mirror` or `mirror(0.5)`."""
    name, values, named = parse_call(text, "augmentation")
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, AUGMENTATIONS)
    parameters = list(AUGMENTATIONS[name].parameters)
    if len(values) > len(parameters):
        takes = ", ".join(parameters) or "none"
        raise UserError(f"augmentation {name}: {len(values)} values; its arguments: {takes}")
    arguments = dict(zip(parameters, values, strict=False))
    for argument, value in named.items():
        if argument not in parameters:
            raise unknown(f"argument of augmentation {name}", argument, parameters)
        if argument in arguments:
            raise UserError(f"augmentation {name}: {argument} is given twice; give it once")
        arguments[argument] = value
    for argument, value in arguments.items():
        arguments[argument] = value = tuple(value) if isinstance(value, list) else value
        test, words = ARGUMENTS[argument]
        if not test(value):
            raise UserError(f"augmentation {name}: {argument} = {value!r}; allowed: {words}")
    return name, arguments


def _write_call(name: str, arguments: dict[str, Any]) -> str:
    """The call with leading required arguments by position, others by name, no defaults."""
    words, by_position = [], True
    for argument, parameter in AUGMENTATIONS[name].parameters.items():
        by_position = by_position and argument in arguments and parameter.default is parameter.empty
        if argument in arguments and arguments[argument] != parameter.default:
            value = repr(arguments[argument])
            words.append(value if by_position else f"{argument}={value}")
    return f"{name}({', '.join(words)})" if words else name


def _complete(name: str, arguments: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    """The arguments with defaults and the data set's mean and std filled in."""
    full = {}
    for argument, parameter in AUGMENTATIONS[name].parameters.items():
        value = arguments.get(argument, parameter.default)
        if value is parameter.empty and argument not in dataset:
            words = ARGUMENTS[argument][1]
            raise UserError(f"augmentation {name}: {argument} is missing; allowed: {words}")
        full[argument] = dataset[argument] if value is parameter.empty else value
    return full


def parse(
    spec: str,
    *,
    image_shape: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    covariance: Sequence[Sequence[float]] | None = None,
) -> Augmentation:
    """Reads a chain such as "random_crop(28, padding=2)|mirror|normalize" and checks all of it.

    Args:
      spec: operations of `AUGMENTATIONS` joined by |; arguments are literals, nothing is evaluated.
      image_shape: [H, W, C] of the images that go in, which are uint8.
      mean: the data set's channel means on the scale 0..1, for a `normalize` without them.
      std: the data set's channel standard deviations, likewise.
      covariance: of the data set's channels, likewise for `pca_color`.
    Raises: UserError naming the operation, the argument, the value and what is allowed; also where
      the chain does not end in floating pixels.
    """
    calls = spec.split("|") if spec.strip() else []
    dataset = {k: tuple(map(float, v)) for k, v in (("mean", mean), ("std", std)) if v is not None}
    if covariance is not None:
        dataset["covariance"] = tuple(tuple(map(float, row)) for row in covariance)
    shape, kind, steps, words = tuple(map(int, image_shape)), "uint8", [], []
    for name, arguments in map(_read_call, calls):
        op = AUGMENTATIONS[name]
        if kind not in op.takes:
            raise UserError(
                f"augmentation {name} in {spec!r} works on {' or '.join(op.takes)} pixels,"
                f" and here they are {kind} already; put it earlier or leave it out"
            )
        full = _complete(name, arguments, dataset)
        try:
            shape = op.output_shape(shape, full)
        except UserError as error:
            raise UserError(f"augmentation {name}: {error}") from None
        kind = op.gives or kind
        steps.append((name, tuple(full.items())))
        words.append(_write_call(name, arguments))
    if kind == "uint8":
        raise UserError(
            f"augmentation {spec!r} leaves uint8 pixels, and a model needs floating ones;"
            " end it with normalize or scale"
        )
    return Augmentation(tuple(steps), "|".join(words), shape)


def explicit_spec(augment: augment_lib.Augmentation) -> str:
    """The spec with every argument written out, mean and std too: no data are needed to parse it."""
    calls = ((name, ", ".join(f"{k}={v!r}" for k, v in arguments)) for name, arguments in augment.steps)
    return "|".join(f"{name}({arguments})" for name, arguments in calls)
