"""Codebooks as a page and in notebooks: concepts by use, with their tokens in context."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from pahq_client.codebook import Codebook, Concept, ConceptContext
from pahq_client.display.document import document
from pahq_client.formatting import one_line, printable

# How many concepts are shown, and tokens, contexts and near concepts of each.
PAGE_CONCEPTS, NOTEBOOK_CONCEPTS, TOKENS, CONTEXTS, NEAR = 1000, 15, 12, 5, 4
_STYLE = """
section { margin-top: 20px; border-top: 1px solid var(--rule); padding-top: 8px; }
.token { display: inline-block; margin: 0 10px 2px 0; white-space: pre; }
.context { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12px; white-space: pre-wrap; }
mark { background: none; color: inherit; font-weight: 700; border-bottom: 2px solid var(--positive); }
"""


def page(codebook: Codebook) -> str:
    """Returns a page that shows the concepts of a codebook, the largest first."""
    shown = codebook.by_size[:PAGE_CONCEPTS]
    body = [section for concept in shown for section in _section(codebook, concept)]
    more = len(codebook.by_size) - len(shown)
    if more:
        body.append(f"<p>… and {more} more concepts</p>")
    facts = [
        f"loss {codebook.decoded_error:.4g} of variance {codebook.variance:.4g}",
        f"commitment {codebook.commitment:.4g}",
        f"decoder attends to {one_line(str(codebook.settings.get('memory', '')))} states",
    ]
    return document(f"Concepts: {codebook.summary()}", facts, codebook.warnings, body, _STYLE)


def notebook_html(codebook: Codebook) -> str:
    """Returns a table of the largest concepts."""
    warnings = "".join(f"<p><b>Warning</b>: {escape(one_line(text))}</p>" for text in codebook.warnings)
    rows = "".join(
        f"<tr><td>{concept}</td><td>{concept.size}</td><td>{_tokens(concept)}</td></tr>"
        for concept in codebook.by_size[:NOTEBOOK_CONCEPTS]
    )
    more = len(codebook.by_size) - NOTEBOOK_CONCEPTS
    rest = f"<p>… and {more} more</p>" if more > 0 else ""
    head = "<tr><th>concept</th><th>states</th><th>tokens</th></tr>"
    return f"<p><b>Codebook</b>: {escape(codebook.summary())}</p>{warnings}<table>{head}{rows}</table>{rest}"


def _section(codebook: Codebook, concept: Concept) -> Iterator[str]:
    yield f'<section id="{concept}"><h2>{concept}: {concept.size} states'
    yield f" ({concept.size / codebook.tokens:.2%}), distance {concept.distance:.4g}</h2>"
    yield f"<p>{_tokens(concept)}</p>"
    yield from (f'<p class="context">{_context(each)}</p>' for each in concept.contexts[:CONTEXTS])
    near = codebook.nearest(concept, NEAR)
    if near:
        links = ", ".join(f'<a href="#{each.concept}">{each.concept}</a> {each.cosine:.2f}' for each in near)
        yield f'<p class="muted">nearest: {links}</p>'
    yield "</section>"


def _tokens(concept: Concept) -> str:
    return "".join(
        f'<span class="token">{_said(token.text or str(token.id))} <small>{token.count}</small></span>'
        for token in concept.tokens[:TOKENS]
    )


def _context(context: ConceptContext) -> str:
    if not context.token:  # a model without a tokenizer
        at = len(context.before)
        ids = [*map(str, context.ids)]
        return f"{' '.join(ids[:at])} <mark>{ids[at]}</mark> {' '.join(ids[at + 1 :])}"
    before, after = (_said("".join(part)) for part in (context.before, context.after))
    return f"{before}<mark>{_said(context.token)}</mark>{after}"


def _said(token: str) -> str:
    """Returns a token as a reader expects it: with spaces for the marks that vocabularies write."""
    return escape(printable(token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "⏎")))
