"""The engine cache on disk without TensorRT: what is stored, trusted, counted and removed."""

import errno
import hashlib
import json
import multiprocessing
import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from rewriter.backends.base import BuildFailure, BuiltEngine
from rewriter.building.cache import MAX_FAILURES, EngineCache
from rewriter.building.cache_entry import ENGINE_FILE, SIDECAR_FILE
from rewriter.errors import InvalidParameterError
from rewriter.reports.report import CacheStats

KEY = "0123456789abcdef" * 2
OTHER = "f" * 32


def engine(folder, content=b"engine bytes", seconds=2.5, name="e.engine"):
    path = Path(folder) / name
    path.write_bytes(content)
    return BuiltEngine(path, len(content), hashlib.sha256(content).hexdigest(), 7, seconds)


def edited(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "cache")


def test_a_hit_is_a_copy_with_its_facts(cache, tmp_path):
    assert cache.get(KEY, tmp_path / "out") is None
    cache.put(KEY, engine(tmp_path), {"version": "1.7"})
    found = cache.get(KEY, tmp_path / "out")
    assert (found.path, found.size, found.layers) == (tmp_path / "out", 12, 7)
    assert found.path.read_bytes() == b"engine bytes"
    assert found.seconds < 2.5
    assert cache.stats == CacheStats(hits=1, misses=1, stored=1, seconds_saved=2.5)
    found.path.write_bytes(b"damage here does not reach the cache")
    assert EngineCache(cache.directory).get(KEY, tmp_path / "again").path.read_bytes() == b"engine bytes"
    assert json.loads((cache.directory / KEY / SIDECAR_FILE).read_text())["facts"] == {"version": "1.7"}
    assert [p.name for p in cache.directory.iterdir()] == [KEY]


def test_a_new_folder_is_for_this_user_alone(tmp_path):
    cache = EngineCache(tmp_path / "deep" / "cache")
    assert not cache.directory.exists()
    cache.put(KEY, engine(tmp_path), {})
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((cache.directory / KEY).stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_is_told(tmp_path, caplog):
    tmp_path.chmod(0o777)
    EngineCache(tmp_path)
    assert "other users may write there" in caplog.text


def flip(entry):
    path = entry / ENGINE_FILE
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(bytes(data))


def another_file(entry):
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    entry.write_text("a file where the entry should be")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "sha256 differs"),
        (lambda e: (e / ENGINE_FILE).write_bytes(b"engine"), "size differs"),
        (lambda e: (e / ENGINE_FILE).write_bytes(b""), "size differs"),
        (lambda e: (e / ENGINE_FILE).unlink(), "no file engine"),
        (lambda e: (e / SIDECAR_FILE).unlink(), "no file entry.json"),
        (lambda e: (e / SIDECAR_FILE).write_text(""), "sidecar is damaged"),
        (lambda e: (e / SIDECAR_FILE).write_bytes(b"\xff\xfe"), "sidecar is damaged"),
        (lambda e: (e / SIDECAR_FILE).write_text("[" * 100_000), "sidecar is damaged"),
        (lambda e: (e / SIDECAR_FILE).write_text("[]"), "unknown format"),
        (lambda e: edited(e / SIDECAR_FILE, schema_version=2), "unknown format"),
        (lambda e: edited(e / SIDECAR_FILE, schema_version=0), "unknown format"),
        (lambda e: edited(e / SIDECAR_FILE, format="other"), "unknown format"),
        (lambda e: edited(e / SIDECAR_FILE, key=OTHER), "another key"),
        (lambda e: edited(e / SIDECAR_FILE, size="12"), "sidecar is damaged"),
        (lambda e: edited(e / SIDECAR_FILE, seconds=float("nan")), "sidecar is damaged"),
        (lambda e: edited(e / SIDECAR_FILE, sha256=None), "sidecar is damaged"),
        (lambda e: edited(e / SIDECAR_FILE, sha256="0" * 64), "sha256 differs"),
        (another_file, "not a folder"),
    ],
)
def test_a_damaged_entry_is_a_counted_miss_and_goes(cache, tmp_path, damage, reason):
    cache.put(KEY, engine(tmp_path), {})
    damage(cache.directory / KEY)
    assert cache.get(KEY, tmp_path / "out") is None
    assert not (tmp_path / "out").exists()
    assert list(cache.directory.iterdir()) == []
    assert (cache.stats.misses, cache.stats.damaged, cache.stats.refused) == (1, {reason: 1}, {})
    cache.put(KEY, engine(tmp_path), {})
    assert cache.get(KEY, tmp_path / "out") is not None


def test_an_entry_of_another_key_is_no_hit(cache, tmp_path):
    cache.put(KEY, engine(tmp_path), {})
    (cache.directory / KEY).rename(cache.directory / OTHER)
    assert cache.get(OTHER, tmp_path / "out") is None
    assert cache.stats.damaged == {"another key": 1}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_takes_nothing_is_told_once(cache, tmp_path, monkeypatch, caplog, code):
    cache.put(OTHER, engine(tmp_path), {})

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("rewriter.building.cache.tempfile", SimpleNamespace(mkdtemp=fail))
    for _ in range(3):
        cache.put(KEY, engine(tmp_path), {})
    cache.remember_failure(KEY, "", BuildFailure("unsupported", "no", ("no",)))
    reason = f"cannot store: {os.strerror(code)}"
    assert cache.stats.refused == {reason: 4}
    assert caplog.text.count(reason) == 1
    assert cache.get(OTHER, tmp_path / "out") is not None


def test_a_disk_that_gets_full_meanwhile_leaves_nothing(cache, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    cache.put(KEY, engine(tmp_path), {})
    assert list(cache.directory.iterdir()) == []
    assert cache.stats.refused == {"cannot store: No space left on device": 1}


def test_no_room_for_the_copy_keeps_the_entry(cache, tmp_path):
    cache.put(KEY, engine(tmp_path), {})
    assert cache.get(KEY, tmp_path / "no such folder" / "out") is None
    # The entry is whole: the fault lies elsewhere.
    assert cache.get(KEY, tmp_path / "out") is not None
    assert cache.stats.damaged == {}
    assert sum(cache.stats.refused.values()) == 1


def test_an_engine_that_changed_is_not_stored(cache, tmp_path):
    built = engine(tmp_path)
    built.path.write_bytes(b"ENGINE BYTES")
    cache.put(KEY, built, {})
    assert cache.stats.refused == {"cannot store: e.engine has changed since it was built": 1}
    assert cache.get(KEY, tmp_path / "out") is None


def test_the_least_recently_used_goes_first(tmp_path):
    keys = [f"{i:032x}" for i in range(4)]
    roomy = EngineCache(tmp_path / "cache")
    for age, key in enumerate(keys[:3]):
        roomy.put(key, engine(tmp_path, bytes(1000)), {})
        os.utime(roomy.directory / key / SIDECAR_FILE, (1000 + age, 1000 + age))
    assert roomy.get(keys[0], tmp_path / "out") is not None  # touched: the youngest now
    small = EngineCache(tmp_path / "cache", max_bytes=4000)
    small.put(keys[3], engine(tmp_path, bytes(1000)), {})
    assert sorted(p.name for p in small.directory.iterdir()) == [keys[0], keys[2], keys[3]]
    assert small.stats.removed == 1


def test_what_was_just_stored_stays_even_when_it_looks_old(tmp_path, monkeypatch):
    cache = EngineCache(tmp_path / "cache", max_bytes=2500)
    cache.put(OTHER, engine(tmp_path, bytes(1000)), {})
    os.utime(cache.directory / OTHER / SIDECAR_FILE, (2**33, 2**33))  # a clock that was wrong
    cache.put(KEY, engine(tmp_path, bytes(1000)), {})
    assert [p.name for p in cache.directory.iterdir()] == [KEY]


def test_an_engine_larger_than_the_cap_removes_nothing(tmp_path):
    cache = EngineCache(tmp_path / "cache", max_bytes=2000)
    cache.put(KEY, engine(tmp_path, bytes(1000)), {})
    cache.put(OTHER, engine(tmp_path, bytes(3000)), {})
    assert [p.name for p in cache.directory.iterdir()] == [KEY]
    assert cache.stats.refused == {"cannot store: larger than the whole cache may be (2,000 bytes)": 1}


def test_other_files_of_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    old = tmp_path / ".part-dead"
    old.mkdir()
    os.utime(old, (1, 1))
    young = tmp_path / ".part-alive"
    young.mkdir()
    cache = EngineCache(tmp_path, max_bytes=1500)
    for key in (KEY, OTHER):
        cache.put(key, engine(young, bytes(1000)), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".part-alive", OTHER, "folder", "notes.txt"]


def test_failures_are_remembered_apart(cache, tmp_path):
    failure = BuildFailure("unsupported", "no kernel for 'a'", ("Error: a", "b"))
    assert cache.known_failure(KEY, "nodes") is None
    cache.remember_failure(KEY, "nodes", failure)
    assert cache.known_failure(KEY, "nodes") == failure
    assert cache.known_failure(KEY, "other nodes") is None
    assert cache.known_failure(OTHER, "nodes") is None
    assert cache.get(KEY, tmp_path / "out") is None
    assert cache.stats == CacheStats(misses=1, known_failures=1)


@pytest.mark.parametrize("kind", ["workspace", "memory", "cancelled", "profile", "gpu", "crash"])
def test_failures_that_may_pass_are_not(cache, kind):
    cache.remember_failure(KEY, "", BuildFailure(kind, "reason", ("line",)))
    assert cache.known_failure(KEY, "") is None
    assert not cache.directory.exists()


def test_a_failure_without_a_word_of_tensorrt_is_not_remembered(cache):
    cache.remember_failure(KEY, "", BuildFailure("unsupported", "TensorRT gave no reason"))
    assert cache.known_failure(KEY, "") is None


@pytest.mark.parametrize(
    "damage", [lambda p: p.write_text("{"), lambda p: edited(p, schema_version=9), lambda p: edited(p, kind="memory")]
)
def test_a_damaged_failure_is_forgotten(cache, damage):
    cache.remember_failure(KEY, "", BuildFailure("unsupported", "no", ("no",)))
    (path,) = (cache.directory / "failures").iterdir()
    damage(path)
    assert cache.known_failure(KEY, "") is None
    assert not path.exists()
    assert cache.stats.damaged == {"failure record is damaged": 1}


def test_failures_are_bounded(cache, monkeypatch):
    assert MAX_FAILURES > 1000
    monkeypatch.setattr("rewriter.building.cache.MAX_FAILURES", 2)
    for number in range(3):
        cache.remember_failure(KEY, str(number), BuildFailure("unsupported", "no", ("no",)))
        for age, path in enumerate((cache.directory / "failures").iterdir()):
            os.utime(path, (age + 1, age + 1))
    assert len(list((cache.directory / "failures").iterdir())) == 2


def test_wrong_arguments(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for wrong in ("", 3, None, "a\0b"):
        with pytest.raises(InvalidParameterError, match="engine_cache_dir must be the path of a folder"):
            EngineCache(wrong)
    for wrong in ("file", "file/below", "dangling"):
        with pytest.raises(InvalidParameterError, match="must be a folder, and "):
            EngineCache(tmp_path / wrong)
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(InvalidParameterError, match="max_bytes"):
            EngineCache(tmp_path, max_bytes=wrong)
    with pytest.raises(ValueError, match="no key"):
        EngineCache(tmp_path).get("../../etc", tmp_path / "out")


def store(folder, scratch, number, barrier):
    """Another process: stores engines of its own bytes under the same keys."""
    cache = EngineCache(folder, max_bytes=30_000)
    mine = Path(scratch) / str(number)
    mine.mkdir()
    for key in range(40):
        built = engine(mine, bytes([number]) * 4000, name=f"{key}.engine")
        barrier.wait(60)
        cache.put(f"{key:032x}", built, {"process": number})
    stats = cache.stats
    (mine / "stats.json").write_text(json.dumps([stats.stored, stats.removed, dict(stats.refused)]))


def test_two_processes_store_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=store, args=(tmp_path / "c", tmp_path, n, barrier)) for n in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    (stored, removed, refused), (stored2, removed2, refused2) = (
        json.loads((tmp_path / str(n) / "stats.json").read_text()) for n in (1, 2)
    )
    assert set(refused) | set(refused2) <= {"cannot store: another process stored it first"}
    left = list((tmp_path / "c").iterdir())
    assert stored + stored2 - removed - removed2 == len(left)
    assert f"{39:032x}" in {p.name for p in left}
    reader = EngineCache(tmp_path / "c")
    for entry in left:
        found = reader.get(entry.name, tmp_path / "out")
        assert len(set(found.path.read_bytes())) == 1
    assert reader.stats.damaged == {}


def read(folder, scratch, barrier, stop):
    """Another process: asks for every key again and again; writes what it counted."""
    cache = EngineCache(folder, max_bytes=30_000)
    barrier.wait(60)
    while not stop.is_set():
        for key in range(40):
            found = cache.get(f"{key:032x}", Path(scratch) / "read")
            assert found is None or found.path.stat().st_size == 4000
    stats = cache.stats
    (Path(scratch) / "read.json").write_text(json.dumps([stats.hits, dict(stats.damaged), dict(stats.refused)]))


def test_one_process_reads_while_another_removes(tmp_path):
    """An entry that goes while it is read is a hit or a plain miss, never a damaged one."""
    context = multiprocessing.get_context("spawn")
    barrier, stop = context.Barrier(2), context.Event()
    cache = EngineCache(tmp_path / "c", max_bytes=30_000)
    cache.put(f"{0:032x}", engine(tmp_path, bytes(4000)), {})
    reader = context.Process(target=read, args=(tmp_path / "c", tmp_path, barrier, stop))
    reader.start()
    barrier.wait(60)
    try:
        for number in range(200):
            cache.put(f"{number % 40:032x}", engine(tmp_path, bytes(4000)), {})
    finally:
        stop.set()
        reader.join(120)
    assert reader.exitcode == 0
    hits, damaged, refused = json.loads((tmp_path / "read.json").read_text())
    assert hits > 0
    assert (damaged, refused) == ({}, {})
    assert cache.stats.removed > 0
    assert cache.stats.damaged == {}


def test_an_entry_that_is_replaced_while_it_is_read_is_read_again(cache, tmp_path, monkeypatch):
    """Two builds of one key differ in their bytes: the sidecar of one does not fit the engine of the other."""
    from rewriter.building import cache_entry

    cache.put(KEY, engine(tmp_path, b"first"), {})
    real = cache_entry._read_json

    def replaced(path):
        found = real(path)
        monkeypatch.setattr(cache_entry, "_read_json", real)
        (cache.directory / KEY).rename(tmp_path / "gone")
        cache.put(KEY, engine(tmp_path, b"second build"), {})
        return found

    monkeypatch.setattr(cache_entry, "_read_json", replaced)
    assert cache.get(KEY, tmp_path / "out").path.read_bytes() == b"second build"
    assert cache.stats.damaged == {}


def test_threads_count_right(cache, tmp_path):
    cache.put(KEY, engine(tmp_path), {})

    def read(number):
        for _ in range(20):
            assert cache.get(KEY, tmp_path / f"out{number}") is not None

    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.stats.hits == 160
