"""Golden logits and gradients of timm's nets, for weights that NumPy alone rebuilds.

    python tests/golden_timm.py [NAME ...]    # with torch 2.13 and timm 1.0.31; nothing else here needs them

writes tests/models/golden/NAME.npz for the rows of NETS, computed in float64:
    logits     float32 [2, 10], in evaluation mode
    gradients  float32 [entries, 2], in training mode, of the loss of `loss_weights`: the norm of the gradient
               of each parameter, in the order of their names in torch, and its product with a random one
    entries    the number of all entries of the state dict
"""

import sys
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "models" / "golden"

SIZE = 33  # so that every map has an odd side
SIZES = {"inception_v4": 107, "inception_resnet_v2": 107, "xception": 71}  # larger, for 2x2 at their ends
# What is built there (keyword arguments) and here (fields), both with 10 classes: few and narrow blocks of
# every kind, as a whole net takes longer than a test may.
RESNET = (
    {"layers": (2, 1, 1, 1), "channels": (64, 32, 32, 32)},
    "stage_sizes=(2, 1, 1, 1), widths=(64, 32, 32, 32)",
)
DPN = (
    {"k_sec": (2, 1), "inc_sec": (16, 32), "k_r": 32, "groups": 8},
    "stage_sizes=(2, 1), appended=(16, 32), inner=32, groups=8",
)
XCEPTION = "entry=(((8, 8, 8), 2),), middle=((8, 8, 8),), end=((8, 12, 12), (12, 12, 16))"
GHOSTS = "((3, 1, 16, 16, False),), ((5, 2, 24, 12, True),), ((3, 1, 20, 12, True),)"
NETS: dict[str, tuple[dict, str]] = {
    "resnet18d": RESNET,
    "seresnet18": RESNET,
    "seresnext26d_32x4d": RESNET,
    "res2next50": RESNET,
    "dpn68": DPN,
    "dpn68b": DPN,
    # Of these what timm builds is in SMALL.
    "inception_v4": ({}, "cells=(1, 1, 1), dropout_rate=0.0"),
    "inception_resnet_v2": ({}, "cells=(1, 1, 1), dropout_rate=0.0"),
    "xception": ({}, "middle=1, dropout_rate=0.0"),
    "xception41": ({}, XCEPTION),
    "xception41p": ({}, XCEPTION),
    "ghostnet_100": ({}, f"stages=({GHOSTS}), dropout_rate=0.0"),
    "ghostnetv2_100": ({}, f"stages=({GHOSTS}), gated_from=3, dropout_rate=0.0"),
    "tf_efficientnet_lite0": ({}, "dropout_rate=0.0, drop_path_rate=0.0"),
    "convnextv2_atto": (
        {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20)},
        "stage_sizes=(1, 1, 2, 1), widths=(8, 12, 16, 20), drop_path_rate=0.0",
    ),
    "repvgg_a0": ({"blocks": ((2, 48, 1), (1, 96, 1))}, "stage_sizes=(2, 1), widths=(48, 96)"),
    "repvgg_b1g4": ({"blocks": ((2, 64, 4), (1, 32, 4))}, "stage_sizes=(2, 1), widths=(64, 32)"),
}


def entry_value(name: str, entry: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of one entry of a state dict: a function of the two names and the shape."""
    if entry.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}/{entry}".encode())))
    if entry.endswith("running_var") or (entry.endswith("weight") and len(shape) == 1):
        return draw.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) >= 2:
        std = np.sqrt(2.0 / int(np.prod(shape[1:])))
        return (draw.standard_normal(shape) * std).astype(np.float32)
    return (draw.standard_normal(shape) * 0.1).astype(np.float32)


def images(size: int) -> np.ndarray:
    """Two standard normal images, float32 [2, 3, size, size]."""
    return np.random.Generator(np.random.PCG64(0)).standard_normal((2, 3, size, size)).astype(np.float32)


def loss_weights(shape: tuple[int, ...]) -> np.ndarray:
    """The loss whose gradients are golden is the sum of the logits times these."""
    return np.cos(np.arange(np.prod(shape))).reshape(shape).astype(np.float32)


def summary(name: str, gradients: dict[str, np.ndarray]) -> np.ndarray:
    """float32 [entries, 2] of gradients by torch's names: see above."""

    def row(entry: str) -> tuple[float, float]:
        gradient = gradients[entry].astype(np.float64)
        draw = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}/{entry}".encode())))
        direction = draw.standard_normal(gradient.shape)
        return float(np.linalg.norm(gradient)), float((gradient * direction).sum())

    return np.array([row(entry) for entry in sorted(gradients)], np.float32)


def write(name: str) -> None:
    import torch

    torch.set_num_threads(1)
    model = (SMALL[name]() if name in SMALL else _create(name, **NETS[name][0])).double()
    values = {k: entry_value(name, k, tuple(v.shape)) for k, v in model.state_dict().items()}
    model.load_state_dict({k: torch.from_numpy(v) for k, v in values.items()})
    batch = torch.from_numpy(images(SIZES.get(name, SIZE))).double()
    logits = model.eval()(batch).detach().numpy().astype(np.float32)
    trained = model.train()(batch)
    (trained * torch.from_numpy(loss_weights(logits.shape))).sum().backward()
    gradients = {k: v.grad.numpy() for k, v in model.named_parameters()}
    rows = summary(name, gradients)
    np.savez(FOLDER / f"{name}.npz", logits=logits, gradients=rows, entries=len(values))


def _create(name: str, **given: object):
    import timm

    if "blocks" in given:  # (number, channels, groups of every second) of each stage of a RepVGG
        given["blocks"] = [_repvgg_stage(*stage) for stage in given["blocks"]]
    return timm.create_model(name, pretrained=False, num_classes=10, **given)


# Nets that timm builds in one size: most of their blocks are left out.


def _inception_v4():
    model = _create("inception_v4")
    model.features = model.features[:7] + model.features[10:12] + model.features[18:20]
    return model


def _inception_resnet():
    model = _create("inception_resnet_v2")
    model.repeat, model.repeat_1, model.repeat_2 = model.repeat[:1], model.repeat_1[:1], model.repeat_2[:1]
    return model


def _xception():
    import torch

    model = _create("legacy_xception")
    model.block5 = model.block12
    for i in range(6, 13):
        setattr(model, f"block{i}", torch.nn.Identity())
    return model


def _aligned(name: str):
    widths = ((64, 8, 2), (8, 8, 1), (8, (8, 12, 12), 2), (12, (12, 12, 16), 1))
    blocks = [{"in_chs": inputs, "out_chs": outputs, "stride": stride} for inputs, outputs, stride in widths]
    blocks[-1] |= {"no_skip": True} | ({} if name.endswith("p") else {"start_with_relu": False})
    return _create(name, block_cfg=blocks)


def _ghostnet(version: str):
    from timm.models.ghostnet import GhostNet

    rows = [[[3, 16, 16, 0, 1]], [[5, 24, 12, 0.25, 2]], [[3, 20, 12, 0.25, 1]]]
    return GhostNet(rows, num_classes=10, drop_rate=0.0, version=version)


SMALL = {
    "inception_v4": _inception_v4,
    "inception_resnet_v2": _inception_resnet,
    "xception": _xception,
    "xception41": lambda: _aligned("xception41"),
    "xception41p": lambda: _aligned("xception41p"),
    "ghostnet_100": lambda: _ghostnet("v1"),
    "ghostnetv2_100": lambda: _ghostnet("v2"),
}


def _repvgg_stage(count: int, channels: int, groups: int) -> object:
    from timm.models.byobnet import ByoBlockCfg

    def group_size(_: int, index: int) -> int:
        return channels // groups if groups > 1 and index % 2 == 1 else 0

    return ByoBlockCfg(type="rep", d=count, c=channels, gs=group_size)


if __name__ == "__main__":
    for each in sys.argv[1:] or NETS:
        write(each)
