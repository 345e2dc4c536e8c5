"""Timing of calls: how long one takes, how many go through, and how two systems compare under the machine's moods.

Pure Python over a clock; of models only `rewriter.timing.artifact_timing` knows, which times a saved one.
"""

from rewriter.timing.interleaving import Ratio, interleaved, ratio_of
from rewriter.timing.latencies import Latencies, Throughput
from rewriter.timing.measuring import measure, measure_in_a_row, measure_parts, measure_threads

__all__ = [
    "Latencies",
    "Ratio",
    "Throughput",
    "interleaved",
    "measure",
    "measure_in_a_row",
    "measure_parts",
    "measure_threads",
    "ratio_of",
]
