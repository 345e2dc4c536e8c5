"""Model repositories for the Triton Inference Server, written from artifacts. Needs none of Triton's packages.

    repository/<name>/config.pbtxt  repository/<name>/<version>/...  repository/<name>.inferenceservice.yaml

`rewriter.export.triton.serving` is the other end: what the python backend of Triton runs.
"""

from rewriter.export.triton.exporting import Exported, export_triton

__all__ = ["Exported", "export_triton"]
