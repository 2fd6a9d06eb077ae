"""Progress in the terminal: a bar that is written over, or a line now and then where that cannot be."""

from __future__ import annotations

import sys
import time

from layered_sglang.bench.running.drive import Progress
from layered_sglang.terminal import Screen

BAR_WIDTH = 24
#: Seconds between two progress lines where a line cannot be written over.
LINE_SECONDS = 15
#: Errors of a run that are shown in full.
SHOWN_ERRORS = 3


class Console:
    """Lines for good, and one that passes."""

    def __init__(self, screen: Screen | None = None) -> None:
        self._screen = screen or Screen(sys.stdout)
        self._started = time.monotonic()
        self._last = self._started

    def line(self, text: str = "") -> None:
        self._screen.line(f"{self._clock()}  {text}" if text else "")
        self._last = time.monotonic()

    def plain(self, text: str) -> None:
        """A line without the time."""
        self._screen.line(text)

    def show(self, text: str) -> None:
        """A passing line; where none can pass, a line every LINE_SECONDS."""
        if self._screen.live:
            self._screen.show(f"{self._clock()}  {text}")
        elif time.monotonic() - self._last >= LINE_SECONDS:
            self.line(text)

    def bar(self, title: str, progress: Progress, total: int) -> None:
        """A run's progress."""
        filled = BAR_WIDTH * progress.done // max(1, total)
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        text = f"{title} [{bar}] {progress.done} of {total} answered"
        text += f", {progress.sent - progress.done} running, {progress.seconds:.0f} s"
        self.show(text + (f", {progress.failed} failed" if progress.failed else ""))

    def clear(self) -> None:
        self._screen.clear()

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"


class Errors:
    """Shows the first errors of a run and counts the rest."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self.count = 0

    def add(self, error: str) -> None:
        """Note an answer's error; an empty one is none."""
        if not error:
            return
        self.count += 1
        if self.count <= SHOWN_ERRORS:
            more = " (further ones are only counted)" if self.count == SHOWN_ERRORS else ""
            self._console.line(f"{self._title}: a request failed: {error[:300]}{more}")
