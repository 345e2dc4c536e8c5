"""How many engines are built at the same time: what is asked for, what the machine has, what a backend can."""

from types import SimpleNamespace

import pytest

from rewriter.building import jobs as jobs_module
from rewriter.building.jobs import (
    CHILD_BYTES,
    check_jobs,
    default_jobs,
    free_bytes,
    job_limits,
    jobs_note,
    usable_cores,
)
from rewriter.building.parallel import run_builds
from rewriter.errors import InvalidParameterError


def backend(jobs=None, flavour="tensorrt_rtx"):
    return SimpleNamespace(jobs=jobs, flavour=flavour)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "2"])
def test_jobs_is_a_positive_integer(value):
    with pytest.raises(InvalidParameterError, match="jobs must be an integer of at least 1"):
        run_builds([], value)
    assert check_jobs(None) is None
    assert check_jobs(3) == 3


def test_the_default_is_one_with_tensorrt_and_by_cores_and_memory_with_rtx(monkeypatch):
    monkeypatch.setattr(jobs_module, "usable_cores", lambda: 4)
    monkeypatch.setattr(jobs_module, "free_bytes", lambda: 64 << 30)
    assert default_jobs("tensorrt", 10) == 1
    assert [default_jobs("tensorrt_rtx", n) for n in (0, 1, 3, 10)] == [1, 1, 3, 4]
    assert default_jobs("tensorrt_rtx", 10, 10 << 30) == 3
    monkeypatch.setattr(jobs_module, "free_bytes", lambda: CHILD_BYTES // 2)
    assert default_jobs("tensorrt_rtx", 10) == 1
    monkeypatch.setattr(jobs_module, "free_bytes", lambda: None)
    monkeypatch.setattr(jobs_module, "usable_cores", lambda: 64)
    assert default_jobs("tensorrt_rtx", 100) == jobs_module.MOST_DEFAULT_JOBS


def test_a_containers_limits_count(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs_module, "_CONTAINER", tmp_path)
    monkeypatch.setattr(jobs_module, "_MEMORY", tmp_path / "meminfo")
    everything = usable_cores()
    assert free_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4096 kB\n")
    assert free_bytes() == 4 << 20
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.stat").write_text("anon 1048576\nfile 1000\n")
    assert (usable_cores(), free_bytes()) == (everything, 4 << 20)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("3145728\n")
    assert (usable_cores(), free_bytes()) == (1, 2 << 20)


def test_limits_add_up_over_backends_but_not_above_jobs():
    one, many = backend(1), backend()
    limits = job_limits([(one, 0), (one, 0), (many, 0), (many, 0), (many, 0)], 3)
    assert (limits.total, limits.of(one), limits.of(many)) == (3, 1, 3)
    assert job_limits([(one, 0)] * 4, 4).total == 1
    assert job_limits([], None).total == 0


def test_somebody_who_asks_for_more_than_there_is_is_told():
    assert (
        jobs_note(backend(), None)
        == jobs_note(backend(), 1)
        == jobs_note(backend(), 4)
        == jobs_note(backend(4), 4)
        == ""
    )
    assert "builds 1 engine at a time; open_backend('tensorrt_rtx', jobs=4)" in jobs_note(backend(1), 4)
    assert "builds 2 engines at a time" in jobs_note(backend(2), 4)
    assert "times kernels" in jobs_note(backend(flavour="tensorrt"), 2)
