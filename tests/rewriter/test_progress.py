import pytest

from rewriter.progress import ProgressBar, ProgressEvent, Stages, resolve


def test_stages_are_timed_and_told():
    events = []
    stages = Stages(events.append)
    with stages.stage("passes"):
        pass
    with stages.stage("passes"):
        pass
    stages.add("export", 2.5)
    assert list(stages.timings) == ["passes", "export"]
    assert stages.timings["export"] == 2.5
    assert [(e.stage, e.done, e.total) for e in events] == [("passes", 0, 1), ("passes", 1, 1)] * 2 + [("export", 1, 1)]
    assert events[1].seconds is not None


def test_a_failed_stage_has_no_closing_event():
    events = []
    stages = Stages(events.append)
    with pytest.raises(KeyError), stages.stage("build"):
        raise KeyError
    assert [e.done for e in events] == [0]
    assert stages.timings == {}


def test_only_false_cancels():
    event = ProgressEvent("build", 1, 3)
    assert Stages(None).emit(event)
    assert Stages(lambda e: None).emit(event)
    assert not Stages(lambda e: False).emit(event)


def test_what_the_argument_means(monkeypatch):
    callback = print
    assert resolve(callback) is callback
    assert resolve(False) is None
    assert isinstance(resolve(True), ProgressBar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert resolve(None) is None


def test_the_bar_survives_any_order_of_events():
    bar = ProgressBar()
    for event in (
        ProgressEvent("load", 1, 1, seconds=0.1),
        ProgressEvent("build", 0, 3, "TRTEngineOp_000"),
        ProgressEvent("build", 2, 3, "TRTEngineOp_000"),
        ProgressEvent("build", 1, 1, seconds=1.0),
        ProgressEvent("save", 0, 1),
        ProgressEvent("save", 1, 1, seconds=0.0),
    ):
        assert bar(event)
