"""``/metrics`` of a real server: a process of its own answers, and says what SGLang's page would."""

from __future__ import annotations

import asyncio
import re

import psutil
import pytest
from harness import Request, free_port, generate_all, layered_command, running
from layered_sglang.telemetry.metrics_page import answer_of

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


def samples(page: str) -> set[str]:
    """Names and labels; values change while a server stands by."""
    return {line.rsplit(" ", 1)[0] for line in page.splitlines() if not line.startswith("#")}


def test_a_process_of_its_own_answers_what_sglangs_page_would(make_model, tmp_path, monkeypatch):
    from prometheus_client import CollectorRegistry, make_asgi_app, multiprocess

    folder = tmp_path / "counted"
    folder.mkdir()
    command = layered_command(make_model(), free_port(), "--enable-metrics")
    env = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with running(command, tmp_path / "server.log", env) as server:
        asyncio.run(generate_all(server, [Request(tuple(range(50)), 4)]))
        for _ in range(2):  # the first is counted itself, and its answer too
            server.get("/metrics")
        got = server.get("/metrics")
        children = psutil.Process(server.process.pid).children(recursive=True)
        commands = [" ".join(child.cmdline()) for child in children]
        (process,) = [
            child
            for child, line in zip(children, commands, strict=True)
            if re.search(r"-m layered_sglang\.telemetry\.metrics_page$", line)
        ]
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, str(folder))
        scope = {"type": "http", "query_string": b"", "headers": []}
        start, body = asyncio.run(answer_of(make_asgi_app(registry=registry), scope))
        assert got.status_code == start["status"] == 200
        assert got.headers["Content-Type"] == dict(start["headers"])[b"Content-Type"].decode()
        assert samples(got.text) == samples(body["body"].decode())
        names = {line.split("{")[0] for line in samples(got.text)}
        assert {"sglang:prompt_tokens_total", "layered_sglang:cohorts_total"} <= names
    process.wait(60)
