"""/metrics from a process of its own: the answers are prometheus_client's, and the event loop goes on."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from layered_sglang.telemetry.metrics_page import PATH, MetricsPage, add_metrics_page, answer_of

pytest.importorskip("prometheus_client")
pytest.importorskip("starlette")

#: One process of two that count into the same folder.
COUNTS = """
import sys
from prometheus_client import Counter, Gauge, Histogram
number = int(sys.argv[1])
tokens = Counter("sglang:tokens_total", "Tokens.", ["model", "rank"])
tokens.labels("a model", str(number)).inc(7 * number)
Gauge("sglang:running", "Requests.", multiprocess_mode="livesum").set(number)
Gauge("sglang:rank", "Each rank's.", multiprocess_mode="all").set(number)
seconds = Histogram("sglang:seconds", "Times.", ["endpoint"], buckets=(0.1, 1, 10))
for value in (0.05, 0.5 * number, 100):
    seconds.labels("/generate").observe(value)
"""
REQUESTS = {
    "plain": (b"", []),
    "compressed": (b"", [(b"accept-encoding", b"gzip")]),
    "OpenMetrics": (b"", [(b"accept", b"application/openmetrics-text; version=1.0.0")]),
    "some of them": (b"name[]=sglang:seconds_bucket&name[]=sglang:running", []),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of two processes."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for number in ("1", "2"):
        subprocess.run([sys.executable, "-c", COUNTS, number], check=True)
    return tmp_path


@pytest.fixture
def page():
    page = MetricsPage()
    yield page
    page._stop()


def readable(messages: list[dict]) -> list[dict]:
    """Without compression, in which is the time."""
    start, body = messages
    headers = dict(start["headers"])
    if headers.get(b"Content-Encoding") == b"gzip":
        body = {**body, "body": gzip.decompress(body["body"])}
    return [start, body]


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_answers_are_those_of_prometheus_client(request_, folder: Path, page: MetricsPage) -> None:
    from prometheus_client import CollectorRegistry, make_asgi_app, multiprocess

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(folder))
    query_string, headers = request_
    scope = {"type": "http", "query_string": query_string, "headers": headers}
    wanted = asyncio.run(answer_of(make_asgi_app(registry=registry), scope))
    got = page.ask(query_string, headers)
    assert readable(got) == readable(wanted)
    # Of some metrics alone nothing is ever found: several processes' do not say their names beforehand.
    assert (b'rank="2"} 14.0' in readable(got)[1]["body"]) != bool(query_string)


def test_the_event_loop_goes_on_meanwhile(tmp_path: Path) -> None:
    """A process that answers only once the event loop has done something after it was asked."""
    slow = f"""
import pathlib, pickle, sys, time
pickle.load(sys.stdin.buffer)
pathlib.Path({str(tmp_path / "asked")!r}).touch()
while not pathlib.Path({str(tmp_path / "went-on")!r}).exists():
    time.sleep(0.01)
pickle.dump([{{"type": "answer"}}], sys.stdout.buffer)
"""
    page = MetricsPage((sys.executable, "-c", slow))

    async def go_on() -> None:
        while not (tmp_path / "asked").exists():
            await asyncio.sleep(0.01)
        (tmp_path / "went-on").touch()

    async def both() -> list[dict]:
        scope = {"type": "http", "query_string": b"", "headers": []}
        return (await asyncio.gather(answer_of(page, scope), go_on()))[0]

    try:
        assert asyncio.run(asyncio.wait_for(both(), 300)) == [{"type": "answer"}]
    finally:
        page._stop()


def test_a_process_that_was_ended_is_started_again(folder: Path, page: MetricsPage) -> None:
    before = page.ask(b"", [])
    process = page._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert page.ask(b"", []) == before
    assert page._process is not process


def test_a_process_that_says_nothing_is_given_up() -> None:
    silent = (sys.executable, "-c", "import signal; signal.pause()")
    page = MetricsPage(silent, patience=0.2)
    try:
        with pytest.raises((EOFError, OSError)):
            page.ask(b"", [])
    finally:
        page._stop()


def test_the_process_ends_with_the_server(folder: Path, page: MetricsPage) -> None:
    """Whatever ends the server closes the pipe; a terminal's interrupt is left to it."""
    page.ask(b"", [])
    process = page._process
    assert process is not None and process.stdin is not None
    os.kill(process.pid, signal.SIGINT)
    page.ask(b"", [])
    assert page._process is process
    process.stdin.close()
    assert process.wait(60) == 0


def test_without_a_folder_it_says_why(monkeypatch, page: MetricsPage, capfd) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    with pytest.raises((EOFError, OSError)):
        page.ask(b"", [])
    page._stop()
    assert "PROMETHEUS_MULTIPROC_DIR is not set" in capfd.readouterr().err


@pytest.mark.parametrize("path", [PATH, f"{PATH}/", f"{PATH}/anything"])
def test_it_answers_before_sglangs_own_page(path: str, folder: Path) -> None:
    common = pytest.importorskip("sglang.srt.utils.common")
    from starlette.applications import Starlette
    from starlette.routing import Match

    app = Starlette()
    page = add_metrics_page(app)
    common.add_prometheus_middleware(app)  # as SGLang does when it starts
    scope = {"type": "http", "path": path, "method": "GET", "headers": []}
    matching = [route for route in app.routes if route.matches(scope)[0] == Match.FULL]
    assert len(matching) == 2 and matching[0].app is page
