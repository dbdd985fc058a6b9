"""Images and labels in arrays as people store them, to uint8 [N, H, W, C] and numbers [N].

What holds for one split holds for all: each function takes the arrays of every split of a set, and refuses
what could mean two things.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from cnnjax.data.sources.sets import UNLABELLED
from cnnjax.errors import UserError, listed

BySplit = Mapping[str, np.ndarray]


def to_bytes(images: BySplit, what: object) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """uint8 [N, H, W, C] of [N, H, W], [N, H, W, C] or [N, C, H, W], of bytes, 0 to 255, 0 to 1 or truths.

    And notes on what they were understood as. The scale is that of all splits, so it takes all of a set.
    """
    images = {split: _channels_last(each, f"{what}: {split} images") for split, each in images.items()}
    kinds = {split: each.dtype for split, each in images.items()}
    kind = next(iter(kinds.values()))
    if len(set(kinds.values())) > 1 or kind.kind not in "biuf":
        given = ", ".join(f"{split} {each}" for split, each in kinds.items())
        raise UserError(f"{what}: images are {given}; allowed: numbers of one type, of 0 to 255 or 0 to 1")
    tops = {split: float(each.max()) for split, each in images.items() if each.size}
    # NumPy's ends, as Python's may pass over a NaN.
    low = float(np.min([each.min() for each in images.values() if each.size] or [0]))
    unit = (high := float(np.max([*tops.values()] or [0]))) <= 1
    # Fractions that end at 16, say, are on a scale of their own.
    if not (low >= 0 and (unit or (high <= 255 and (kind.kind != "f" or high > 127)))):
        allowed = "0 to 255, or 0 to 1, before normalization"
        raise UserError(f"{what}: images are {kind} from {low:.6g} to {high:.6g}; allowed: {allowed}")
    if not unit and any(0 < top <= 1 for top in tops.values()):  # black ones are of either scale
        given = ", ".join(f"{split} up to {top:.6g}" for split, top in tops.items())
        raise UserError(f"{what}: images are {kind}, {given}; allowed: 0 to 255, or 0 to 1, in all splits")
    note = f"{kind} images of 0 and 1 are read as black and white"
    notes = (note,) if kind.kind in "iu" and high == 1 else ()
    if kind == np.uint8 and not unit:
        return {split: np.ascontiguousarray(each) for split, each in images.items()}, notes
    scale = np.float32(255 if unit else 1)
    return {split: np.rint(each * scale).astype(np.uint8, order="C") for split, each in images.items()}, notes


def _channels_last(images: np.ndarray, what: str) -> np.ndarray:
    """[N, H, W, C] as a view."""
    if images.ndim == 3:
        return images[..., None]
    if images.ndim == 4:
        second, last = (images.shape[axis] in (1, 3) for axis in (1, 3))
        if second and not last:
            return images.transpose(0, 2, 3, 1)
        if not second and (last or images.shape[3] <= min(images.shape[1:3])):
            return images
    as_last, as_second = "C is 1, 3, or at most H and W, and H not 1 or 3", "C is 1 or 3, and W not 1 or 3"
    allowed = f"[N, H, W]; [N, H, W, C], where {as_last}; or [N, C, H, W], where {as_second}"
    raise UserError(f"{what} are {list(images.shape)}; allowed: {allowed}; reshape or transpose them")


def to_numbers(labels: BySplit, names: list[str], what: object) -> tuple[dict[str, np.ndarray], list[str]]:
    """[N] numbers of numbers, one-hot rows or names of classes; and the names, [] if there are none.

    `names` are those that the set gives, in the order of the labels, else [].
    """
    labels = {split: _one_column(each, f"{what}: {split} labels") for split, each in labels.items()}
    texts = {
        split: as_text(each, f"{what}: labels") for split, each in labels.items() if each.dtype.kind in "SU"
    }
    if texts and len(texts) < len(labels):
        raise UserError(
            f"{what}: labels are names in {', '.join(texts)} only; allowed: names or numbers in all splits"
        )
    if texts:
        if twice := sorted(name for name, count in Counter(names).items() if count > 1):
            raise UserError(
                f"{what}: class_names has {listed(twice)} twice; allowed: each once, as labels are names"
            )
        if "" in names:
            raise UserError(
                f"{what}: class_names has an empty name; allowed: none, as images without label have it"
            )
        names = names or sorted({name for each in texts.values() for name in each} - {""})
        places = {"": UNLABELLED} | {name: place for place, name in enumerate(names)}
        if strange := sorted({name for each in texts.values() for name in each} - places.keys()):
            raise UserError(
                f"{what}: labels {listed(strange)} are not in class_names; allowed: {listed(names)}"
            )
        return {
            split: np.asarray([places[n] for n in each], np.int32) for split, each in texts.items()
        }, names
    widths = {f"{split} labels": each.shape[1] for split, each in labels.items() if each.ndim == 2}
    widths |= {"class_names": len(names)} if widths and names else {}
    if len(set(widths.values())) > 1:
        given = ", ".join(f"{count} in {kind}" for kind, count in widths.items())
        raise UserError(f"{what}: classes: {given}; allowed: one-hot columns of the same classes in all")
    numbers = {split: each.argmax(axis=1) if each.ndim == 2 else each for split, each in labels.items()}
    return numbers, names or [str(label) for label in range(max(widths.values(), default=0))]


def _one_column(labels: np.ndarray, what: str) -> np.ndarray:
    """[N], or one-hot [N, K]."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim == 1 and labels.dtype.kind in "biufSU":
        return labels
    bits = labels.ndim == 2 and labels.dtype.kind in "biuf" and ((labels == 0) | (labels == 1)).all()
    if bits and (np.count_nonzero(labels, axis=1) == 1).all():
        return labels
    allowed = "one class for each image, as a number, a name or a one-hot row"
    raise UserError(f"{what} are {labels.dtype} {list(labels.shape)}; allowed: {allowed}")


def as_text(names: np.ndarray, what: str) -> list[str]:
    """Strings of [N] strings, bytes of UTF-8 or whole numbers."""
    if names.ndim != 1:
        raise UserError(f"{what} is {list(names.shape)}; allowed: one name for each class")
    try:
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: {error.object!r} is not UTF-8") from None
