"""Artifacts on Ray: `deployment` for Ray Serve, `client` that asks it, `map_batches` and `calibrate` for Ray Data.

Ray itself is imported with the first use: `pip install 'trt-rewriter[ray]'`.
"""

from rewriter.export.ray.calibration import CalibrationDataset, calibrate
from rewriter.export.ray.client import Client, client
from rewriter.export.ray.datasets import map_batches
from rewriter.export.ray.serving import deployment

__all__ = ["CalibrationDataset", "Client", "calibrate", "client", "deployment", "map_batches"]
