"""The runtime cache on disk: exact matches only, and nothing that can fail a call."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.runtime.gpu import runtime_cache
from rewriter.runtime.gpu.runtime_cache import RuntimeCacheFile

GPU, VERSION = "NVIDIA L4, 8.9", "1.7.1.116"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "cache"


def place(folder, key="key", gpu=GPU, version=VERSION):
    return RuntimeCacheFile(folder, key, gpu, version)


def test_what_was_written_is_read(folder):
    assert place(folder).write(b"kernels")
    cache = place(folder)
    assert cache.read() == b"kernels"
    assert (cache.hits, dict(cache.misses)) == (1, {})
    assert sorted(path.name for path in folder.iterdir()) == sorted([cache.path.name, cache.sidecar.name])
    assert json.loads(cache.sidecar.read_text()) == {
        "format": "trt-rewriter runtime cache",
        "schema_version": 1,
        "key": "key",
        "gpu": GPU,
        "version": VERSION,
        "size": 7,
        "sha256": hashlib.sha256(b"kernels").hexdigest(),
    }


def test_only_this_user_can_read_a_new_folder(folder):
    place(folder).write(b"kernels")
    if os.name == "posix":
        assert folder.stat().st_mode & 0o077 == 0


def test_engines_gpus_and_versions_lie_side_by_side(folder):
    places = [place(folder), place(folder, key="k2"), place(folder, gpu="H100, 9.0"), place(folder, version="1.4.0.76")]
    for number, cache in enumerate(places):
        assert cache.write(bytes([number]))
    assert [cache.read() for cache in places] == [bytes([number]) for number in range(4)]


def test_equal_bytes_are_not_written_again(folder):
    cache = place(folder)
    assert cache.write(b"kernels")
    assert cache.write(b"kernels")
    assert cache.writes == 1
    assert cache.write(b"more kernels")
    assert cache.writes == 2
    other = place(folder)
    assert other.read() == b"more kernels"
    assert other.write(b"more kernels")
    assert other.writes == 0
    other.path.unlink()  # by someone else
    assert other.write(b"more kernels")
    assert place(folder).read() == b"more kernels"


def damage_bytes(cache):
    cache.path.write_bytes(b"kernelz")


def cut_bytes(cache):
    cache.path.write_bytes(b"kern")


def no_bytes(cache):
    cache.path.unlink()


def no_sidecar(cache):
    cache.sidecar.unlink()


def sidecar(**changes):
    def change(cache):
        facts = {**json.loads(cache.sidecar.read_text()), **changes}
        cache.sidecar.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))

    return change


def sidecar_text(text):
    return lambda cache: cache.sidecar.write_bytes(text)


def a_folder_instead(cache):
    cache.path.unlink()
    cache.path.mkdir()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage_bytes, "its bytes are not those that were written"),
        (cut_bytes, "its bytes are not those that were written"),
        (no_bytes, "there is none"),
        (no_sidecar, "there is none"),
        (a_folder_instead, "it cannot be read: Is a directory"),
        (sidecar(gpu="NVIDIA L4, 8.6"), "its gpu is another one"),
        (sidecar(key="other"), "its key is another one"),
        (sidecar(version=None), "its version is another one"),
        (sidecar(schema_version=2), "its schema_version is another one"),
        (sidecar(schema_version=True), "its schema_version is another one"),
        (sidecar(format="pickle"), "its format is another one"),
        (sidecar(size="7"), "its sidecar is damaged"),
        (sidecar(sha256=None), "its sidecar is damaged"),
        (sidecar_text(b"{"), "its sidecar is damaged"),
        (sidecar_text(b"[]"), "its sidecar is damaged"),
        (sidecar_text(b"\xff"), "its sidecar is damaged"),
        (sidecar_text(b"[" * 100_000), "its sidecar is damaged"),
    ],
)
def test_what_does_not_match_exactly_is_a_miss_with_its_reason(folder, harm, reason):
    cache = place(folder)
    cache.write(b"kernels")
    harm(cache)
    fresh = place(folder)
    assert fresh.read() is None
    assert (fresh.hits, dict(fresh.misses)) == (0, {reason: 1})


@pytest.mark.parametrize("harm", [damage_bytes, no_bytes, no_sidecar, sidecar(gpu="other"), sidecar_text(b"{")])
def test_a_damaged_entry_is_replaced(folder, harm):
    place(folder).write(b"kernels")
    cache = place(folder)
    harm(cache)
    assert cache.read() is None
    assert cache.write(b"kernels")
    assert place(folder).read() == b"kernels"


def test_no_folder_is_a_miss(folder):
    cache = place(folder)
    assert cache.read() is None
    assert dict(cache.misses) == {"there is none": 1}
    assert not folder.exists()


def test_what_tensorrt_refuses_is_written_again(folder):
    place(folder).write(b"kernels")
    cache = place(folder)
    assert cache.read() == b"kernels"
    cache.refuse("TensorRT cannot read it")
    assert (cache.hits, dict(cache.misses)) == (0, {"TensorRT cannot read it": 1})
    assert cache.write(b"kernels")
    assert cache.writes == 1


def test_a_folder_that_cannot_be_written_is_told_once_and_no_failure(folder, monkeypatch, caplog):
    runtime_cache._tell_once.cache_clear()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runtime_cache, "TemporaryFolder", refuse)
    caches = [place(folder), place(folder, key="k2")]
    assert [cache.write(b"kernels") for cache in caches] == [False, False]
    assert [dict(cache.failed_writes) for cache in caches] == [{"Permission denied": 1}] * 2
    assert caplog.text.count("cannot be written (Permission denied)") == 1
    runtime_cache._tell_once.cache_clear()


def test_a_file_where_the_folder_should_be_is_no_failure(tmp_path):
    runtime_cache._tell_once.cache_clear()
    (tmp_path / "file").write_text("")
    cache = place(tmp_path / "file")
    assert cache.read() is None
    assert [*cache.misses] == ["it cannot be read: Not a directory"]
    assert not cache.write(b"kernels")
    assert sum(cache.failed_writes.values()) == 1


def test_a_write_that_breaks_off_leaves_the_old_entry(folder, monkeypatch):
    cache = place(folder)
    cache.write(b"kernels")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runtime_cache, "write_json", full)
    assert not cache.write(b"more kernels")
    monkeypatch.undo()
    assert place(folder).read() == b"kernels"
    assert len(list(folder.iterdir())) == 2


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_names_are_safe_and_tell_their_parts_apart(key, gpu, version):
    folder = Path("cache")
    cache = place(folder, key, gpu, version)
    assert cache.path.parent == folder
    assert len(cache.path.name) == 38
    assert cache.path != place(folder, key + gpu, "", version).path or not gpu
