"""The operations of a CNN: pure functions of arrays, with one numerical contract on every platform."""

from cnnjax.ops.activations import ACTIVATIONS, activation, gelu, relu, silu
from cnnjax.ops.convolution import conv2d
from cnnjax.ops.dense import dense
from cnnjax.ops.normalization import (
    batch_norm_inference,
    batch_norm_train,
    layer_norm,
    local_response_norm,
    local_response_norm_caffe,
    scale_channels,
)
from cnnjax.ops.pooling import (
    adaptive_avg_pool,
    adaptive_max_pool,
    adaptive_windows,
    avg_pool,
    center_weighted_pool,
    global_avg_pool,
    global_max_pool,
    l2_pool,
    max_pool,
    min_pool,
    subsample,
)
from cnnjax.ops.shapes import conv_output_size, pool_output_size, receptive_field, resolve_padding

__all__ = [
    "ACTIVATIONS", "activation", "adaptive_avg_pool", "adaptive_max_pool", "adaptive_windows",
    "avg_pool", "batch_norm_inference", "batch_norm_train", "center_weighted_pool", "conv2d",
    "conv_output_size", "dense", "gelu", "global_avg_pool", "global_max_pool", "l2_pool", "layer_norm",
    "local_response_norm", "local_response_norm_caffe", "max_pool", "min_pool", "pool_output_size",
    "receptive_field", "relu", "resolve_padding", "scale_channels", "silu", "subsample",
]  # fmt: skip
