"""Rows of the demo's drawing, from trace lines to text."""

from __future__ import annotations

import io
import json

import pytest
from layered_sglang.demo.drawing import ROW_TOKENS, Drawing, Drawn, header, legend
from layered_sglang.demo.iterations import Iteration, TraceFollower, parse_line
from layered_sglang.terminal import ASCII, UNICODE, Screen, Style, style_for

LETTERS = {"ra": "A", "rb": "B", "rchat": "c"}


def trace_line(start: float, prompts=(), layers=None, decode=("rchat",)) -> str:
    record = {
        "iteration": 1,
        "time": start,
        "kind": "merged",
        "decode": list(decode),
        "cohort": [[rid, 0, 1500] for rid in prompts],
        "layers": layers,
        "samples": list(decode),
    }
    return json.dumps(record)


def iteration(*args, **kwargs) -> Iteration:
    return parse_line(trace_line(*args, **kwargs))


def drawing(style: Style = Style()) -> Drawing:  # noqa: B008, a frozen value
    return Drawing(num_layers=4, letters=LETTERS, origin=10.0, style=style)


def test_a_layer_group_beside_decode():
    (row,) = drawing().add(Drawn(iteration(10.5, ("ra",), (1, 3)), 0.204, "x"))
    assert row == "  0.50        ─── █A█ █A█ ───         204 ms  x  ▪▪▪▪"


def test_a_whole_prompt_beside_decode_as_in_a_mixed_chunk():
    (row,) = drawing().add(Drawn(iteration(11, ("ra", "rb")), 0.1, ""))
    assert "AB█ AB█ AB█ AB█" in row


def test_a_prompt_alone_shows_that_nobody_decodes():
    (row,) = drawing().add(Drawn(iteration(11, ("rb",), decode=()), 1.2, ""))
    assert "░B░ ░B░ ░B░ ░B░" in row and row.endswith("▪" * 20)
    (row,) = drawing().add(Drawn(iteration(11, ("rb",), (2, 4), decode=()), 0.1, ""))
    assert "   " * 2 + "  ░B░ ░B░" in row


def test_decode_iterations_are_gathered_until_something_else_happens():
    picture = drawing()
    for i in range(3):
        assert picture.add(Drawn(iteration(10 + i / 100), 0.01 * (i + 1), "ab\n"[i])) == []
    assert picture.unfinished() == "  0.00        ─── ─── ─── ───   3 x    20 ms  ab·"
    rows = picture.note(10.03, "prompt A arrives")
    assert rows[0].startswith("  0.00") and rows[1] == "  0.03        prompt A arrives"
    assert picture.unfinished() == "" and picture.finish() == []


def test_a_gathered_row_has_room_for_its_text():
    picture = drawing()
    rows = [row for i in range(ROW_TOKENS) for row in picture.add(Drawn(iteration(10), 0.02, "x"))]
    assert len(rows) == 1 and rows[0].endswith("x" * ROW_TOKENS)


def test_a_hundred_columns_are_enough():
    picture = Drawing(num_layers=8, letters=LETTERS, origin=0.0, style=Style())
    rows = picture.add(Drawn(iteration(99, ("ra",)), 9.0, "x"))
    for _ in range(ROW_TOKENS):
        rows += picture.add(Drawn(iteration(100), 0.02, "x"))
    assert max(map(len, [*rows, *legend(Style()), header(8, Style())])) <= 100


def test_colour_changes_the_fill_and_no_width():
    coloured = Style(UNICODE, colour=True)
    (row,) = drawing(coloured).add(Drawn(iteration(10, ("ra",), (0, 1)), 0.1, ""))
    assert "\x1b[30;46m─A─\x1b[0m" in row


def test_ascii():
    (row,) = drawing(Style(ASCII)).add(Drawn(iteration(10, ("ra",), (0, 1)), 0.1, ""))
    assert "#A# --- --- ---" in row and row.isascii()


def test_more_prompts_than_a_cell_holds():
    letters = {str(i): letter for i, letter in enumerate("ABCD")}
    picture = Drawing(1, letters, 0.0, Style())
    (row,) = picture.add(Drawn(iteration(1, tuple(letters)), 0.1, ""))
    assert "AB+" in row


def test_the_follower_reads_whole_lines_once(tmp_path):
    path = tmp_path / "trace.jsonl"
    follower = TraceFollower(path)
    assert follower.new_iterations() == []
    line = trace_line(1.0, ("ra",), (0, 2))
    path.write_text(line + "\n" + line[:20])
    (first,) = follower.new_iterations()
    assert first == Iteration(1.0, ("rchat",), ("ra",), (0, 2), ("rchat",))
    assert follower.new_iterations() == []
    with path.open("a") as file:
        file.write(line[20:] + "\n")
    assert follower.new_iterations() == [first]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal_and_where_it_is_wanted(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert style_for(Terminal()).colour
    assert not style_for(io.TextIOWrapper(io.BytesIO(), "utf-8")).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not style_for(Terminal()).colour


def test_an_encoding_without_blocks_gets_ascii():
    assert style_for(io.TextIOWrapper(io.BytesIO(), "latin-1")).glyphs is ASCII
    assert style_for(io.TextIOWrapper(io.BytesIO(), "utf-8")).glyphs is UNICODE


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_passing_lines_leave_nothing_behind(stream):
    out = stream()
    screen = Screen(out)
    screen.show("waiting")
    screen.line("done")
    text = out.getvalue()
    assert text.endswith("done\n")
    assert ("waiting" in text) == out.isatty()
    assert not text.removesuffix("done\n") or text.endswith("\r\x1b[Kdone\n")
