"""docs/extending.md: its additions, made in a copy of the package, train together in one run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cnnjax
from tests import ROOT
from tests.conftest import tiny_arrays

PAGE = (ROOT / "docs" / "extending.md").read_text()
# `PATH`, WHERE: and a block of code; a second block holds imports.
BLOCK = re.compile(
    r"^`([\w/]+\.py)`, (.*?):\n\n```python\n(.*?)```(?:\n\n```python\n(from .*?)```)?", re.M | re.S
)


def add(file: Path, where: str, code: str, imports: str) -> None:
    """Makes one addition where the page says."""
    if where == "a new file":
        assert not file.exists()
        file.write_text(code)
        return
    text = file.read_text()
    if where == "at the end":
        text += f"\n\n{code}"
    else:
        table = re.fullmatch(r"(?:before|a row of) `(\w+)`.*", where, re.S)[1]
        (start,) = re.finditer(rf"^{table}\b.*\{{\n", text, re.M)
        at = start.start() if where.startswith("before") else start.end()
        text = text[:at] + code + text[at:]
    if imports:
        text = re.sub(r"^from ", lambda _: f"{imports}from ", text, count=1, flags=re.M)
    file.write_text(text)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A folder with the package and its tests of models, as the page changes them."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(
        Path(cnnjax.__file__).parent, root / "cnnjax", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "README.md", root)
    for folder in ("tests", "docs", "experiments"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, where, code, imports in BLOCK.findall(PAGE):
        add(root / path, where, code, imports)
    return root


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_block_of_the_page_is_an_addition_to_one_file_and_one_table():
    assert sum(1 + bool(imports) for *_, imports in BLOCK.findall(PAGE)) == PAGE.count("```python")
    for section in PAGE.split("\n## ")[1:]:
        places = [where for _, where, _, _ in BLOCK.findall(section)]
        assert sum(where.startswith("a row of") for where in places) <= 1, section
        assert sum(not where.startswith("a row of") for where in places) == 1, section


def test_the_additions_train_together(extended, tmp_path):
    arrays = tiny_arrays()
    for split in ("train", "test"):
        label, image = arrays[f"{split}_label"], arrays[f"{split}_image"]
        rows = np.concatenate([label[:, None], image.reshape(len(label), -1)], axis=1)
        header = ",".join(["label", *(f"pixel{i}" for i in range(64))])
        np.savetxt(tmp_path / f"{split}.csv", rows, "%d", delimiter=",", header=header, comments="")
    config = {
        "model": "tiny(width=4)",
        "data.name": f"csv:{tmp_path}",
        "data.num_validation": "10",
        "augment.train": "upside_down(probability=0.5)|normalize",
        "optimizer.name": "lion(beta2=0.95)",
        "total_epochs": "2.0",
        "batch_size": "16",
    }
    flags = [f"--config.{name}={value}" for name, value in config.items()]
    run(extended, "-m", "cnnjax", "train", f"--workdir={tmp_path / 'run'}", *flags)
    test = json.loads((tmp_path / "run" / "test.json").read_text())
    assert test["count"] == 37
    assert np.isfinite(test["loss"])


def test_the_tests_of_every_model_and_the_floors_hold_with_the_additions(extended):
    chosen = "import_downwards or no_cycles or every_family or (tiny and not convnext)"
    tests = ["tests/test_architecture.py", "tests/models/test_models.py", "-k", chosen]
    run(extended, "experiments/models/run.py", "--new")  # the row of the table
    out = run(extended, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests)
    assert re.search(r"\b5 passed", out), out


@pytest.mark.slow
def test_the_table_of_models_gains_a_row(extended):
    """Every network is counted again: two minutes."""
    run(extended, "experiments/models/run.py")
    assert "| `tiny` | 330 | 0.0 | 28x28x1 |" in (extended / "docs" / "models.md").read_text()


def test_the_augmentation_turns_images_upside_down(extended):
    code = """
import jax, numpy as np
from cnnjax.data.augment import chain
image = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), np.uint8)
turned = chain.parse("upside_down(probability=1.0)|scale", image_shape=(8, 8, 3)).preprocess(image)
np.testing.assert_allclose(turned, image[:, ::-1] / np.float32(255), rtol=1e-6)
"""
    run(extended, "-c", code)
