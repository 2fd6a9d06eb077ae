"""``python -m layered_sglang.demo``: one chat, four long prompts, three schedules, drawn as they run."""
