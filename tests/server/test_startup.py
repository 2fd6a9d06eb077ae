"""Starting: wrong flags end at once in one line, and a server without its schedule does not start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import failed_start, free_port, layered_command, start
from processes import stop

pytestmark = pytest.mark.server
HERE = Path(__file__).parent


def ended(
    command: list[str], folder: Path, env: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """The status with which a process ends by itself, and what it has printed."""
    log = folder / "log"
    here = {"PYTHONPATH": os.pathsep.join((str(HERE), *sys.path))}
    process = start(command, log, here | (env or {}))
    try:
        return process.wait(500), log.read_text()
    finally:
        stop(process)


@pytest.mark.timeout(600)
def test_wrong_starts_end_before_the_model_loads_in_one_line(make_model, tmp_path):
    tiny = str(make_model())
    qwen, unknown = make_model("qwen3-30b-a3b"), tmp_path / "unknown"
    unknown.mkdir()
    config = json.loads((qwen / "config.json").read_text())
    config["architectures"] = ["DeepseekV32ForCausalLM"]
    (unknown / "config.json").write_text(json.dumps(config))
    cases = {
        ("--layer-group-tokens", "0"): "--layer-group-tokens must be at least 1",
        ("--itl-slo-ms", "-1"): "--itl-slo-ms must be a positive number",
        ("--cost-profile", "/nonexistent.json"): "--cost-profile /nonexistent.json: No such file",
        ("--num-layer-groups", "9"): "9 is more than the model's 8 layers",
        ("--chunked-prefill-size", "512"): "contradicts --layered-max-prefill-tokens 8192",
        ("--enable-mixed-chunk",): "does not work with --enable-mixed-chunk yet",
        ("--enable-torch-compile",): "does not work with --enable-torch-compile yet",
        (
            "--model-path",
            str(unknown),
        ): "does not support DeepseekV32ForCausalLM yet; it supports ",
        # Only a config.json: these can be refused only before weights are looked for.
        ("--model-path", str(qwen), "--num-layer-groups", "49"): "the model's 48 layers",
    }
    argvs = [["--model-path", tiny, "--skip-tokenizer-init", *flags] for flags in cases]
    status, log = ended([sys.executable, "-m", "wrong_starts", json.dumps(argvs)], tmp_path)
    outcomes = [json.loads(x[5:]) for x in log.splitlines() if x.startswith("CASE ")]
    assert status == 0 and len(outcomes) == len(cases), log
    for (flags, message), (status, err) in zip(cases.items(), outcomes, strict=True):
        lines = [line for line in err.splitlines() if "layered-sglang: error" in line]
        assert status == 2 and len(lines) == 1 and message in lines[0], (flags, status, err)
        assert "Traceback" not in err, err


@pytest.mark.timeout(600)
def test_a_plugin_list_without_us_stops_the_launcher(make_model, tmp_path):
    command = layered_command(make_model(), free_port())
    status, log = ended(command, tmp_path, {"SGLANG_PLUGINS": "something_else"})
    assert status == 2
    assert "ServerArgs.add_cli_args did not take" in log.splitlines()[-1]


@pytest.mark.timeout(600)
def test_a_replaced_scheduler_stops_the_server(make_model, tmp_path):
    """Another plugin takes the scheduler class: the scheduler process says so, the server ends."""
    path = os.pathsep.join(filter(None, [str(HERE / "rival_plugin"), os.environ.get("PYTHONPATH")]))
    command, log = layered_command(make_model(), free_port()), tmp_path / "server.log"
    errors = failed_start(command, log, {"PYTHONPATH": path})
    assert errors and "RivalScheduler, not the layered scheduler" in errors[0], log.read_text()


@pytest.mark.timeout(600)
def test_installed_but_not_launched_it_changes_nothing():
    code = """
import sglang.srt.managers.scheduler as s
before = s.Scheduler
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
load_plugins()
from importlib.metadata import entry_points
assert any(e.name == "layered_sglang" for e in entry_points(group="sglang.srt.plugins"))
ours = [h for hooks in HookRegistry._hooks.values() for _, h, _ in hooks
        if h.__module__.startswith("layered_sglang")]
assert not ours, ours
assert s.Scheduler is before
from layered_sglang import platforms
assert platforms.activate() is None
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LAYERED_", "SGLANG_PL"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
