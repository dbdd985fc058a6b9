"""Inception v3 with its auxiliary head: RMSProp, label smoothing, gradients clipped, averaged weights.

Szegedy et al. 2015, arXiv:1512.00567, sections 7 and 8: RMSProp with decay 0.9 and epsilon 1.0, rate 0.045
times 0.94 every 2 epochs, clip 2.0, 50 replicas of 32 for 100 epochs, smoothing 0.1, evaluation with
averaged parameters. Here the 50 replicas are one batch of 1600, whose BatchNorm statistics are of all of
it. The paper says nothing of augmentation (GoogLeNet's is taken), weight decay (TF-slim's 0.00004) or the
weight of the head (GoogLeNet's 0.3).
Choices are made on 10,000 images held out of train, as the official validation images are the test.

  cnnjax data prepare folder:/data/imagenet --short_side=342 --format=jpeg --out=/data/imagenet342
  cnnjax train --config=configs/imagenet_inception_v3.py --config.data.name=records:/data/imagenet342

Not yet trained to completion here. Evaluate the averaged weights with `cnnjax evaluate --weights=ema`.
"""

from ml_collections import ConfigDict

from cnnjax.config import default


def get_config() -> ConfigDict:
    """The published recipe."""
    config = default()
    config.total_epochs = 100.0
    config.batch_size = 1600
    config.eval_batch_size = 400
    config.model = "inception_v3_with_aux"
    config.data.name = "records:imagenet342"
    config.data.num_validation = 10000
    config.data.test_split = "validation"
    config.augment.train = (
        "random_resized_crop(299)|mirror|brightness(0.4)|contrast(0.4)|saturation(0.4)|normalize"
    )
    config.augment.eval = "center_crop(299)|normalize"
    config.loss.label_smoothing = 0.1
    config.loss.aux_weight = 0.3
    config.optimizer.name = "rmsprop(decay_rate=0.9, epsilon=1.0, initial_mean_square=1.0)"
    config.optimizer.learning_rate = 0.045
    config.optimizer.schedule = "exponential(decay_rate=0.94, decay_epochs=2)"
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 0.00004
    config.optimizer.gradient_clip = 2.0
    config.ema_decay = 0.9999
    return config
