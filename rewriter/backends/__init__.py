"""TensorRT in its two packages, behind one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rewriter.backends.base import Backend
    from rewriter.backends.client import ProcessBackend
    from rewriter.backends.flavours import Flavour
    from rewriter.backends.pool import PoolBackend

__all__ = ["BACKENDS", "as_backend", "installed_backends", "open_backend"]

#: What `backend=` accepts, beside "auto".
BACKENDS = ("tensorrt", "tensorrt_rtx")


def open_backend(
    name: str = "auto", targets: Iterable[str] = (), *, jobs: int | None = 1, **options: Any
) -> ProcessBackend | PoolBackend:
    """The backend called `name`, with TensorRT in a child process that starts with the first use.

    Args:
        name: "tensorrt", "tensorrt_rtx", or "auto": tensorrt where it is installed and a GPU is there, else
            tensorrt_rtx.
        targets: compute capabilities to build for, as "SM89", "sm89" or "8.9"; () for the package's default.
            Given ones are checked against the installed version at once, which starts the child.
        jobs: child processes at the same time, at most: so many engines can be built side by side. None: as many as
            are asked for, by `Converter.build(jobs=)` for example.
        options: `timeouts` and `command` of `ProcessBackend`.

    Raises:
        InvalidParameterError: an unknown name or target, or `jobs` is no integer of at least 1.
        MissingDependencyError: the package is not installed; for "auto", neither is.
        BackendError: the package is installed but cannot be loaded (only when `targets` are given).
    """
    from rewriter.backends.client import ProcessBackend
    from rewriter.backends.pool import PoolBackend

    backend: ProcessBackend | PoolBackend
    if jobs == 1 and not isinstance(jobs, bool):
        backend = ProcessBackend(_flavour(name), targets, **options)
    else:
        backend = PoolBackend(_flavour(name), targets, jobs=jobs, **options)
    if targets:
        try:
            backend.default_targets  # noqa: B018 -- it checks the targets
        except BaseException:
            backend.close()
            raise
    return backend


def as_backend(backend: object, targets: tuple[str, ...] = (), *, jobs: int | None = 1) -> Backend:
    """What the parameters `backend` and `targets` mean: a name is opened, an open backend is taken as it is.

    Args:
        backend: a name, or an open backend, which keeps the number of processes that it has.
        targets: as for `open_backend`.
        jobs: as for `open_backend`.

    Raises:
        InvalidParameterError: neither; or targets beside an open backend, which has its own.
        MissingDependencyError: as `open_backend`.
    """
    from rewriter.backends.base import Backend
    from rewriter.errors import InvalidParameterError

    if isinstance(backend, str):
        return open_backend(backend, targets, jobs=jobs)
    if not isinstance(backend, Backend):
        raise InvalidParameterError(f"backend must be a name or an open Backend, not {backend!r}")
    if targets:
        raise InvalidParameterError("targets belong to the open backend: give them to open_backend()")
    return backend


def installed_backends() -> tuple[str, ...]:
    """The names of the TensorRT packages that are installed; imports none of them."""
    return tuple(name for name in BACKENDS if _installed(name))


def has_gpu() -> bool:
    """True when an NVIDIA driver with a device is there; asks the driver, without any CUDA package."""
    import ctypes
    import ctypes.util
    import sys

    library = "nvcuda.dll" if sys.platform == "win32" else ctypes.util.find_library("cuda") or "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
        count = ctypes.c_int()
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


def _flavours() -> dict[str, Flavour]:
    from rewriter.backends import tensorrt, tensorrt_rtx

    return {f.name: f for f in (tensorrt.FLAVOUR, tensorrt_rtx.FLAVOUR)}


def _flavour(name: str) -> Flavour:
    from rewriter.errors import InvalidParameterError, MissingDependencyError, missing_dependency

    flavours = _flavours()
    if name == "auto":
        if _installed("tensorrt") and has_gpu():
            return flavours["tensorrt"]
        if _installed("tensorrt_rtx"):
            return flavours["tensorrt_rtx"]
        hint = " (tensorrt is installed, but builds only on a machine with a GPU)" if _installed("tensorrt") else ""
        raise MissingDependencyError(
            f"building engines needs TensorRT{hint}: pip install 'trt-rewriter[rtx]' (with or without a GPU) "
            "or pip install 'trt-rewriter[trt]' (needs a GPU)"
        )
    if name not in flavours:
        raise InvalidParameterError(f"backend={name!r} is not known; it is one of auto, {', '.join(BACKENDS)}")
    if not _installed(name):
        raise missing_dependency(name, flavours[name].extra, "building engines")
    return flavours[name]


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(_flavours()[name].module) is not None
