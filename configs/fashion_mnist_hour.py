"""A residual net on Fashion-MNIST: what fits into an hour on two cores.

    cnnjax train --config=configs/fashion_mnist_hour.py --workdir=runs/fm_hour

ResNet-20 of He et al. 2015 (arXiv:1512.03385, section 4.2) with random erasing (Zhong et al. 2017,
arXiv:1708.04896: 95.98 % in 300 epochs, on an earlier release of the images), in bfloat16, with a cosine over
fewer epochs. Not run yet; the result will be in experiments/fashion_mnist/README.md.
"""

from ml_collections import ConfigDict

from cnnjax.config import default


def get_config() -> ConfigDict:
    """92 epochs on 55,000 images; 5,000 of train are held out as validation."""
    config = default()
    config.data.name = "fashion_mnist"
    config.data.num_validation = 5000
    config.model = "resnet20_cifar"
    config.dtype = "bfloat16"
    config.total_epochs = 92.0
    config.batch_size = 128
    config.eval_batch_size = 1000
    config.eval_every_epochs = 10.0
    config.eval_protocol = "mirror"
    config.augment.train = "random_crop(28, padding=4)|mirror|normalize|random_erasing"
    config.optimizer.name = "nesterov(momentum=0.9)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 0.0005
    config.log_every_steps = 100
    return config
