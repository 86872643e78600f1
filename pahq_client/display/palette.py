"""The colours of pictures, in light and dark. Names are those of the variables in the page's style sheet."""

from __future__ import annotations

from typing import Final

# Edges differ in hue and in lightness, so that they can be told apart with any kind of colour vision; a test
# computes their contrast against the grounds that they are drawn on.
LIGHT: Final = {
    "ground": "#fdfcfa",
    "band": "#f5f3ee",
    "card": "#ffffff",
    "ink": "#1d2126",
    "muted": "#5d646e",
    "rule": "#ddd9d0",
    "field": "#82878f",
    "node": "#ffffff",
    "outline": "#8f959e",
    "mlp-node": "#ece8df",
    "end-node": "#2b3038",
    "end-ink": "#ffffff",
    "q": "#1f66c1",
    "k": "#00806e",
    "v": "#a8690a",
    "other": "#5a616b",
    "negative": "#c4204f",
    "positive": "#1f66c1",
    "unmeasured": "#7d838c",
    "both": "#4c535d",
    "only-a": "#1f66c1",
    "only-b": "#c2570c",
    "accent": "#1f5fb4",
}
DARK: Final = {
    "ground": "#15181c",
    "band": "#1b1f24",
    "card": "#1d2127",
    "ink": "#e9e7e2",
    "muted": "#a3a9b2",
    "rule": "#343a42",
    "field": "#7a828d",
    "node": "#22272e",
    "outline": "#6d7681",
    "mlp-node": "#31373f",
    "end-node": "#e4e1da",
    "end-ink": "#15181c",
    "q": "#6aaaf8",
    "k": "#3fc4ae",
    "v": "#e2aa4a",
    "other": "#a2a9b3",
    "negative": "#ff7d9c",
    "positive": "#6aaaf8",
    "unmeasured": "#8b929c",
    "both": "#b4bac3",
    "only-a": "#6aaaf8",
    "only-b": "#f39a55",
    "accent": "#7db5fa",
}


def as_css() -> str:
    """The variables of the style sheet: dark where the reader's system is, unless the page says otherwise."""
    light, dark = ("".join(f"--{name}:{value};" for name, value in theme.items()) for theme in (LIGHT, DARK))
    return (
        f":root{{color-scheme:light;{light}}}"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}"
    )
