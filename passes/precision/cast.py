"""FP16 and BF16: float32 nodes compute in the lower type, islands and the graph's boundary stay float32."""

from __future__ import annotations

import dataclasses

from passes.base import Change, PassError, PassResult
from passes.canonicalize import Canonicalize
from passes.graph.editing import finish
from passes.graph.walk import iter_nodes
from passes.model import Model
from passes.precision.floats.facts import Facts
from passes.precision.floats.islands import Plan, plan
from passes.precision.floats.rewrite import Rewrite
from passes.precision.floats.types import LOW_TYPES
from passes.precision.opset import OLDEST, opset_of, raise_opset
from passes.precision.recipe import Recipe

_QUANTISATION = ("QuantizeLinear", "DequantizeLinear")
#: From here on their scales may be float16 and bfloat16.
_SCALES_OPSET = 19


@dataclasses.dataclass(frozen=True)
class LowerFloats:
    """Lets the float32 nodes of a segment compute in the recipe's float type.

    1. `islands.plan` says which nodes stay float32; each has a Change with the reason.
    2. A value has one type, that of its maker. Where a reader wants the other one it gets a Cast, one a value, made
       right behind the value and shared by all readers, those in bodies included.
    3. Constants are converted, not cast; the float32 data go when nobody reads them any more.
    4. Inputs and outputs of the graph, and of the bodies of If, Loop and Scan, keep name and type; what is between
       them in a body is lowered like the rest.
    5. QuantizeLinear and DequantizeLinear get scales in the type of the float side.
    6. Casts that the source has already are not repeated: what was cast up from the lower type is read from there.

    Nodes whose type is not float32 in the source (float64, native FP16 or BF16) are left alone. Needs a canonical
    model; one with functions is made canonical first. Weights are never serialised, so they may have any size.

    Attributes:
        recipe: what is asked for; "FP32" as float type changes nothing.
    """

    recipe: Recipe
    name: str = "lower_floats"

    def run(self, model: Model) -> PassResult:
        """Lowers every graph of the model.

        Raises:
            PassError: the recipe's float type is unknown, or the functions of the model cannot be inlined.
        """
        if self.recipe.float_type == "FP32":
            return PassResult(model)
        changes: list[Change] = []
        source = _for_scales(Canonicalize().run(model).model if model.proto.functions else model, changes)
        proto = source.copy_proto()
        facts, decided, reasons = self._decide(Model(proto, source.weights))
        weights = Rewrite(facts, decided.low, proto).run()
        return finish(model, proto, {**source.weights, **weights}, [*changes, *reasons])

    def explain(self, model: Model) -> tuple[Change, ...]:
        """What `run` decides about a canonical model, also where nothing is left to lower and `run` returns no Change.

        Raises:
            PassError: the recipe's float type is unknown.
        """
        return self._decide(model)[2] if self.recipe.float_type != "FP32" else ()

    def _decide(self, model: Model) -> tuple[Facts, Plan, tuple[Change, ...]]:
        kind = self.recipe.float_type
        if kind not in LOW_TYPES:
            raise PassError(f"lower_floats: unknown float type {kind!r}; take one of FP32, {', '.join(LOW_TYPES)}")
        facts = Facts.of(model, LOW_TYPES[kind])
        decided = plan(facts, self.recipe)
        count = f"{sum(decided.low)} of {sum(facts.floats)} nodes with floats in {kind}"
        return facts, decided, (Change("lower-floats", model.proto.graph.name, count), *decided.changes)


def _for_scales(model: Model, changes: list[Change]) -> Model:
    """Raises the opset where QuantizeLinear and DequantizeLinear know float32 only.

    TensorRT takes scales of any type in any opset, so a model that cannot be carried over stays as it is.
    """
    if not OLDEST <= opset_of(model.proto) < _SCALES_OPSET:
        return model
    if not any(node.op_type in _QUANTISATION for node in iter_nodes(model.proto.graph)):
        return model
    try:
        result = raise_opset(model, _SCALES_OPSET)
    except PassError as error:
        changes.append(Change("keep-opset", model.proto.graph.name, str(error)))
        return model
    changes.extend(result.changes)
    return result.model
