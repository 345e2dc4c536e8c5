"""polygraphy's comparison runs over converted models: runners, loaders and a plugin of `polygraphy run`.

    from polygraphy.comparator import Comparator, CompareFunc
    from rewriter.polygraphy_runners import ConvertModel, SavedModelRunner, TrtRewriterRunner

    runners = [SavedModelRunner("saved_model"), TrtRewriterRunner(ConvertModel("saved_model", precision_mode="FP16"))]
    results = Comparator.run(runners)
    assert Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(atol=1e-2))

On the command line the plugin adds `--trt-rewriter` and its options to `polygraphy run`. Importing this package needs
no polygraphy; it is imported with the first use of a runner.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewriter.polygraphy_runners.artifact import LoadArtifact
    from rewriter.polygraphy_runners.conversion import ConvertModel
    from rewriter.polygraphy_runners.runner import TrtRewriterRunner
    from rewriter.polygraphy_runners.saved_model import SavedModelRunner

#: name -> the module that has it.
_LAZY = {
    "ConvertModel": "rewriter.polygraphy_runners.conversion",
    "LoadArtifact": "rewriter.polygraphy_runners.artifact",
    "SavedModelRunner": "rewriter.polygraphy_runners.saved_model",
    "TrtRewriterRunner": "rewriter.polygraphy_runners.runner",
}

__all__ = ["ConvertModel", "LoadArtifact", "SavedModelRunner", "TrtRewriterRunner"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(set(__all__) | set(globals()))
