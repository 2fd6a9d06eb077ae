"""Layered prefill in the simulation: the server's planner decides, this carries it out."""

from __future__ import annotations

from layered_sglang.scheduling import (
    WINDOW,
    CohortView,
    CohortWork,
    DecodeWork,
    InFlight,
    Iteration,
    Lessons,
    Planner,
    QueueView,
    WaitingPrompt,
)
from layered_sglang.simulator.replica import Replica, Request


class Cohort:
    """Prompts that advance together."""

    __slots__ = ("alone", "arrival", "delayed", "members", "next_layer", "overtaking", "work")

    def __init__(self, members: list[Request], work: CohortWork, overtaking: bool, alone: bool):
        self.members, self.work = members, work
        self.overtaking, self.alone = overtaking, alone
        self.next_layer = 0
        self.delayed = 0.0
        self.arrival = min(member.arrival for member in members)


class LayeredSchedule:
    """Cohorts advance by layer groups; decode goes on in every iteration.

    Attributes:
        target: inter-token target, seconds, for policies that plan by time.
        max_tokens: most tokens of a cohort.
        learns: the planner observes iterations (it need not where it knows the world).
    """

    def __init__(
        self, planner: Planner, target: float | None, max_tokens: int, learns: bool
    ) -> None:
        self.planner, self.target, self.max_tokens = planner, target, max_tokens
        self.learns = learns
        self._lessons = Lessons(planner.estimator)
        self._stack: list[Cohort] = []
        self._long: Request | None = None  # a prompt of which a part is through or in flight
        self._long_delayed = 0.0

    def pending(self) -> bool:
        return bool(self._stack) or self._long is not None

    def decoded(self, replica: Replica, decode: DecodeWork, seconds: float | None) -> None:
        if not self.learns:
            return
        if seconds is None:
            self._measure(replica, Iteration(decode))
        else:
            self._lessons.measured(Iteration(decode), seconds, False)

    def step(self, replica: Replica) -> bool:
        stack = self._stack
        may_admit = len(stack) < 2 if self.planner.overtakes else not stack
        if may_admit and (replica.waiting or (self._long is not None and not stack)):
            self._admit(replica)
        if not stack:
            return False
        cohort = stack[-1]
        # What a retraction frees is admitted later, so the running requests are final here.
        replica.room_for_tick()
        if cohort.alone:
            self._prefill(replica, cohort.work)
            end = self.planner.estimator.num_layers
        else:
            end = self._run_layer_group(replica, cohort)
        cohort.next_layer = end
        if end == self.planner.estimator.num_layers:
            stack.pop()
            for member in cohort.members:
                if member.left == 0:
                    replica.join(member)
                    if member is self._long:
                        self._long = None
        return True

    def _run_layer_group(self, replica: Replica, cohort: Cohort) -> int:
        layers = self.planner.estimator.num_layers
        decode, work, start = replica.decode_work, cohort.work, cohort.next_layer
        view = CohortView(layers, start, work, decode, self.target if decode.requests else None)
        end = self.planner.next_layer_group(view).end
        if decode.requests == 0 and end - start == layers:
            self._prefill(replica, work)
            return end
        first, last = start == 0, end == layers
        times = replica.world.merged(decode, work, end - start, first, last)
        replica.advance(times, launches_long=first)
        if self.learns and decode.requests:
            iteration = Iteration(decode, work, end - start, first, last)
            self.planner.estimator.observe_launch(iteration, times.host)
            self._measure(replica, iteration)
        replica.tick()
        return end

    def _prefill(self, replica: Replica, work: CohortWork) -> None:
        replica.advance(replica.world.prefill(work), launches_long=True)
        self._lessons.forget()

    def _measure(self, replica: Replica, iteration: Iteration) -> None:
        def measured(seconds: float, before_long_launch: bool) -> None:
            self._lessons.measured(iteration, seconds, before_long_launch)

        replica.measure = measured

    # --- admission --------------------------------------------------------------------------------

    def _admit(self, replica: Replica) -> None:
        free = replica.max_running - len(replica.running)
        free -= sum(len(cohort.members) for cohort in self._stack) + (self._long is not None)
        waiting = replica.waiting[: min(WINDOW, max(0, free))]
        if not waiting and self._long is None:
            return
        if self.planner.overtakes:
            view = self._view(replica, waiting)
            admission = self.planner.admit(view) if view.waiting or view.in_flight else None
            if admission is None:
                return
            chosen = range(len(waiting)) if admission.prompts is None else admission.prompts
            tokens, continues = admission.tokens, admission.continues
            overtakes, alone, delay = admission.overtakes, admission.alone, admission.delay
        else:  # the paper's rule looks at no prompt: no view is made for it
            chosen, tokens = range(len(waiting)), self.max_tokens
            continues, overtakes, alone, delay = self._long is not None, False, False, 0.0
        candidates = [waiting[i] for i in chosen]
        if continues:
            assert self._long is not None
            candidates.insert(0, self._long)
        cohort = self._cohort(replica, candidates, tokens, overtakes, alone)
        if cohort is None and overtakes and self._long is not None and not self._stack:
            # Who would overtake finds no KV slots, which the long prompt may be holding: it goes on.
            overtakes = False
            cohort = self._cohort(replica, [self._long], tokens, False, False)
        if cohort is None:
            return
        if overtakes:
            if self._stack:
                self._stack[-1].delayed += delay
            else:
                self._long_delayed += delay
        self._stack.append(cohort)

    def _cohort(
        self,
        replica: Replica,
        candidates: list[Request],
        tokens: int,
        overtakes: bool,
        alone: bool,
    ) -> Cohort | None:
        """Those of the candidates that fit, in order; the first one is cut to ``tokens``, the last
        one too if it begins a long prompt by the paper's rule."""
        members: list[Request] = []
        total: CohortWork | None = None
        for request in candidates:
            replica.look_up_prefix(request)
            take = min(request.left, tokens)
            cut = take < request.left
            if take == 0 or (cut and members and (self.planner.overtakes or self._long)):
                break  # one long prompt at a time, and the planner's cohorts are no more than it says
            if not replica.fits(request, take + (request.computed - request.kv)):
                break
            if request is not self._long:
                replica.waiting.remove(request)
                if cut:
                    self._long, self._long_delayed = request, 0.0
            work = replica.admit(request, take)
            total = work if total is None else total + work
            members.append(request)
            tokens -= take
        if total is None:
            return None
        return Cohort(members, total, overtakes, alone)

    def _view(self, replica: Replica, waiting: list[Request]) -> QueueView:
        now, num_layers = replica.now, self.planner.estimator.num_layers
        prompts = []
        for request in waiting:
            replica.look_up_prefix(request)
            work = CohortWork.of_prompt(request.left, request.computed)
            if request.need == 0.0:
                request.need = self.planner.need(work)
            prompts.append(WaitingPrompt(work, request.need, now - request.arrival))
        in_flight = [
            InFlight(c.work, num_layers - c.next_layer, now - c.arrival, c.delayed)
            for c in self._stack
        ]
        if self._long is not None and not self._stack:
            long = self._long
            in_flight.append(
                InFlight(
                    CohortWork.of_prompt(long.left, long.computed),
                    num_layers,
                    now - long.arrival,
                    self._long_delayed,
                    between_chunks=True,
                )
            )
        target = self.target if replica.running else None
        return QueueView(prompts, in_flight, replica.decode_work, self.max_tokens, target)
