"""Discoveries in notebooks. Whatever comes from a server or a caller is escaped."""

from __future__ import annotations

from html import escape

from pahq_client.events import JobInfo
from pahq_client.text import one_line
from pahq_client.words import asked, summarize


def to_html(name: str, info: JobInfo | None, note: str = "") -> str:
    """A card: name, what was asked for, a bar while it runs, a summary when it is done."""
    if info is None:
        return card("Discovery", name, ["not asked for yet", note])
    told = [f"Warning: {text}" for text in info.warnings]
    done, total = (0, 0) if info.state.is_final else (info.decided, info.total)
    return card("Discovery", name, [asked(info), summarize(info), *told, note], done, total)


def card(title: str, name: str, lines: list[str], done: int = 0, total: int = 0) -> str:
    """A heading with a name, lines (empty ones are left out) and, if the total is positive, a bar."""
    head = f"<b>{escape(title)}</b> <code>{_text(name)}</code>" if name else f"<b>{escape(title)}</b>"
    text = "<br>".join([head, *(_text(line) for line in lines if line)])
    bar = f'<br><progress value="{int(done)}" max="{int(total)}" style="width: 100%"></progress>'
    return f"<div>{text}{bar if total > 0 else ''}</div>"


def _text(text: str) -> str:
    """Text of others, as it may be part of a page."""
    return escape(one_line(text))
