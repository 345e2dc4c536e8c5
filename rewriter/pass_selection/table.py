"""What each name of TensorFlow's RewriterConfig does here: one literal table.

What is safe in TensorFlow's stage was found by trying each optimizer of TensorFlow 2.21 on convolutions, attention,
recurrent layers, control flow, shape arithmetic and fake quantisation, with the comparison of the export behind it;
what is useful there, by the nodes of the exports (merged constants: ResNet50 178 nodes instead of 125).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from passes.pipeline import OPTIONAL_PASSES, REQUIRED_PASSES
from rewriter.frontend.grappler import REQUIRED_OPTIMIZER

TENSORRT = "TensorRTOptimizer"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One optimizer of Grappler.

    Attributes:
        name: what `optimizers` calls it.
        toggle: the field of RewriterConfig that switches it; "" for none.
        grappler: it runs in TensorFlow's stage.
        onnx: the optional ONNX pass that does the same; "" for none.
        note: what else does its work, or why it has none here.
    """

    name: str
    toggle: str = ""
    grappler: bool = False
    onnx: str = ""
    note: str = ""


_PRECISION = "has no work: precision_mode says in which arithmetic engines compute"
#: In the order in which Grappler itself runs them.
OPTIMIZERS: tuple[Optimizer, ...] = (
    Optimizer(
        "pruning", "disable_model_pruning", True, note="canonicalize always removes dead nodes and unused constants"
    ),
    Optimizer(
        "implementation_selector",
        "implementation_selector",
        note="has no work: it chooses between TensorFlow's CPU and GPU kernels of recurrent layers",
    ),
    Optimizer(
        REQUIRED_OPTIMIZER,
        "function_optimization",
        True,
        note="the converter to ONNX reads no function calls; canonicalize always inlines functions of ONNX",
    ),
    Optimizer(
        "common_subgraph_elimination",
        "common_subgraph_elimination",
        onnx="common_subexpressions",
        note="not in TensorFlow: the converter to ONNX does not fold constants that were merged before it",
    ),
    Optimizer("debug_stripper", "debug_stripper", True, note="ONNX has no Assert, Print or CheckNumerics"),
    Optimizer("constfold", "constant_folding", True, "fold_constants"),
    Optimizer("shape", "shape_optimization", True, note="fold_constants makes static shapes constants"),
    Optimizer("auto_mixed_precision", "auto_mixed_precision", note=_PRECISION),
    Optimizer("auto_mixed_precision_mkl", "auto_mixed_precision_mkl", note=_PRECISION),
    Optimizer("auto_mixed_precision_onednn_bfloat16", "auto_mixed_precision_onednn_bfloat16", note=_PRECISION),
    Optimizer("auto_mixed_precision_cpu", "auto_mixed_precision_cpu", note=_PRECISION),
    Optimizer(
        "pin_to_host",
        "pin_to_host_optimization",
        note="has no work: it places small TensorFlow nodes on the CPU, and TensorRT places its own",
    ),
    Optimizer("arithmetic", "arithmetic_optimization", True, note="TensorRT simplifies the rest while it builds"),
    Optimizer(
        "layout",
        "layout_optimizer",
        onnx="cancel_transposes",
        note="not in TensorFlow: ONNX has one layout, and the converter to ONNX puts every network into it",
    ),
    Optimizer(
        "remap",
        "remapping",
        note="has no work: it makes fused nodes that the converter to ONNX cannot read, and TensorRT fuses by itself",
    ),
    Optimizer("loop", "loop_optimization", True, note="it takes effect on the loops of TensorFlow 1 only"),
    Optimizer("dependency", "dependency_optimization", True, note="canonicalize always removes nodes that do nothing"),
    Optimizer("memory", "memory_optimization", note="has no work: TensorRT plans the memory of its engines"),
    Optimizer("autoparallel", "auto_parallel", note="has no work: it splits the training of a model over devices"),
    Optimizer(
        "scoped_allocator",
        "scoped_allocator_optimization",
        note="has no work: it joins the buffers of collective operations",
    ),
)
BY_NAME: Mapping[str, Optimizer] = {optimizer.name: optimizer for optimizer in OPTIMIZERS}
BY_TOGGLE: Mapping[str, Optimizer] = {optimizer.toggle: optimizer for optimizer in OPTIMIZERS if optimizer.toggle}

#: What runs where `optimizers` is empty.
DEFAULT_OPTIMIZERS = (REQUIRED_OPTIMIZER, "constfold", "dependency")

#: Fields that have no work here whatever their value, and why.
IDLE_FIELDS: Mapping[str, str] = {
    "cpu_layout_conversion": "ONNX has one layout, and the converter to ONNX puts every network into it",
    "use_plugin_optimizers": "plugins of other devices make graphs for their own kernels",
    "experimental_conditional_code_motion": "TensorFlow's experiment; branches become If nodes",
    "disable_tfg_optimizer": "Grappler's second form of the graph changes nothing but its spelling",
    "experimental_disable_compressed_tensor_optimization": "constants are written out in ONNX anyway",
    "experimental_disable_folding_quantization_emulation": (
        "always True: fake quantisation is structure, and is never folded"
    ),
    "memory_optimizer_target_node_name_scope": "TensorRT plans the memory of its engines",
    "scoped_allocator_opts": "it joins the buffers of collective operations",
}


def known_names() -> tuple[str, ...]:
    """Every name that `optimizers` takes: Grappler's, then our passes."""
    return (*BY_NAME, *OPTIONAL_PASSES, *REQUIRED_PASSES)
