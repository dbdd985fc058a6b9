"""SimpleCNN on the whole of Fashion-MNIST: the module's first design, trained with today's recipe."""

from ml_collections import ConfigDict

from cnnjax.config import default


def get_config() -> ConfigDict:
    """10 epochs on 55,000 images; 5,000 of train are held out as validation."""
    config = default()
    config.data.name = "fashion_mnist"
    config.data.num_validation = 5000
    config.augment.train = "random_crop(28, padding=1)|mirror|normalize"
    config.total_epochs = 10.0
    config.batch_size = 128
    config.eval_batch_size = 1000
    config.log_every_steps = 100
    return config
