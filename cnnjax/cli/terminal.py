"""What is printed, warned of or raised reaches a terminal as text, and orders it nothing."""

import re
import sys
from typing import Any, TextIO

from cnnjax.errors import visible

BAR = re.compile(r"(?:\r|\x1b\[A)*")  # how a library's progress bar goes back to write over itself


class Shown:
    """A text stream that shows what it is given, see `visible`, whatever its encoding."""

    def __init__(self, stream: TextIO):
        self.rich_proxied_file = stream  # under this name rich finds it, for its colours
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        back = BAR.match(text).end()  # type: ignore[union-attr]  # it always matches
        self.rich_proxied_file.write(text[:back] + visible(text[back:], lines=True))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def guard() -> None:
    """Puts `Shown` in the place of the standard output and the standard error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Shown):
            setattr(sys, name, Shown(stream))
