"""Builds the site, and the parts of the pages that are made from code.

python docs/make.py site               # build/site: all pages and the API, from `pip install -e '.[docs]'`
python docs/make.py notebooks          # build/notebooks: the course with its outputs, for the site
python docs/make.py configs            # docs/configs.md, from the table of fields in cnnjax/config.py
python docs/make.py page RUN           # docs/page.png, from `cnnjax explore` on a run folder (needs Chromium)
"""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

DOCS = ROOT / "docs"
RUN = ROOT / "build" / "notebooks"  # the notebooks as they have run here
CONFIGS = DOCS / "configs.md"
PAGES = ("*.md", "*.cff", "docs/*.md", "docs/*.png", "experiments/**/README.md", "experiments/**/*.svg")
FILES = ("examples/**/*.*", "notebooks/*.ipynb", "docs/*.css")  # that pages link to
PRIVATE = ("cnnjax.__main__", "cnnjax.cli", "cnnjax.explore.page", "cnnjax.profiling.peers")


def gather(folder: Path) -> None:
    """Copies all pages, and the files they link to, into a folder of the repository's layout."""
    for pattern in (*PAGES, *FILES):
        for file in ROOT.glob(pattern):
            place = folder / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        chapter(notebook, RUN / notebook.name, folder / "notebooks")
    for name, text in api().items():
        place = folder / "docs" / "api" / f"{name}.md"
        place.parent.mkdir(exist_ok=True)
        place.write_text(text, "utf-8")


def api() -> dict[str, str]:
    """One page per room with its public modules. mkdocstrings reads them without importing anything."""
    rooms: dict[str, list[str]] = {}
    for file in sorted((ROOT / "cnnjax").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not name.startswith(PRIVATE) and "._" not in name:
            rooms.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return {
        room: "\n\n".join([f"# {room}", *(f"::: {name}" for name in names), ""])
        for room, names in rooms.items()
    }


def notebooks(names: list[str]) -> None:
    """Runs the notebooks of these names, or all, and keeps them with their outputs in `RUN`."""
    import nbclient
    import nbformat

    RUN.mkdir(parents=True, exist_ok=True)
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if names and file.stem not in names:
            continue
        print(f"running {file.name}", flush=True)
        book = nbformat.read(file, 4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            client = nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=resources)
            client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})
        nbformat.write(book, RUN / file.name)


def cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text("utf-8"))["cells"]


def chapter(notebook: Path, run: Path, folder: Path) -> None:
    """Writes a notebook as a page, with the outputs and pictures of `run` if that has the same cells."""
    folder.mkdir(parents=True, exist_ok=True)
    book = cells(notebook)
    if run.is_file() and [cell["source"] for cell in cells(run)] == [cell["source"] for cell in book]:
        book = cells(run)
    parts = []
    for number, cell in enumerate(book):
        source, printed = "".join(cell["source"]), ""
        if cell["cell_type"] == "markdown":
            parts.append(source.replace("<details>", '<details markdown="1">'))
        elif "%pip" not in source:
            parts.append(f"```python\n{source}\n```")
            for place, output in enumerate(cell["outputs"]):
                data = output.get("data", {})
                if png := data.get("image/png"):
                    picture = f"{notebook.stem}_{number}_{place}.png"
                    (folder / picture).write_bytes(base64.b64decode(png))
                    parts.append(f"![output of the code above]({picture})")
                else:
                    printed += "".join(output.get("text", data.get("text/plain", "")))
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    (folder / f"{notebook.stem}.md").write_text("\n\n".join(parts) + "\n", "utf-8")


def site(out: Path) -> None:
    """Builds the site strictly: a broken link or anchor is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={out.resolve()}"]
    with tempfile.TemporaryDirectory() as folder:
        gather(Path(folder))
        environment = os.environ | {"CNNJAX_PAGES": folder, "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit("the site was not built; it needs `pip install -e '.[docs]'`")


def configs() -> str:
    """docs/configs.md with a new table of all fields."""
    from cnnjax import config

    rows = ["| field | default | meaning and allowed values | example |", "|---|---|---|---|"]
    for name, field in config.FIELDS.items():
        meaning = f"{field.meaning}{f'; {field.allowed.words}' if field.allowed else ''}"
        example = f"<code>{field.example!r}</code>"  # in backticks &#124; would not be |
        cells = (f"`{name}`", f"`{field.default!r}`", meaning, example)
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join([CONFIGS.read_text("utf-8").partition("\n| field |")[0], *rows, ""])


def page(run: Path) -> None:
    """The page of `cnnjax explore` on a run, its first stages."""
    command = [sys.executable, "-m", "cnnjax", "explore", f"--workdir={run}", "--port=0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = next(line for line in process.stderr or () if line.startswith("open ")).split()[1]
            ready = "document.body.dataset.ready === 'yes' && !document.querySelector('[aria-busy=true]')"
            photograph(address, DOCS / "page.png", 1280, 960, ready)
        finally:
            process.terminate()


def photograph(address: str, file: Path, width: int, height: int, ready: str = "true") -> None:
    """The top of a page, once an expression is true, as a PNG of at most 100 KB."""
    from PIL import Image

    from tests.browser import Browser

    with tempfile.TemporaryDirectory() as folder:
        page = Browser(Path(folder), width, height)
        try:
            page.show_as(width, dark=False)
            page.open(address)
            page.until(ready)
            page.screenshot(Path(folder) / "page.png")
        finally:
            page.close()
        data = io.BytesIO((Path(folder) / "page.png").read_bytes())
    top = Image.open(data).convert("RGB").crop((0, 0, width, height))
    top.quantize(128).save(file, optimize=True)


def main(words: list[str]) -> None:
    match words:
        case ["site", *out]:
            site(Path(out[0] if out else ROOT / "build" / "site"))
        case ["notebooks", *names]:
            notebooks(names)
        case ["configs"]:
            CONFIGS.write_text(configs(), "utf-8")
        case ["page", run]:
            page(Path(run))
        case _:
            sys.exit(f"usage:\n{__doc__.partition(chr(10) * 2)[2]}")


if __name__ == "__main__":
    main(sys.argv[1:])
