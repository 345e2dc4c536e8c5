"""EPContext: an artifact's engines for ONNX Runtime's own TensorRT providers.

    folder/ model_ctx.onnx  [model_ctx.onnx.data]  <partition>.engine ...

Every engine node becomes a node `com.microsoft::EPContext` that names its engine; native nodes stay as they are.
"""

from rewriter.export.epcontext.exporting import Exported, export_epcontext

__all__ = ["Exported", "export_epcontext"]
