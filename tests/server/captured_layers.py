"""``python -m captured_layers MODEL``: what EAGLE drafts read of a model, in this process, without a
server: prompts in layer groups give it the hidden states that SGLang's own forward pass gives.
"""

from __future__ import annotations

import sys
from typing import Any

from by_layer_groups import PROMPTS, TOLERANCE, Requests, clear, load, prompts

#: As SGLang's models count: their input is read. One begins a layer group, one is inside of one.
CAPTURED = (2, 4, 5)
BORDERS = (1, 4, 7, 8)


def main(folder: str) -> None:
    """
    Raises:
        AssertionError: it says what differs.
    """
    runner = load(folder)
    compare(layered(runner), whole(runner))  # EAGLE: after the last layer's norm
    runner.model.set_eagle3_layers_to_capture([i - 1 for i in CAPTURED])
    wanted, got = whole(runner), layered(runner)
    assert wanted.shape[1] == len(CAPTURED) * runner.model_config.hidden_size
    assert wanted.shape[0] == sum(PROMPTS)
    compare(got, wanted)


def compare(got: Any, wanted: Any) -> None:
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    apart = (got - wanted).abs().max().item()
    print(f"{apart:.1e} apart, spread {wanted.std().item():.2f}")
    assert apart < TOLERANCE, f"{apart:.1e} apart"


def whole(runner: Any) -> Any:
    """``[tokens, captured layers * hidden]``, by SGLang's own pass."""
    clear(runner)
    return runner.forward(rows(runner)).logits_output.hidden_states


def layered(runner: Any) -> Any:
    from layered_sglang.executor.cohort_state import CohortState
    from layered_sglang.scheduling import LayerGroup

    clear(runner)
    state, start = CohortState(rows(runner)), 0
    for end in BORDERS:
        out = runner.layer_groups.run(None, state, LayerGroup(start, end), lambda: None)
        start = end
    return out.cohort.hidden_states


def rows(runner: Any) -> Any:
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

    batch = Requests(runner, prompts()[1:]).prompts()
    batch.capture_hidden_mode = CaptureHiddenMode.FULL
    return batch


if __name__ == "__main__":
    main(*sys.argv[1:])
