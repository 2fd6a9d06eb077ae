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


class FakeVllm(FakeEndpoint):
    """Answers as vLLM does: knows one model, sends pieces without a text, tells how many tokens there
    were with each event if asked to and in an event without choices at the end.

    Args:
        counts: whether it knows ``continuous_usage_stats``; others ignore it.
        refuses: fields that it does not take.
        colon: what an event's data stand behind.
        together: tokens an event, as with speculative decoding.
    """

    MODEL = "org/model"

    def __init__(
        self,
        counts: bool = True,
        refuses: tuple[str, ...] = (),
        colon: str = "data: ",
        together: int = 1,
    ) -> None:
        super().__init__()
        self._counts, self._refuses, self._colon = counts, refuses, colon
        self._together = together

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.MODEL}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if body["model"] != self.MODEL:
            message = f"The model `{body['model']}` does not exist."
            return web.json_response({"error": {"message": message}}, status=404)
        for name in self._refuses:
            if name in body:
                return web.json_response({"error": {"message": f"unknown {name}"}}, status=400)
        self.prompts.append(body["prompt"])
        options, limit = body.get("stream_options") or {}, body["max_tokens"]
        counts = self._counts and options.get("continuous_usage_stats")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def event(record: dict) -> None:
            await response.write(f"{self._colon}{json.dumps(record)}\n\n".encode())

        await response.write(b": still here\n\n")
        for sent in range(0, limit, self._together):
            await asyncio.sleep(self.gap)
            done = min(limit, sent + self._together)
            # Half a character: its text comes with the next token.
            text = "" if counts and sent % 2 else "x"
            choice = {"index": 0, "text": text, "finish_reason": None}
            if done == limit:
                choice["finish_reason"] = "length"
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": done}
            await event({"choices": [choice], **({"usage": usage} if counts else {})})
        if options.get("include_usage"):
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": limit}
            await event({"choices": [], "usage": usage})
        await response.write(f"{self._colon}[DONE]\n\n".encode())
        return response


@contextmanager
def fake_endpoint(fake: FakeEndpoint | None = None):
    """A running endpoint, on a thread of its own."""
    fake, loop = fake or FakeEndpoint(), asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/completions", fake.answer)
    if isinstance(fake, FakeVllm):
        app.router.add_get("/v1/models", fake.models)
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
