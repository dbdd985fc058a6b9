"""The house's floors: a room imports only from lower floors, and a heavy library from one room only."""

import ast
import graphlib
import re
from pathlib import Path

import cnnjax
from tests import ROOT

PACKAGE = Path(cnnjax.__file__).parent
DOORS = {"__init__", "__main__"}
OWNERS = {
    "tensorflow_datasets": ["data/sources/tfds.py"],
    "grain": ["data/batches.py"],
    "orbax": ["runs/checkpoints.py"],
}
FORBIDDEN = {"pickle", "pickletools", "dill", "cloudpickle", "marshal", "shelve", "tensorflow", "yaml"}


def imports(file: Path) -> set[str]:
    """Full names of all modules that a file imports, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floors() -> dict[str, int]:
    """{room: floor} of the table in docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `([a-z_]+)(?:\.py|/)` \|", page, re.MULTILINE)
    return {room: int(floor) for floor, room in rows}


def test_the_page_names_every_room_and_no_other():
    found = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert found - DOORS - {"__pycache__"} == set(floors())
    assert len(floors()) <= 11
    files = {p.name for p in PACKAGE.iterdir() if p.is_file() and p.suffix != ".so"}
    assert files == {"__init__.py", "__init__.pyi", "__main__.py", "py.typed", "errors.py", "config.py"}


def test_rooms_import_downwards_only():
    floor = floors()
    for file in files():
        here = room(file)
        for name in imports(file):
            parts = name.split(".")
            if parts[0] != "cnnjax" or len(parts) == 1 or here in DOORS or parts[1] == here:
                continue
            there = parts[1]
            assert there in floor, f"{file} imports {name}"
            assert floor[there] < floor[here], f"{file.name} ({here}) imports {name}"


def test_no_cycles_inside_a_room():
    graph = {}
    for file in files():
        module = ".".join(("cnnjax", *file.relative_to(PACKAGE).with_suffix("").parts))
        module = module.removesuffix(".__init__")
        graph[module] = imports(file) - {module}
    graphlib.TopologicalSorter(graph).prepare()  # else an error that names the cycle


def test_heavy_libraries_have_one_owner():
    for file in files():
        for name in imports(file):
            top = name.split(".")[0]
            assert top not in FORBIDDEN, f"{file} imports {name}"
            place = str(file.relative_to(PACKAGE))
            assert place in OWNERS.get(top, [place]), f"{file} imports {name}"


def test_nobody_imports_the_doors():
    for file in files():
        doors = (
            "configs",
            "tests",
            "experiments",
            *(() if room(file) in ("cli", "__main__") else ("cnnjax.cli",)),
        )
        assert not any(name.startswith(doors) for name in imports(file)), file


def test_lower_floors_know_no_config():
    floor = floors()
    for file in files():
        if room(file) not in DOORS and floor[room(file)] < floor["runs"] and room(file) != "config":
            assert not re.search(r"ConfigDict|(?<!jax\.)\bconfig\.(?!json\b)[a-z]+", file.read_text()), file


def test_texts_are_utf8_whatever_the_locale():
    """They are written so, by `atomic_write` and by git."""
    for file in [*files(), *(ROOT / "experiments").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            own = isinstance(node.func, ast.Name) and node.func.id == "open"  # Python's, not that of a class
            if own or getattr(node.func, "attr", "") in ("read_text", "write_text"):
                told = r"""open\(.*, ["'][rwax+]*b|encoding=|["'](utf-8|ascii)["']"""
                assert re.search(told, call := ast.unparse(node)), f"{file}:{node.lineno}: {call}"


def test_a_home_folder_is_found_in_one_place():
    """Python's own `Path.expanduser` raises for an unknown user, where a shell takes a name."""
    allowed = {"data/files.py", "cli/flags.py"}  # the latter has words, which are more than paths
    for file in files():
        if re.search(r"\bexpanduser\(|Path\.home\(", file.read_text("utf-8")):
            assert str(file.relative_to(PACKAGE)) in allowed, f"{file}: use `files.expanded`"
    for name in allowed:
        assert not re.search(r"(?<!os\.path)\.expanduser\(|Path\.home\(", (PACKAGE / name).read_text("utf-8"))


def test_no_file_is_long_and_none_is_a_drawer():
    for file in files():
        assert len(file.read_text().splitlines()) <= 350, file
        assert file.stem not in ("utils", "common", "base", "core", "helpers", "misc"), file


def test_no_function_is_long():
    long = {"live": 80}  # the life of a run, on one screen
    for file in files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= long.get(node.name, 60), f"{file}: {node.name} has {lines} lines"


def test_types_are_known():
    assert sum(len(re.findall(r"\bAny\b", file.read_text())) for file in files()) < 150
