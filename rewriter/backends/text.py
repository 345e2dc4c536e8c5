"""Reads TensorRT's error texts: takes the noise out of them, and tells what kind of failure they speak of.

TensorRT gives failures only as text, so this is the one place that knows its wording (1.4 to 1.7, and 10.x).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: A machine without a driver logs this after every real error.
_NOISE = ("checkMacros.cpp::catchCudaError", "CUDA initialization failure", "Error Code 1: Cuda Runtime")

#: What a failure without any other error line means: 1.4 cannot build Q/DQ without a GPU, for one.
NO_GPU = "this version of TensorRT builds it only on a machine with a GPU (it asked CUDA for one, and found none)"

_LOCATION = re.compile(r"\s*\.?\s*In \w[\w:~<>]* at \S+?:\d+\)?")
_PREFIX = re.compile(r"^(?:\[?[\w.:~/ ]+\]?:?\s*)?Error Code \d+: ([A-Z][\w ]*?) ?\((.*?)\)*$", re.DOTALL)
_TAG = re.compile(r"\[[\w.]+\.(?:cpp|h)(?::+\s?[\w~<>]+)+\]\s*|\[\w+\.(?:cpp|h):\d+: \w+\]\s*")
_ASSERTION = re.compile(r"^Assertion (?:failed: )?", re.DOTALL)
_QUOTED = re.compile(r'&& ((?:"[^"]*"\s*)+)')
_LONGEST = 300

_WORKSPACE = (
    "within workspace limit",
    "requires workspace memory greater than 0",
    "insufficient workspace",
    "allowed workspace size",
    "increasing the workspace",
)
_PROFILE = (
    "no optimization profile",
    "optimization profile 0 is missing",
    "is missing dimensions in profile",
    "is missing values for shape input",
    "invalid optimization profiles",
    "optprofileselector",
)
_PROFILE_VALUES = re.compile(r"k(?:MIN|OPT|MAX) values? .* violates?|profile \d+ .*(?:violate|missing|invalid)", re.I)
_MEMORY = ("outofmemory", "out of memory", "bad_alloc", "cannot allocate memory")
_REQUESTED = re.compile(r"Requested (?:size was|amount of GPU memory \() ?(\d+)")


def is_noise(line: str) -> bool:
    """True for lines about the missing GPU, which follow every error and explain none."""
    return any(text in line for text in _NOISE)


def clean(message: str) -> str:
    """One error as one short sentence, without the source files, lines and functions of TensorRT's own code.

    A text that is nothing but such noise becomes "".
    """
    lines = [_clean_line(line) for line in message.splitlines() if line.strip() and not is_noise(line)]
    lines = [line for line in lines if line and not line.startswith("Invalid Node - ")]
    text = "; ".join(dict.fromkeys(lines))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3].rstrip() + "..."


def classify(lines: Sequence[str]) -> str:
    """The kind of a build failure by the logger's error lines: a value of `BuildFailure.kind`."""
    text = "\n".join(line for line in lines if not is_noise(line))
    lower = text.lower()
    if "buildcanceled" in lower or "build was cancel" in lower:
        return "cancelled"
    if any(words in lower for words in _WORKSPACE):
        return "workspace"
    if any(words in lower for words in _PROFILE) or _PROFILE_VALUES.search(text):
        return "profile"
    if any(words in lower for words in _MEMORY):
        # The size that TensorRT names includes the workspace it was allowed: the limit is what stopped it.
        return "workspace" if _REQUESTED.search(text) else "memory"
    return "unsupported"


def summarise(kind: str, lines: Iterable[str], workspace_bytes: int) -> str:
    """The reason of a build failure: one line for people."""
    kept = [line for line in lines if not is_noise(line)]
    words = "; ".join(dict.fromkeys(filter(None, map(clean, kept)))) or "TensorRT gave no reason"
    words = words if len(words) <= _LONGEST else words[: _LONGEST - 3].rstrip() + "..."
    if kind == "workspace":
        requested = _REQUESTED.search("\n".join(kept))
        asked = f"; TensorRT asked for {int(requested[1]):,} bytes in all" if requested else ""
        return f"the workspace limit of {workspace_bytes:,} bytes is too small{asked}: {words}"
    if kind == "cancelled":
        return "the build was cancelled"
    if kind == "profile":
        return f"the shape profile is not valid: {words}"
    if kind == "memory":
        return f"out of memory: {words}"
    return words


def _clean_line(line: str) -> str:
    text = _LOCATION.sub("", line.strip())
    prefixed = _PREFIX.match(text)
    if prefixed:
        text = prefixed[2]
    text = _TAG.sub("", text).strip().rstrip(")" if text.count(")") > text.count("(") else "").strip(" ;")
    quoted = _QUOTED.search(text)
    if quoted:
        return " ".join(quoted[1].replace('"', "").split())
    stripped = _ASSERTION.sub("", text)
    if stripped != text:
        text = _after_condition(stripped)
    return "" if text in {"false", "true"} else text


def _after_condition(text: str) -> str:
    """The words after a failed assertion's C++ condition ("cond: words", "cond failed. words"), else all of it."""
    head, mark, tail = text.partition(" failed. ")
    if mark and tail.strip():
        return tail.strip()
    if mark or text.endswith(" failed"):
        return f"internal assertion {head.removesuffix(' failed')} failed"
    match = re.search(r"[)\w]: +(?=[A-Z])", text)
    return text[match.end() :].strip() if match else text


def refusal(operator: str, inner: str, message: str) -> str:
    """The sentence for a node that the parser refuses.

    Args:
        operator: op_type of the node that failed.
        inner: its name, when it lies inside a body of the node that is denied; else "".
        message: the parser's text.
    """
    where = f"the {operator} node {inner!r} inside it" if inner else operator
    words = clean(message)
    if not words or "lugin" in words:  # without a plugin there is nothing to say but that the operator is unknown
        return f"TensorRT does not support {where}"
    return f"TensorRT's parser refuses {where}: {words}"
