"""One server: its queue, its KV cache and its running requests, iteration by iteration.

Decode iterations in which no prompt can be admitted are taken in one step, until the next arrival or
the next finished request.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import numpy as np

from layered_sglang.scheduling import CohortWork, DecodeWork
from layered_sglang.simulator.gaps import Gaps
from layered_sglang.simulator.traffic import Traffic
from layered_sglang.simulator.world import Times, World

#: Share of the tokens still to be generated that admission keeps KV slots for; the rest is hope, and
#: retraction where it fails (SGLang's new-token ratio).
RESERVE = 0.3


#: Decode iterations after which a queue that found no room is looked at again, if no request has
#: finished and none has come before.
BLOCKED = 16


class Request:
    """A request and how far it has come. Times in seconds, NaN until known."""

    __slots__ = (
        "arrival",
        "cached",
        "computed",
        "end_tick",
        "first",
        "generated",
        "group",
        "index",
        "join_tick",
        "kv",
        "last",
        "need",
        "output",
        "prompt",
        "worst",
    )

    def __init__(self, index: int, arrival: float, prompt: int, output: int, group: int) -> None:
        self.index, self.arrival, self.group = index, arrival, group
        self.prompt, self.output = prompt, output
        self.generated = 0  # tokens it has got
        self.computed = 0  # tokens whose KV is in the cache or being computed
        self.cached = 0  # of them, found there when it was admitted
        self.kv = 0  # slots it holds
        self.first = self.last = math.nan
        self.worst = 0.0
        self.join_tick = self.end_tick = 0
        self.need = 0.0

    @property
    def wanted(self) -> int:
        """Tokens that have to be in the KV cache before it decodes: what a retraction cost too."""
        return self.prompt + self.generated

    @property
    def left(self) -> int:
        """Tokens still to be computed before it decodes."""
        return self.prompt + self.generated - self.computed


class Schedule(Protocol):
    """How prompts are computed beside decode; one object a replica."""

    def step(self, replica: Replica) -> bool:
        """Run one iteration that computes prompts. ``False``: there is none to run now."""

    def pending(self) -> bool:
        """Whether prompts have begun and are not through."""

    def decoded(self, replica: Replica, decode: DecodeWork, seconds: float | None) -> None:
        """An iteration with ``decode`` alone was launched. ``seconds``: that it took, where it is known
        already; its result is in :attr:`Replica.measure` otherwise."""


class Replica:
    """The state that all schedules share, and the loop."""

    def __init__(
        self, traffic: Traffic, schedule: Schedule, world: World, kv_tokens: int, max_running: int
    ) -> None:
        self.schedule, self.world = schedule, world
        self.kv_tokens, self.max_running = kv_tokens, max_running
        self.now = 0.0
        self.seen = (
            0.0  # when the host plans and launches the next iteration, with what came until then
        )
        self.ticks = 0  # decode iterations so far
        self.waiting: list[Request] = []
        self.running: dict[int, Request] = {}
        self.joiners: list[Request] = []  # running, but in no decode iteration yet
        self.last_decode = 0.0
        self.context = 0  # KV slots of the running requests
        self.prefill_kv = 0  # KV slots of prompts in flight
        self.unborn = 0  # tokens that the running requests have still to generate
        self.retractions = 0
        self.iterations = 0
        self.computed_tokens = 0
        self.kv_peak = 0
        self.gaps = Gaps()
        self._unseen = (
            False  # whether an iteration ended at ``now`` whose result nobody has seen yet
        )
        self._last_gaps = (0.0, 0.0)  # of all who decoded in it: on average, and the last one
        self._own_gaps: list[tuple[Request, float]] = []  # of others whose gap ended with it
        #: Told what the iteration just launched took, from the result before it to its own, and whether
        #: that was looked for only after a long launch.
        self.measure: Callable[[float, bool], None] | None = None
        self._launched = 0.0  # that iteration
        self._result = 0.0  # the last one that was seen
        self.prefixes: OrderedDict[int, None] = OrderedDict()
        self._shared = traffic.shared
        self._ends: list[tuple[int, int]] = []
        self._arrivals = list(
            zip(
                traffic.arrival.tolist(),
                traffic.prompt.tolist(),
                traffic.output.tolist(),
                traffic.group.tolist(),
                strict=True,
            )
        )
        self._next = 0
        n = len(self._arrivals)
        self.ttft, self.e2e, self.worst = (np.full(n, np.nan) for _ in range(3))

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Until every request has its last token."""
        while True:
            self._arrive()
            # (A schedule may retract; then it is asked again.)
            if (self.waiting or self.schedule.pending()) and self.schedule.step(self):
                self.iterations += 1
                continue
            if self.running:
                self._decode_until_something_happens()
            elif self._next < len(self._arrivals):
                self.now = self.seen = max(self.now, self._arrivals[self._next][0])
                self._unseen = False
            else:
                break
        assert not self.waiting and not self.schedule.pending(), "requests were left behind"
        assert self.context == 0 and self.prefill_kv == 0 and self.unborn == 0, "KV was lost"

    def _arrive(self) -> None:
        arrivals = self._arrivals
        while self._next < len(arrivals) and arrivals[self._next][0] <= self.seen:
            self.waiting.append(Request(self._next, *arrivals[self._next]))
            self._next += 1

    def _decode_until_something_happens(self) -> None:
        self.room_for_tick()
        n = len(self.running)
        if n == 0:
            return
        room = self.kv_tokens - self.context - self.prefill_kv
        steps = min(self._ends[0][0] - self.ticks, room // n)
        if self.waiting:
            steps = min(steps, BLOCKED)
        if self.joiners or self.last_decode != self.now or self.world.noise:
            steps = 1  # their gaps differ
        elif self._next < len(self._arrivals):
            one = self.world.decode_seconds(n, self.context) * self.world.bias
            until = (self._arrivals[self._next][0] - self.now) / one
            steps = max(1, min(steps, math.ceil(until)))
        total, last = self.world.decode(n, self.context, steps)
        work = DecodeWork(n, self.context)
        launch = self.world.launch_decode if self.world.model.overlap else 0.0
        self.advance(Times(total, launch))
        self.schedule.decoded(self, work, None if steps == 1 else total / steps)
        if steps > 1 and self.world.model.overlap:
            self.seen = self.now - last
        self.iterations += steps
        if steps == 1:
            self.tick()
        else:
            self.ticks += steps
            self.context += n * steps
            self.unborn -= n * steps
            self.kv_peak = max(self.kv_peak, self.context)
            mean = (self.now - self.last_decode) / steps
            self.gaps.add(mean, n * steps)
            self.gaps.note(self.ticks, last)
            self._last_gaps = mean, last
            self.last_decode = self.now
            self._finish()

    # --- what schedules use -----------------------------------------------------------------------

    @property
    def decode_work(self) -> DecodeWork:
        return DecodeWork(len(self.running), self.context)

    @property
    def longest_context(self) -> int:
        """The most tokens that a running request attends to."""
        return max(r.prompt + r.output - (r.end_tick - self.ticks) for r in self.running.values())

    def advance(self, times: Times, launches_long: bool = False) -> None:
        """Run an iteration. With overlap the host launches it while the GPU has the one before, and
        only then looks for that one's result; so a long launch lets everyone see it late."""
        began = self.seen
        if not self.world.model.overlap:
            self._tell(self.now, False)
            self.now += sum(times)
            self.seen = self.now
            self._launched = began
            return
        device, host = times
        launched, done = began + host, self.now + device
        self._tell(max(self.now, launched) if self._unseen else self.now, launches_long)
        self._launched = began
        if not self._unseen:
            self.seen = launched
        elif launched > self.now:
            self._delay(launched - self.now)
            self.seen = launched
        else:
            self.seen = self.now
        self.now = done if done > launched else launched
        self._unseen = True
        if self._own_gaps:
            self._own_gaps = []

    def _tell(self, result: float, launched_long: bool) -> None:
        """The result of the iteration before is seen at ``result``."""
        if self.measure is not None:
            self.measure(result - max(self._result, self._launched), launched_long)
            self.measure = None
        self._result = result

    def _delay(self, seconds: float) -> None:
        """The tokens of ``now`` are seen so much later."""
        own = [(request, gap) for request, gap in self._own_gaps if request.index in self.running]
        for request, gap in own:
            self.gaps.lengthen(gap, seconds, 1)
            request.worst = max(request.worst, gap + seconds)
        for request in self.joiners:
            if request.last == self.now:
                request.last += seconds
                if request.generated == 1:
                    request.first += seconds
        if self.last_decode == self.now:
            joined = {request.index for request in self.joiners} | {r.index for r, _ in own}
            mean, last = self._last_gaps
            self.gaps.lengthen(mean, seconds, len(self.running) - len(joined))
            if len(self.running) > len(joined):
                self.gaps.note(self.ticks, last + seconds)
            self.last_decode += seconds

    def tick(self) -> None:
        """Every running request got a token now."""
        n = len(self.running)
        if n == 0:
            return
        self.ticks += 1
        self.context += n
        self.unborn -= n
        self.kv_peak = max(self.kv_peak, self.context + self.prefill_kv)
        gap = self.now - self.last_decode
        self._last_gaps = gap, gap
        self.gaps.add(gap, n - len(self.joiners))
        if n > len(self.joiners):
            self.gaps.note(self.ticks, gap)
        for request in self.joiners:
            own = self.now - request.last
            self.gaps.add(own, 1)
            request.worst = max(request.worst, own)
            request.join_tick = self.ticks
            self._own_gaps.append((request, own))
        self.joiners.clear()
        self.last_decode = self.now
        self._finish()

    def room_for_tick(self) -> None:
        """Retract until a decode iteration has a KV slot for every running request."""
        while self.running and self.context + self.prefill_kv + len(self.running) > self.kv_tokens:
            self.retract()

    def fits(self, request: Request, tokens: int) -> bool:
        """Whether ``tokens`` more of the request's prompt may take KV slots now."""
        used = self.context + self.prefill_kv + tokens
        if not self.running and self.prefill_kv == request.kv:
            return used <= self.kv_tokens
        to_come = RESERVE * (self.unborn + request.output - request.generated)
        return used + to_come <= self.kv_tokens

    def admit(self, request: Request, tokens: int) -> CohortWork:
        """The request's next ``tokens`` tokens are computed from now on; they hold KV slots."""
        work = CohortWork.of_prompt(tokens, request.computed)
        request.computed += tokens
        slots = request.computed - request.kv
        request.kv += slots
        self.prefill_kv += slots
        self.computed_tokens += tokens
        self.kv_peak = max(self.kv_peak, self.context + self.prefill_kv)
        return work

    def look_up_prefix(self, request: Request) -> None:
        """What of a waiting prompt the cache holds need not be computed."""
        if request.computed == 0 and request.group >= 0 and request.group in self.prefixes:
            self.prefixes.move_to_end(request.group)
            request.cached = request.computed = min(self._shared, request.prompt - 1)

    def join(self, request: Request) -> None:
        """The request's prompt is through: it has its next token, and decodes from now on."""
        assert request.left == 0
        self.prefill_kv -= request.kv
        if request.generated == 0:
            request.first = request.last = self.now
        else:  # it was retracted; this was its longest gap, most likely
            gap = self.now - request.last
            self.gaps.add(gap, 1)
            request.worst = max(request.worst, gap)
            request.last = self.now
            self._own_gaps.append((request, gap))
        request.generated += 1
        request.kv = 0
        if request.group >= 0:
            self.prefixes[request.group] = None
            if len(self.prefixes) * self._shared > self.kv_tokens // 2:
                self.prefixes.popitem(last=False)
        if request.generated == request.output:
            self._record(request)
            return
        self.context += request.wanted - 1  # the newest token's KV comes when it is computed
        left = request.output - request.generated
        self.unborn += left
        request.join_tick, request.end_tick = self.ticks, self.ticks + left
        self.running[request.index] = request
        self.joiners.append(request)
        heapq.heappush(self._ends, (request.end_tick, request.index))

    def retract(self) -> None:
        """The request that joined last gives its KV slots back and waits again, at the head."""
        request = max(self.running.values(), key=lambda r: (r.join_tick, r.index))
        del self.running[request.index]
        if request in self.joiners:
            self.joiners.remove(request)
        else:
            request.worst = max(request.worst, self.gaps.worst_after(request.join_tick))
            request.last = self.last_decode
        left = request.end_tick - self.ticks
        request.generated = request.output - left
        self.context -= request.wanted - 1
        self.unborn -= left
        self._ends.remove((request.end_tick, request.index))
        heapq.heapify(self._ends)
        request.computed = request.cached = request.kv = 0
        self.waiting.insert(0, request)
        self.retractions += 1

    def _finish(self) -> None:
        while self._ends and self._ends[0][0] <= self.ticks:
            _, index = heapq.heappop(self._ends)
            request = self.running.pop(index)
            request.generated = request.output
            self.context -= request.wanted - 1
            request.worst = max(request.worst, self.gaps.worst_after(request.join_tick))
            self._record(request)
        if not self.running:
            self.gaps.forget()

    def _record(self, request: Request) -> None:
        assert math.isnan(self.e2e[request.index]), "a request ended twice"
        self.ttft[request.index] = request.first - request.arrival
        self.e2e[request.index] = self.now - request.arrival
        self.worst[request.index] = request.worst
