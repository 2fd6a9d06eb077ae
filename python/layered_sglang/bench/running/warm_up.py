"""Rounds of requests until two rounds take the same time: no kernel compiles any more."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from layered_sglang.bench.running.client import Endpoint, Row, new_rid
from layered_sglang.bench.running.drive import Progress, drive
from layered_sglang.bench.spec.scenario import Scenario
from layered_sglang.bench.spec.workload import Request, make_lengths

#: Lengths of each workload that the rounds are chosen from.
SAMPLE = 200
#: Two rounds are alike within this share, or these seconds for the longest gap.
TOLERANCE = 0.2
GAP_SECONDS = 0.03
#: A round sends a request this many seconds after the last one.
SPACING = 0.15


class WarmUpFailed(Exception):
    """Requests of the warm-up were answered with an error. One line."""


def warm_up_requests(scenario: Scenario, round_index: int) -> list[Request]:
    """A round: prompts spread over the workloads' lengths, the longest and shortest among them.

    The next round has the next lengths: kernels are compiled for more than the first round's sizes.
    """
    lengths = sorted(
        (prompt + (w.shared_prefix.tokens if w.shared_prefix else 0), output)
        for w in scenario.workloads.values()
        for prompt, output in islice(make_lengths(w), SAMPLE)
    )
    count = min(scenario.warm_up.requests, len(lengths))
    step = (len(lengths) - 1) / max(1, count - 1)
    places = [round(i * step) for i in range(count)]
    later = (round_index - 1) % max(1, int(step))
    places[1:-1] = [place + later for place in places[1:-1]]
    chosen = [lengths[place] for place in places]
    rng = random.Random(f"warm-up {round_index}")
    # The same order in each round: short and long ones beside one another.
    random.Random(0).shuffle(chosen)
    return [
        Request(
            index,
            SPACING * index,
            tuple(rng.choices(range(scenario.model.vocabulary), k=prompt)),
            min(output, scenario.warm_up.output_tokens),
        )
        for index, (prompt, output) in enumerate(chosen)
    ]


def stable(rounds: Sequence[tuple[float, float]]) -> bool:
    """Whether the last two of (seconds of all answers, longest gap) are alike."""
    if len(rounds) < 2:
        return False
    (total, gap), (total_before, gap_before) = rounds[-1], rounds[-2]
    return (
        abs(total - total_before) <= TOLERANCE * min(total, total_before)
        and abs(gap - gap_before) <= TOLERANCE * min(gap, gap_before) + GAP_SECONDS
    )


def warm_up(
    scenario: Scenario,
    endpoint: Endpoint,
    show: Callable[[str], None],
    check: Callable[[], None],
    fields: Mapping[str, Any] | None = None,
) -> dict[str, object]:
    """Send rounds until they are alike or there were the most allowed.

    Args:
        show: told how far it is.
        check: called a few times a second; what it raises ends it.
        fields: more fields of every request.

    Returns:
        What to record: seconds of each round's answers, its longest gap, whether they became alike.

    Raises:
        WarmUpFailed: an answer was an error.
    """
    rounds: list[tuple[float, float]] = []
    while len(rounds) < scenario.warm_up.most_rounds:
        number = len(rounds) + 1
        requests = warm_up_requests(scenario, number)
        rows = [
            Row("", "", 0, None, r.index, new_rid(), r.arrival, len(r.prompt)) for r in requests
        ]

        def report(progress: Progress, number: int = number, count: int = len(rows)) -> None:
            show(f"warm-up, round {number}: {progress.done} of {count} answered")

        sending = drive(
            *(endpoint, requests, rows, scenario.request_seconds),
            *(report, lambda _: None, check, fields),
        )
        asyncio.run(sending)
        errors = [row.error for row in rows if row.error]
        if errors:
            raise WarmUpFailed(f"{len(errors)} of {len(rows)} warm-up requests failed: {errors[0]}")
        gaps = [gap for row in rows for gap in row.itls_s]
        rounds.append((sum(row.e2e_s or 0.0 for row in rows), max(gaps, default=0.0)))
        if number >= scenario.warm_up.least_rounds and stable(rounds):
            break
    return {
        "seconds": [round(total, 3) for total, _ in rounds],
        "max_itl_s": [round(gap, 4) for _, gap in rounds],
        "stable": stable(rounds),
    }
