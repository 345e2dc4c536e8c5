"""Which of several engines goes behind each EPContext node."""

import dataclasses

import pytest

from rewriter.artifact import EngineEntry
from rewriter.errors import ExportError
from rewriter.export.epcontext.choosing import choose_engines

from . import ctx_models as ctx


def fat(*engines):
    """What is chosen of engines (op, key, version, targets)."""
    return [
        EngineEntry(op, key, 1, "0" * 64, "tensorrt_rtx", version, targets) for op, key, version, targets in engines
    ]


A, B = ctx.FIRST, ctx.SECOND
MERGED = fat(
    (A, "a89", "1.9", ("SM89",)), (B, "b120", "1.9", ("SM120",)), (A, "a120", "1.9", ("SM120",)),
    (B, "b89", "1.9", ("SM89",)), (A, "a80", "1.10", ("SM80",)), (B, "b80", "1.10", ("SM80",)),
    (A, "old", "1.2", ("SM80", "SM89", "SM120")), (B, "old", "1.2", ("SM80", "SM89", "SM120")),
)  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "options", "keys"),
    [
        (MERGED, {}, ["a80", "b80"]),  # 1.10 is newer than 1.9
        (MERGED, {"target": "sm89"}, ["a89", "b89"]),  # the newest with engines for it
        (MERGED, {"target": "SM120"}, ["a120", "b120"]),
        (MERGED, {"engine_version": "1.9"}, ["a89", "b89"]),  # never one for SM89 beside one for SM120
        (MERGED, {"engine_version": "1.2", "target": "SM80"}, ["old", "old"]),
        (fat((A, "any", "1", ()), (A, "own", "1", ("SM89",)), (B, "b", "1", ())), {"target": "SM89"}, ["own", "b"]),
        (fat((A, "any", "1", ()), (A, "own", "1", ("SM89",)), (B, "b", "1", ("SM120",))), {}, ["any", "b"]),
        (fat((A, "one", "1", ("SM89",)), (A, "more", "1", ("SM80", "SM89")), (B, "b", "1", ("SM80", "SM89"))), {},
         ["more", "b"]),
        (fat((A, "a", "2", ("SM89",)), (B, "b", "2", ("SM120",)), (A, "c", "1", ("SM80",)), (B, "d", "1", ("SM80",))),
         {}, ["c", "d"]),  # those of 2 have no GPU in common
        (fat((A, "a", "1", ()), (B, "b", "1", ())), {}, ["a", "b"]),
    ],
)  # fmt: skip
def test_engines_are_chosen_for_one_version_and_one_gpu(entries, options, keys):
    choice = choose_engines({A: "", B: ""}, entries, "tensorrt_rtx", **options)
    assert [entry.key for entry in choice.engines.values()] == keys
    assert len({entry.version for entry in choice.engines.values()}) == 1


def test_engines_without_a_gpu_in_common_are_refused():
    entries = fat((A, "a", "1", ("SM89",)), (B, "b", "1", ("SM120",)))
    with pytest.raises(ExportError, match=rf"no GPU has a tensorrt_rtx engine for every.*\({A}: SM89; {B}: SM120\)"):
        choose_engines({A: "", B: ""}, entries, "tensorrt_rtx")


def test_damaged_engines_of_a_fat_artifact_are_passed_over():
    torn = [dataclasses.replace(entry, problem="it is torn") if entry.key == "a80" else entry for entry in MERGED]
    choice = choose_engines({A: "", B: ""}, torn, "tensorrt_rtx")
    assert [entry.key for entry in choice.engines.values()] == ["a89", "b89"]
