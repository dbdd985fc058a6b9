"""Which folders are splits and classes, which files are images, what is left out: decided from all names.

A folder is a split if its name has one word of `SPLIT_WORDS`, in any case, and else only `AFFIXES` or what
the folder of another split has too: `Training`, `seg_train`, `test-images`, `val2017` beside `train2017`. A
lone folder on top is looked into, and in a split one that is named like it, like a split or by an affix.
Folders beside splits, images beside class folders, runs and prepared data are left out and told. A split
other than train whose images tell no class of train is unlabelled. What could mean two things is refused.
"""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from cnnjax.data.decode import IMAGE_SUFFIXES
from cnnjax.data.sources.archive import Files
from cnnjax.data.sources.classes import known_as, same, unknown_classes
from cnnjax.data.sources.members import Members
from cnnjax.data.sources.tree import NONE, Folder, find_images, find_written, other_files, read_tree
from cnnjax.errors import UserError, listed

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "eval": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
AFFIXES = {"", "seg", "image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "data"}
AFFIXES |= {"split", "folder", "files", "unknown", "unlabeled", "unlabelled"}
AS_TRAIN = "if they are classes, put all of them into one folder train/; else move one away"
SPLITS = ("train", "validation", "test")


def words_of(name: str) -> list[str]:
    """The words of a folder's name in small letters, no number in front: '1-TrainSet_2' -> train, 2."""
    name = re.sub(r"^\d+(?=\D)", "", unicodedata.normalize("NFKC", name))
    words = re.findall(r"[A-Z]+(?![^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+|\d+", name)
    return [word.lower().removesuffix("set") for word in words]


def split_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that a folder's name has the word of, and its words that are no affixes."""
    words = words_of(name)
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    rest = tuple(word for word in words if word not in SPLIT_WORDS and word not in AFFIXES)
    return (splits.pop(), rest) if len(splits) == 1 else None


def _where(root: Path, folder: Folder) -> str:
    return f"{root}/{folder.path}" if folder.path else str(root)


ByClass = Mapping[str, np.ndarray]  # class -> images by position
Splits = Mapping[str, tuple[str, ByClass]]  # split -> its folder ("" is the root), and its images


@dataclasses.dataclass(frozen=True)
class Layout:
    """The labelled splits, the classes in the order of the labels, and what a user should know."""

    splits: Splits
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def read_layout(files: Files, class_names: tuple[str, ...] = (), only: str | None = None) -> Layout:
    """Raises: UserError for no images, and for what could mean two things; it says what to do.

    With the `class_names` of a network only one split is looked at, which may have fewer of them.
    """
    images = find_images(files)
    tree = read_tree(files, images)
    written = tree.drop(find_written(files, images))
    others = other_files(files, images, but=written)
    if not tree.count:
        allowed = f"class/*{', class/*'.join(IMAGE_SUFFIXES)}"
        raise UserError(f"{files.root}: no images{f' but {others}' if others else ''}; allowed: {allowed}")
    folders = found = _find_splits(files.root, tree)
    if other := bool(class_names) and only != "train" and only in folders:
        folders = {only: folders[only]}
    with_names = [] if other else ["train"] if "train" in folders else list(folders)
    classes = {split: _name_classes(files, folders[split]) for split in with_names}
    names = tuple(sorted({name for by_class in classes.values() for name in by_class}))
    _check_distinct(files.root, names)
    names = class_names if other else names
    for split in [each for each in folders if each not in classes]:
        folders[split] = _inner(folders[split], names)
        classes[split] = _match_classes(files, folders[split], names, "the network" if other else "train")
    splits = {
        split: (folder.path, {n: files.members.by_name(classes[split].get(n, NONE)) for n in names})
        for split, folder in folders.items()
        if classes[split]
    }
    unread = [folder for split, folder in found.items() if split not in folders]
    left_out = [f"{listed(sorted(written))}, written by cnnjax"] if written else []
    left_out += [others] if others else []
    return Layout(splits, names, tuple(_notes(files.members, tree, folders, unread, splits, left_out)))


def _find_splits(root: Path, tree: Folder) -> dict[str, Folder]:
    """Split -> its folder, in the order of use; without split folders all is `train`."""
    top = tree
    while not (found := _split_folders(root, top)) and (only := top.only()) and only.filled():
        top = only
    if not found:
        return {"train": _inner(top)}
    beside = [folder for folder in top.filled() if folder not in found.values()]
    clear = "train" in found and (len(found) > 1 or found["train"].filled())
    if beside and not clear:
        one = next(iter(found.values()))
        raise UserError(f"{root}: is {one.path}, beside {beside[0].path}, a split or a class? {AS_TRAIN}")
    return {split: _inner(folder) if split == "train" else folder for split, folder in found.items()}


def _split_folders(root: Path, top: Folder) -> dict[str, Folder]:
    named = [(*words, folder) for folder in top.filled() if (words := split_of(folder.name))]
    alike = Counter(rest for _, rest in {(split, rest) for split, rest, _ in named})
    found: dict[str, Folder] = {}
    for split, rest, folder in named:
        if rest and alike[rest] < 2:
            continue
        if split in found:
            both = f"{found[split].path} and {folder.path}"
            raise UserError(f"{root}: {both} are both named like {split}; {AS_TRAIN}")
        found[split] = folder
    if not found and len({split for split, *_ in named}) > 1 and len(named) == len(top.filled()):
        both = f"{named[0][2].path} and {named[1][2].path}"
        raise UserError(f"{root}: are {both} splits or classes? name splits alike (train, test); {AS_TRAIN}")
    return {split: found[split] for split in SPLITS if split in found}


def _inner(folder: Folder, names: Collection[str] = ()) -> Folder:
    """The folder that the class folders lie in: `train/images/` for `train/`, unless `images` is a class."""
    while (only := folder.only()) and only.name not in names:
        if only.name != folder.name and set(words_of(only.name)) - AFFIXES - set(SPLIT_WORDS):
            break
        folder = only
    return folder


def _class_folders(root: Path, folder: Folder) -> list[Folder]:
    """The folders with images, if images do not rather lie beside them, nor splits in them."""
    filled, loose = folder.filled(), len(folder.images)
    if filled and loose > (inside := folder.count - loose):
        raise UserError(f"{_where(root, folder)}: {loose} images beside folders of {inside}; move those away")
    names = {each.name for each in filled}
    for each in filled:
        if both := [inner for inner in each.filled() if inner.name in names - {each.name}]:
            raise UserError(f"{_where(root, both[0])}: of class {each.name} or {both[0].name}? move it away")
    inside_classes = [*filled]
    for each in inside_classes:
        named = {split for f in each.filled() if (split := split_of(f.name))}
        if any(split != "train" and ("train", rest) in named for split, rest in named):
            raise UserError(f"{_where(root, each)}: splits inside a class; allowed: SPLIT/CLASS/images")
        inside_classes += each.filled()
    return filled


def _name_classes(files: Files, folder: Folder) -> ByClass:
    """Class -> images of the split that names the classes; each of loose files has its own before a `_`."""
    root = files.root
    if filled := _class_folders(root, folder):
        if empty := [each for each in folder.folders if not each.count]:
            others = other_files(files, find_images(files), below=empty[0].path)
            hint = f" but {others}; fill it or move it away" if others else "; fill or remove it"
            raise UserError(f"{_where(root, empty[0])}: a class without images{hint}")
        return {each.name: each.below() for each in filled}
    by_class: dict[str, list[int]] = {}
    for place, member in zip(folder.images.tolist(), files.members.names(folder.images), strict=True):
        name, loose, _ = PurePosixPath(member).name.partition("_")
        if not (name and loose):
            allowed = "allowed: CLASS/NAME, or CLASS_NAME for loose files"
            raise UserError(f"{root}/{member}: an image outside a class folder; {allowed}")
        by_class.setdefault(name, []).append(place)
    if len({SPLIT_WORDS.get(name.lower()) for name in by_class} - {None}) > 1:
        begin = " and ".join(f"{name}_" for name in sorted(by_class))
        raise UserError(f"{_where(root, folder)}: files begin with {begin}; allowed: SPLIT/CLASS/images")
    if len(by_class) == 1 < folder.count:
        alike = f"all {folder.count} images begin with {next(iter(by_class))}_, which is one class"
        raise UserError(f"{_where(root, folder)}: {alike}; allowed: CLASS/NAME, or CLASS_NAME of several")
    return _as_arrays(by_class)


def _as_arrays(by_class: Mapping[str, Sequence[int]]) -> ByClass:
    return {name: np.array(places, np.int64) for name, places in by_class.items()}


def _match_classes(files: Files, folder: Folder, names: Sequence[str], whose: str) -> ByClass:
    """Class of `names` -> images of another split; {} if no file tells its class."""
    root, exact = files.root, set(names)
    alike = {key(name): name for key in (known_as, same) for name in names}
    by_class: dict[str, list[int]] = {}
    strange: list[str] = []

    def known(name: str) -> str | None:
        return name if name in exact else alike.get(same(name), alike.get(known_as(name)))

    filled = _class_folders(root, folder)
    for each in filled:
        if (name := known(each.name)) is None:
            problem = f"{_where(root, each)}: not a class of {whose}"
            raise unknown_classes(problem, [each.name for each in filled], names)
        if name in by_class:
            raise UserError(f"{_where(root, each)}: a second folder of class {name}; merge them")
        by_class[name] = each.below().tolist()
    loose = NONE if filled else folder.images
    for place, member in zip(loose.tolist(), files.members.names(loose), strict=True):
        words = PurePosixPath(member).name.split("_")
        heads = (known("_".join(words[:end])) for end in range(len(words) - 1, 0, -1))
        name = next((head for head in heads if head is not None), None)
        if name is None:
            strange.append(member)
        else:
            by_class.setdefault(name, []).append(place)
    if by_class and strange:
        raise UserError(f"{root}/{strange[0]}: does not begin with a class of train, others do; move it away")
    return _as_arrays(by_class)


def _check_distinct(root: Path, names: Sequence[str]) -> None:
    """Raises a UserError for classes that look alike; A and a may be two letters."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(same(name), name)
        if other != name and not (len(name) == 1 and other == name.swapcase()):
            raise UserError(f"{root}: are {other!r} and {name!r} one class or two? merge or rename them")


def _notes(
    members: Members,
    tree: Folder,
    folders: Mapping[str, Folder],
    unread: Sequence[Folder],
    splits: Splits,
    left_out: Sequence[str],
) -> Iterator[str]:
    """What a user should know: counts, what lacks labels or classes, and images of no split."""
    counts = {split: sum(map(len, by_class.values())) for split, (_, by_class) in splits.items()}
    yield ", ".join(f"{split} {count}" for split, count in counts.items()) + " images"
    used = np.zeros(len(members), bool)
    read = (places for _, by_class in splits.values() for places in by_class.values())
    for places in (*read, *(folder.below() for folder in unread)):
        used[places] = True
    for split, folder in folders.items():
        if split not in splits:
            yield f"{split} has no labels: {folder.count} images outside class folders in {folder.path}"
            used[folder.images] = True
            continue
        if missing := [name for name, places in splits[split][1].items() if not len(places)]:
            yield f"{split} has no images of {listed(missing)}"
        if deeper := [inner for each in folder.filled() for inner in each.filled()]:
            yield f"{deeper[0].path} and other folders inside a class folder belong to its class"
        if split == "train" and not folder.filled():
            names = (PurePosixPath(name).name for name in members.names(folder.images))
            name = max(names, key=lambda name: name.count("_"))
            yield f"loose files belong to the class before their first _: {name} of {name.partition('_')[0]}"
    outside = [*tree.outside(used, members)]
    if told := [*([f"{listed(outside)}, outside class folders"] if outside else []), *left_out]:
        yield f"left out: {', '.join(told)}"
    if empty := [folder.path for folder in tree.empty()]:
        yield f"folders without images: {listed(empty)}"
