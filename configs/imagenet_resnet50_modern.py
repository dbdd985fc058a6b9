"""ResNet-50 as torchvision trains it today: 600 epochs of strong augmentation, 80.7 % expected.

The recipe of the weights IMAGENET1K_V2 (github.com/pytorch/vision, issue 3995; Vryniotis 2021, "How to Train
State-Of-The-Art Models Using TorchVision's Latest Primitives"): SGD with momentum 0.9, batch 1024, rate 0.5,
5 epochs of warm-up from 1 %, cosine; weight decay 0.00002, not on BatchNorm; label smoothing 0.1;
TrivialAugment (wide), random erasing of a tenth of the images, then MixUp (0.2) or CutMix (1.0) of each
batch; crops of 176 in training, one of 224 from 232 at test time; an average of the weights; BatchNorm
statistics of 128 images. torchvision's average keeps 1 - 0.00002 * 8 * 128 * 32 / 600 every 32 steps, here
the 32nd root of that every step. Expected: 80.674 % top-1 of the averaged weights; 80.858 % with repeated
augmentation.

Deviations: no repeated augmentation (each image four times, augmented differently, in an epoch of a quarter
of the images: torchvision's pull request 5201); bfloat16; warm-up from 0; schedules by step, not by epoch;
windows are cut from the middle square, resized to 232 before; 10,000 images of train are held out, as the
official validation images are the test.

  cnnjax data prepare folder:/data/imagenet --short_side=232 --format=jpeg --out=/data/imagenet232
  cnnjax train --config=configs/imagenet_resnet50_modern.py --config.data.name=records:/data/imagenet232

Hours on 8 GPUs: at least 0.4, at the peak of H100s (`cnnjax compile --topology=h100:8 --image=232x232x3`);
8.7 at the 24,479 images/s that PyTorch reaches on 8 H200 with 224 pixels (Lambda's logs), if the input
pipeline keeps up; torchvision's own run on 8 GPUs took 42 (pull request 6433). Not yet trained to completion.
Evaluate the averaged weights with `cnnjax evaluate --weights=ema`.
"""

from ml_collections import ConfigDict

from cnnjax.config import default

EMA_STEPS = 32
EMA_DECAY = (1 - 0.00002 * 8 * 128 * EMA_STEPS / 600) ** (1 / EMA_STEPS)


def get_config() -> ConfigDict:
    """torchvision's recipe."""
    config = default()
    config.total_epochs = 600.0
    config.batch_size = 1024
    config.eval_batch_size = 1000
    config.dtype = "bfloat16"
    config.batch_norm = "groups(128)"
    config.model = "resnet50"
    config.data.name = "records:imagenet232"
    config.data.num_validation = 10000
    config.data.test_split = "validation"
    config.augment.train = (
        "random_resized_crop(176)|mirror|trivial_augment|normalize|random_erasing(0.1)"
        "|mixup_or_cutmix(alpha=0.2, cutmix_alpha=1.0)"
    )
    config.augment.eval = "center_crop(224)|normalize"
    config.loss.label_smoothing = 0.1
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.5
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 0.00002
    config.optimizer.decay = r"kernel$|head/bias"
    config.ema_decay = EMA_DECAY
    return config
