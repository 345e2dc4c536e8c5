"""The tables, facts and verdict of serving.py, from its JSON: pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from _common import format_table

IN_PROCESS = "in process"
#: Largest max|difference| / max|reference| from what `load()` answers.
TOLERANCE = 1e-5
#: Answers to different requests must be so far from each other, or the comparison says nothing.
APART = 1e-3
Document = Mapping[str, Any]


def tables(document: Document) -> str:
    """All tables, each under its heading, and the verdict."""
    parts = [_versions(document["versions"])] if document["versions"] else []
    for heading, rows in (
        ("One request", [_request(row) for row in document["rows"]]),
        ("Several clients", [_clients(row) for row in document["rates"]]),
        ("Rows that lie there: Ray Data", [_data(row) for row in document.get("data", ())]),
        ("Calibration", _calibration(document.get("calibration", ()))),
        ("Replicas that are killed", _kills(document["kills"]) if "kills" in document else []),
    ):
        if rows:
            parts += [f"### {heading}", format_table(rows)]
    parts += [f"Left out: {text}." for text in document["left_out"]]
    wrong = failures(document)
    parts += [f"FAILED {text}" for text in wrong]
    if not wrong:
        told = f"at most {worst(document):.0e} from it, within {TOLERANCE:.0e}"
        parts.append(f"PASS: every answer is that of `load()` in the same run ({told}).")
    return "\n\n".join(parts)


def kept_facts(document: Document) -> dict[str, str]:
    """What the prose and the summary tell.

    Keys, each only where it was measured:
        MODEL_least, MODEL_most: milliseconds that the paths add to a request.
        MODEL_joined_least, MODEL_joined_most: of the most clients, rows a second joined over one by one.
        kills: replicas that were killed; asked_sure, lost_sure, asked_once, lost_once: requests of the clients with
            the retry and of those without.
        calibration: one machine's time over the actors'.
    """
    found = {}
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        adds = [row["adds_ms"]["middle"] for row in _of(document["rows"], model) if row["path"] != IN_PROCESS]
        if adds:
            found |= {f"{model}_least": f"{min(adds):.1f}", f"{model}_most": f"{max(adds):.1f}"}
    most = max((row["clients"] for row in document["rates"]), default=0)
    crowd = [row for row in document["rates"] if row["clients"] == most]
    for model in dict.fromkeys(row["model"] for row in crowd):
        ratios = [row["ratio"]["middle"] for row in _of(crowd, model)]
        found |= {f"{model}_joined_least": f"{min(ratios):.1f}", f"{model}_joined_most": f"{max(ratios):.1f}"}
    if "kills" in document:
        kills = document["kills"]
        found |= {"kills": str(kills["kills"])}
        found |= {f"lost_{who}": str(kills[who]["lost"]) for who in ("sure", "once")}
        found |= {f"asked_{who}": str(kills[who]["answered"] + kills[who]["lost"]) for who in ("sure", "once")}
    if document.get("calibration"):
        ratios = [each["one_s"] / each["actors_s"] for each in document["calibration"]]
        found["calibration"] = f"{statistics.median(ratios):.2f}"
    return found


def failures(document: Document) -> list[str]:
    """What is not as it must be, in words."""
    found = [
        f"{where}: an answer differs from that of load() by {difference:.1e}"
        for where, difference in _differences(document)
        if not difference <= TOLERANCE
    ]
    found += [
        f"{model}: answers to different requests are only {apart:.1e} apart, the comparison says nothing"
        for models in document["apart"].values()
        for model, apart in models.items()
        if not apart >= APART
    ]
    found += [f"{row['model']}: rows were lost or doubled" for row in document.get("data", ()) if not row["once"]]
    if not all(each["equal"] for each in document.get("calibration", ())):
        found.append("calibration: the actors' table is not that of one machine")
    if lost := document.get("kills", {}).get("sure", {}).get("lost", 0):
        found.append(f"kills: the clients with the retry lost {lost} requests")
    ends = document["ends"].get("triton", {"status": 0, "left": 0})
    if ends["status"] or ends["left"]:
        found.append(f"Triton's end: exit status {ends['status']}, {ends['left']} blocks of shared memory left")
    return found


def worst(document: Document) -> float:
    """The largest difference of all answers."""
    return max((difference for _, difference in _differences(document)), default=0.0)


def _differences(document: Document) -> Iterator[tuple[str, float]]:
    for row in (*document["rows"], *document["rates"]):
        yield f"{row['model']}, {row['path']}", row["worst"]
    for row in document.get("data", ()):
        yield f"{row['model']}, map_batches", row["worst"]
    for who in ("sure", "once"):
        if "kills" in document:
            yield f"kills, {who}", document["kills"][who]["worst"]


def _of(rows: Any, model: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["model"] == model]


def _versions(versions: Mapping[str, Mapping[str, str]]) -> str:
    told = []
    if "ray" in versions:
        found = versions["ray"]
        told.append(f"Ray {found['ray']} (ONNX Runtime {found['onnxruntime']}, numpy {found['numpy']})")
    if "triton" in versions:
        found = versions["triton"]
        client = f"tritonclient {found['tritonclient']}, ONNX Runtime {found['onnxruntime']}, numpy {found['numpy']}"
        told.append(f"Triton {found['server']} of nvidia-pytriton {found['nvidia-pytriton']} ({client})")
    return f"{'; '.join(told)}. Medians of all rounds; in brackets the least and the most."


def _request(row: Mapping[str, Any]) -> dict[str, Any]:
    own = row["path"] == IN_PROCESS
    return {
        "model": row["model"],
        "path": f"{row['path']} ({row['environment'].title()}'s environment)" if own else row["path"],
        "ms": _spread(row["ms"], "3g"),
        "adds ms": "" if own else _spread(row["adds_ms"], "2f"),
        "times the call": "" if own else _figure(row["times"]["middle"]),
    }


def _clients(row: Mapping[str, Any]) -> dict[str, Any]:
    rows = row["rows_of_a_run"]
    return {
        "model": row["model"],
        "clients": row["clients"],
        "path": row["path"],
        "rows/s one by one": _figure(row["single"]["middle"]),
        "rows/s joined": _figure(row["joined"]["middle"]),
        "joined / one by one": _spread(row["ratio"], "2f"),
        "rows of a run": f"{rows:.1f}" if rows else "",
    }


def _data(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": row["model"],
        "rows": row["rows"],
        "batch": row["batch"],
        "loop, 1 thread, s": _figure(row["loop_s"]["middle"]),
        "loop, all cores, s": _figure(row["loop_all_s"]["middle"]),
        "2 actors, s": _figure(row["actors_s"]["middle"]),
        "loop, 1 thread / actors": _spread(row["ratio"], "2f"),
        "rows lost or doubled": "none" if row["once"] else "some",
    }


def _calibration(found: Any) -> list[dict[str, Any]]:
    return [
        {
            "round": number,
            "rows": each["rows"],
            "batch": each["batch"],
            "tensors": each["tensors"],
            "one machine s": _figure(each["one_s"]),
            "2 actors s": _figure(each["actors_s"]),
            "same table": "yes" if each["equal"] else "NO",
        }
        for number, each in enumerate(found, 1)
    ]


def _kills(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "clients": f"{found['clients']}, {words}",
            "kills": found["kills"],
            "answered": found[who]["answered"],
            "lost": found[who]["lost"],
            "asked again": found["retries"] if who == "sure" else "",
        }
        for who, words in (("sure", "with the retry"), ("once", "without"))
    ]


def _spread(found: Mapping[str, float], kind: str) -> str:
    return f"{found['middle']:.{kind}} ({found['low']:.{kind}} .. {found['high']:.{kind}})"


def _figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
