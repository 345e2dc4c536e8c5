import io

import pytest
from rich.console import Console

from rewriter.commands.screen import StageScreen
from rewriter.progress import EngineStep, ProgressBar, ProgressEvent, Stages, resolve


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


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_failed_stage_gives_the_terminal_back(error):
    screen = StageScreen(Console(force_terminal=True, file=io.StringIO()))

    def fail(display, bar):
        with Stages(display).stage("build"):
            assert bar._bar.live.is_started
            raise error

    for display, bar in ((screen, screen._bar), (own := ProgressBar(), own)):
        with pytest.raises(error):
            fail(display, bar)
        assert (bar._bar.live.is_started, lines(bar)) == (False, [])
    StageScreen(Console(file=io.StringIO())).stop()  # it has no bar there


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


def lines(bar):
    return [(t.description, t.completed, t.total, t.fields["detail"]) for t in bar._bar.tasks]


def test_the_bar_counts_engines_and_has_a_line_for_each_in_work():
    bar = ProgressBar()

    def engine(index, done, total, finished, *, ended=False):
        step = EngineStep(f"E{index}", index, 3, finished, ended)
        assert bar(ProgressEvent("build", done, total, f"E{index} ({index + 1}/3): phase", engine=step))

    bar(ProgressEvent("build", 0, 1))
    assert lines(bar) == [("build", 0, 1, "")]
    engine(0, 1, 5, 0)
    engine(1, 2, 4, 0)
    assert lines(bar) == [
        ("build", 0, 3, "0 of 3 engines"),
        ("  E0", 1, 5, "phase"),
        ("  E1", 2, 4, "phase"),
    ]
    engine(0, 1, 1, 1, ended=True)
    engine(2, 0, 9, 1)
    assert [line[0] for line in lines(bar)] == ["build", "  E1", "  E2"]
    assert lines(bar)[0] == ("build", 1, 3, "1 of 3 engines")
    bar(ProgressEvent("build", 1, 1, seconds=2.0))
    assert lines(bar) == []
    engine(0, 1, 1, 1, ended=True)  # known already: it has no line of its own
    assert [line[0] for line in lines(bar)] == ["build"]
    bar(ProgressEvent("build", 1, 1, seconds=2.0))


def test_the_bar_says_one_engine_in_the_singular():
    bar = ProgressBar()
    bar(ProgressEvent("build", 1, 2, "E0 (1/1): phase", engine=EngineStep("E0", 0, 1)))
    assert lines(bar)[0] == ("build", 0, 1, "0 of 1 engine")
    bar(ProgressEvent("build", 1, 1, seconds=0.1))
