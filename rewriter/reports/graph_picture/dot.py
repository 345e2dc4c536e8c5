"""A picture as DOT, for Graphviz and the programs that read it."""

from __future__ import annotations

from rewriter.reports.graph_picture import colours
from rewriter.reports.graph_picture.contents import ENGINE, INPUT, MEMBER, OUTPUT, Box, Content, Panel


def to_dot(content: Content) -> str:
    """Panels are clusters, and so are the nodes of an engine that is drawn node by node."""
    lines = [
        "digraph model {",
        f'  label={_quoted(content.title, content.subtitle)}; labelloc=t; fontname="Helvetica"; rankdir=TB;',
        '  node [shape=box, style="filled,rounded", fontname="Helvetica", fontsize=11];',
        "  edge [arrowsize=0.6];",
    ]
    for number, panel in enumerate(content.panels):
        indent = "  "
        if panel.title:
            lines += [f"  subgraph cluster_p{number} {{", f"    label={_quoted('inside ' + panel.title)};"]
            indent = "    "
        lines += [indent + line for line in _panel(content, number, panel)]
        if panel.title:
            lines.append("  }")
    return "\n".join([*lines, *_legend(content), "}", ""])


def _panel(content: Content, number: int, panel: Panel) -> list[str]:
    lines: list[str] = []
    members: dict[int, list[str]] = {}
    for position, box in enumerate(panel.boxes):
        line = f"p{number}n{position} {_box(content, box)};"
        if box.kind == MEMBER:
            members.setdefault(box.engine, []).append(line)
        else:
            lines.append(line)
    for engine, nodes in sorted(members.items()):
        about = content.engines[engine]
        style = "rounded" if about.ready else "rounded,dashed"
        lines += [
            f"subgraph cluster_p{number}e{engine} {{",
            f'  label={_quoted(about.name, about.text)}; style="{style}"; color="{colours.engine_colours(engine)[1]}";',
            *("  " + node for node in nodes),
            "}",
        ]
    lines += [
        f"p{number}n{line.source} -> p{number}n{line.target} "
        f'[color="{colours.dtype_colour(line.dtype)}", tooltip={_quoted(line.tooltip)}];'
        for line in panel.lines
    ]
    return lines


def _box(content: Content, box: Box) -> str:
    fill, border = colours.box_colours(box)
    more = ""
    if box.kind in (INPUT, OUTPUT):
        more = ", shape=oval"
    if box.kind == ENGINE:
        more = ", penwidth=2, margin=0.25"
    if box.engine >= 0 and not content.engines[box.engine].ready:
        more += ', style="filled,rounded,dashed"'
    label = _quoted(box.label, box.detail) if box.detail else _quoted(box.label)
    return f'[label={label}, fillcolor="{fill}", color="{border}", tooltip={_quoted(box.tooltip)}{more}]'


def _legend(content: Content) -> list[str]:
    """One row of the dtypes that lines have; engines carry their own labels."""
    dtypes = sorted({line.dtype for panel in content.panels for line in panel.lines})
    if not dtypes:
        return []
    lines = ["  subgraph cluster_legend {", '    label="dtypes of the lines"; fontsize=10;']
    for number, dtype in enumerate(dtypes):
        lines.append(
            f"    legend{number} [shape=plaintext, style=solid, label={_quoted(dtype or 'unknown type')}, "
            f'fontcolor="{colours.dtype_colour(dtype)}"];'
        )
    return [*lines, "  }"]


def _quoted(*texts: str) -> str:
    """A DOT string; a backslash, which would begin an escape, and a quote are escaped; lines and texts are joined."""
    plain = "\n".join(texts).replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\ufffd")
    return '"' + plain.replace("\r", "").replace("\n", "\\n") + '"'
