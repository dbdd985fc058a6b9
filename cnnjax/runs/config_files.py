"""Config files: a Python file with `get_config()`, an example that ships with the package, a config.json."""

import contextlib
import difflib
import os
import reprlib
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.files import read_json
from cnnjax.errors import UserError, listed, one_line


def examples() -> dict[str, Path]:
    """The example configs by name: in an installed package, or in configs/ of a checkout."""
    package = Path(__file__).parents[1]
    folder = next((each for each in (package, package.parent) if (each / "configs").is_dir()), package)
    return {file.stem: file for file in sorted(folder.glob("configs/*.py"))}


def _find(path: str) -> str:
    """The file of a config, which may be named as an example with or without .py."""
    if Path(path).is_file():
        return path
    known, name = examples(), path.removesuffix(".py")
    if name in known:
        return str(known[name])
    near = difflib.get_close_matches(Path(name).name, known, n=2, cutoff=0.6)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise UserError(f"--config={path} is neither a file nor an example{hint}; examples: {listed(known)}")


def from_file(path: str) -> ConfigDict:
    """What `get_config()` of a Python file, or of an example by name, returns; or the config of a .json file.

    The Python file is executed, and may import what lies beside it.
    """
    path = _find(path)
    if path.lower().endswith(".json"):
        return from_json(Path(path))
    folder, before = str(Path(path).resolve().parent), {*sys.modules}
    sys.path.insert(0, folder)
    try:
        names = runpy.run_path(path)
        config = names["get_config"]() if "get_config" in names else None
    except (Exception, SystemExit) as error:  # whatever the file does
        reason = one_line(error, 400).partition(" Other fields present")[0]
        place = f"--config={path}{_line_of(error, folder)}"
        raise UserError(f"{place}: {type(error).__name__}: {reason}") from None
    finally:
        sys.path.remove(folder)
        for name in {*sys.modules} - before:  # beside another config there may be another of this name
            if str(getattr(sys.modules[name], "__file__", None)).startswith(folder + os.sep):
                del sys.modules[name]
    if "get_config" not in names:
        raise UserError(f"--config={path}: the file has no 'get_config'()")
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={path}: get_config() returned {reprlib.repr(config)}, not a ConfigDict")
    return config


def from_json(file: Path, within: Path | None = None) -> ConfigDict:
    """The config of a run's config.json, validated; see `read_json`."""
    try:
        values = read_json(file, within=within)
    except UserError as error:
        raise UserError(str(error).replace(f"{file} is damaged", f"{file} cannot be read")) from None
    with naming(file):
        config = config_lib.from_dict(values)
        config_lib.validate(config)
    return config


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Puts a file's name before what is wrong with its values."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _line_of(error: BaseException, folder: str) -> str:
    """', line 7', or ', shared.py line 7', of the last of a config's files that an error came through."""
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((Path(error.filename), error.lineno))
    own = [(file, line) for file, line in frames if file.is_file() and str(file.resolve().parent) == folder]
    return f", {own[-1][0].name} line {own[-1][1]}" if own else ""
