"""Draws iterations as rows and layers as columns. Pure: iterations in, lines of text out.

::

     time   layer 0   1   2   3   4   5   6   7     took
   0.31 s       ─── ─── ─── ─── ─── ─── ─── ───  20 x   19 ms  tKl)4At4)PJKRt/4LA4)
   0.70 s       █A█ ─── ─── ─── ─── ─── ─── ───        231 ms  4          ▪▪▪▪
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field

from layered_sglang.demo.iterations import Iteration
from layered_sglang.terminal import Style

#: SGR codes of the prompts' blocks, A first.
COLOURS = ("30;46", "30;43", "30;45", "30;42")
DIM = "2"
RED = "31"
CELL = 3
#: Decode iterations in one row, at most: as many as the text column has room for.
ROW_TOKENS = 20
BAR_WIDTH = 20
BAR_SECONDS = 0.05


@dataclass(frozen=True)
class Drawn:
    """An iteration with what the trace does not say of it.

    Attributes:
        iteration: from the trace.
        took: seconds until the next one was launched.
        text: what the chat got from it.
    """

    iteration: Iteration
    took: float
    text: str


def legend(style: Style) -> list[str]:
    """What the cells mean."""
    glyphs = style.glyphs
    joined = style.paint(f"{style.joined}A{style.joined}", COLOURS[0])
    alone = style.paint(f"{style.prompt}A{style.prompt}", COLOURS[0])
    return [
        f"{glyphs.decode * CELL} the chat decodes    {joined} prompt A and the chat, together    "
        f"{alone} prompt A alone: the chat waits",
        f"a row is an iteration (N x: N alike), a column a layer; {glyphs.bar} is "
        f"{1000 * BAR_SECONDS:.0f} ms; c is the chat's own prompt",
        "right: the chat's answer, token by token (the weights are random, so it means nothing)",
    ]


def header(num_layers: int, style: Style) -> str:
    """The head of the columns."""
    cells = " ".join(f"{i:^{CELL}}" for i in range(num_layers))
    return style.paint(f"  time  layer {cells}          took  chat", DIM)


@dataclass
class Drawing:
    """Turns iterations into rows; decode-only iterations are gathered into one.

    Attributes:
        num_layers: columns.
        letters: rid of each prompt -> its letter.
        origin: the time that is shown as 0.
    """

    num_layers: int
    letters: Mapping[str, str]
    origin: float
    style: Style
    _gathered: list[Drawn] = field(default_factory=list)

    def add(self, drawn: Drawn) -> list[str]:
        """The rows that are complete with ``drawn``."""
        if drawn.iteration.prompts:
            return [*self.finish(), self._row([drawn])]
        self._gathered.append(drawn)
        return self.finish() if len(self._gathered) == ROW_TOKENS else []

    def unfinished(self) -> str:
        """The row that is being gathered, or an empty string."""
        return self._row(self._gathered) if self._gathered else ""

    def finish(self) -> list[str]:
        """The gathered row, if there is one."""
        row = self.unfinished()
        self._gathered.clear()
        return [row] if row else []

    def note(self, time: float, text: str) -> list[str]:
        """A line between the rows: something happened at ``time``."""
        return [*self.finish(), f"{self._clock(time)}        {text}"]

    def _row(self, alike: list[Drawn]) -> str:
        first = alike[0].iteration
        seconds = sum(drawn.took for drawn in alike) / len(alike)
        count = f"{len(alike):>2} x" if len(alike) > 1 else " " * 4
        text = printable("".join(drawn.text for drawn in alike))
        row = f"{self._clock(first.start)}        {self._cells(first)}  {count} {1000 * seconds:>5.0f} ms"
        if first.prompts:
            bar = self.style.glyphs.bar * min(BAR_WIDTH, max(1, round(seconds / BAR_SECONDS)))
            return f"{row}  {text:<2} {self.style.paint(bar, '' if first.decode else RED)}"
        return f"{row}  {text}"

    def _cells(self, iteration: Iteration) -> str:
        start, end = iteration.layers or (0, self.num_layers)
        letters = "".join(sorted(self.letters.get(rid, "?") for rid in iteration.prompts))
        cells = []
        for layer in range(self.num_layers):
            if letters and start <= layer < end:
                cells.append(self._prompt_cell(letters, bool(iteration.decode)))
            else:
                decode = self.style.glyphs.decode if iteration.decode else " "
                cells.append(self.style.paint(decode * CELL, DIM))
        return " ".join(cells)

    def _prompt_cell(self, letters: str, decodes: bool) -> str:
        text = letters if len(letters) <= CELL else letters[: CELL - 1] + "+"
        cell = f"{text:{self.style.joined if decodes else self.style.prompt}^{CELL}}"
        return self.style.paint(cell, self._colour(letters[0]))

    def _colour(self, letter: str) -> str:
        order = string.ascii_uppercase
        return COLOURS[order.index(letter) % len(COLOURS)] if letter in order else ""

    def _clock(self, time: float) -> str:
        return f"{time - self.origin:6.2f}"


def printable(text: str) -> str:
    """``text`` without characters that would move the cursor or be seen by nobody."""
    return "".join(c if c.isprintable() else "·" for c in text)
