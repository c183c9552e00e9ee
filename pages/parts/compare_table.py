"""Prompts that are rows of a table."""

from core.comparing.spec import PromptItem


def rows_form(key: str) -> tuple[PromptItem, ...]:
    return ()
