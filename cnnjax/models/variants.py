"""What a family file declares: its named variants, how their images are prepared, and its names in torch."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import jax
from flax import linen as nn
from flax.typing import VariableDict


@dataclasses.dataclass(frozen=True)
class Preset:
    """The preprocessing that a set of weights owns: an image is resized whole, then its middle is cut."""

    input_size: tuple[int, int, int] = (224, 224, 3)  # [H, W, C], of the cut
    num_classes: int = 1000
    resize: int | None = 256  # the short side in pixels before the centre crop; None: it is the input size
    interpolation: str = "bilinear"  # antialiased: of `data.recipe.INTERPOLATIONS`
    crop_mode: str = "center"  # as timm has it: or "squash" (to a square), "border" (the long side fits)
    mean: tuple[float, ...] | None = (0.485, 0.456, 0.406)  # per channel of 0..1; None: the data set's
    std: tuple[float, ...] | None = (0.229, 0.224, 0.225)

    def image_shape(self, side: int | None) -> tuple[int, int, int]:
        """[H, W, C] of the images, or of square ones with a side of so many pixels."""
        height, width, channels = self.input_size
        return side or height, side or width, channels


# Small images, at their own size and by the statistics of the data set.
CIFAR = Preset((32, 32, 3), 10, resize=None, mean=None, std=None)
MNIST = dataclasses.replace(CIFAR, input_size=(28, 28, 1))
HALF = (0.5, 0.5, 0.5)  # the mean and standard deviation of pixels from -1 to 1
RAW_PIXELS = (1 / 255, 1 / 255, 1 / 255)  # the standard deviation of pixels that stay 0..255 less the mean


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the model table."""

    build: Callable[..., nn.Module]  # a linen module class or a partial of one
    source: str  # its paper
    preset: Preset = Preset()
    top1: float | None = None  # accuracy in per cent on the data set that `published` names
    top5: float | None = None
    published: str = ""
    # Variables that training starts from, of images [B, H, W, C] as the network takes them.
    from_images: Callable[[jax.Array], VariableDict] | None = None
    timm: str = ""  # its name in timm, if that is another; "-" if that name is another net there


def timm_preset(
    input_size: tuple[int, int, int],
    num_classes: int,
    crop_pct: float = 0.875,
    interpolation: str = "bilinear",
    crop_mode: str = "center",
    **statistics: tuple[float, ...],
) -> Preset:
    """The preset of timm's `pretrained_cfg`; `input_size` is [H, W, C], `statistics` are mean and std."""
    resize = math.floor(input_size[0] / crop_pct)
    return Preset(input_size, num_classes, resize, interpolation, crop_mode, **statistics)


def inception_preset(crop_pct: float) -> Preset:
    """That of Inception v4 and Xception in timm."""
    return timm_preset((299, 299, 3), 1000, crop_pct, "bicubic", mean=HALF, std=HALF)


def preset_augment(preset: Preset) -> str:
    """The augmentation that prepares images, resized to `preset.resize`, for evaluation."""
    height, width, _ = preset.input_size
    crop = f"center_crop(({height}, {width}))|" if preset.resize else ""
    if preset.mean is None or preset.std is None:
        return f"{crop}normalize"
    return f"{crop}normalize(mean={tuple(preset.mean)}, std={tuple(preset.std)})"


@dataclasses.dataclass(frozen=True)
class TorchNames:
    """The entries of torch's state dict for a module class.

    A family with several spellings, torchvision's and timm's, has a tuple of these in `TORCH_NAMES`: files
    are read by the one that fits best, and written by the first.
    """

    # (module path here such as 'stage1_block2/conv1', the model, of that class) -> 'layer1.1.conv2', or the
    # whole entry if a leaf has a name of its own ('features.1.0.layer_scale').
    rename: Callable[..., str]
    # Dense layers that read a flattened [C, H, W] map there and [H, W, C] here: path -> (H, W).
    flattened: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    extra: tuple[str, ...] = ()  # patterns of entries that a model here may be built without: auxiliary heads
    convolved: tuple[str, ...] = ()  # patterns of dense layers here that are convolutions there
    old_names: tuple[str, str] | None = None  # (pattern, replacement) for torchvision's older files
    # Fields that leave no trace in weights: the values, the default first, and what each means.
    untold: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)


Rules = Mapping[str, str | Callable[[re.Match[str]], str]]  # patterns of paths, and what replaces them


def substitute(rules: Rules) -> Callable[..., str]:
    """A `rename` that applies regular expressions in order, each to the whole path."""

    def rename(path: str, model: object = None) -> str:
        for pattern, replacement in rules.items():
            path = re.sub(pattern, replacement, path)
        return path.replace("/", ".")

    return rename


def place(block: str) -> list[int]:
    """The numbers in 'stage2_block1', from 1."""
    return [int(number) for number in re.findall(r"\d+", block)]
