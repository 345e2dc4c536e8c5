"""The rows of `rivals.py`, as they are kept between calls and merged with those of earlier runs."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _common import PACKAGES, write_json
from _options import recorded

Row = dict[str, Any]
#: What tells rows apart; the last two for conversions and commands.
SAME = ("part", "model", "system", "precision", "batch", "cancel", "command")


class Kept:
    """The rows so far, written down after each process, in FOLDER/rivals.json and where the options say.

    A later call goes on from FOLDER/rivals.json, so that preparing and timing may be two calls. The rows of `--merge`
    are beneath all of these.

    Args:
        options: of the script.
        question: what the file is an answer to.
        models: in the order of the rows.

    Raises:
        SystemExit: the file to merge cannot be read, or is no JSON of this script.
    """

    def __init__(self, options: argparse.Namespace, question: str, models: Sequence[str]) -> None:
        self._options, self._lock = options, threading.Lock()
        self._question, self._models = question, models
        self._path = options.folder / "rivals.json"
        self._told = {name: value for name, value in recorded(options).items() if name not in ("folder", "merge")}
        self._earlier = _earlier(options.merge, question)
        self._rows: list[Row] = []
        options.folder.mkdir(parents=True, exist_ok=True)
        if self._path.is_file():
            self._rows = json.loads(self._path.read_text(encoding="utf-8"))["rows"]

    def forget(self, parts: Iterable[str]) -> None:
        """Drops rows that are about to be made again."""
        self._rows = [row for row in self._rows if row["part"] not in set(parts)]

    def add(self, rows: Sequence[Row]) -> None:
        with self._lock:
            self._rows.extend(rows)
            for path in (self._path, self._options.json):
                if path is not None:
                    write_json(path, self.document())

    def document(self) -> dict[str, Any]:
        """What is rendered."""
        from _rivals_models import ABOUT

        # By model, then as they were planned: the order in which processes end is chance.
        order = {name: place for place, name in enumerate(self._models)}
        rows = merged(self._earlier.get("rows", []), self._rows)
        rows.sort(key=lambda row: (order.get(row.get("model", ""), len(order)), row.get("place", 0)))
        beneath = [{name: self._earlier.get(name) for name in ("environment", "options", "versions")}]
        return {
            "question": self._question, "experiment_name": self._options.experiment_name, "options": self._told,
            "versions": versions(), "models": dict(ABOUT),
            **({"merged": [*self._earlier.get("merged", []), *beneath]} if self._earlier else {}), "rows": rows,
        }  # fmt: skip


def _earlier(path: Path | None, question: str) -> dict[str, Any]:
    """What an earlier run wrote; {} without a path."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"Error: --merge {path} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("question") != question:
        raise SystemExit(f"Error: --merge {path} was not written by this script")
    return found


def merged(earlier: Iterable[Row], later: Iterable[Row]) -> list[Row]:
    """All rows; of two that measure the same the later one, but no failure instead of a figure."""

    def of(row: Row) -> str:
        return json.dumps([row.get(name) for name in SAME])

    found: dict[str, Row] = {}
    for row in (*earlier, *later):
        if of(row) not in found or "failed" not in row or "failed" in found[of(row)]:
            found[of(row)] = row
    return list(found.values())


def versions() -> dict[str, str]:
    """Versions of what is compared, beyond those of every benchmark's environment."""
    import importlib.metadata

    found = {}
    names = (*PACKAGES, "torch", "triton", "jax", "jaxlib", "onnxruntime-gpu", "nvidia-cudnn-cu13")
    for name in dict.fromkeys(names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
