"""The net of the CIFAR-10 speed run on Fashion-MNIST: what fits into an hour on two cores with bfloat16.

    cnnjax train --config=configs/fashion_mnist_airbench.py --workdir=runs/fm_airbench

configs/cifar10_airbench.py for images of 28x28 and a longer run: half the batch at the same rate an example;
the rate falls to 0, so that no average of the weights is kept; a square of each image is cut out (DeVries,
Taylor 2017, arXiv:1708.04552), as in the author's airbench96. What it reached stands in
experiments/fashion_mnist/README.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from cnnjax.config import from_file


def get_config() -> ConfigDict:
    """32 epochs on 55,000 images; 5,000 of train are held out as validation."""
    config = from_file(str(Path(__file__).with_name("cifar10_airbench.py")))
    config.total_epochs = 32.0
    config.eval_every_epochs = config.total_epochs
    config.log_every_steps = 100
    config.batch_size //= 2
    config.data.name = "fashion_mnist"
    config.augment.train = (
        "random_crop(28, padding=2, padding_mode='reflect')|alternating_flip|normalize|cutout(8)"
    )
    config.optimizer.learning_rate /= 2
    config.optimizer.schedule = "polynomial(power=1.0, end_learning_rate=0.0)"
    config.optimizer.warmup_epochs = 0.2 * config.total_epochs
    config.ema_decay = 0.0
    return config
