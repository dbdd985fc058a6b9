"""What the loop tells while it goes on; silent by default."""

from typing import Any


class Silent:
    """Shows nothing: for tests and for callers that read the metrics themselves."""

    def start(self, step: int, total_steps: int) -> None:
        """A run begins, or goes on after `step` of `total_steps`."""

    def advance(self, step: int) -> None:
        """A step has been handed to the device."""

    def row(self, row: dict[str, Any]) -> None:
        """A row has been added to the metrics."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def stop(self) -> None:
        """The run has ended, well or not."""
