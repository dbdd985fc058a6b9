"""A trained network that another one learns from: what it says of the images of each step."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cnnjax.data.augment.chain import Augmentation
from cnnjax.data.sources.classes import numbered
from cnnjax.errors import UserError, check, listed, parse_call
from cnnjax.models.weights.torch import Variables
from cnnjax.runs.facts import Facts
from cnnjax.runs.folder import Run
from cnnjax.runs.loaded import load
from cnnjax.runs.pretrained import is_run
from cnnjax.training import parallel
from cnnjax.training.steps import Teach, distilled

FIELD = "config.loss.distill"


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network, and how the student's images and classes become its own."""

    model: nn.Module
    variables: Variables
    record: dict[str, str]  # where it is from, and the fingerprint of its variables
    alpha: float
    temperature: float
    scale: jax.Array  # float32 [C], of the student's normalized pixels
    offset: jax.Array
    size: tuple[int, int]
    columns: tuple[int, ...]  # of its logits, in the order of the student's classes

    def teaching(self, variables: Variables) -> Teach:
        """What `steps.batch_gradient` takes; `variables` are the teacher's, as an argument of the step."""

        def teach(image: jax.Array, logits: jax.Array, losses: jax.Array) -> jax.Array:
            image = image.astype(jnp.float32) * self.scale[None, None, None] + self.offset[None, None, None]
            if image.shape[1:3] != self.size:
                shape = (image.shape[0], *self.size, image.shape[3])
                image = jax.image.resize(image, shape, "linear", antialias=True)
            own = jnp.asarray(self.model.apply(variables, image))[:, np.asarray(self.columns)]
            return distilled(losses, logits, own, alpha=self.alpha, temperature=self.temperature)

        return teach


def make_teacher(
    config: ConfigDict, augment: Augmentation, facts: Facts, mesh: jax.sharding.Mesh
) -> Teacher | None:
    """The teacher that a config names, on a mesh, for images that `augment` prepares; None without one."""
    if not config.loss.distill:
        return None
    source, alpha, temperature = _read(config.loss.distill)
    try:
        it = load(weights=source, checkpoint="best" if is_run(source) else "last")
    except UserError as error:
        raise UserError(f"{FIELD}: {error}") from None
    known = it.facts
    given, wanted = augment.output_shape, known.eval_augment.output_shape
    if given[2] != wanted[2]:
        raise UserError(f"{FIELD}: {source} takes images with {wanted[2]} channels, these have {given[2]}")
    (mean, std), (own_mean, own_std) = map(_pixels, (augment, known.eval_augment))
    affine = jnp.asarray(std / own_std), jnp.asarray((mean - own_mean) / own_std)
    columns = _columns(source, known.class_names, facts.class_names)
    record = {"source": it.name, "fingerprint": fingerprint(it.variables)}
    variables = parallel.put(it.variables, parallel.replicated(mesh))
    return Teacher(it.model, variables, record, alpha, temperature, *affine, wanted[:2], columns)


def fingerprint(variables: Variables) -> str:
    """SHA-256 of all arrays with their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(variables)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def check_teacher(run: Run, teacher: Teacher | None) -> None:
    """Raises a UserError if a run that is resumed learned from another teacher."""
    before = run.read_json("record.json").get("teacher")
    if teacher and before and before["fingerprint"] != teacher.record["fingerprint"]:
        prints = f"fingerprint {before['fingerprint'][:12]}, now {teacher.record['fingerprint'][:12]}"
        problem = f"{run.path} learned from other weights of {teacher.record['source']} ({prints})"
        raise UserError(f"{problem}; restore them, or choose another --workdir")


def _read(distill: str) -> tuple[str, float, float]:
    """The teacher, alpha and temperature of 'distill("runs/big", alpha=0.5, temperature=4.0)'."""
    name, args, values = parse_call(distill, FIELD)
    placed = dict(zip(("teacher", "alpha", "temperature"), args, strict=False))
    if twice := placed.keys() & values.keys():
        raise UserError(f"{FIELD}={distill!r}: {listed(sorted(twice))} is given twice; give it once")
    values = placed | values
    known = {"teacher": "", "alpha": 0.5, "temperature": 4.0}
    teacher = values.get("teacher", "")
    if (
        name != "distill"
        or len(args) > 3
        or not values.keys() <= known.keys()
        or not isinstance(teacher, str)
    ):
        raise UserError(f"{FIELD}={distill!r} must be 'distill(\"TEACHER\", alpha=0.5, temperature=4.0)'")
    values = known | values
    check(f"{FIELD}: alpha", values["alpha"], "in [0, 1]", lambda v: 0 <= v <= 1)
    check(f"{FIELD}: temperature", values["temperature"], "greater than 0", lambda v: v > 0)
    return teacher, values["alpha"], values["temperature"]


def _pixels(augment: Augmentation) -> np.ndarray:
    """Mean and standard deviation, float32 [2, C] on the scale 0..1, by which pixels are normalized."""
    if (rows := augment.normalization) is None:
        raise UserError(
            f"{FIELD}: {augment.spec!r} must have normalize or scale, so that a teacher can see the images"
        )
    return rows


def _columns(source: str, known: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[int, ...]:
    """Where the student's classes are among the teacher's: by name, or by number if either has no names."""
    if len(known) == len(wanted) and (numbered(known) or numbered(wanted)):
        return tuple(range(len(known)))
    if missing := [name for name in wanted if name not in known]:
        problem = f"{source} lacks {listed(missing)} among its {len(known)} classes"
        raise UserError(f"{FIELD}: {problem}; a teacher needs all classes of the student, by name")
    return tuple(map(known.index, wanted))
