"""The pages: links and anchors lead somewhere, the site is built strictly, generated parts are current."""

import ast
import base64
import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import cnnjax
from tests import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "experiments").rglob("README.md"),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in a link: as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_code_begin_on_a_line_of_their_own(page):
    fences = re.findall(r"^ *```(.*)", page.read_text(), re.M)
    assert len(fences) % 2 == 0 and all(re.fullmatch(r"\w*", words) for words in fences)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_rows_of_a_table_have_equally_many_cells(page):
    last = 0
    for line in prose(page).splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not bars or (line.endswith("|") and bars == (last or bars)), line
        last = bars


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_chapter_becomes_a_page_whose_links_lead_to_files(notebook, tmp_path):
    make = runpy.run_path(str(ROOT / "docs" / "make.py"))
    make["chapter"](notebook, tmp_path / "never_run.ipynb", tmp_path)
    text = prose(tmp_path / f"{notebook.stem}.md")
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert all((notebook.parent / link).is_file() for link in links), links
    assert '<details markdown="1">' in text


def test_a_chapter_that_has_run_shows_its_outputs_until_it_is_changed(tmp_path):
    make, notebook = runpy.run_path(str(ROOT / "docs" / "make.py")), NOTEBOOKS[0]
    book = json.loads(notebook.read_text())
    pixels = base64.b64encode(b"pixels").decode()
    book["cells"][2]["outputs"] = [{"text": ["one\n", "two\n"]}, {"data": {"image/png": pixels}}]
    run = tmp_path / "run.ipynb"
    for code, shown in (("lessons.style()", True), ("changed()", False)):
        book["cells"][2]["source"][-1] = code
        run.write_text(json.dumps(book))
        make["chapter"](notebook, run, tmp_path / "pages")
        text = (tmp_path / "pages" / f"{notebook.stem}.md").read_text()
        assert ("```text\none\ntwo\n```" in text) == shown
    assert (tmp_path / "pages" / f"{notebook.stem}_2_1.png").read_bytes() == b"pixels"


def test_every_page_is_in_the_navigation_and_every_picture_is_small():
    navigation = re.findall(r"- (?:\w+: )?((?:docs/)?\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert set(navigation) >= {str(page.relative_to(ROOT)) for page in PAGES if page.parent.name == "docs"}
    assert all(picture.stat().st_size <= 100_000 for picture in (ROOT / "docs").glob("*.png"))


def test_the_site_is_built_from_pages_and_docstrings(tmp_path):
    for package in ("material", "mkdocstrings_handlers"):
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not here: the extra `docs`")
    command = [sys.executable, str(ROOT / "docs" / "make.py"), "site", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "docs" / "api" / "cnnjax" / "index.html").read_text()
    assert all(f'id="cnnjax.{name}"' in page for name in cnnjax.__all__)
    assert "Grad-CAM" in (tmp_path / "docs" / "api" / "cnnjax.explore" / "index.html").read_text()
    for built in tmp_path.rglob("*.html"):
        assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=\"?https?:", built.read_text()), built


def test_docstrings_align_no_columns():
    """As Markdown they would run together; lists and code stay apart."""
    for file in (ROOT / "cnnjax").rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, DOCUMENTED)]
        for line in "\n".join(filter(None, map(ast.get_docstring, nodes))).splitlines():
            assert line.startswith("    ") or not re.search(r"\S {2,}\S", line), (file, line)


def test_the_page_of_configs_is_that_of_the_fields():
    make = runpy.run_path(str(ROOT / "docs" / "make.py"))
    assert make["CONFIGS"].read_text() == make["configs"](), "run `python docs/make.py configs`"
