"""The report page: one self-contained HTML file of a whole conversion."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from rewriter.artifact import Artifact, load_artifact
from rewriter.errors import ArtifactError
from rewriter.reports import web
from rewriter.reports.page import nodes, overview, setup, timeline
from rewriter.reports.page.drawing import map_data
from rewriter.reports.page.shown import Shown
from rewriter.reports.report import Report
from rewriter.reports.summary import human_size

#: Parts of the page's script.
_SCRIPTS = ("view.js", "told.js", "page.js")


def report_page(title: str, parts: Sequence[Shown], facts: Mapping[str, object] | None = None) -> str:
    """A page as HTML text.

    1. Everything is in it: it asks nothing of the network, and opens as a file.
    2. With several signatures one is shown at a time, the first one first; without JavaScript all are, but no map.
    3. Names out of models are shown as they are, and never run.

    Args:
        title: the page's heading.
        parts: the signatures, at least one.
        facts: what is told below the heading, beside each source.

    Raises:
        PassError: a model has lost functions or attributes, or has a cycle.
    """
    body: list[str] = [web.facts(facts)] if facts else []
    if len(parts) > 1:
        choices = "".join(
            f'<button type="button" data-signature="{number}">{web.text(part.signature.name)}</button>'
            for number, part in enumerate(parts)
        )
        body.append(f'<nav class="signatures" aria-label="Signatures">Signature: {choices}</nav>')
    body += [_signature(number, part, named=len(parts) > 1) for number, part in enumerate(parts)]
    return web.document(title, body, script=_script(), style=_resource("page.css"))


def artifact_page(path: str | Path, signature: str | None = None) -> str:
    """The page of an artifact.

    Args:
        path: its directory.
        signature: the only one to show; None for all.

    Raises:
        InvalidParameterError: there is no such signature.
        ArtifactError: not an artifact, a damaged one, or one whose report cannot be read.
    """
    first = load_artifact(path, signature=signature)
    others = [] if signature is not None else [name for name in first.signatures if name != first.signature.name]
    artifacts = [first, *(load_artifact(path, signature=name) for name in others)]
    files = [file for file in first.path.rglob("*") if file.is_file()]
    size = human_size(sum(file.stat().st_size for file in files))
    facts = {"artifact": first.path.name, "converted": first.created, "holds": f"{len(files)} files, {size}"}
    return report_page(f"Conversion of {first.path.name}", [_shown(artifact) for artifact in artifacts], facts)


def write_page(path: str | Path, page: str) -> None:
    """Writes a page to a file, in UTF-8; an existing file is replaced.

    Raises:
        ArtifactError: it cannot be written; the message names it.
    """
    try:
        Path(path).write_text(page, "utf-8")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"the report page cannot be written to {path}: {error}") from error


def _shown(artifact: Artifact) -> Shown:
    try:
        report = Report.from_dict(artifact.report)
    except ValueError as error:
        raise ArtifactError(f"{artifact.path}: the report cannot be read: {error}") from error
    return Shown(artifact.model, report, artifact.signature, artifact.ranges, artifact.engines)


def _signature(number: int, shown: Shown, *, named: bool) -> str:
    """Everything about one signature."""
    heading = f"<h2>{web.text(shown.signature.name)}</h2>" if named else ""
    report = shown.report
    sections = {
        "Overview": overview.overview(shown) + overview.notes(shown),
        "Graph": overview.graph(number),
        "Native nodes": nodes.native(shown),
        "Engines": nodes.engines(shown),
        "Timeline": timeline.timeline(shown),
        "Precision": setup.precision(shown),
        "Inputs and outputs": overview.interface(shown),
        "Parameters": setup.parameters(shown),
        "Versions": setup.versions(shown),
    }
    anchors = {name: f"{name.lower().replace(' ', '-')}-{number}" for name in sections}
    links = "".join(f'<a href="#{anchors[name]}">{name}</a>' for name in sections if name != "Overview")
    return "".join(
        [
            f'<div class="signature" id="signature-{number}">{heading}',
            web.paragraph(report.source, kind="soft"),
            f'<nav class="contents" aria-label="Contents">{links}</nav>',
            *(f'<div id="{anchors[name]}">{section}</div>' for name, section in sections.items()),
            web.data(f"graph-{number}-data", map_data(shown.model, report, shown.ranges)),
            "</div>",
        ]
    )


def _script() -> str:
    """The parts of the script, in the order in which they build on one another, in a scope of their own."""
    return f"'use strict';\n(() => {{\n{''.join(map(_resource, _SCRIPTS))}}})();"


@functools.cache
def _resource(name: str) -> str:
    return resources.files("rewriter.reports.page").joinpath(name).read_text(encoding="utf-8")
