"""Layered prefill for SGLang: prompts advance by layer groups, decode never waits."""

__version__ = "0.1.0"
