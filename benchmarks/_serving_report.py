"""The tables, facts and verdict of serving.py, from its JSON: pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from _common import format_table

IN_PROCESS = "in process"
MODELS = ("trivial", "digits", "ResNet50")
SERVERS = ("ray", "triton")
NOT_MEASURED = "not measured"
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
        parts.append(f"PASS: every answer is that of `load()` in the same run ({_equal(document)}).")
    return "\n\n".join(parts)


def kept_facts(document: Document) -> dict[str, str]:
    """What the prose and the summary tell; "not measured" where it was not.

    Keys, for each MODEL and each SERVER of "ray" and "triton", "least to most" over the server's paths:
        MODEL_SERVER_adds: milliseconds that they add to a request.
        MODEL_SERVER_times: how many times as long as the call in the own process a request takes.
        MODEL_SERVER_alone, MODEL_SERVER_joined: of one client and of the most, rows a second joined over one by one.
    And:
        kills: replicas that were killed; asked_sure, lost_sure, asked_once, lost_once: requests of the clients with
            the retry and of those without.
        calibration: one machine's time over the actors', least to most.
        equal: how far the answers are from those of `load()`, in words.
    """
    found = {}
    counts = [row["clients"] for row in document["rates"]]
    for model in MODELS:
        for server in SERVERS:
            rows = [row for row in _of(document["rows"], model, server) if row["path"] != IN_PROCESS]
            found[f"{model}_{server}_adds"] = _range((row["adds_ms"]["middle"] for row in rows), 1)
            found[f"{model}_{server}_times"] = _range((row["times"]["middle"] for row in rows), 2)
            for word, clients in (("alone", min(counts, default=0)), ("joined", max(counts, default=0))):
                rates = [row for row in _of(document["rates"], model, server) if row["clients"] == clients]
                found[f"{model}_{server}_{word}"] = _range((row["ratio"]["middle"] for row in rates), 1)
    kills = document.get("kills")
    found["kills"] = str(kills["kills"]) if kills else NOT_MEASURED
    for who in ("sure", "once"):
        found[f"lost_{who}"] = str(kills[who]["lost"]) if kills else NOT_MEASURED
        found[f"asked_{who}"] = str(kills[who]["answered"] + kills[who]["lost"]) if kills else NOT_MEASURED
    found["calibration"] = _range((each["one_s"] / each["actors_s"] for each in document.get("calibration", ())), 2)
    found["equal"] = _equal(document)
    return found


def _equal(document: Document) -> str:
    most = max((difference for _, difference in _differences(document)), default=0.0)
    return f"at most {most:.0e} from it" if most else "bit for bit"


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


def _differences(document: Document) -> Iterator[tuple[str, float]]:
    for row in (*document["rows"], *document["rates"]):
        yield f"{row['model']}, {row['path']}", row["worst"]
    for row in document.get("data", ()):
        yield f"{row['model']}, map_batches", row["worst"]
    for who in ("sure", "once"):
        if "kills" in document:
            yield f"kills, {who}", document["kills"][who]["worst"]


def _of(rows: Iterable[Mapping[str, Any]], model: str, server: str) -> list[Mapping[str, Any]]:
    """Rows of a model and of "ray" or "triton"."""
    words = (server.title(), IN_PROCESS)
    return [
        row
        for row in rows
        if row["model"] == model and row["path"].startswith(words) and row.get("environment", server) == server
    ]


def _range(values: Iterable[float], places: int) -> str:
    """The least and the most as text; one of them where both are the same."""
    found = sorted(values)
    least, most = (f"{value:.{places}f}" for value in (found[0], found[-1])) if found else ("", "")
    return f"{least} to {most}" if least != most else least or NOT_MEASURED


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
