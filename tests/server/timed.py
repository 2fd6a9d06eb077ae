"""Requests timed by another one's tokens."""

from __future__ import annotations

import asyncio

import aiohttp
from harness import generate

#: How often a test tries to have something happen. What is timed by a stream's tokens comes too late on
#: a machine that stands still meanwhile: the answers are right, and nothing was layered.
TRIES = 6


def run(server, first, *arrivals, actions=(), rid=None):
    """Send ``first``, a stream, and what is timed by its tokens, so that no machine is too fast or slow.

    Args:
        arrivals: ``(tokens, request, rid)``: sent when ``first`` has that many tokens, or has ended.
        actions: ``(tokens, path, body)``: posted then, each when those before it are answered. A
            function in the place of the path is called.
        rid: of ``first``.

    Returns:
        Answers by request, and the actions' statuses, or what functions returned.
    """

    async def go():
        length = 0
        longer = asyncio.Condition()

        async def grown(tokens):
            async with longer:
                await longer.wait_for(lambda: length >= tokens)

        async def told(tokens):
            nonlocal length
            async with longer:
                length = tokens
                longer.notify_all()

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
            tellers = []

            async def stream():
                (answer,) = await generate(
                    session,
                    server,
                    first,
                    rid,
                    progress=lambda n: tellers.append(asyncio.ensure_future(told(n))),
                )
                await asyncio.gather(*tellers)
                await told(10**9)
                return first, answer

            async def one(tokens, request, rid):
                await grown(tokens)
                return request, (await generate(session, server, request, rid))[0]

            async def act():
                statuses = []
                for tokens, path, body in actions:
                    await grown(tokens)
                    if callable(path):
                        statuses.append(await asyncio.to_thread(path))
                        continue
                    async with session.post(server.url + path, json=body) as response:
                        statuses.append(response.status)
                return statuses

            sent = asyncio.gather(stream(), *(one(*a) for a in arrivals))
            acted = asyncio.create_task(act())
            return dict(await sent), await acted

    return asyncio.run(go())
