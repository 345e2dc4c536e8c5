"""Import rules: heavy packages only inside functions, `passes` never imports `rewriter`, few public names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    *("tensorflow", "tf_keras", "keras", "tf2onnx", "tensorrt", "tensorrt_rtx"),
    *("onnxruntime", "torch", "polygraphy", "matplotlib", "cuda", "sklearn"),
)
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("passes", "rewriter")
    for path in (ROOT / package).rglob("*.py")
    if "demo" not in path.parts or path.name == "__init__.py"
)
BLOCKED = """
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Refuse())
for module in {modules!r}:
    importlib.import_module(module)
"""


def test_every_module_imports_without_heavy_packages():
    code = BLOCKED.format(heavy=HEAVY, modules=[m for m in MODULES if not m.endswith("__main__")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "passes").rglob("*.py")), ids=lambda p: p.name)
def test_passes_import_only_their_own_kind(path):
    allowed = {"numpy", "onnx", "onnx_graphsurgeon", "ml_dtypes", "passes"} | set(sys.stdlib_module_names)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.add(node.module.split(".")[0])
    assert found <= allowed


PUBLIC = """
AccuracyTarget ArtifactError BackendError ConversionError ConversionParams ConvertedFunction Converter
ConverterStateError DEFAULT_TRT_CONVERSION_PARAMS DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES DryRun EngineStep ExportError
Extended InputError InvalidParameterError Merged MissingDependencyError
PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE PROFILE_STRATEGY_OPTIMAL PROFILE_STRATEGY_RANGE
PROFILE_STRATEGY_RANGE_OPTIMAL PrecisionOptions ProgressEvent Report RescueReport RewriterConfig SourceError
TrtConversionParams TrtGraphConverter TrtGraphConverterV2 TrtPrecisionMode VerificationError build_engines
create_inference_graph load merge rescue supported_profile_strategies
"""


def test_public_names_are_these():
    import rewriter

    assert sorted(rewriter.__all__) == PUBLIC.split()
    assert all(hasattr(rewriter, name) for name in rewriter.__all__)
    assert set(rewriter.__all__) <= set(dir(rewriter))
    assert rewriter.TrtGraphConverterV2 is rewriter.Converter
    with pytest.raises(AttributeError, match="no attribute 'TrtConverter'"):
        rewriter.TrtConverter  # noqa: B018 - the access is the test


def test_import_is_quick():
    code = "import sys, rewriter; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnx", "rich", *HEAVY} & set(done.stdout.split())


def test_help_needs_no_heavy_package():
    code = BLOCKED.format(heavy=HEAVY, modules=["rewriter.cli"])
    code += "sys.exit(sys.modules['rewriter.cli'].main(['convert', '-h']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--minimum-segment-size" in done.stdout
