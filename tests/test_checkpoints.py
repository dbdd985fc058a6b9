"""Checkpoints: complete or absent, the newest few and the best, a damaged one passed over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import UserError
from cnnjax.training.checkpoints import Checkpoints


def tree(value: float) -> dict:
    return {"w": jnp.full((3, 2), value), "empty": {}, "count": jnp.asarray(int(value), jnp.int32)}


@pytest.fixture
def saved(tmp_path):
    """Five checkpoints of which the second is the best; two of the newest are kept."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step, accuracy in enumerate((0.5, 0.9, 0.7, 0.6, 0.8), 1):
        checkpoints.save(step, tree(step), {"position": 10 * step}, {"accuracy": accuracy})
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def test_the_newest_and_the_best_survive(saved):
    assert saved.steps() == [2, 4, 5]
    assert saved.best_metrics() == {"step": 2, "accuracy": 0.9}


def test_those_between_evaluations_are_not_kept_for_ever(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in range(1, 7):
        checkpoints.save(step, tree(step), {}, {"accuracy": 0.5} if step == 2 else None)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]
    checkpoints.close()


def test_what_was_saved_comes_back(saved):
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree(0))
    step, restored, position = saved.restore(like)
    assert (step, position) == (5, {"position": 50})
    np.testing.assert_array_equal(restored["w"], tree(5)["w"])
    assert restored["empty"] == {}
    assert saved.restore(like, 2)[1]["count"] == 2


def test_without_a_checkpoint_there_is_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.restore(tree(0)) is None
    assert checkpoints.best_metrics() == {}
    checkpoints.close()


def test_a_damaged_newest_one_is_passed_over_with_a_warning(saved, tmp_path):
    files = [f for f in (tmp_path / "checkpoints" / "5" / "tree").rglob("*") if f.is_file()]
    for file in files:
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"checkpoint 5: .*passed over"):
        step, restored, _ = saved.restore(tree(0))
    assert step == 4
    assert restored["count"] == 4


def test_all_damaged_is_an_error_that_names_them(saved, tmp_path):
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file() and "tree" in file.parts:
            file.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="no checkpoint in .* can be read"):
        saved.restore(tree(0))


def test_a_half_written_checkpoint_is_not_there(saved, tmp_path):
    half = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "tree").mkdir()
    again = Checkpoints(tmp_path / "checkpoints")
    assert again.steps() == [2, 4, 5]
    again.close()
