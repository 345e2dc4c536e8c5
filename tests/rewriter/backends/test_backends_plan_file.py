"""The file of an engine: hashed while it is written."""

import hashlib

import pytest

from rewriter.backends.plan_file import PlanFile


@pytest.mark.parametrize("sizes", [[], [3], [1 << 20], [10, (1 << 21) + 5, 7]])
def test_pieces_of_any_size_are_hashed_in_order(tmp_path, sizes):
    pieces = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    with PlanFile(tmp_path / "e") as plan:
        assert [plan.write(piece) for piece in pieces] == sizes
        plan.commit()
    assert (tmp_path / "e").read_bytes() == b"".join(pieces)
    assert plan.sha256 == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert plan.size == sum(sizes)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
