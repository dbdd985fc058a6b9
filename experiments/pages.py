"""Puts generated tables between their marks in Markdown pages."""

from pathlib import Path

from cnnjax.data.files import atomic_write
from cnnjax.errors import UserError


def fill(page: str, mark: str, text: str) -> str:
    """The page with the text between `<!-- mark: begin -->` and `<!-- mark: end -->`."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise UserError(f"the lines {begin} and {end} are missing; the text goes between them")
    return f"{head}{begin}\n{text}\n{end}{tail}"


def filled(page: Path, mark: str, text: str) -> str:
    """`fill` of a file; a UserError names one that is missing or lacks the marks."""
    try:
        return fill(page.read_text("utf-8"), mark, text)
    except (OSError, UserError) as error:
        raise UserError(f"{page}: {getattr(error, 'strerror', None) or error}") from None


def write(pages: tuple[Path, ...], mark: str, text: str) -> None:
    """Fills the marked place of each page."""
    for page in pages:
        atomic_write(page, filled(page, mark, text))
