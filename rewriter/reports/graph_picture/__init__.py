"""Pictures of a converted graph: DOT and SVG, coloured by engine."""

from rewriter.reports.graph_picture.picture import Picture, graph_picture

__all__ = ["Picture", "graph_picture"]
