"""`rewriter_config_template`: which passes run over the graph, in which order, in TensorFlow's stage and in ours."""

from __future__ import annotations

from rewriter.pass_selection.config import CustomOptimizer, RewriterConfig
from rewriter.pass_selection.selection import PassSelection, PassVerdict, parse_rewriter_config

__all__ = ["CustomOptimizer", "PassSelection", "PassVerdict", "RewriterConfig", "parse_rewriter_config"]
