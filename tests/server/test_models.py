"""Every supported architecture gives stock SGLang's tokens while its prompts are layered."""

from __future__ import annotations

import math
import os
import random
import re
from pathlib import Path

import pytest
from half_way import check, settled
from harness import Answer, Request, free_port, layered_command, running
from layered_sglang.executor.architectures import ARCHITECTURES
from layered_sglang.model_zoo import find_preset
from presets import BY_LAYER_GROUPS, SERVED
from timed import TRIES, run

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
STAND_IN = Path(__file__).parent / "graph_stand_in"
TABLE = Path(__file__).parents[2] / "docs" / "models.md"

#: Where SGLang's own schedule, too, computes with operators of ours (``platforms/``): it is compared
#: with transformers first.
WITH_OUR_OPERATORS = {
    "tiny-deepseek-v2",
    "tiny-deepseek-v3",
    "tiny-ernie4.5-moe",
    "tiny-glm4-moe-lite",
    "tiny-gpt-oss",
    "tiny-minimax-m2",
    "tiny-qwen2-moe",
    "tiny-qwen3-next",
    "tiny-qwen3.5",
    "tiny-qwen3.5-moe",
    "tiny-qwen3.5-moe-text",
}

_RNG = random.Random(7)
IGNORE_EOS = (("ignore_eos", True),)


def prompt(n: int) -> tuple[int, ...]:
    return tuple(_RNG.randrange(256) for _ in range(n))


STREAM = Request(prompt(30), 230, IGNORE_EOS, stream=True)
FIRST = Request(prompt(700), 20, IGNORE_EOS)
SCORED = Request(prompt(400), 16, IGNORE_EOS, logprob_start=0)
SHORT = Request(prompt(5), 40, IGNORE_EOS)
LONG = Request(prompt(2100), 8, IGNORE_EOS, logprob_start=0)  # three chunks
AGAIN = Request(FIRST.prompt + prompt(90), 12, IGNORE_EOS)  # behind what the radix cache has
GONE = [Request(prompt(2900), 8, IGNORE_EOS) for _ in range(3)]
ALL = [STREAM, FIRST, SCORED, SHORT, LONG, AGAIN]


def test_every_architecture_is_tested():
    tested = SERVED | BY_LAYER_GROUPS | {"Qwen3MoeForCausalLM": "tiny"}
    assert set(tested) == set(ARCHITECTURES)
    for architecture, preset in tested.items():
        assert find_preset(preset).config["architectures"] == [architecture]


def test_the_table_of_models_is_the_registry():
    """Each row of docs/models.md names architectures and says whether they are layered."""
    said: dict[str, set[str]] = {"yes": set(), "refused": set()}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[3] in said:
            names = set(re.findall(r"`(\w+For\w+)`", cells[0]))
            said[cells[3]] |= names
            assert cells[3] == "refused" or cells[4].startswith("CPU"), line
            by_layer_groups = cells[4].startswith("CPU, layer groups alone")
            assert by_layer_groups == (cells[3] == "yes" and names <= set(BY_LAYER_GROUPS)), line
    assert said["yes"] == set(ARCHITECTURES)
    assert said["refused"] and said["refused"].isdisjoint(ARCHITECTURES)


def transformers_logprobs(folder, tokens: tuple[int, ...]) -> list[float]:
    """Log-probabilities of ``tokens`` but the first, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    config = model.config
    for layer in model.model.layers:
        attention = getattr(layer, "self_attn", None)
        if config.model_type == "gpt_oss":
            layer.mlp.experts.limit = config.swiglu_limit  # a constant in transformers
            attention.sinks.data = attention.sinks.data.bfloat16().float()  # as SGLang keeps them
        if config.model_type == "deepseek_v2":
            # transformers leaves out what stretched rotary embeddings do to the scale.
            rope = config.rope_parameters
            stretched = 0.1 * rope["mscale_all_dim"] * math.log(rope["factor"]) + 1
            attention.scaling *= stretched**2
    with torch.no_grad():
        logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return logprobs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])].tolist()


COUNTED = ("iterations:merged", "aborted_cohorts")
EIGHT_LAYER_GROUPS = ("--num-layer-groups", "8")


@pytest.fixture(scope="module")
def stock_answers(make_model, ask_stock):
    """``stock_answers(preset, *flags)``: by request. What SGLang computes with operators of ours is
    compared with transformers first."""
    trusted = set(SERVED.values()) - WITH_OUR_OPERATORS

    def ask(preset: str, *flags: str) -> dict[Request, Answer]:
        answers = ask_stock(ALL, *flags, model=preset)
        wanted = {request: answer for request, (answer,) in zip(ALL, answers, strict=True)}
        if preset not in trusted:
            by_transformers = transformers_logprobs(make_model(preset), SCORED.prompt)
            assert wanted[SCORED].prompt_logprobs[1:] == pytest.approx(by_transformers, abs=2e-3)
            trusted.add(preset)
        return wanted

    return ask


@pytest.fixture
def compare(make_model, stock_answers, tmp_path):
    """``compare(preset, *flags, both=(), policy=, env=)``: a layered server's answers with stock's.

    The layered server has ``flags`` and ``policy``, both servers have ``both``.
    """

    def expect_stock_answers(
        preset: str, *flags: str, both=(), policy=EIGHT_LAYER_GROUPS, env=None
    ) -> None:
        wanted = stock_answers(preset, *both)
        play(make_model(preset), tmp_path, wanted, *flags, *both, policy=policy, env=env)

    return expect_stock_answers


def play(model, folder, wanted, *flags: str, policy, env) -> None:
    """Prompts beside a stream, cut, cached and aborted: compare what a layered server answers."""
    ours = ["--layered-max-prefill-tokens", "1000", "--enable-metrics"]
    command = layered_command(model, free_port(), *ours, *policy, *flags)
    with running(command, folder / "server.log", env) as server:
        for _ in range(TRIES):
            before = server.counters()
            answers, _ = run(
                server,
                STREAM,
                (10, FIRST, "first"),
                (30, SCORED, "scored"),
                (33, SHORT, "short"),
                (60, LONG, "long"),
                (120, AGAIN, "again"),
                *((150 + 20 * i, gone, f"gone{i}") for i, gone in enumerate(GONE)),
                # A chunk takes 8 iterations; how many pass before an abort arrives, nobody knows.
                actions=[
                    (152 + 22 * i, "/abort_request", {"rid": f"gone{i}"}) for i in range(len(GONE))
                ],
            )
            counters = settled(server)
            ended = {answers.pop(gone).finish for gone in GONE}
            assert ended <= {"abort", "length"}
            check(answers, wanted)
            new = {name: counters[name] - before[name] for name in COUNTED}
            cached = "--disable-radix-cache" in flags or answers[AGAIN].cached >= 600
            if as_meant(new, policy) and cached and ended == {"abort"}:
                return
    pytest.fail(f"prompts came too late to be layered, cached or aborted: {new}")


def as_meant(counters, policy) -> bool:
    """Whether prompts were layered, and a cohort aborted."""
    eight = policy[:2] == EIGHT_LAYER_GROUPS
    merged, aborted = counters["iterations:merged"], counters["aborted_cohorts"]
    return merged >= (40 if eight else 10) and aborted >= (1 if eight else 0)


@pytest.mark.parametrize("preset", SERVED.values())
def test_tokens_are_stock_sglangs(preset, compare):
    compare(preset)


@pytest.mark.parametrize(
    "flags",
    [
        ["--disable-hybrid-swa-memory"],
        ["--disable-radix-cache"],
        ["--disable-overlap-schedule"],
    ],
    ids=" ".join,
)
def test_sliding_windows_whatever_holds_their_keys(flags, compare):
    """One pool for all layers, two pools without a radix tree, two without overlap."""
    compare("tiny-gpt-oss", *flags)


def test_latent_attention_beside_layer_graphs(compare, tmp_path):
    """Chunks of 1500 tokens attend the wide way; five cohorts fit into graphs: the narrow way."""
    replays = tmp_path / "replays"
    env = {
        "GRAPH_STAND_IN_FILE": str(replays),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(STAND_IN), os.environ.get("PYTHONPATH")])),
    }
    policy = (*EIGHT_LAYER_GROUPS, "--layered-max-prefill-tokens", "1500")
    compare("tiny-deepseek-v3", policy=policy, env=env)
    kinds = replays.read_text()
    assert kinds.count("d") > 200 and kinds.count("m") >= 30


@pytest.mark.parametrize("preset", ["tiny-deepseek-v2", "tiny-deepseek-v3"])
def test_latent_attention_behind_expanded_prefixes(preset, compare):
    """Prefixes of 256 cached tokens and more are expanded, in our server alone."""
    compare(preset, env={"SGLANG_CHUNKED_PREFIX_CACHE_THRESHOLD": "256"})


def test_linear_attention_on_two_ranks_without_a_radix_cache(compare):
    """With overlap, which a radix cache of states excludes where no GPU is."""
    compare("tiny-qwen3-next", "--disable-radix-cache", both=("--tp", "2"))


def test_layer_groups_by_cost(compare):
    """Dense layers before layers with experts, cut by what they cost under a target."""
    compare("tiny-deepseek-v3", policy=("--itl-slo-ms", "25"))
