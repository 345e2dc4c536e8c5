"""What "auto" means in a comparison: engines where there is a GPU, else what they would compute, in emulation."""

from __future__ import annotations

from rewriter.errors import InvalidParameterError
from rewriter.polygraphy_runners.talk import warn
from rewriter.runtime import device

EXECUTIONS = ("auto", "native", "emulate")
PROVIDERS = ("auto", "cpu", "cuda")
#: When engines are built: where they would run, in any case, never.
BUILD_RULES = ("auto", "always", "never")


def resolve_execution(execution: str, provider: str, strict: bool | None = None, obstacle: str = "") -> str:
    """Which of "auto" (on a GPU), "native" and "emulate" to run.

    `rewriter.load` runs natively where there is no GPU; a comparison that did so would compare nothing, so here "auto"
    is emulation then, and one warning says so.

    Args:
        execution: what was asked for.
        provider: likewise; "cpu" uses no engine.
        strict: True where emulation must not stand in for engines.
        obstacle: why no engine can be built here, "" when nothing is in the way.

    Raises:
        InvalidParameterError: an unknown word, "cuda" without a GPU, or `strict` where no engine can run.
    """
    for name, value, known in (("execution", execution, EXECUTIONS), ("provider", provider, PROVIDERS)):
        if value not in known:
            raise InvalidParameterError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    why = device.missing_gpu()
    if provider == "cuda" and why:
        raise InvalidParameterError(f"provider 'cuda' needs a GPU, but there is none to use: {why}")
    if execution != "auto":
        return execution
    why = "provider 'cpu' was asked for" if provider == "cpu" else why or obstacle
    if not why:
        return "auto"
    if strict:
        raise InvalidParameterError(f"strict needs engines that run, but {why}: leave strict out")
    warn(f"{why}: what the engines would compute is emulated on the CPU; times say nothing about TensorRT")
    return "emulate"
