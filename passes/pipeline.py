"""The literal lists of the cleaning passes: the default one, and one with a choice of the optional passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from passes.base import Hook, Pass, PassRecord, Pipeline
from passes.cancel_transposes import CancelTransposes
from passes.canonicalize import Canonicalize
from passes.common_subexpressions import CommonSubexpressions
from passes.fold_constants import FoldConstants
from passes.infer_shapes import InferShapes
from passes.legalize import Legalize
from passes.model import Model
from passes.scatter_reductions import ScatterReductions
from passes.steps.evaluation import Evaluate

#: Passes that always run, and what would be wrong without them.
REQUIRED_PASSES: Mapping[str, str] = {
    "canonicalize": "every other step needs unique names, sorted nodes, inlined functions and no dead nodes",
    "scatter_reductions": "ONNX Runtime's kernel of ScatterND reduces in a race, and native runs would be wrong",
    "infer_shapes": "legalisation, partitioning and the profiles of engines need types and shapes",
    "legalize": "TensorRT's parser refuses nodes that are not rewritten",
}
#: Passes that may be left out, put in another order, or added.
OPTIONAL_PASSES: Mapping[str, type[Pass]] = {
    "fold_constants": FoldConstants,
    "common_subexpressions": CommonSubexpressions,
    "cancel_transposes": CancelTransposes,
}


def default_pipeline(evaluate: Evaluate | None = None) -> Pipeline:
    """The passes that every model goes through before it is partitioned.

    Args:
        evaluate: runs a small model, for constant folding; default: ONNX's reference evaluator.
    """
    return Pipeline(
        (
            Canonicalize(),
            # Types first: Shape of a static dimension folds only where the dimension is known.
            InferShapes(),
            ScatterReductions(),
            FoldConstants(evaluate),
            # Folded shape operands (of Reshape, Expand, Slice ...) make more dimensions static; the second fold takes
            # the Shape nodes behind those. A third round found nothing in any model tried.
            InferShapes(),
            FoldConstants(evaluate),
            # Legalisation reads types and constants, so it comes after both; it leaves no-op Casts behind.
            Legalize(),
            Canonicalize(),
            InferShapes(),
        ),
        canonical=True,
    )


@dataclasses.dataclass(frozen=True)
class SelectedPipeline:
    """The required passes, and between them rounds of chosen optional ones.

    1. Canonicalize, InferShapes and ScatterReductions.
    2. The optional passes in the given order, then InferShapes: `rounds` times, or until none of them finds anything.
    3. Legalize, Canonicalize and InferShapes.

    Attributes:
        optional: what is chosen, in order; a pass may come twice.
        rounds: largest number of rounds, at least 1.
        minimum_nodes: a main graph of fewer nodes (after step 1) skips step 2, with a record for each pass that says
            so; -1 never skips.
    """

    optional: tuple[Pass, ...]
    rounds: int = 2
    minimum_nodes: int = -1

    def run(self, model: Model, hook: Hook | None = None) -> tuple[Model, tuple[PassRecord, ...]]:
        """Runs every pass, as `Pipeline.run` does.

        Raises:
            PassError: a pass left an invalid graph.
        """
        model, records = _run((Canonicalize(), InferShapes(), ScatterReductions(), InferShapes()), model, hook)
        nodes = len(model.proto.graph.node)
        if nodes < self.minimum_nodes:
            reason = f"skipped: the graph has {nodes} nodes and min_graph_nodes is {self.minimum_nodes}"
            for step in self.optional:
                record = PassRecord(step.name, reason, 0.0, nodes, nodes, ())
                records += (record,)
                if hook is not None:
                    hook(record, model)
        elif self.optional:
            for _ in range(self.rounds):
                model, found = _run((*self.optional, InferShapes()), model, hook)
                records += found
                if not any(record.changes for record in found[:-1]):
                    break
        model, last = _run((Legalize(), Canonicalize(), InferShapes()), model, hook)
        return model, records + last


def _run(passes: tuple[Pass, ...], model: Model, hook: Hook | None) -> tuple[Model, tuple[PassRecord, ...]]:
    return Pipeline(passes, canonical=True).run(model, hook)
