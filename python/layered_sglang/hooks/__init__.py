"""The glue: the only rooms that touch SGLang's scheduler, worker and runner classes.

Pinned to one SGLang version; ``pinned.py`` says what they rely on and checks it at start-up.
"""

from layered_sglang.launched import launched_by_us


def activate() -> None:
    """Entry point ``sglang.srt.plugins``: SGLang calls it in every process of the server."""
    if launched_by_us():
        from layered_sglang.hooks.registration import register_hooks

        register_hooks()
