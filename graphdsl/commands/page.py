"""Graphs as one HTML page: the text form, in which pointing at a value shows its readers."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from graphdsl.ir import Graph
from graphdsl.printer import text

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px/1.5 monospace; margin: 2em; }}
pre {{ overflow-x: auto; }}
.note {{ color: #777; }}
.same {{ background: #fd8; }}
</style></head><body><h1>{title}</h1>
"""
TAIL = """<script>
addEventListener("mouseover", (event) => {
  for (const old of document.querySelectorAll(".same")) old.classList.remove("same");
  const value = event.target.dataset?.value;
  if (value === undefined) return;
  const pre = event.target.closest("pre");
  for (const other of pre.querySelectorAll(`[data-value="${value}"]`)) other.classList.add("same");
});
</script></body></html>"""


def page(title: str, stages: Sequence[tuple[str, Graph]]) -> str:
    """A section a stage; a stage that changed nothing is only named."""
    parts = [HEAD.format(title=html.escape(title))]
    before: Graph | None = None
    for name, graph in stages:
        changed = graph is not before
        parts.append(f"<h2>{html.escape(name)}{'' if changed else ': no change'}</h2>")
        if changed:
            lines = "\n".join(map(_marked, text(graph).split("\n")))
            parts.append(f"<pre>{lines}</pre>")
        before = graph
    return "\n".join([*parts, TAIL])


def _marked(line: str) -> str:
    """A line of text with its values named for the script, and its note set apart."""
    code, mark, note = line.partition("  # ")
    safe = re.sub(r"%([\w.]+)", r'<span data-value="\1">%\1</span>', html.escape(code))
    return f'{safe}<span class="note">{html.escape(mark + note)}</span>' if mark else safe
