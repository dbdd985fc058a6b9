"""Nets of timm: exact counts, its logits and gradients with the same weights, RepVGG's fused form."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.typing import VariableDict

from cnnjax.models import create_model, repvgg
from cnnjax.models.net import Net
from cnnjax.models.weights.torch import convert_into, to_torch, torch_entries
from tests import golden_timm
from tests.models import published_counts

# As counted by timm 1.0.31.
PARAMS = {
    "resnet18d": 11708744,
    "resnet26d": 16014408,
    "resnet34d": 21816904,
    "resnet50d": 25576264,
    "resnet101d": 44568392,
    "resnet152d": 60212040,
    "resnet200d": 64693064,
    "seresnet18": 11779624,
    "seresnet34": 21960416,
    "seresnet50": 28088024,
    "seresnet101": 49326872,
    "seresnet152": 66821848,
    "seresnet152d": 66841080,
    "seresnext26d_32x4d": 16809512,
    "seresnext50_32x4d": 27559896,
    "seresnext101_32x4d": 48955416,
    "seresnext101_32x8d": 93569048,
    "seresnext101_64x4d": 88232984,
    "seresnext101d_32x8d": 93588280,
    "res2net50_26w_4s": 25699120,
    "res2net50_26w_6s": 37051448,
    "res2net50_26w_8s": 48403776,
    "res2net50_48w_2s": 25287304,
    "res2net50_14w_8s": 25059816,
    "res2net101_26w_4s": 45206688,
    "res2net50d": 25718352,
    "res2net101d": 45225920,
    "res2next50": 24671464,
    "dpn68": 12611602,
    "dpn68b": 12611602,
    "dpn92": 37668392,
    "dpn98": 61570728,
    "dpn107": 86917800,
    "dpn131": 79254504,
    "repvgg_a0": 9108968,
    "repvgg_a1": 14092264,
    "repvgg_a2": 28210600,
    "repvgg_b0": 15817960,
    "repvgg_b1": 57415016,
    "repvgg_b1g4": 39966056,
    "repvgg_b2": 89022376,
    "repvgg_b2g4": 61758376,
    "repvgg_b3": 123085288,
    "repvgg_b3g4": 83825128,
}


def test_exact_parameter_counts():
    """Of the table; `test_models` counts every model again and compares it with the table."""
    assert {name: published_counts()[name] for name in PARAMS} == PARAMS


def golden(name: str) -> Mapping[str, np.ndarray]:
    return np.load(golden_timm.FOLDER / f"{name}.npz")


def built(name: str) -> tuple[Net, VariableDict, np.ndarray]:
    """The net behind golden values, its variables by timm's names, and two images [2, H, W, 3]."""
    model = create_model(f"{name}({golden_timm.NETS[name][1]})", num_classes=10)
    size = golden_timm.SIZES.get(name, golden_timm.SIZE)
    entries = torch_entries(model, (size, size, 3))
    values = {e.name: golden_timm.entry_value(name, e.name, e.shape) for e in entries}
    counters = sum(e.path[-1] == "mean" for e in entries)  # num_batches_tracked, one for each normalization
    assert len(entries) + counters == golden(name)["entries"]
    return model, convert_into(values, model, (size, size, 3)), golden_timm.images(size).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", golden_timm.NETS)
@pytest.mark.filterwarnings("ignore:the ImageNet stem")
def test_logits_are_timms(name):
    model, variables, images = built(name)
    logits, expected = jax.jit(model.apply)(variables, images), golden(name)["logits"]
    assert np.linalg.norm(logits - expected) < 1e-5 * np.linalg.norm(expected)


SLOW = {"seresnext26d_32x4d", "dpn68", "repvgg_b1g4"}  # others here have most of their layers
SLOW |= {"inception_v4", "inception_resnet_v2", "xception", "xception41", "ghostnet_100", "ghostnetv2_100"}
SLOW |= {"tf_efficientnet_lite0", "convnextv2_atto"}  # long to compile in float64


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in golden_timm.NETS]
)
@pytest.mark.filterwarnings("ignore:the ImageNet stem")
def test_gradients_in_training_mode_are_timms(name):
    """In float64, so that no rounding moves an activation across 0."""
    model, *values = built(name)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        variables, images = jax.tree.map(jnp.float64, values)

        def loss(params: dict) -> jax.Array:
            state = {**variables, "params": params}
            wide = model.clone(dtype=jnp.float64)
            logits, _ = wide.apply(state, images, train=True, mutable=["batch_stats"])
            return (logits * golden_timm.loss_weights(logits.shape)).sum()

        gradients = jax.device_get(jax.jit(jax.grad(loss))(variables["params"]))
    found = golden_timm.summary(name, to_torch({"params": gradients}, model))
    expected = golden(name)["gradients"]
    # The bias of a normalization that only another one reads has no gradient but rounding.
    sizes = np.maximum(expected[:, :1], 1e-5 * expected.max())
    np.testing.assert_allclose(found / sizes, expected / sizes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_b1g4"])
def test_repvgg_fused_computes_the_same(name):
    model, variables, images = built(name)
    fused = model.clone(form="deployed")
    plain = repvgg.fuse(variables)
    wanted = jax.eval_shape(fused.init, jax.random.key(0), images)
    assert jax.tree.map(np.shape, plain["params"]) == jax.tree.map(jnp.shape, wanted["params"])
    expected, found = (jax.jit(m.apply)(v, images) for m, v in ((model, variables), (fused, plain)))
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    assert "stages.0.1.reparam_conv.bias" in to_torch(plain, fused)
