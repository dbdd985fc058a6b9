"""AlexNet as in 2012: two towers, 227 crops of 256x256 images, mirror, PCA colour.

Krizhevsky, Sutskever, Hinton 2012, sections 4 and 5: SGD with momentum 0.9, batch 128, weight decay 0.0005,
learning rate 0.01 divided by 10 three times in 90 epochs. The steps are at fixed epochs, where the paper's
were set by hand. Pixels are 0 to 255 less the mean, as in the paper: divided by their deviation they would
be 60 times smaller, and N(0, 0.01) would let little of them reach the head. Choices are made on 10,000
images held out of train; the test images are the official validation images, ten crops of each.

  cnnjax data prepare folder:/data/imagenet --short_side=256 --out=/data/imagenet256
  cnnjax train --config=configs/imagenet_alexnet.py --config.data.name=records:/data/imagenet256

Not yet trained to completion here.
"""

from ml_collections import ConfigDict

from cnnjax.config import default


def get_config() -> ConfigDict:
    """The published recipe."""
    config = default()
    config.total_epochs = 90.0
    config.batch_size = 128
    config.eval_batch_size = 200
    config.eval_protocol = "ten_crop"
    config.model = "alexnet"
    config.data.name = "records:imagenet256"
    config.data.num_validation = 10000
    config.data.test_split = "validation"
    config.augment.train = f"random_crop(227)|mirror|pca_color(0.1)|normalize(std={1 / 255})"
    config.augment.eval = f"center_crop(227)|normalize(std={1 / 255})"
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "step(boundaries=(0.33, 0.66, 0.9), factor=0.1)"
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 0.0005
    return config
