"""``/layered_prefill`` of the HTTP server: how the server plans, told and changed while it serves."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from sglang.srt.entrypoints import http_server
from sglang.srt.managers.io_struct import SetInternalStateReq
from sglang.srt.utils.auth import AuthLevel, auth_level

from layered_sglang.config import ConfigError, LayeredConfig
from layered_sglang.hooks.planning import STATE, changed, pack, values

PATH = "/layered_prefill"


def add_planning_endpoint(config: LayeredConfig) -> None:
    """Add the route, before the server starts.

    Args:
        config: the flags in force at the start.

    ``GET`` answers ``{"start": VALUES, "now": VALUES}``. ``PUT VALUES`` answers ``{"now": VALUES}``, or
    status 400 and ``{"error": LINE}`` and changes nothing. Admission is SGLang's of its admin endpoints.
    """

    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def tell() -> JSONResponse:
        return JSONResponse({"start": values(config), "now": await _now()})

    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def take(request: Request) -> JSONResponse:
        state = http_server.get_global_state()
        num_layers = state.scheduler_info["layered_sglang"]["layers"]
        try:
            wanted = json.loads(await request.body())
            new = changed(config, wanted, num_layers)
        except ValueError as error:  # ConfigError is one
            line = str(error) if isinstance(error, ConfigError) else f"not JSON: {error}"
            return JSONResponse({"error": line}, status_code=400)
        updated = await state.tokenizer_manager.set_internal_state(
            SetInternalStateReq(server_args=pack(new))
        )
        if not all(updated):
            return JSONResponse({"error": "a scheduler did not take it"}, status_code=500)
        return JSONResponse({"now": await _now()})

    http_server.app.add_api_route(PATH, tell, methods=["GET"])
    http_server.app.add_api_route(PATH, take, methods=["PUT"])


async def _now() -> Any:
    """What the first scheduler plans by."""
    manager = http_server.get_global_state().tokenizer_manager
    return (await manager.get_internal_state())[0][STATE]
