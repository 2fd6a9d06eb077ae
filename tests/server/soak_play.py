"""A phase of the soak played against a server, and each answer held to its reference."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import aiohttp
from harness import Answer, Request, Server, answer_of, difference, generate
from soak_traffic import Action, Phase, Sent

#: No request may wait longer, whoever is before it. Many times what a phase takes on a busy machine.
LONGEST_WAIT = 240


class Player:
    """Plays phases.

    Args:
        server: the one under test.
        asked: what phases mean by an index.
        references: stock's answers to ``asked``.
        turns: next turns of conversations, by the first one's index.
        turn_references: stock's answers to ``turns``.
        priorities: whether requests may have one.
    """

    def __init__(
        self,
        server: Server,
        asked: Sequence[Request],
        references: Sequence[list[Answer]],
        turns: dict[int, Request],
        turn_references: dict[int, list[Answer]],
        priorities: bool,
    ) -> None:
        self.server = server
        self.asked = asked
        self.references = references
        self.turns = turns
        self.turn_references = turn_references
        self.priorities = priorities
        self.requests = 0

    async def play(self, phase: Phase) -> list[str]:
        """What was wrong, one line each."""
        timeout = aiohttp.ClientTimeout(total=LONGEST_WAIT)
        self._aborts_all = phase.aborts_all
        # A connection that is kept may be closed by the server as the next request is sent.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            acts = [self._act(session, action) for action in phase.actions]
            sends = [self._send(session, f"{i}", sent) for i, sent in enumerate(phase.sent)]
            found = await asyncio.gather(*acts, *sends)
        return [line for lines in found for line in lines]

    async def _act(self, session: aiohttp.ClientSession, action: Action) -> list[str]:
        await asyncio.sleep(action.at)
        url = self.server.url + action.path
        async with session.request(action.method, url, json=action.body) as response:
            text = await response.text()
            # A bad grammar is compiled before it is refused, and may be aborted until then.
            aborted = self._aborts_all and "Abort in waiting queue" in text
            if response.status in action.statuses or aborted:
                return []
            return [f"{action}: status {response.status}: {text[:200]}"]

    async def _send(self, session: aiohttp.ClientSession, name: str, sent: Sent) -> list[str]:
        await asyncio.sleep(sent.delay)
        self.requests += len(sent.indices)
        rid = f"{name}-{time.time_ns()}"
        try:
            if len(sent.indices) > 1:
                return await self._several(session, rid, sent)
            if sent.session:
                return await self._conversation(session, rid, sent)
            return await self._one(session, rid, sent)
        except TimeoutError:
            return [f"{sent}: no answer in {LONGEST_WAIT} s"]

    def _request(self, index: int) -> Request:
        request = self.asked[index]
        return request if self.priorities else replace(request, priority=None)

    async def _one(self, session: aiohttp.ClientSession, rid: str, sent: Sent) -> list[str]:
        (index,) = sent.indices
        request = self._request(index)
        several = dict(request.sampling).get("n", 1) > 1
        task = asyncio.create_task(
            generate(session, self.server, request, None if several else rid)
        )
        if sent.ending == "disconnect":
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), sent.after)
            task.cancel()
            with suppress(asyncio.CancelledError):
                return self._compare(index, await task, self.references[index], False)
            return []
        aborted = sent.ending == "abort" and not several
        if aborted:
            await asyncio.sleep(sent.after)
            await self._post(session, "/abort_request", rid=rid)
        return self._compare(index, await task, self.references[index], aborted)

    async def _several(self, session: aiohttp.ClientSession, rid: str, sent: Sent) -> list[str]:
        bodies = [self._request(i).body(None) for i in sent.indices]
        names = ("input_ids", "sampling_params", "logprob_start_len")
        body: dict[str, Any] = {name: [b[name] for b in bodies] for name in names}
        adapters = [dict(self.asked[i].more).get("lora_path") for i in sent.indices]
        body |= {"lora_path": adapters} if any(adapters) else {}
        body |= {"return_logprob": True, "rid": [f"{rid}-{i}" for i in range(len(bodies))]}
        async with session.post(self.server.url + "/generate", json=body) as response:
            outs = await response.json()
            if response.status != 200:
                # One of them aborted is an error of all of them.
                return [] if self._aborts_all else [f"{sent}: {response.status} {outs}"]
        found = []
        for index, out in zip(sent.indices, outs, strict=True):
            found += self._compare(index, [answer_of(out)], self.references[index], False)
        return found

    async def _conversation(
        self, session: aiohttp.ClientSession, rid: str, sent: Sent
    ) -> list[str]:
        (index,) = sent.indices
        first, second = self._request(index), self.turns[index]
        (reply,) = self.references[index]
        said = second.prompt[len(first.prompt) + len(reply.tokens) :]
        name = await self._post(session, "/open_session", capacity_of_str_len=100_000)
        found, previous = [], None
        turns = ((first, self.references[index]), (second, self.turn_references[index]))
        for number, (request, reference) in enumerate(turns):
            shown = first.prompt if number == 0 else said
            params = {"id": name, "rid": previous}
            more = (*request.more, ("session_params", params))
            asked = replace(request, prompt=shown, more=more, priority=first.priority)
            previous = f"{rid}-{number}"
            answers = await generate(session, self.server, asked, previous)
            problems = self._compare(index, answers, reference, False)
            found += [f"turn {number} of a session: {line}" for line in problems]
            if problems or answers[0].finish == "abort":
                break
        await self._post(session, "/close_session", session_id=name)
        return found

    async def _post(self, session: aiohttp.ClientSession, path: str, **body: Any) -> Any:
        async with session.post(self.server.url + path, json=body) as response:
            text = await response.text()
            return (await response.json()) if text.startswith('"') else text

    def _compare(
        self, index: int, answers: list[Answer], wants: list[Answer], aborted: bool
    ) -> list[str]:
        request = self.asked[index]
        found = []
        if len(answers) != len(wants):
            if not (self._aborts_all and answers[0].finish == "abort"):
                found.append(f"{len(answers)} answers instead of {len(wants)}: {answers}")
            answers = []
        for answer, want in zip(answers, wants, strict=False):
            ended = (aborted or self._aborts_all) and answer.finish == "abort"
            problem = None
            if request.max_new_tokens == 0:
                # Where a batch holds nothing else SGLang leaves out what it would sample next.
                # If one is aborted, what would come next may be its answer.
                answer, want = (
                    replace(a, logprobs=[], top_logprobs=[], tokens=a.tokens if not ended else [])
                    for a in (answer, want)
                )
            if not ended:
                problem = difference(answer, want)
            elif answer.tokens != want.tokens[: len(answer.tokens)]:
                problem = f"{answer.tokens} before the abort, of {want.tokens}"
            if problem:
                found.append(problem)
        return [
            f"request {index} ({len(request.prompt)} tokens, {request.max_new_tokens} new, "
            f"{request.sampling}, stream={request.stream}, logprob_start={request.logprob_start}, "
            f"{request.more}): {line}"
            for line in found
        ]
