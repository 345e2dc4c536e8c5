"""Ray itself, which is heavy and optional: asked for with the first use."""

from __future__ import annotations

import importlib
from typing import Any

from rewriter.errors import missing_dependency


def import_ray(module: str = "ray") -> Any:
    """A module of Ray: "ray", "ray.serve", "ray.data".

    Raises:
        MissingDependencyError: it, or what it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_dependency(f"Ray ({error})", "ray", f"rewriter.export.{module}") from error
