"""TensorRT for RTX: builds ahead of time, for many GPUs at once, on a machine with none."""

from __future__ import annotations

from rewriter.backends.flavours import Flavour

#: SM75 is known but not a default: it has no FP32 matrix multiplication, so most FP32 models fail to build for it.
FLAVOUR = Flavour(name="tensorrt_rtx", module="tensorrt_rtx", extra="rtx", lowest_default_target=80)
