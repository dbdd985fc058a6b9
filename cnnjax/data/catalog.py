"""The facts of the data sets that have a name; where they are looked for and how loaded is in `datasets`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from cnnjax.data.files import check_sha256
from cnnjax.data.sources import cifar, idx, npz
from cnnjax.data.sources.source import Arrays

MINI = Path(__file__).parent / "fashion_mnist_mini.npz"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
    "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
)  # fmt: skip


class Layout(NamedTuple):
    """How the files of a data set lie in a folder."""

    find: Callable[[Path], Path | None]  # folder -> what `read` takes, or None if it does not hold the files
    read: Callable[[Path, str], Arrays]  # (what `find` gave, split) -> images and labels


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The facts of a registered data set."""

    name: str
    image_shape: tuple[int, int, int]  # [H, W, C]
    class_names: tuple[str, ...]  # in the order of the labels
    splits: Mapping[str, int]  # official split -> number of images
    mean: tuple[float, ...]  # of each channel over the pixels of `train`, on the scale 0..1; so is std
    std: tuple[float, ...]
    layout: Layout
    archives: Mapping[str, str] = dataclasses.field(default_factory=dict)  # to download: name -> SHA-256
    mirrors: tuple[str, ...] = ()  # addresses of folders that hold the archives, in the order they are tried
    system: tuple[str, str] | None = None  # the folder of an operating system's package, and its name
    description: str = ""  # one line, as the next two
    licence: str = ""
    source: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def idx_layout(sha256: Mapping[str, str]) -> Layout:
    """A folder of the four idx files with pinned contents."""

    def find(folder: Path) -> Path | None:
        return folder if all(idx.find_idx(folder, name) for name in sha256) else None

    return Layout(find, lambda folder, split: idx.read_split(folder, split, sha256))


def _cifar_layout(
    archive: str, sha256: str, folder: str, members: Mapping[str, tuple[str, ...]], label_bytes: int
) -> Layout:
    """CIFAR's binary archive (checked), or the folder unpacked from it."""

    def find(root: Path) -> Path | None:
        for place in (root / folder, root):
            if all((place / file).is_file() for split in members.values() for file in split):
                return place
        return root / archive if (root / archive).is_file() else None

    def read(path: Path, split: str) -> Arrays:
        if path.is_file():
            check_sha256(path, sha256)
        return cifar.read_cifar(path, members[split], label_bytes, 10 if label_bytes == 1 else 100)

    return Layout(find, read)


# Checksums of the archives: those that tensorflow-datasets publishes (url_checksums/*.txt).
# Contents, unzipped: those of Fashion-MNIST measured on Debian's package, which has gzipped them
# anew; those of MNIST as several public projects give them beside the archives' checksums.
_FASHION_ARCHIVES = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
_FASHION_CONTENTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_MNIST_ARCHIVES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_MNIST_CONTENTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_CIFAR10 = ("cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd")
_CIFAR100 = ("cifar-100-binary.tar.gz", "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec")
_CIFAR10_MEMBERS = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_CIFAR100_MEMBERS = {"train": ("train.bin",), "test": ("test.bin",)}
_CIFAR = DatasetInfo(
    name="cifar10",
    image_shape=(32, 32, 3),
    class_names=CIFAR10_CLASSES,
    splits={"train": 50000, "test": 10000},
    mean=(0.4914, 0.4822, 0.4465),  # as published widely; not measured here
    std=(0.2470, 0.2435, 0.2616),
    layout=_cifar_layout(*_CIFAR10, "cifar-10-batches-bin", _CIFAR10_MEMBERS, label_bytes=1),
    archives=dict([_CIFAR10]),
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    description="small colour photographs, 10 classes (Krizhevsky 2009)",
    licence="none stated; cite the report",
    source="https://www.cs.toronto.edu/~kriz/cifar.html",
)

DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="fashion_mnist",
            image_shape=(28, 28, 1),
            class_names=FASHION_CLASSES,
            splits={"train": 60000, "test": 10000},
            mean=(0.2860406,),  # measured on train
            std=(0.3530242,),
            layout=idx_layout(_FASHION_CONTENTS),
            archives=_FASHION_ARCHIVES,
            mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            system=("/usr/share/datasets/fashion-mnist", "dataset-fashion-mnist"),
            description="grey pictures of clothes (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747)",
            licence="MIT",
            source="https://github.com/zalandoresearch/fashion-mnist",
        ),
        DatasetInfo(
            name="fashion_mnist_mini",
            image_shape=(28, 28, 1),
            class_names=FASHION_CLASSES,
            splits={"train": 6000, "test": 1000},
            mean=(0.2865290,),  # measured on train
            std=(0.3536679,),
            layout=Layout(
                lambda folder: MINI if folder == MINI.parent else None,
                npz.read_split,
            ),
            description="a class-balanced sample of fashion_mnist that ships with the package",
            licence="MIT",
            source="https://github.com/zalandoresearch/fashion-mnist",
        ),
        DatasetInfo(
            name="mnist",
            image_shape=(28, 28, 1),
            class_names=tuple("0123456789"),
            splits={"train": 60000, "test": 10000},
            mean=(0.1307,),  # as published widely; not measured here
            std=(0.3081,),
            layout=idx_layout(_MNIST_CONTENTS),
            archives=_MNIST_ARCHIVES,
            mirrors=("https://storage.googleapis.com/cvdf-datasets/mnist/",),
            description="handwritten digits (LeCun, Cortes, Burges 1998)",
            licence="CC BY-SA 3.0",
            source="http://yann.lecun.com/exdb/mnist/",
        ),
        _CIFAR,
        dataclasses.replace(
            _CIFAR,
            name="cifar100",
            class_names=CIFAR100_CLASSES,
            mean=(0.5071, 0.4865, 0.4409),  # as published widely; not measured here
            std=(0.2673, 0.2564, 0.2762),
            layout=_cifar_layout(*_CIFAR100, "cifar-100-binary", _CIFAR100_MEMBERS, label_bytes=2),
            archives=dict([_CIFAR100]),
            description="small colour photographs, 100 classes, fine labels (Krizhevsky 2009)",
        ),
    )
}
