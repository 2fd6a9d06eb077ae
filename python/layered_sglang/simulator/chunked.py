"""SGLang's own schedules in the simulation: chunked prefill, before decode or mixed with it."""

from __future__ import annotations

from layered_sglang.scheduling import CohortWork, DecodeWork
from layered_sglang.simulator.replica import Replica, Request
from layered_sglang.simulator.stock import StockWorld


class ChunkedSchedule:
    """Prompts run through all layers, at most ``tokens`` an iteration, first come, first served.

    Prefill first: as long as prompts wait, nobody decodes. Mixed: the running requests' rows are part of
    every chunk and of its ``tokens``.
    """

    def __init__(self, tokens: int, mixed: bool) -> None:
        self.tokens, self.mixed = tokens, mixed
        self._chunked: Request | None = None

    def pending(self) -> bool:
        return self._chunked is not None

    def decoded(self, replica: Replica, decode: DecodeWork, seconds: float | None) -> None:
        """It plans by no times."""

    def step(self, replica: Replica) -> bool:
        if self.mixed:
            replica.room_for_tick()
        room = self.tokens - (len(replica.running) if self.mixed else 0)
        room = max(room, 1)
        members: list[Request] = []
        total: CohortWork | None = None
        if self._chunked is not None:
            candidates = [self._chunked, *replica.waiting[:room]]
        else:
            candidates = replica.waiting[:room]
        free = replica.max_running - len(replica.running)
        for request in candidates:
            replica.look_up_prefix(request)
            take = min(request.left, room)
            slots = take + (request.computed - request.kv)
            if room == 0 or len(members) >= free or not replica.fits(request, slots):
                break
            if request is not self._chunked:
                replica.waiting.remove(request)
            work = replica.admit(request, take)
            total = work if total is None else total + work
            self._chunked = request if request.left else None
            members.append(request)
            room -= take
        if total is None:
            if self._chunked is not None and not replica.running:
                raise AssertionError("a chunk that fits an empty cache does not fit")
            return False
        if self.mixed and replica.running:
            assert isinstance(replica.world, StockWorld)
            longest = max(replica.longest_context, *(member.computed for member in members))
            replica.advance(replica.world.mixed(replica.decode_work, total, longest))
            replica.tick()
        else:
            replica.advance(replica.world.prefill(total))
        for request in members:
            if request.left == 0:
                replica.join(request)
        return True
