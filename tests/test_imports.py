"""The house's floors: a room imports only from lower floors, and a heavy library from one room only."""

import ast
from pathlib import Path

import cnnjax

PACKAGE = Path(cnnjax.__file__).parent
FLOORS = {
    "errors": 0,
    "spec": 0.5,
    "ops": 1,
    "data": 1,
    "models": 2,
    "training": 3,
    "summary": 3.5,
    "receptive_fields": 3.4,
    "weights": 3.5,
    "config": 4,
    "runs": 4.5,
    "progress": 4,
    "experiment": 4.5,
    "signals": 4,
    "processes": 4,
    "launch": 5,
    "program": 3,
    "tables": 0,
    "compile_cache": 4,
    "compiled_step": 4.8,
    "evaluator": 4.8,
    "loop": 5,
    "together": 5.2,
    "forecast": 6,
    "exchange": 5,
    "image_files": 2,
    "trained": 5.5,
    "terminal": 4.5,
    "upkeep": 5,
    "data_commands": 6.2,
    "explore": 6,
    "explain": 6.2,
    "report": 6,
    "comparison": 6.2,
    "export": 6.2,
    "page": 6.4,
    "look": 6.8,
    "bench": 6,
    "bench_torch": 6,
    "bench_ops": 6,
    "bench_data": 6.2,
    "bench_read": 6,
    "speed": 6.8,
    "replay": 6.8,
    "sweep": 6,
    "sweep_command": 6.8,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}
OWNERS = {
    "tensorflow_datasets": ["data/readers.py"],
    "grain": ["data/pipeline.py"],
    "orbax": ["training/checkpoints.py"],
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


def test_rooms_import_downwards_only():
    for file in files():
        for name in imports(file):
            parts = name.split(".")
            if parts[0] != "cnnjax" or len(parts) == 1 or parts[1] not in FLOORS:
                continue
            here, there = room(file), parts[1]
            assert FLOORS[there] < FLOORS[here] or here == there, f"{file.name} ({here}) imports {name}"


def test_every_room_has_a_floor():
    assert {room(file) for file in files()} <= set(FLOORS)


def test_no_cycles_inside_a_room():
    graph = {}
    for file in files():
        module = ".".join(("cnnjax", *file.relative_to(PACKAGE).with_suffix("").parts))
        graph[module.removesuffix(".__init__")] = imports(file)

    def visit(module, path):
        assert module not in path, f"import cycle: {' -> '.join((*path, module))}"
        for name in graph.get(module, ()):
            if name in graph and name != module:
                visit(name, (*path, module))

    for module in graph:
        visit(module, ())


def test_heavy_libraries_have_one_owner():
    for file in files():
        for name in imports(file):
            top = name.split(".")[0]
            assert top not in FORBIDDEN, f"{file} imports {name}"
            place = str(file.relative_to(PACKAGE))
            assert place in OWNERS.get(top, [place]), f"{file} imports {name}"


def test_nobody_imports_the_doors():
    for file in files():
        if room(file) != "__main__":
            assert not any(name.startswith(("cnnjax.cli", "configs", "tests")) for name in imports(file))


def test_no_file_is_long_and_none_is_a_drawer():
    for file in files():
        assert len(file.read_text().splitlines()) <= 420, file
        assert file.stem not in ("utils", "common", "base", "core", "helpers", "misc"), file
