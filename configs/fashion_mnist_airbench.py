"""The net of the speed runs on Fashion-MNIST: the best of an hour on two CPU cores.

    cnnjax train --config=configs/fashion_mnist_airbench.py --workdir=runs/fm_airbench

The recipe of configs/cifar10_airbench.py (Jordan 2024, arXiv:2404.00498) for images of 28x28 and a long run:
half the batch at the same rate an example; the rate falls to 0, so that no average of the weights is kept; a
square of each image is cut out (DeVries, Taylor 2017, arXiv:1708.04552), as in the author's airbench96. Views
at the test are mirrored and moved by a pixel. Measured in experiments/fashion_mnist/README.md.
"""

from ml_collections import ConfigDict

from cnnjax.config import default
from cnnjax.models.cifar_fast import FROZEN

SHARE = 1 / (1 + 1 / 0.15)  # of the published rates, which are for a loss that is a sum
BATCH_SIZE = 512


def get_config() -> ConfigDict:
    """36 epochs on 55,000 images; 5,000 of train are held out as validation."""
    config = default()
    config.total_epochs = 36.0
    config.batch_size = BATCH_SIZE
    config.eval_batch_size = 1000
    config.eval_protocol = "mirror_translate"
    config.dtype = "bfloat16"
    config.model = "airbench94"
    config.freeze = FROZEN
    config.data.name = "fashion_mnist"
    config.data.num_validation = 5000
    config.augment.train = (
        "random_crop(28, padding=2, padding_mode='reflect')|alternating_flip|normalize|cutout(8)"
    )
    config.loss.label_smoothing = 0.2
    config.optimizer.name = "nesterov(momentum=0.85)"
    config.optimizer.learning_rate = 11.5 * SHARE * BATCH_SIZE / 1024
    config.optimizer.schedule = "polynomial(power=1.0, end_learning_rate=0.0)"
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.weight_decay = 0.0153 / 11.5
    config.optimizer.learning_rate_scales = "norm.*/bias: 64"
    config.eval_every_epochs = 6.0
    config.log_every_steps = 100
    return config
