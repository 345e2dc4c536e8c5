"""What TensorFlow logs goes to this package's debug log."""

import logging
import threading

from rewriter.frontend.noise import LOCK, quiet_thread


def elsewhere(work):
    """Calls `work` in another thread."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_one_thread_is_quiet_while_others_are_heard(caplog):
    caplog.set_level(logging.DEBUG)
    log = logging.getLogger("tensorflow")
    before = list(log.filters)
    with quiet_thread(), quiet_thread():
        log.warning("mine")
        elsewhere(lambda: log.warning("another's"))
    log.warning("after")
    assert log.filters == before
    found = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert found == [
        ("rewriter.frontend.noise", "DEBUG", "tensorflow WARNING: mine"),
        ("tensorflow", "WARNING", "another's"),
        ("tensorflow", "WARNING", "after"),
    ]


def test_a_quiet_thread_waits_for_no_conversion():
    held, done = threading.Event(), threading.Event()

    def convert():
        with LOCK:
            held.set()
            done.wait(60)

    other = threading.Thread(target=convert)
    other.start()
    held.wait()
    with quiet_thread():
        assert not LOCK.acquire(blocking=False)
    done.set()
    other.join()
