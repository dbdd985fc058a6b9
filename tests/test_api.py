"""The public names and their types; the notebooks."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import cnnjax
from tests import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_importing_the_package_is_quick_and_its_names_come_when_asked_for():
    code = (
        "import sys, cnnjax; assert not {'jax', 'numpy', 'flax'} & set(sys.modules), 'heavy'\n"
        "cnnjax.list_models; assert 'jax' in sys.modules\n"
        "assert set(cnnjax.__all__) <= set(dir(cnnjax))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_installed_package_knows_the_example_configs_by_name(tmp_path):
    pytest.importorskip("setuptools", reason="setuptools builds the package")
    build = ["setup.py", "-q", "build_py", f"--build-lib={tmp_path}"]
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, capture_output=True)
    code = "from cnnjax.runs import config_files as c; print(c.__file__, *c.examples().values(), sep='\\n')"
    run = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(tmp_path)}}
    ran = subprocess.run([sys.executable, "-c", code], **run, check=True, capture_output=True, text=True)
    used, *found = map(Path, ran.stdout.splitlines())
    assert used == tmp_path / "cnnjax/runs/config_files.py"
    assert found == [tmp_path / "cnnjax/configs" / file.name for file in sorted(ROOT.glob("configs/*.py"))]


def test_every_public_name_is_there_documented_and_in_the_stub():
    stub = (Path(cnnjax.__file__).parent / "__init__.pyi").read_text()
    for name in cnnjax.__all__:
        assert getattr(cnnjax, name).__doc__, name
        assert f" as {name}\n" in stub, name
    with pytest.raises(AttributeError, match="it has create_model"):
        _ = cnnjax.nothing


def _here() -> dict[str, str]:
    """The environment of a child process that imports this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def test_the_public_surface_is_typed(tmp_path):
    """mypy, strict, on a user's program: it passes, and finds what is wrong."""
    good = (
        "import cnnjax\n"
        "names: list[str] = cnnjax.list_models()\n"
        "run = cnnjax.load_run('runs/x')\n"
        "top: tuple[str, float] = run.predict('a.png')[0].top[0]\n"
        "result = cnnjax.train(cnnjax.default_config(), 'runs/y')\n"
        "accuracy: float = cnnjax.evaluate('runs/y', split='test')[0]['accuracy']\n"
        "count: int = len(cnnjax.load_dataset('mnist', 'train'))\n"
        "model = cnnjax.create_model('resnet18', num_classes=3)\n"
    )
    file = tmp_path / "program.py"
    file.write_text(good + "wrong: int = cnnjax.load_run('x').predict('a.png')[0].name\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "--no-error-summary"]
    command += [f"--config-file={ROOT / 'pyproject.toml'}"]
    done = subprocess.run(
        [*command, f"--cache-dir={tmp_path}", "--follow-imports=silent", str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=_here(),
    )
    assert [line.partition(": ")[2] for line in done.stdout.splitlines()] == [
        "error: Incompatible types in assignment "
        '(expression has type "str", variable has type "int")  [assignment]'
    ], done.stdout + done.stderr


def test_there_are_seven_notebooks_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    assert [file.stem[:2] for file in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07"]
    for file in NOTEBOOKS:
        for cell in nbformat.read(file, 4).cells:
            assert not cell.get("outputs"), file
            assert "def " not in cell.source or cell.source.count("def ") <= 2, file


def test_every_notebook_installs_the_package_where_it_is_missing(monkeypatch):
    """Its first code cell, as IPython reads it: one `%pip`, of one place, and none where the package is."""
    nbformat = pytest.importorskip("nbformat")
    transform = pytest.importorskip("IPython.core.inputtransformer2")
    cells = {nbformat.read(file, 4).cells[1].source for file in NOTEBOOKS}
    assert len(cells) == 1
    code = transform.TransformerManager().transform_cell(cells.pop())
    for missing in (False, True):
        asked = []
        shell = types.SimpleNamespace(run_line_magic=lambda *words, asked=asked: asked.append(words))
        if missing:
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        exec(code, {"get_ipython": lambda shell=shell: shell})
        assert asked == ([("pip", 'install -q "{PACKAGE}"')] if missing else [])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One process for the chapters in turn: importing JAX takes longer than some of them run."""
    manager = pytest.importorskip("jupyter_client").KernelManager(kernel_name="python3")
    manager.start_kernel(env=_here(), cwd=str(tmp_path_factory.mktemp("notebooks")))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_from_top_to_bottom(file, kernel):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(file, 4)
    if any("XLA_FLAGS" in cell.source for cell in book.cells):  # read when JAX starts
        nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute(env=_here())
    else:
        book.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
        nbclient.NotebookClient(book, timeout=120, km=kernel).execute()
    kinds = [output.output_type for cell in book.cells for output in cell.get("outputs", [])]
    assert "display_data" in kinds or "execute_result" in kinds
    assert "error" not in kinds
