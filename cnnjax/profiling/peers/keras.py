"""Keras, on the backend that KERAS_BACKEND names: its applications, and two nets of its own."""

import functools
import importlib
import itertools
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from cnnjax.profiling.peers.serve import Unable, Work, serve

APPLICATIONS = {
    "resnet50": keras.applications.ResNet50,
    "inception_v3": keras.applications.InceptionV3,
    "densenet121": keras.applications.DenseNet121,
    "mobilenet_v2": keras.applications.MobileNetV2,
    "efficientnet_b0": keras.applications.EfficientNetB0,
    "convnext_tiny": functools.partial(keras.applications.ConvNeXtTiny, include_preprocessing=False),
}


def simple_cnn(work: Work) -> keras.Model:
    parts = [keras.Input(work.shape)]
    for width in (16, 32):
        parts += [layers.Conv2D(width, 5, padding="same"), layers.BatchNormalization(), layers.ReLU()]
        parts += [layers.MaxPooling2D(2)]
    return keras.Sequential([*parts, layers.Flatten(), layers.Dense(work.num_classes)])


def resnet20(work: Work) -> keras.Model:
    def convolved(x: keras.KerasTensor, width: int, stride: int = 1) -> keras.KerasTensor:
        x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    image = keras.Input(work.shape)
    x = layers.ReLU()(convolved(image, 16))
    for before, width in itertools.pairwise([16] * 4 + [32] * 3 + [64] * 3):
        stride, half = width // before, (width - before) // 2
        y = convolved(layers.ReLU()(convolved(x, width, stride)), width)
        short = keras.ops.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (half, half)))
        x = layers.ReLU()(y + short)
    return keras.Model(image, layers.Dense(work.num_classes)(layers.GlobalAveragePooling2D()(x)))


def build(work: Work) -> Callable[[], object]:
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if work.dtype == "bfloat16" else "float32")
    if own := {"simple_cnn": simple_cnn, "resnet20_cifar": resnet20}.get(work.model):
        model = own(work)
    elif application := APPLICATIONS.get(work.model):
        model = application(
            **{"weights": None, "input_shape": work.shape, "classes": work.num_classes},
            classifier_activation=None,
        )
    else:
        raise Unable("no such net")
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    draw = np.random.default_rng(0)
    image = keras.ops.convert_to_tensor(draw.standard_normal((work.batch_size, *work.shape), np.float32))
    label = keras.ops.convert_to_tensor(draw.integers(0, work.num_classes, work.batch_size))
    return lambda: model.train_on_batch(image, label)


if __name__ == "__main__":
    backend = importlib.import_module(keras.backend.backend())
    serve(f"{keras.__version__}, {backend.__name__} {backend.__version__}", build)
