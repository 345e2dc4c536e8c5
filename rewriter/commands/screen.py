"""Stages on the screen: one line a finished stage, a bar meanwhile."""

from __future__ import annotations

from rich.console import Console

from rewriter.progress import ProgressBar, ProgressEvent

#: stage -> what a reader should know about it.
STAGE_WORDS = {
    "load": "load the model",
    "reference": "run it in TensorFlow on samples",
    "freeze": "freeze variables to constants",
    "export": "export to ONNX",
    "verify": "compare ONNX with TensorFlow",
    "passes": "clean, fold, infer shapes, legalise",
    "support": "ask TensorRT's parser about every node",
    "partition": "cut into segments, check each one",
    "build": "compile the engines with TensorRT",
    "save": "splice and save",
}


class StageScreen:
    """A progress callback that prints each stage as it ends, with its time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = ProgressBar() if console.is_terminal else None

    def __call__(self, event: ProgressEvent) -> bool:
        """Shows one event."""
        if self._bar is not None:
            self._bar(event)
        if event.seconds is not None:
            words = STAGE_WORDS.get(event.stage, "")
            self._console.print(f"  {event.stage:<10} {event.seconds:7.2f} s   {words}", highlight=False)
        return True


def title(console: Console, text: str) -> None:
    """A headline between two parts of the screen."""
    console.print()
    console.print(f"[bold]{text}[/bold]", highlight=False)
