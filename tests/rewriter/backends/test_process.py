"""A child process by itself: what becomes of it when its start is broken off."""

import subprocess
import sys
import threading

import pytest

from rewriter.backends import process
from rewriter.backends.process import Child


@pytest.mark.parametrize("begun", [0, 1, 2])
def test_ctrl_c_during_the_start_leaves_no_process(monkeypatch, begun):
    made, left = [], [begun]

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    class Interrupted(threading.Thread):
        def start(self):
            if left[0] == 0:
                raise KeyboardInterrupt
            super().start()
            left[0] -= 1
            if left[0] == 0 and begun == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(process.subprocess, "Popen", Recorded)
    monkeypatch.setattr(process.threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Child([sys.executable, "-c", "import sys; sys.stdin.read()"])
    (child,) = made
    assert child.returncode is not None
    assert all(pipe.closed for pipe in (child.stdin, child.stdout, child.stderr))
    assert not [thread for thread in threading.enumerate() if isinstance(thread, Interrupted)]
