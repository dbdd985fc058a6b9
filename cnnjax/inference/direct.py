"""Prediction in one call of the CPU kernels, from uint8 arrays to probabilities, without XLA.

For one view of an image that is cut in the middle and normalized, as nearly all weights have it.
"""

from collections.abc import Callable

import numpy as np

from cnnjax.data.augment.views import Protocol
from cnnjax.ops.cpu import Program

Direct = Callable[[np.ndarray], np.ndarray]  # uint8 [B, H, W, C] -> probabilities float32 [B, K], a new array


def direct(program: Program, protocol: Protocol, image_shape: tuple[int, int, int]) -> Direct | None:
    """The program with what a protocol does before it; None if that is more."""
    steps, (height, width, channels) = protocol.augment.steps, protocol.augment.output_shape
    alike = [name for name, _ in steps] in (["normalize"], ["center_crop", "normalize"])
    if protocol.views or not alike or not program.predicts:
        return None
    mean, std = (np.broadcast_to(np.float32(value), channels) for _, value in sorted(steps[-1][1]))
    top, left = (image_shape[0] - height) // 2, (image_shape[1] - width) // 2
    window = slice(None), slice(top, top + height), slice(left, left + width)
    predict = program.predictor(1 / (255 * std), -mean / std)
    return lambda images: predict(images[window])
