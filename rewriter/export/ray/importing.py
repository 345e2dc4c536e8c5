"""Ray itself, which is heavy and optional: asked for with the first use; and what its cluster has."""

from __future__ import annotations

import importlib
from typing import Any

from rewriter.errors import ConverterStateError, missing_dependency


def import_ray(module: str = "ray") -> Any:
    """A module of Ray: "ray", "ray.serve", "ray.data".

    Raises:
        MissingDependencyError: it, or what it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_dependency(f"Ray ({error})", "ray", "rewriter.export.ray") from error


def gpus_of_one(wanted: float | None) -> float:
    """How many GPUs a replica or an actor takes.

    Args:
        wanted: the user's number; None: 1 where the cluster has one now, else 0.

    Raises:
        ConverterStateError: None, and this process is not connected to a cluster that could be asked.
    """
    if wanted is not None:
        return wanted
    ray = import_ray()
    if not ray.is_initialized():
        raise ConverterStateError("the cluster is asked whether it has GPUs: call ray.init() first, or give num_gpus=")
    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
