"""An OpenAI-compatible endpoint that answers without a model."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager

from aiohttp import web


class FakeEndpoint:
    """Streams the tokens asked for, ``gap`` seconds apart or the request's own ``gap_s``; ``fail``
    chooses prompts to refuse."""

    GAP = 0.02

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []
        self.bodies: list[dict] = []
        self.fail = lambda number: False
        self.gap = self.GAP
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.prompts.append(body["prompt"])
        self.bodies.append(body)
        if self.fail(len(self.prompts)):
            return web.Response(status=503, text="overloaded")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(1, body["max_tokens"] + 1):
            await asyncio.sleep(body.get("gap_s", self.gap))
            event = {"choices": [{"text": "x"}], "usage": {"completion_tokens": number}}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


@contextmanager
def fake_endpoint():
    """A running FakeEndpoint, on a thread of its own."""
    fake, loop = FakeEndpoint(), asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/completions", fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        fake.url = f"http://127.0.0.1:{port}"

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
