"""What the terminal can show: colour, line drawing, a line that is written over."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TextIO

ERASE = "\r\x1b[K"


@dataclass(frozen=True)
class Glyphs:
    """Fill of a cell: decode rows alone, decode rows and a prompt, a prompt alone; and the bar."""

    decode: str
    joined: str
    prompt: str
    bar: str


UNICODE = Glyphs("─", "█", "░", "▪")
ASCII = Glyphs("-", "#", ":", "=")


@dataclass(frozen=True)
class Style:
    """How to draw."""

    glyphs: Glyphs = UNICODE
    colour: bool = False

    @property
    def joined(self) -> str:
        """Fill beside the letter of a prompt whose cell the decode rows share.

        On a coloured ground the decode rows' own line runs through; without colour a block does.
        """
        return self.glyphs.decode if self.colour else self.glyphs.joined

    @property
    def prompt(self) -> str:
        """Fill beside the letter of a prompt that runs alone."""
        return " " if self.colour else self.glyphs.prompt

    def paint(self, text: str, codes: str) -> str:
        """``text`` in the colours of the SGR ``codes``, or plain."""
        return f"\x1b[{codes}m{text}\x1b[0m" if self.colour and codes else text


def style_for(stream: TextIO) -> Style:
    """The style that ``stream`` can show. NO_COLOR (set and not empty) turns colour off."""
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    try:
        "".join(vars(UNICODE).values()).encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return Style(ASCII, colour)
    return Style(UNICODE, colour)


class Screen:
    """Prints lines, and on a terminal one more below them that is written over."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._shown = False

    @property
    def live(self) -> bool:
        """Whether :meth:`show` does anything."""
        return self._live

    def line(self, text: str = "") -> None:
        """Print a line for good."""
        self._write((ERASE if self._shown else "") + text + "\n")
        self._shown = False

    def show(self, text: str) -> None:
        """Show a passing line, on a terminal only; the next text takes its place."""
        if self._live:
            self._write(ERASE + text)
            self._shown = True

    def clear(self) -> None:
        """Take the passing line away."""
        if self._shown:
            self._write(ERASE)
            self._shown = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
