"""One run against one server: sends the traffic and draws the iterations while they happen."""

from __future__ import annotations

import asyncio
from pathlib import Path

from layered_sglang.demo.drawing import Drawing, Drawn, header
from layered_sglang.demo.iterations import Iteration, TraceFollower
from layered_sglang.demo.summary import Measured
from layered_sglang.demo.traffic import PromptRun, Traffic, warm_up
from layered_sglang.local_server import Server
from layered_sglang.terminal import Screen, Style

REFRESH_SECONDS = 0.05


class Show:
    """Joins the trace with what the clients saw, in the order of the iterations."""

    def __init__(
        self, traffic: Traffic, trace: TraceFollower, num_layers: int, screen: Screen, style: Style
    ) -> None:
        self._traffic = traffic
        self._trace = trace
        self._screen = screen
        letters = {run.rid: run.prompt.letter for run in traffic.prompts}
        letters[traffic.chat.rid] = "c"
        self._drawing = Drawing(num_layers, letters, origin=0.0, style=style)
        self._waiting: list[Iteration] = []
        self._notes: list[tuple[float, str]] = []
        self._announced: set[tuple[str, str]] = set()
        self._chat_tokens = 0

    async def follow(self, sending: asyncio.Task[None], server: Server) -> None:
        """Draw until ``sending`` is done and its iterations are drawn."""
        while True:
            done = sending.done()
            server.check_alive()
            self._read()
            self._draw(everything=done)
            if done:
                break
            await asyncio.sleep(REFRESH_SECONDS)
        for row in self._drawing.finish():
            self._screen.line(row)

    def _read(self) -> None:
        self._waiting += self._trace.new_iterations()
        for run in self._traffic.prompts:
            self._notice(run)
        self._notes.sort()

    def _notice(self, run: PromptRun) -> None:
        """Take up a prompt's arrival and its first token, once each."""
        letter, tokens = run.prompt.letter, run.prompt.tokens
        if run.sent is not None and (letter, "sent") not in self._announced:
            self._announced.add((letter, "sent"))
            self._notes.append((run.sent, f"prompt {letter} arrives, {tokens} tokens"))
        if run.first_token is not None and (letter, "first") not in self._announced:
            self._announced.add((letter, "first"))
            assert run.sent is not None
            seconds = run.first_token - run.sent
            self._notes.append((run.first_token, f"{letter}'s first token, after {seconds:.2f} s"))

    def _draw(self, everything: bool) -> None:
        """Draw what is complete: an iteration's length is known when the next one is launched."""
        while len(self._waiting) > 1 and (everything or self._text_came(self._waiting[0])):
            iteration, following = self._waiting[:2]
            del self._waiting[0]
            if not self._drawing.origin:
                self._drawing.origin = iteration.start
            self._draw_notes(until=iteration.start)
            text = self._take_text(iteration)
            drawn = Drawn(iteration, following.start - iteration.start, text)
            for row in self._drawing.add(drawn):
                self._screen.line(row)
        if everything:
            self._draw_notes(until=float("inf"))
        elif self._screen.live:
            self._screen.show(self._drawing.unfinished())

    def _draw_notes(self, until: float) -> None:
        while self._notes and self._notes[0][0] <= until:
            for row in self._drawing.note(*self._notes.pop(0)):
                self._screen.line(row)

    def _samples_chat(self, iteration: Iteration) -> bool:
        return self._traffic.chat.rid in iteration.samples

    def _text_came(self, iteration: Iteration) -> bool:
        chat = self._traffic.chat
        received = max(chat.text_of_token, default=0)
        return not self._samples_chat(iteration) or chat.done or received > self._chat_tokens

    def _take_text(self, iteration: Iteration) -> str:
        if not self._samples_chat(iteration):
            return ""
        self._chat_tokens += 1
        return self._traffic.chat.text_of_token.get(self._chat_tokens, "")


async def run_and_draw(
    title: str, server: Server, trace_file: Path, num_layers: int, screen: Screen, style: Style
) -> Measured:
    """Warm the server up, then send the demo's traffic and draw it.

    Raises:
        ServerFailed: the server ended.
        TrafficError: it answered with an error.
    """
    screen.show("warming up")
    await warm_up(server.url)
    screen.clear()
    trace = TraceFollower(trace_file)
    trace.new_iterations()  # the warm-up's
    traffic = Traffic(server.url)
    screen.line(header(num_layers, style))
    sending = asyncio.create_task(traffic.send())
    try:
        await Show(traffic, trace, num_layers, screen, style).follow(sending, server)
        await sending  # raises what went wrong
    finally:
        sending.cancel()
    ttfts = [p.first_token - p.sent for p in traffic.prompts if p.first_token and p.sent]
    return Measured(title, traffic.chat.gaps, tuple(ttfts), traffic.chat.text)
