"""Puts generated tables between their marks in Markdown pages."""

from pathlib import Path


def fill(page: str, mark: str, text: str) -> str:
    """The page with the text between `<!-- mark: begin -->` and `<!-- mark: end -->`."""
    begin, end = f"<!-- {mark}: begin -->\n", f"\n<!-- {mark}: end -->"
    head, rest = page.split(begin)
    return head + begin + text + end + rest.split(end)[1]


def write(pages: tuple[Path, ...], mark: str, text: str) -> None:
    """Fills the marked place of each page."""
    for page in pages:
        page.write_text(fill(page.read_text(), mark, text))
