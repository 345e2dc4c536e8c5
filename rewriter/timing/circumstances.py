"""What figures depend on beside the model: machine, versions, the GPU and its TensorRT, TF32."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rewriter.artifact.manifest import EngineEntry, installed_versions

#: NVIDIA's own switch: 0 forbids TF32 in its libraries.
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
#: Tensor cores compute TF32 from this compute capability on.
_TF32_SINCE = (8, 0)


def circumstances(
    *,
    on_gpu: bool,
    gpu: Mapping[str, Any] | None = None,
    engines: Sequence[EngineEntry] = (),
    params: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All of it in plain values.

    Args:
        on_gpu: whether the model runs on the GPU.
        gpu: its name and compute capability; None where none was opened.
        engines: of the artifact.
        params: the conversion's parameters as the artifact keeps them.

    Returns:
        date (UTC), python, platform, cpus, load (busy processes in the last minute; None where the system does not
        say), packages, gpu (None where none is used), tensorrt (flavour -> version that is loaded; {} where none is),
        engines (what built the artifact's engines, "tensorrt_rtx 1.4.0"), and tf32 (see `tf32_use`).
    """
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "packages": installed_versions(),
        "gpu": dict(gpu) if gpu and on_gpu else None,
        "tensorrt": _loaded_tensorrt() if on_gpu else {},
        "engines": sorted({f"{entry.backend} {entry.version}" for entry in engines}),
        "tf32": tf32_use(on_gpu=on_gpu, gpu=gpu, engines=engines, params=params or {}),
    }


def tf32_use(
    *, on_gpu: bool, gpu: Mapping[str, Any] | None, engines: Sequence[EngineEntry], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Whether FP32 may be computed in TF32, which is quicker and has 10 bits of mantissa.

    Returns:
        engines: True or False for engine nodes; None where no engine runs. native: likewise for native nodes (ONNX
        Runtime's CUDA provider allows it unasked). override: the value of NVIDIA_TF32_OVERRIDE, None where it is not
        set; 0 forbids it in NVIDIA's libraries, whatever the others say.
    """
    override = os.environ.get(TF32_VARIABLE)
    if not on_gpu:
        return {"engines": None, "native": False, "override": override}
    capability = str((gpu or {}).get("compute_capability", "0.0"))
    able = tuple(map(int, capability.split("."))) >= _TF32_SINCE
    # TensorRT-RTX takes TF32 whatever the builder is told (measured with 1.4); TensorRT obeys the flag of its builder.
    asked = str(params.get("precision_mode", "")).upper() == "TF32"
    allowed = any(entry.backend == "tensorrt_rtx" for entry in engines) or asked
    return {"engines": able and allowed if engines else None, "native": able and override != "0", "override": override}


def tf32_words(use: Mapping[str, Any]) -> str:
    """`tf32_use` in one line for people."""
    if use["engines"] is None and not use["native"]:
        return "off (CPU)" if use["override"] is None else f"off ({TF32_VARIABLE}={use['override']})"
    said = [f"{'on' if use['native'] else 'off'} in native nodes"]
    if use["engines"] is not None:
        said.insert(0, f"{'on' if use['engines'] else 'off'} in engines")
    if use["override"] is not None:
        said.append(f"{TF32_VARIABLE}={use['override']}")
    return ", ".join(said)


def _loaded_tensorrt() -> dict[str, str]:
    """Versions of the TensorRT modules that this process has loaded."""
    found = {name: sys.modules.get(name) for name in ("tensorrt", "tensorrt_rtx")}
    return {name: str(getattr(module, "__version__", "unknown")) for name, module in found.items() if module}
