"""The picture of a converted model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from passes.model import Model
from rewriter.errors import ArtifactError
from rewriter.reports.graph_picture.contents import Content, make_content
from rewriter.reports.graph_picture.dot import to_dot
from rewriter.reports.graph_picture.svg import to_svg
from rewriter.reports.report import Report


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture, ready to be written in two formats."""

    content: Content

    def dot(self) -> str:
        """The text of a DOT file: Graphviz lays it out."""
        return to_dot(self.content)

    def svg(self) -> str:
        """The text of an SVG file, laid out here."""
        return to_svg(self.content)

    def write(self, path: str | Path) -> None:
        """Writes an SVG file where the name ends in .svg, else DOT (as TF-TRT did, whatever the name).

        Raises:
            ArtifactError: the file cannot be written; the message names it.
        """
        text = self.svg() if str(path).lower().endswith(".svg") else self.dot()
        try:
            Path(path).write_text(text, "utf-8", errors="replace")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"the picture of the graph cannot be written to {path}: {error}") from error


def graph_picture(model: Model, report: Report, *, expand_engines: bool | None = None) -> Picture:
    """Draws a converted model.

    1. Boxes have the colour of their engine; native nodes are grey, with the reason in their tooltip; what TensorFlow
       runs has a colour of its own. Engines that are not built, or cannot be, have a dashed border.
    2. Lines have the colour of their dtype; their tooltips have names, dtypes and shapes. Constants are not drawn.
    3. Bodies of If, Loop and Scan that lie in no engine are drawn as graphs of their own, below the main graph.

    Args:
        model: the spliced model; of a cleaned one it is not known which engine a node belongs to.
        report: of the same conversion.
        expand_engines: True draws the nodes of engines, False one box for each engine. Default: the nodes, of a model
            with up to 150.

    Raises:
        PassError: the model has lost functions or attributes, or has a cycle.
    """
    return Picture(make_content(model, report, expand_engines))
