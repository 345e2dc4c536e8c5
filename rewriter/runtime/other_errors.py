"""What errors of other packages say, in our words."""

from __future__ import annotations

import re

from rewriter.errors import MissingDependencyError, missing_dependency

_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: ")
#: A place in a source file; ONNX Runtime writes the function's name after it: one word, or all of its declaration.
_PLACE = re.compile(r"(?:[A-Za-z]:)?[^\s:'\"]*\.(?:cc|cpp|cuh?|h|hpp|inl):\d+ +")
#: A check that failed, in C++, with words for people behind it.
_CHECK = re.compile(r"^.{1,200}? was false\. +(?=\S)")
_AFTER = re.compile(r"(?: const)?(?: noexcept)?(?: \[with [^\]]*\])? *")
_DETAILS = re.compile(r" ; (?:hostname|file|line)=\S*(?= ;|$)")


def first_line(error: BaseException) -> str:
    """What an error of another package says, cut to one line; ONNX Runtime's in words for people."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return plain_words(line) if "[ONNXRuntimeError]" in line else line


def plain_words(text: str) -> str:
    """What ONNX Runtime says without its codes and the places in its source: the node, its name and the reason.

    Args:
        text: one line of an error of ONNX Runtime. What is in it in another form than today's stays as it is.
    """
    words = _NODE.sub(lambda found: f"{found[1]} node {found[2]!r}: " if found[2] else f"{found[1]} node: ", text)
    words = _DETAILS.sub("", _CODE.sub("", words))
    while (place := _PLACE.search(words)) is not None:
        words = words[: place.start()] + _behind_function(words[place.end() :], whole=re.search(r"[/\\]", place[0]))
    return words.strip() or text


def _behind_function(text: str, *, whole: object) -> str:
    """The text behind the name of a C++ function, and behind a check that failed in it."""
    if not whole:
        return text.partition(" ")[2] or text
    end = text.find("(")
    if "::" not in text[: max(end, 0)]:
        return text
    depth = 0
    for place in range(end, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth and text[place + 1 : place + 2] != "(":  # of `operator()(...)` the second pair is the last
            after = _AFTER.match(text, place + 1)
            return _CHECK.sub("", text[after.end() if after else place + 1 :])
    return text


def import_failure(error: ImportError, module: str, package: str, extra: str, purpose: str) -> MissingDependencyError:
    """The error for an optional package that cannot be imported: not installed, or installed and broken.

    Args:
        error: what its import raised.
        module: the module that was imported, "onnxruntime".
        package: its name for people, "ONNX Runtime".
        extra: the extra of this package that brings it.
        purpose: what needs it.
    """
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return missing_dependency(package, extra, purpose)
    return MissingDependencyError(
        f"{purpose} needs {package}, which is installed but cannot be loaded: {first_line(_origin(error))}"
    )


def _origin(error: BaseException) -> BaseException:
    """The error behind one whose text is a traceback, as TensorFlow words a missing shared library."""
    while str(error).lstrip().startswith("Traceback") and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__ or error
    return error
