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

#: What a child process and its build take beside the weights: 335 MiB measured with TensorRT-RTX 1.7.
CHILD_BYTES = 400 << 20
#: Bytes that a build takes for each byte of weights: they are mapped, and copied once.
WEIGHT_COPIES = 2
#: Where the default ends: on 16 cores, 16 engines took 10.7 s one by one, 6.4 s with 2 jobs, 3.7 s with 4, 2.7 s with
#: 8, and 2.6 s with 16.
MOST_DEFAULT_JOBS = 8
_MEMORY = Path("/proc/meminfo")
#: Where a container is told its limits (cgroup v2).
_CONTAINER = Path("/sys/fs/cgroup")


def check_jobs(jobs: object) -> int | None:
    """How many engines to build at the same time: an integer of at least 1, or None for the default.

    Raises:
        InvalidParameterError: it is something else.
    """
    return parameters.check_count("jobs", jobs)


def default_jobs(flavour: str, tasks: int, weight_bytes: int = 0) -> int:
    """How many engines are built at the same time when nobody says.

    Rules:
        1. TensorRT times kernels on the GPU while it builds, which another build on the same GPU would disturb: one.
        2. TensorRT-RTX compiles on the CPU: as many as there are cores for this process, and free memory for, but no
           more than `MOST_DEFAULT_JOBS`.

    Args:
        flavour: "tensorrt_rtx" or "tensorrt".
        tasks: engines to build.
        weight_bytes: weights of the largest of them, bytes.
    """
    if flavour != "tensorrt_rtx":
        return 1
    free = free_bytes()
    room = tasks if free is None else free // (CHILD_BYTES + WEIGHT_COPIES * weight_bytes)
    return max(1, min(tasks, usable_cores(), room, MOST_DEFAULT_JOBS))


def usable_cores() -> int:
    """Cores that this process may use; of a container's share of a core the whole one."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = (_CONTAINER / "cpu.max").read_text("ascii").split()
        return cores if quota == "max" else max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return cores


def free_bytes() -> int | None:
    """Memory that is free or can be freed, bytes; None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text("ascii").splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None
    try:
        limit = (_CONTAINER / "memory.max").read_text("ascii").strip()
        used = dict(line.split() for line in (_CONTAINER / "memory.stat").read_text("ascii").splitlines())
        return free if limit == "max" else max(0, min(free, int(limit) - int(used["anon"])))
    except (OSError, ValueError, KeyError):
        return free


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


def job_limits(builds: Sequence[tuple[Backend, int]], jobs: int | None) -> JobLimits:
    """What `jobs` means for some builds.

    Args:
        builds: of each the backend where it runs, and the bytes of its weights.
        jobs: builds at the same time, at most; None: `default_jobs`.
    """
    backends = {id(backend): backend for backend, _ in builds}
    counts = collections.Counter(id(backend) for backend, _ in builds)
    largest = max((size for _, size in builds), default=0)
    wanted = {key: jobs or default_jobs(b.flavour, counts[key], largest) for key, b in backends.items()}
    limits = {key: min(wanted[key], _capacity(b, counts[key])) for key, b in backends.items()}
    return JobLimits(min(sum(limits.values()), max(wanted.values(), default=1)), limits)


def _capacity(backend: Backend, tasks: int) -> int:
    """How many builds a backend can have in work: one, unless it is a pool, which says so with `jobs`."""
    most = getattr(backend, "jobs", 1)
    return tasks if most is None else int(most)


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
    if backend.flavour == "tensorrt":
        return (
            f"jobs={jobs}: tensorrt times kernels on the GPU while it builds, and builds side by side disturb each "
            "other: the engines may be slower than with jobs=1"
        )
    return ""
