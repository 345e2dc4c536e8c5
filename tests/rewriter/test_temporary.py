"""Temporary folders: who removes them, and that a forked child does not."""

import gc
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import rewriter
from rewriter.temporary import TemporaryFolder

ROOT = Path(rewriter.__file__).parents[1]
#: A program that forks: `in_a_child` calls something in a child, which then ends as programs do.
FORKING = """
import gc, os, sys
from pathlib import Path
from rewriter.temporary import TemporaryFolder, finalize_here

place = Path(sys.argv[1])

def in_a_child(work):
    pid = os.fork()
    if not pid:
        work()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def run(code, folder):
    """Runs `code` behind `FORKING` in a process of its own, whose temporary folder is `folder`."""
    code = FORKING + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_goes_with_its_object_by_hand_and_at_the_end_of_a_block(tmp_path):
    dropped = TemporaryFolder("a-", tmp_path)
    path = dropped.path
    (path / "inner").mkdir()
    del dropped
    gc.collect()
    assert not path.exists()

    by_hand = TemporaryFolder("b-", tmp_path)
    by_hand.remove()
    by_hand.remove()
    assert not by_hand.path.exists()

    def fail(path):
        assert path.is_dir()
        raise KeyError(path)

    with pytest.raises(KeyError) as caught, TemporaryFolder("c-", tmp_path) as path:
        fail(path)
    assert not caught.value.args[0].exists()


def test_a_folder_goes_with_the_process(tmp_path):
    run("x = TemporaryFolder('x-', place)", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "code",
    [
        """
        folder, block, held = (TemporaryFolder("x-", place) for _ in "123")
        held = [held]

        def work():
            folder.remove()
            held.clear()
            gc.collect()
            with block:
                pass
            with TemporaryFolder("own-", place) as own:
                assert own.is_dir()
            assert not own.exists()

        in_a_child(work)
        assert len(list(place.glob("x-*"))) == 3
        """,
        """
        class Owner:
            pass

        owner = Owner()
        finalizer = finalize_here(owner, (place / "told").touch)

        def work():
            finalizer()
            assert not finalizer.alive

        in_a_child(work)
        in_a_child(lambda: None)
        assert not list(place.iterdir())
        del owner
        (place / "told").unlink()
        """,
        """
        import numpy as np
        from rewriter.frontend.large_weights import LargeWeights

        weights = [LargeWeights()]
        weights[0].put(np.zeros(8, np.float32))

        def work():
            weights.clear()
            gc.collect()

        in_a_child(work)
        assert list(place.glob("*/*.weights"))
        """,
        """
        from rewriter.frontend.islands.saving import new_folder

        made = new_folder(None)
        in_a_child(lambda: None)
        assert made.is_dir()
        """,
        """
        import numpy as np
        from rewriter.backends.spool import WeightPlaces

        places, array = [WeightPlaces()], [np.zeros(8, np.float32)]
        file, _ = places[0]._place(array[0])

        def work():
            array.clear()
            places.clear()
            gc.collect()

        in_a_child(work)
        assert Path(file).is_file()
        """,
    ],
    ids=["folders", "finalizers", "large weights", "islands", "weights for another process"],
)
def test_a_forked_child_removes_nothing_of_its_parents(code, tmp_path):
    run(code, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_temporary_folder_of_the_package_is_guarded():
    """`tempfile.TemporaryDirectory` and a bare finalizer do their work in forked children as well."""
    allowed = {
        "backends/client.py",  # looks at the owner itself
        "runtime/gpu/pinned.py",  # frees memory of this process
        "temporary.py",
    }
    root = ROOT / "rewriter"
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if re.search(r"TemporaryDirectory\(|weakref\.finalize\(", path.read_text(encoding="utf-8"))
    }
    assert found <= allowed
