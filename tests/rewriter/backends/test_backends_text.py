from __future__ import annotations

import pytest

from rewriter.backends import text

NO_GPU = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient))"
)

MESSAGES = [
    ("false", ""),
    ("Unsupported reduction type", "Unsupported reduction type"),
    ('(antialias == 0) && "Antialiasing is not supported currently."', "Antialiasing is not supported currently."),
    ('(mode == 1) && "Only a, b and" " c are supported"', "Only a, b and c are supported"),
    (
        "Assertion failed: inputAxes.is_weights(): Axis input must be an initializer!",
        "Axis input must be an initializer!",
    ),
    (
        "Invalid Node - rs\n[graphShapeAnalyzer.cpp::getSymbolicValue::1383] Error Code 2: Internal Error (Assertion "
        "isDefined(it->second) failed. value should have been set by symbolic execution of producer. In "
        "getSymbolicValue at /_src/optimizer/shapeof/graphShapeAnalyzer.cpp:1383)\n" + NO_GPU,
        "value should have been set by symbolic execution of producer",
    ),
    (
        "ITensor::getDimensions: Error Code 4: API Usage Error (add: ElementWiseOperation SUM requires inputs with "
        "type kFLOAT. In validateTypes at /_src/optimizer/common/nodes/elementWiseNode.cpp:72)",
        "add: ElementWiseOperation SUM requires inputs with type kFLOAT",
    ),
    (
        "[graphShapeAnalyzer.cpp::check::2155] Error Code 2: Internal Error (Assertion !isInFlight(p.second.rep) "
        "failed.  In check at /_src/optimizer/shapeof/graphShapeAnalyzer.cpp:2155)",
        "internal assertion !isInFlight(p.second.rep) failed",
    ),
]


@pytest.mark.parametrize(("message", "expected"), MESSAGES)
def test_clean_leaves_only_the_words(message, expected):
    assert text.clean(message) == expected


def test_clean_of_noise_is_empty_and_of_long_text_is_short():
    assert text.clean(NO_GPU) == ""
    assert len(text.clean("x" * 5000)) == 300


FAILURES = [
    ("cancelled", "IBuilder::x: Error Code 7: BuildCanceled (Build canceled by user In next at /_src/a.cpp:92)"),
    (
        "workspace",
        "Myelin ([t.cpp:1: f] Tactic Selection: no tactics to implement the operation within workspace limit.)",
    ),
    (
        "workspace",
        "(Assertion a > 0 failed. Compiling this graph requires workspace memory greater than 0. In f at /a.cpp:1)",
    ),
    ("workspace", "Error Code 2: OutOfMemory (Requested size was 102011649 bytes.)"),
    ("memory", "Error Code 6: OutOfMemory (no further information)"),
    ("memory", "std::bad_alloc"),
    ("profile", "API Usage Error (Network has dynamic or shape inputs, but no optimization profile has been defined.)"),
    (
        "profile",
        "API Usage Error (Dynamic input tensor x is missing dimensions in profile 0. In v at /_src/n.cpp:4046)",
    ),
    ("profile", "API Usage Error (Optimization profile 0 is missing values for shape input tensor s.)"),
    ("profile", "(Invalid optimization profiles for input tensors x, please ensure MIN<=OPT<=MAX.)"),
    ("profile", "kOPT values for profile 0 violate shape constraints: the sizes must be equal"),
    ("unsupported", "ITopKLayer topk_node: topk_node: K exceeds the maximum value allowed (3840)."),
    ("unsupported", "Depth input of IOneHotLayer must be a build time constant"),
    ("unsupported", "Cannot compile operation 'mm' for Turing (SM75): FP32 GEMM is not supported."),
]


@pytest.mark.parametrize(("kind", "line"), FAILURES)
def test_classify_reads_the_kind_from_the_text(kind, line):
    assert text.classify([NO_GPU, line, NO_GPU]) == kind


def test_workspace_reason_says_what_was_asked_and_what_was_allowed():
    reason = text.summarise("workspace", ["OutOfMemory (Requested size was 102011649 bytes.)"], 1024)
    assert "1,024 bytes" in reason
    assert "102,011,649 bytes" in reason


def test_summary_without_any_words_still_says_something():
    assert text.summarise("unsupported", [NO_GPU], 1) == "TensorRT gave no reason"


def test_refusal_names_the_inner_node_and_hides_the_missing_plugin():
    plugin = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
    assert text.refusal("NonZero", "nz", plugin) == "TensorRT does not support the NonZero node 'nz' inside it"
    assert text.refusal("Det", "", "false") == "TensorRT does not support Det"
    assert text.refusal("Pad", "", "Bad mode") == "TensorRT's parser refuses Pad: Bad mode"
