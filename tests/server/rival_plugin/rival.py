"""A test's plugin that replaces SGLang's scheduler after everybody else did."""


def activate() -> None:
    from layered_sglang.hooks import registration

    if not registration.in_scheduler_process:
        return
    from sglang.srt.managers import scheduler
    from sglang.srt.plugins.hook_registry import HookRegistry

    class RivalScheduler(scheduler.Scheduler):
        pass

    apply = HookRegistry.apply_hooks.__func__

    def apply_and_replace(cls):
        apply(cls)
        scheduler.Scheduler = RivalScheduler

    HookRegistry.apply_hooks = classmethod(apply_and_replace)
