"""ZFNet: AlexNet with a finer first layer, found by looking at what its layers see.

Zeiler, Fergus 2013, 1311.2901, fig. 3 and section 3. The figure's map sizes 110, 55, 26, 13, 6 need the
padding of conv1 and the poolings that round up, which the paper leaves out. Its "weights of 10^-2" are taken
as N(0, 0.01), its "contrast normalization across feature maps", after pooling, as AlexNet's. The preset keeps
the paper's pixels, 0..255 less the mean.
"""

from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import by_name
from cnnjax.models.layers import Conv, Dense, logits
from cnnjax.models.net import RESPONSE_NORMS, Net, require_size
from cnnjax.models.variants import RAW_PIXELS, Preset, Variant


class ZFNet(Net):
    """Five convolutions, one tower, and three dense layers. `widths` are those of the seven hidden layers."""

    response_norm: str = "paper"
    dropout_rate: float = 0.5
    widths: tuple[int, ...] = (96, 256, 384, 384, 256, 4096, 4096)
    image_size: int = 224

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        require_size(image, self.image_size, "ZFNet")
        norm = by_name("response_norm", self.response_norm, RESPONSE_NORMS)
        normal = nn.initializers.normal(0.01)
        conv = partial(Conv, kernel_init=normal, dtype=self.dtype)
        dense = partial(Dense, kernel_init=normal, dtype=self.dtype)
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        relu, widths = jax.nn.relu, self.widths

        x = image  # 224 224 3
        x = relu(conv(widths[0], 7, strides=2, padding=1, name="conv1")(x))  # 110 110 96
        x = norm(ops.max_pool(x, 3, 2, ceil=True))  # 55 55 96
        x = relu(conv(widths[1], 5, strides=2, padding=0, name="conv2")(x))  # 26 26 256
        x = norm(ops.max_pool(x, 3, 2, ceil=True))  # 13 13 256
        x = relu(conv(widths[2], 3, padding=1, name="conv3")(x))  # 13 13 384
        x = relu(conv(widths[3], 3, padding=1, name="conv4")(x))  # 13 13 384
        x = relu(conv(widths[4], 3, padding=1, name="conv5")(x))  # 13 13 256
        x = ops.max_pool(x, 3, 2, ceil=True)  # 6 6 256
        x = x.reshape(x.shape[0], -1)  # 9216
        x = dropout(name="dropout1")(relu(dense(widths[5], name="dense1")(x)))  # 4096
        x = dropout(name="dropout2")(relu(dense(widths[6], name="dense2")(x)))  # 4096
        return logits(x, self.num_classes, self.dtype, kernel_init=normal)


_PRESET = Preset(std=RAW_PIXELS)
VARIANTS = {"zfnet": Variant(ZFNet, "Zeiler & Fergus 2013", _PRESET, 61.6, 83.5, "ImageNet 10-crop")}
