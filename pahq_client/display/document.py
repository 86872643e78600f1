"""The frame of pages that need no script: head, title, facts and warnings around what they show."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape

from pahq_client.display import palette
from pahq_client.formatting import one_line

_STYLE = """
body { margin: 0 auto; padding: 24px 28px; max-width: 1240px; background: var(--ground); color: var(--ink);
  font: 14px/1.45 "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { margin: 0; font-size: 18px; font-weight: 600; overflow-wrap: anywhere; }
h2 { margin: 24px 0 6px; font-size: 14px; font-weight: 600; }
p { margin: 4px 0; overflow-wrap: anywhere; }
.muted { color: var(--muted); }
.tables { display: flex; flex-wrap: wrap; gap: 0 56px; }
.tables div, .picture { overflow-x: auto; }
table { border-collapse: collapse; }
th { color: var(--muted); font-weight: normal; border-bottom: 1px solid var(--rule); }
th, td { padding: 3px 0 3px 22px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
.warning { margin-top: 8px; border-left: 3px solid var(--negative); padding-left: 8px; }
svg { display: block; }
"""


def document(
    title: str, facts: Iterable[str], warnings: Iterable[str], body: Iterable[str], style: str = ""
) -> str:
    """Returns a page: one file, whose policy forbids scripts and every access to a network.

    Args:
        title: in one line; escaped here, like facts and warnings.
        facts: what is known of the job.
        warnings: of the result.
        body: HTML.
        style: what the page needs beyond the common style.
    """
    style = palette.as_css() + _STYLE + style
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="muted">{escape(" · ".join(facts))}</p></header><main>',
        *(f'<p class="warning">{escape(one_line(text))}</p>' for text in warnings),
        *body,
        "</main></body></html>",
        "",
    ]
    return "\n".join(parts)
