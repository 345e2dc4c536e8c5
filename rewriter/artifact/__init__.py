"""The directory that a conversion leaves behind: written whole or not at all, checked when it is read.

    out/ model.onnx  model.onnx.data  engines/<op>/<key>.engine + .json  calibration.json  manifest.json  report.json

`model.onnx` is the spliced model; any ONNX runtime runs it without the engines. Further signatures are in
`model.1.onnx`, `report.1.json` ... beside it and share the data file, in which equal weights lie once.
"""

from rewriter.artifact.manifest import EngineEntry, engine_file
from rewriter.artifact.parts import Artifact, ArtifactPart
from rewriter.artifact.paths import check_output, is_artifact
from rewriter.artifact.reading import load_artifact
from rewriter.artifact.writing import save_artifact

__all__ = [
    "Artifact",
    "ArtifactPart",
    "EngineEntry",
    "check_output",
    "engine_file",
    "is_artifact",
    "load_artifact",
    "save_artifact",
]
