"""Classic TensorRT (10 and 11): builds for the GPU of the machine it runs on."""

from __future__ import annotations

from rewriter.backends.flavours import Flavour

FLAVOUR = Flavour(name="tensorrt", module="tensorrt", extra="trt")
