"""How torch spells a family: the type of the rows of `TORCH_NAMES` in the family files."""

import dataclasses
import re
from collections.abc import Callable, Mapping

Rename = Callable[..., str]  # (a module's path, the model, which is of the family's own class)


@dataclasses.dataclass(frozen=True)
class TorchNames:
    """The entries of torch's state dict for a module class.

    Attributes:
      rename: (module path here such as 'stage1_block2/conv1', the model) -> 'layer1.1.conv2', or the
        whole entry if a leaf has a name of its own ('features.1.0.layer_scale').
      flattened: dense layers that read a flattened [C, H, W] map there and [H, W, C] here: path -> (H, W).
      extra: patterns of entries that a model here may be built without: auxiliary heads.
      convolved: dense layers here that are 1x1 convolutions there, by path pattern.
      old_names: (pattern, replacement) that turns the entries of torchvision's older files into today's.
    """

    rename: Rename
    flattened: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    extra: tuple[str, ...] = ()
    convolved: tuple[str, ...] = ()
    old_names: tuple[str, str] | None = None


def substitute(*rules: tuple[str, str | Callable[[re.Match[str]], str]]) -> Rename:
    """A `rename` that applies regular expressions in order, each to the whole path."""

    def rename(path: str, model: object = None) -> str:
        for pattern, replacement in rules:
            path = re.sub(pattern, replacement, path)
        return path.replace("/", ".")

    return rename


def place(block: str) -> list[int]:
    """The numbers in 'stage2_block1', from 1."""
    return [int(number) for number in re.findall(r"\d+", block)]
