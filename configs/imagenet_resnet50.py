"""ResNet-50 as in 2015: short sides drawn from 256 to 480, 224 crops, mirror, PCA colour, ten crops.

He et al. 2015, arXiv:1512.03385, section 3.4: SGD with momentum 0.9, batch 256, weight decay 0.0001 (on
every parameter), rate 0.1 divided by 10 on plateaus, 600,000 steps (120 epochs). The rate falls at fixed
epochs, where the paper's fell by sight; crops are of the middle square, enlarged from 256; the mean is one
colour rather than one image. Strides are in the first 1x1 of a block, as in the paper; `resnet50` has them
in the 3x3.
Choices are made on 10,000 images held out of train, as the official validation images are the test.

  cnnjax data prepare folder:/data/imagenet --short_side=256 --out=/data/imagenet256
  cnnjax train --config=configs/imagenet_resnet50.py --config.data.name=records:/data/imagenet256

Not yet trained to completion here.
"""

from ml_collections import ConfigDict

from cnnjax.config import default


def get_config() -> ConfigDict:
    """The published recipe."""
    config = default()
    config.total_epochs = 120.0
    config.batch_size = 256
    config.eval_batch_size = 200
    config.eval_protocol = "ten_crop"
    config.model = "resnet50_v1"
    config.data.name = "records:imagenet256"
    config.data.num_validation = 10000
    config.data.test_split = "validation"
    config.augment.train = "scale_jitter(224, sides=(256, 480))|mirror|pca_color(0.1)|normalize"
    config.augment.eval = "center_crop(224)|normalize"
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "step(boundaries=(30, 60, 90), factor=0.1)"
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 0.0001
    config.optimizer.decay = "all"
    return config
