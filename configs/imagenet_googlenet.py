"""GoogLeNet with both auxiliary heads: crops of any area and aspect, a slow decay, averaged weights.

Szegedy et al. 2014, arXiv:1409.4842, sections 5 and 6: momentum 0.9, learning rate down by 4 % every 8
epochs, Polyak averaging, windows of 8 to 100 % of the area and aspect 3/4 to 4/3, photometric distortions,
heads weighted 0.3. The paper gives no batch, rate, decay or length: batch 32, rate 0.01 and decay 0.0002
are those of Caffe's bvlc_googlenet; the 250 epochs, the distortions' strength and a moving average for
Polyak's are chosen here. The paper trained asynchronously. Its score of one network is from ten crops.
Choices are made on 10,000 images held out of train, as the official validation images are the test.

  cnnjax data prepare folder:/data/imagenet --short_side=256 --out=/data/imagenet256
  cnnjax train --config=configs/imagenet_googlenet.py --config.data.name=records:/data/imagenet256

Not yet trained to completion here. Evaluate the averaged weights with `cnnjax evaluate --weights=ema`.
"""

from ml_collections import ConfigDict

from cnnjax.config import default


def get_config() -> ConfigDict:
    """The published recipe."""
    config = default()
    config.total_epochs = 250.0
    config.batch_size = 32
    config.eval_batch_size = 200
    config.eval_protocol = "ten_crop"
    config.model = "googlenet_with_aux"
    config.data.name = "records:imagenet256"
    config.data.num_validation = 10000
    config.data.test_split = "validation"
    config.augment.train = (
        "random_resized_crop(224)|mirror|brightness(0.4)|contrast(0.4)|saturation(0.4)|normalize"
    )
    config.augment.eval = "center_crop(224)|normalize"
    config.loss.aux_weight = 0.3
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "exponential(decay_rate=0.96, decay_epochs=8)"
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 0.0002
    config.ema_decay = 0.9999
    return config
