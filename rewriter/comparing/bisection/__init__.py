"""Finds where two ways of computing a model begin to differ: the first segment, then the first node."""

from rewriter.comparing.bisection.report import Bisection, Contribution
from rewriter.comparing.bisection.search import bisect

__all__ = ["Bisection", "Contribution", "bisect"]
