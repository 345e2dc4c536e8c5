"""From a callee to a frozen GraphDef: a fresh function is traced around it, so the user's own object stays whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rewriter.errors import ExportError
from rewriter.frontend import large_weights
from rewriter.frontend.bfloat16 import bfloat16_to_float32
from rewriter.frontend.callee import Callee, import_tensorflow
from rewriter.frontend.graph_names import settle_names
from rewriter.frontend.grappler import GrapplerOptions, grapple
from rewriter.frontend.large_weights import LargeWeights
from rewriter.frontend.negative_zero import rewrite_negative_zero
from rewriter.frontend.samples import one_line
from rewriter.frontend.tables import name_tables
from rewriter.frontend.variables import constant_bytes, to_constants

INPUT = "trt_rewriter_input_{}"


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A graph without variables.

    Attributes:
        graph_def: the frozen, inlined, constant-folded GraphDef.
        inputs, outputs: tensor names ("node:0"), in the order of the signature.
        output_names: public names of the outputs.
        output_dtypes, output_shapes: TensorFlow's, before any rewriting.
        tables: lookup tables: shared name -> (keys, values).
        reduced: True when the graph computes in float16 or bfloat16 somewhere.
        quantised: True when it emulates quantisation somewhere.
        bfloat16: True when the model computes in bfloat16 somewhere, which is float32 here.
        weights: where the data of large variables are, which the GraphDef has marked placeholders for (see
            `large_weights`); None when it holds all data itself.
    """

    graph_def: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]
    output_dtypes: tuple[Any, ...]
    output_shapes: tuple[tuple[int | None, ...] | None, ...]
    tables: Mapping[bytes, tuple[Any, Any]]
    reduced: bool
    quantised: bool = False
    bfloat16: bool = False
    weights: LargeWeights | None = None


def freeze(callee: Callee, *, threshold: int | None = None, grappler: GrapplerOptions | None = None) -> Frozen:
    """Traces, freezes and simplifies `callee`.

    Numbered steps: 1. trace a new tf.function that calls it, with an Identity for each output (so passed-through,
    repeated and constant outputs are tensors of their own). 2. Variables become constants; where the large ones have
    `threshold` bytes or more together, these become marked placeholders, with their data in files. 3. Captured lookup
    tables become named tables. 4. `_XlaMustCompile` goes, for Grappler never inlines such functions. 5. bfloat16
    becomes float32, for the converter writes bfloat16 constants as float16. 6. Grappler folds and inlines, once.

    Args:
        callee: what to freeze; it is not needed any more afterwards.
        threshold: bytes; None for `large_weights.THRESHOLD`.
        grappler: what runs in step 6; None for the default.

    Raises:
        ExportError: TensorFlow cannot freeze the function, what is left in the frozen graph exceeds 2 GB, the large
            variables cannot be written to files, or Grappler failed and `grappler` says that this counts.
    """
    function, names = _trace(callee)
    count = len(callee.inputs)
    inputs = tuple(t.name for t in function.inputs[:count])
    outputs = tuple(t.name for t in function.outputs)
    threshold = large_weights.THRESHOLD if threshold is None else threshold
    try:
        graph_def, weights = to_constants(function, callee.reference_variables, threshold)
    except (ValueError, KeyError, StopIteration) as error:
        raise ExportError(f"TensorFlow cannot freeze {callee.origin}: {one_line(error)}") from error
    tables = name_tables(function, graph_def)
    _strip_xla(graph_def)
    reduced = _computes_reduced(graph_def)
    bfloat16 = bfloat16_to_float32(graph_def)
    _check_size(graph_def, callee.origin)
    large_weights.shield(graph_def)
    graph_def = grapple(graph_def, inputs, outputs, grappler)
    large_weights.unshield(graph_def)
    rewrite_negative_zero(graph_def)
    settle_names(graph_def, {name.split(":")[0] for name in (*inputs, *outputs)})
    return Frozen(
        graph_def=graph_def,
        inputs=inputs,
        outputs=outputs,
        output_names=tuple(names),
        output_dtypes=tuple(t.dtype for t in function.outputs),
        output_shapes=tuple(None if t.shape.rank is None else tuple(t.shape.as_list()) for t in function.outputs),
        tables=tables,
        reduced=reduced,
        bfloat16=bfloat16,
        quantised=any(node.op.startswith(("FakeQuant", "QuantizeAndDequantize")) for node in _all_nodes(graph_def)),
        weights=weights,
    )


def _trace(callee: Callee) -> tuple[Any, list[str]]:
    """A ConcreteFunction of our own around the callee, and the public names of its outputs."""
    tf = import_tensorflow()
    names: list[str] = []

    def body(*tensors: Any) -> list[Any]:
        outputs = callee.call(tensors)
        names[:] = list(outputs)
        return [tf.identity(value) for value in outputs.values()]

    specs = [tf.TensorSpec(a.shape, a.dtype, name=INPUT.format(i)) for i, a in enumerate(callee.inputs)]
    with tf.device("/CPU:0"):
        function = tf.function(body, autograph=False).get_concrete_function(*specs)
    return function, names


def _all_nodes(graph_def: Any) -> list[Any]:
    """Nodes of the graph and of its function library."""
    return [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]


def _strip_xla(graph_def: Any) -> None:
    """Removes jit_compile marks: Grappler refuses to inline functions that carry them."""
    for holder in [*_all_nodes(graph_def), *graph_def.library.function]:
        for key in ("_XlaMustCompile", "_XlaHasReferenceVars", "_XlaScope", "_XlaCompile"):
            if key in holder.attr:
                del holder.attr[key]


def _computes_reduced(graph_def: Any) -> bool:
    """True when any node handles float16 or bfloat16."""
    tf = import_tensorflow()
    kinds = {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum}
    return any(
        value.type in kinds or kinds.intersection(value.list.type)
        for node in _all_nodes(graph_def)
        for value in node.attr.values()
    )


def _check_size(graph_def: Any, origin: str) -> None:
    size = constant_bytes(graph_def, large_weights.LIMIT)
    if size >= large_weights.LIMIT:
        raise ExportError(
            f"{origin} has {size / 1e9:.1f} GB of small constants and constants in control flow, which must fit into "
            "TensorFlow's GraphDef, and that ends at 2.1 GB: convert it in parts"
        )
