"""How many engines are built at the same time."""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rewriter import params as parameters
from rewriter.backends.base import Backend
from rewriter.backends.pool import PoolBackend

#: What one child process and its build may take.
CHILD_BYTES = 2 << 30
_MEMORY = Path("/proc/meminfo")


def check_jobs(jobs: object) -> int | None:
    """How many engines to build at the same time: an integer of at least 1, or None for the default.

    Raises:
        InvalidParameterError: it is something else.
    """
    return parameters.check_count("jobs", jobs)


def default_jobs(flavour: str, tasks: int) -> int:
    """How many engines are built at the same time when nobody says.

    Rules:
        1. TensorRT times kernels on the GPU while it builds, which another build on the same GPU would disturb: one.
        2. TensorRT-RTX compiles on the CPU: as many as there are cores for this process, and room in memory.

    Args:
        flavour: "tensorrt_rtx" or "tensorrt".
        tasks: engines to build.
    """
    if flavour != "tensorrt_rtx":
        return 1
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    available = available_bytes()
    room = cores if available is None else available // CHILD_BYTES
    return max(1, min(tasks, cores, room))


def available_bytes() -> int | None:
    """Memory that is free or can be freed, bytes; None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text("ascii").splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None


@dataclasses.dataclass(frozen=True)
class JobLimits:
    """How many builds may be in work at the same time.

    Attributes:
        total: in all.
        backends: `id` of a backend -> in it.
    """

    total: int
    backends: Mapping[int, int]

    def of(self, backend: Backend) -> int:
        """How many builds `backend` may have in work."""
        return self.backends[id(backend)]


def job_limits(backends: Sequence[Backend], jobs: int | None) -> JobLimits:
    """What `jobs` means for builds in these backends.

    Args:
        backends: where each of the builds runs; the same object for builds of one backend.
        jobs: builds at the same time, at most; None: `default_jobs`.
    """
    counts = collections.Counter(id(backend) for backend in backends)
    wanted = {id(b): jobs or default_jobs(b.flavour, counts[id(b)]) for b in backends}
    limits = {id(b): min(wanted[id(b)], _capacity(b, counts[id(b)])) for b in backends}
    total = min(sum(limits.values()), max(wanted.values(), default=1))
    return JobLimits(total, limits)


def _capacity(backend: Backend, tasks: int) -> int:
    """How many builds a backend can have in work: one, unless it is a pool."""
    return (backend.jobs or tasks) if isinstance(backend, PoolBackend) else 1


def jobs_note(backend: Backend, jobs: int | None) -> str:
    """What somebody should know who asks for so many builds at the same time; "" for nothing."""
    if jobs is None or jobs == 1:
        return ""
    if _capacity(backend, jobs) < jobs:
        most = _capacity(backend, jobs)
        return (
            f"jobs={jobs}: the open backend builds {most} engine{'s' * (most != 1)} at a time; "
            f"open_backend({backend.flavour!r}, jobs={jobs}) gives one that builds {jobs}"
        )
    if default_jobs(backend.flavour, jobs) == 1 and backend.flavour == "tensorrt":
        return (
            f"jobs={jobs}: tensorrt times kernels on the GPU while it builds, and builds side by side disturb each "
            "other: the engines may be slower than with jobs=1"
        )
    return ""
