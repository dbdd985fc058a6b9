"""What an installation that is no checkout consists of: the wheel, and the sdist it can be built from."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from cnnjax.runs.trackers import TRACKERS
from tests import ROOT, conftest


def files_in_git(folder: str) -> set[str]:
    """The files of a folder that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs git and a checkout: {error}")
    return {name for name in listed.splitlines() if (ROOT / name).is_file()}


def test_the_wheel_and_the_sdist_hold_every_file_of_the_package(tmp_path):
    """Also the C++ sources, the page and the tables; nothing is compiled."""
    pytest.importorskip("setuptools", minversion="61")  # the first that reads pyproject.toml
    package, configs = files_in_git("cnnjax"), files_in_git("configs")
    steps = ["egg_info", f"--egg-base={tmp_path}", "build_py", f"--build-lib={tmp_path / 'wheel'}"]
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *steps], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    built = [path for path in (tmp_path / "wheel").rglob("*") if path.is_file()]
    wheel = {str(file.relative_to(tmp_path / "wheel")) for file in built}
    assert wheel == package | {f"cnnjax/{name}" for name in configs}
    listed = (tmp_path / "cnnjax.egg-info" / "SOURCES.txt").read_text().splitlines()
    sdist = {name.removeprefix("./") for name in listed}
    assert package | configs | {"setup.py", "pyproject.toml", "README.md"} <= sdist


def test_a_test_skips_what_the_extra_onnx_does_not_work_with(monkeypatch):
    """The extra `test` takes any jax, so that Python 3.12 and later are tested with the newest."""
    monkeypatch.setattr(conftest, "version", lambda name: "0.12.1" if name == "jax" else "99")
    with pytest.raises(pytest.skip.Exception, match=r"`onnx` asks for jax<0\.11\.1, here is 0\.12\.1"):
        conftest.needs_extra("onnx")


def test_texts_name_extras_of_this_package_and_ask_no_index_for_it():
    """No index has it: the command would fail, or install what another has put there under its name."""
    files = {
        folder: files_in_git(folder) for folder in ("cnnjax", "docs", "examples", "experiments", "notebooks")
    }
    texts = {name: (ROOT / name).read_text(errors="ignore") for name in {"README.md"}.union(*files.values())}
    assert [name for name, text in texts.items() if re.search(r"'cnnjax\[|pip install cnnjax", text)] == []
    named = {name for file in files["cnnjax"] for name in re.findall(r"\bextra\('(\w+)'\)", texts[file])}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"onnx", "peers"} <= named and named | TRACKERS.keys() <= extras.keys()


UNINSTALLED = """
import importlib.metadata
from cnnjax import __version__
from cnnjax.cli import main
from cnnjax.runs import compile_cache, record
try:
    raise SystemExit(f"installed: {importlib.metadata.version('cnnjax')}")
except importlib.metadata.PackageNotFoundError:
    assert main.run(["--version"]) == 0
    assert len(compile_cache.key()) == 16
    assert record.make_record()["versions"]["cnnjax"] == __version__
"""


def test_a_checkout_that_is_not_installed_knows_its_version(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "cnnjax", tmp_path / "checkout" / "cnnjax", ignore=ignored)
    (others := tmp_path / "others").mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "cnnjax" not in entry.name:
            (others / entry.name).symlink_to(entry)
    paths = os.pathsep.join((str(tmp_path / "checkout"), str(others)))
    command = [sys.executable, "-S", "-c", UNINSTALLED]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"cnnjax {version('cnnjax')}, jax ")
