"""The interactive page: one HTML file that needs no network and shows a picture of one or two results.

`template.html` is the frame, `style.css` its look (with the colours of `palette`), and the scripts are ES
modules: `data.js` reads the embedded picture, `view.js` says what is visible in a state, `state.js` keeps the
state in the address, `drawing.js` draws the circuit, `panel.js` the controls and tables, `export.js` writes
SVG and PNG, and `main.js` joins them. `d3.min.js` is a bundle of d3-selection and d3-zoom, which
`make d3-bundle` builds from `tests/d3_bundle`.

Everything that comes from a result is data: it is embedded as JSON, and the scripts only ever set it as text.
The page's Content-Security-Policy lets nothing run but these scripts, known by their hashes, and nothing be
loaded.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from pahq_client import files
from pahq_client.curve import Curve
from pahq_client.display import palette, svg
from pahq_client.display.picture import Picture, Result, picture
from pahq_client.errors import InvalidRequest
from pahq_client.formatting import printable

# In the order in which they need each other.
_MODULES = ("data", "view", "state", "drawing", "panel", "export", "main")
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)
_SLOT = re.compile(r"%%(\w+)%%")


def write(
    path: files.PathLike,
    result: Result,
    other: Result | None = None,
    *,
    names: Iterable[str] = (),
    curve: Curve | None = None,
) -> None:
    """Writes the page of a result, or of two that are compared, to a file.

    Args:
        path: where to write.
        result: a circuit or edge scores.
        other: what to compare it with.
        names: what to call the results, see `pahq_client.display.picture.picture`.
        curve: what the metric is for growing numbers of edges of the first result, if that was measured.

    Raises:
        InvalidRequest: the path is none, is that of a folder or cannot be written to; or there is no picture
            of these results, see `pahq_client.display.picture.picture`.
        OSError: the file cannot be written.
    """
    check_target("path", path)
    files.write(path, html(picture(result, other, names=names, curve=curve)).encode("utf-8"))


def check_target(field: str, path: files.PathLike) -> None:
    """Checks that a page can be written to a path. Raises InvalidRequest that says what to do."""
    name = files.path_text(field, path)
    if os.path.isdir(name):
        example = os.path.join(name, "circuit.html")
        raise InvalidRequest(field, f"{name!r} is a folder: name a file in it, for example {example!r}")
    files.check_target(field, name)


def html(shown: Picture) -> str:
    """The page of a picture."""
    style = palette.as_css() + _source("style.css")
    scripts = (_source("d3.min.js"), _modules())
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}; "
        "img-src blob:; base-uri 'none'; form-action 'none'"
    )
    title = " and ".join(dict.fromkeys(side.name for side in shown.sides))
    values = {
        "policy": policy,
        "title": escape(printable(title)),
        "style": style,
        "d3": scripts[0],
        "script": scripts[1],
        "data": _as_json(_document(shown, title)),
    }
    return _SLOT.sub(lambda slot: values[slot[1]], _source("template.html"))


def _document(shown: Picture, title: str) -> dict[str, Any]:
    """The picture as the scripts read it: nodes and edges with their geometry, edges by rank."""
    layout = shown.layout()
    index = {name: number for number, name in enumerate(layout.boxes)}
    nodes = [
        {"name": name, "form": svg.node_form(name), "x": box.x, "y": box.y, "width": box.width}
        for name, box in layout.boxes.items()
    ]
    edges = [
        {
            "name": edge.name,
            "source": index[edge.source],
            "ends": [index[end] for end in edge.ends],
            "kind": edge.kind,
            "scores": edge.scores,
            "ranks": edge.ranks,
            "score": edge.score,
            "width": round(svg.stroke_width(edge), 2),
            "opacity": round(svg.opacity(edge), 2),
            "path": path,
        }
        for edge, path in zip(shown.edges, shown.paths(layout), strict=True)
    ]
    return {
        "title": title,
        "sides": [dataclasses.asdict(side) for side in shown.sides],
        "nodes": nodes,
        "edges": edges,
        "width": layout.width,
        "height": layout.height,
        "bands": [band._asdict() for band in layout.bands],
    }


def _as_json(value: object) -> str:
    """JSON that stays inside of its script element, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _modules() -> str:
    """The modules as one: they share a scope, so that their imports and the word ``export`` go."""
    return "".join(_EXPORT.sub("", _IMPORT.sub("", _source(f"{name}.js"))) for name in _MODULES)


@cache
def _source(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
