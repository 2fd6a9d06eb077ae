"""Which hooks are registered in which process, and the check that they took.

SGLang only logs a hook that fails. A server that silently ran without its schedule would be worse
than none, so both kinds of process check and refuse to start.
"""

from __future__ import annotations

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from layered_sglang.config import ConfigError

_SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_LOAD_MODEL = "sglang.srt.model_executor.model_runner.ModelRunner.load_model"

#: True in processes that run a scheduler (set by ``scheduler_process`` before plugins load).
in_scheduler_process = False

#: True where that scheduler is SGLang's own: its iterations may be traced, and its experts chosen.
stock_schedule = False


def register_hooks() -> None:
    """Register this process's hooks; SGLang applies them when all plugins are loaded."""
    from layered_sglang.hooks import server_args

    HookRegistry.register(f"{_SERVER_ARGS}.add_cli_args", server_args.add_flags, HookType.AFTER)
    HookRegistry.register(
        f"{_SERVER_ARGS}.from_cli_args", server_args.build_with_layered_config, HookType.AROUND
    )
    if in_scheduler_process:
        from layered_sglang.hooks import moe_runner

        HookRegistry.register(_SCHEDULER, _our_scheduler(), HookType.REPLACE)
        HookRegistry.register(_LOAD_MODEL, moe_runner.choose_moe_kernels, HookType.AFTER)


def _our_scheduler() -> type:
    """The class that stands in for SGLang's scheduler in this process."""
    if stock_schedule:
        from layered_sglang.hooks.traced_scheduler import TracedScheduler

        return TracedScheduler
    from layered_sglang.hooks.scheduler import LayeredScheduler

    return LayeredScheduler


def verify_hooks() -> None:
    """Raise unless every hook of this process is in place.

    Raises:
        ConfigError: naming the first target whose hook did not take.
    """
    targets = [f"{_SERVER_ARGS}.add_cli_args", f"{_SERVER_ARGS}.from_cli_args"]
    if in_scheduler_process:
        targets += [_SCHEDULER, _LOAD_MODEL]
    for target in targets:
        ours = any(
            hook.__module__.startswith("layered_sglang.")
            for _, hook, _ in HookRegistry._hooks.get(target, ())
        )
        if not ours or target not in HookRegistry._patched:
            raise ConfigError(
                f"the hook on {target} did not take, so layered-sglang would not serve; see SGLang's "
                "log above for the cause, and check that SGLANG_PLUGINS, if set, names layered_sglang"
            )
    if in_scheduler_process:
        from sglang.srt.managers import scheduler

        if scheduler.Scheduler is not _our_scheduler():
            raise ConfigError(
                f"{_SCHEDULER} is {scheduler.Scheduler.__module__}.{scheduler.Scheduler.__qualname__}"
                ", not the layered scheduler: another plugin replaced it; remove that plugin or use "
                "--prefill-schedule chunked"
            )
