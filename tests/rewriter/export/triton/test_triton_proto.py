"""Every kind of `config.pbtxt`, parsed strictly by Triton's own definition of it."""

import json
import subprocess

import pytest
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.export.triton import export_triton
from rewriter.export.triton.config import ConfigOptions, config_text
from rewriter.export.triton.shapes import Batching, Warmup
from rewriter.source import Signature

pytestmark = pytest.mark.serving

PARSE = """
import json, sys
from rewriter.export.triton.checking import parsed_config
json.dump([parsed_config(text) for text in json.load(sys.stdin)], sys.stdout)
"""
REFUSED = """
import json, sys
from rewriter.errors import BackendError
from rewriter.export.triton.checking import parsed_config
for text in json.load(sys.stdin):
    try:
        parsed_config(text)
    except BackendError as error:
        print(error)
"""


@pytest.fixture
def asked(triton_python):
    """Runs a program with the Python that has tritonclient, over texts; returns what it prints."""

    def ask(code, *texts):
        done = subprocess.run(
            [triton_python, "-c", code],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return ask


@pytest.fixture
def parsed(asked):
    """Texts as the messages that Triton reads, in JSON; an unknown field or value is an error."""
    return lambda *texts: json.loads(asked(PARSE, *texts))


def test_what_triton_has_no_word_for_is_refused(asked):
    texts = ["unknown: 1", f"max_batch_size: {2**31}", "instance_group [{ kind: KIND_TPU }]", 'name: "good"']
    lines = asked(REFUSED, *texts).splitlines()
    assert len(lines) == 3
    for line, word in zip(lines, ("unknown", "2147483648", "KIND_TPU"), strict=True):
        assert line.startswith("Triton's definition of config.pbtxt refuses what was to be written (")
        assert word in line


def test_all_flavours(parsed, dense, with_engines, tmp_path):
    whole = with_engines({"targets": ("SM89",)}, {"targets": ("SM120",)})
    for flavour in ("python", "onnxruntime", "tensorrt_plan"):
        export_triton(whole, tmp_path / "repo", name=flavour, flavour=flavour, kind="gpu", gpus=[0, 1])
    texts = [path.read_text() for path in sorted((tmp_path / "repo").glob("*/config.pbtxt"))]
    onnx, python, plan = parsed(*texts)
    assert (onnx["backend"], python["backend"], plan["backend"]) == ("onnxruntime", "python", "tensorrt")
    assert plan["cc_model_filenames"] == {"8.9": "model.plan", "12.0": "sm120.plan"}
    assert python["parameters"]["signature"] == {"string_value": "serving_default"}
    assert onnx["max_batch_size"] == 8  # it takes no engine with it, so none limits it
    for config in (python, plan):
        assert config["max_batch_size"] == 16
        assert config["dynamic_batching"] == {"preferred_batch_size": [4], "max_queue_delay_microseconds": "1000"}
        assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "gpus": [0, 1]}]
        assert config["model_warmup"][0]["batch_size"] == 4
    assert python["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": ["4"]}]
    assert plan["input"] == [{"name": "inner_x", "data_type": "TYPE_FP32", "dims": ["4"]}]


def test_every_field_and_every_type(parsed):
    names = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
    names += ["FLOAT16", "FLOAT", "DOUBLE", "STRING", "BFLOAT16"]
    specs = tuple(TensorSpec(n, TensorProto.DataType.Value(n), ("batch", 2, None)) for n in names)
    inputs = (*specs, TensorSpec('ein "\u00e9"', TensorProto.FLOAT, ("batch",)))
    warmup = Warmup({**dict.fromkeys(names, (3, 2, 5)), inputs[-1].name: (3,)})
    options = ConfigOptions(2, "gpu", (1,), 0, {"k": "v\n"}, {"8.9": "model.plan"}, profiles=2)
    signature = Signature(inputs, specs)
    batched, whole = parsed(
        config_text("m", "tensorrt_plan", signature, Batching(4, (2, 4)), [warmup], options),
        config_text("m", "onnxruntime", signature, Batching(0), [warmup]),
    )
    assert [item["dims"] for item in batched["input"]] == [["2", "-1"]] * len(names) + [["1"]]
    assert batched["input"][-1] == {"name": 'ein "\u00e9"', "data_type": "TYPE_FP32", "dims": ["1"], "reshape": {}}
    assert batched["instance_group"] == [{"count": 2, "kind": "KIND_GPU", "gpus": [1], "profile": ["0", "1"]}]
    assert batched["parameters"] == {"k": {"string_value": "v\n"}}
    assert batched["model_warmup"][0]["batch_size"] == 3
    assert batched["model_warmup"][0]["inputs"]["INT8"] == {
        "data_type": "TYPE_INT8",
        "dims": ["2", "5"],
        "zero_data": True,
    }
    assert batched["version_policy"] == {"latest": {"num_versions": 1}}
    assert whole["input"][0]["dims"] == ["-1", "2", "-1"]
    assert "max_batch_size" not in whole
    assert "dynamic_batching" not in whole
    assert whole["model_warmup"][0]["inputs"]["INT8"]["dims"] == ["3", "2", "5"]
