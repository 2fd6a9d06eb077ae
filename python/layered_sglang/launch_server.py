"""``python -m layered_sglang.launch_server``: SGLang's server with layered prefill.

Takes every flag of ``sglang.launch_server`` and the group ``layered prefill``.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from layered_sglang import config
from layered_sglang.config import ConfigError
from layered_sglang.launched import LAUNCHER_ENV

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

    from layered_sglang.telemetry.metrics_page import MetricsPage

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Serve until stopped. Returns 2, with one line on standard error, when it cannot start."""
    os.environ[LAUNCHER_ENV] = "1"
    try:
        server_args = _parse(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        print(f"layered-sglang: error: {error}", file=sys.stderr)
        return 2
    from sglang.srt.utils import kill_process_tree

    try:
        return _serve(server_args)
    except ConfigError as error:
        print(f"layered-sglang: error: {error}", file=sys.stderr)
        return 2
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def _parse(argv: list[str]) -> ServerArgs:
    """SGLang's arguments with our configuration on them, through SGLang's own parser."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils.common import suppress_noisy_warnings

    from layered_sglang.hooks.registration import verify_hooks

    suppress_noisy_warnings()
    load_plugins()
    verify_hooks()
    return prepare_server_args(argv)


def _serve(server_args: ServerArgs) -> int:
    from layered_sglang.hooks.server_args import layered_config

    layered = layered_config(server_args)
    if not layered.layered and not _needs_our_scheduler_process(server_args, layered):
        from sglang.launch_server import run_server

        run_server(server_args)
        return 0

    from sglang.srt.entrypoints import http_server

    from layered_sglang.hooks import scheduler_process
    from layered_sglang.hooks.pinned import check_pinned

    check_pinned()
    if not layered.layered:
        http_server.launch_server(
            server_args,
            run_scheduler_process_func=scheduler_process.run_stock_scheduler_process,
        )
        return 0
    from layered_sglang.hooks.planning_endpoint import add_planning_endpoint
    from layered_sglang.telemetry.metrics_page import add_metrics_page

    add_planning_endpoint(layered)
    page = add_metrics_page(http_server.app) if server_args.enable_metrics else None
    if server_args.warmups is not None and config.WARM_UP in server_args.warmups:
        import layered_sglang.warm_up  # noqa: F401, registers itself with SGLang
    http_server.launch_server(
        server_args,
        run_scheduler_process_func=scheduler_process.run_scheduler_process,
        launch_callback=lambda: _serves(server_args, page),
    )
    return 0


def _needs_our_scheduler_process(server_args: ServerArgs, layered: config.LayeredConfig) -> bool:
    """Whether SGLang's own schedule is to be traced, or its experts may get our kernels.

    Raises:
        ConfigError: one of them was asked for, of a server that is not SGLang's HTTP server.
    """
    asked = {
        "--layered-trace-file": layered.layered_trace_file is not None,
        "--moe-kernels layered": layered.moe_kernels == "layered",
    }
    flags = [flag for flag, is_asked in asked.items() if is_asked]
    others = server_args.encoder_only or server_args.smg_grpc_mode or server_args.use_ray
    if flags and others:
        raise ConfigError(
            f"{flags[0]} works with SGLang's HTTP server only; leave it out, or "
            "--encoder-only, --smg-grpc-mode and --use-ray"
        )
    return bool(flags) or (
        layered.moe_kernels == "auto" and not others and _a_gpu_may_use_our_kernels()
    )


def _a_gpu_may_use_our_kernels() -> bool:
    import torch

    from layered_sglang.moe.library import native_status

    return torch.cuda.is_available() and native_status().cuda


def _serves(server_args: ServerArgs, page: MetricsPage | None) -> None:
    """Called once the server is ready."""
    if page is not None:
        page.start()
    _say_what_serves(server_args)


def _say_what_serves(server_args: ServerArgs) -> None:
    from sglang.srt.entrypoints import http_server

    from layered_sglang.hooks.server_args import layered_config
    from layered_sglang.moe.library import native_status
    from layered_sglang.telemetry.banner import banner

    info = http_server.get_global_state().scheduler_info
    if server_args.dp_size > 1:
        return  # what replicas say of themselves stops at SGLang's balancer: each has logged it
    logger.info(banner(layered_config(server_args), info, native_status().describe()))


if __name__ == "__main__":
    sys.exit(main())
