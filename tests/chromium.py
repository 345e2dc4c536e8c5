"""Drives a headless Chromium over its debugging pipe, with the standard library only: for tests of HTML pages.

with Browser() as browser, browser.page(PHONE) as page:
    page.open(path)
    assert page.evaluate("document.title") == "..."
    assert not page.problems
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Names of the program, in the order of preference.
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
#: Seconds that one answer may take.
PATIENCE = 60.0


@dataclasses.dataclass(frozen=True)
class Screen:
    """What a page is shown on: size in CSS pixels, device pixels for each, and whether it is touched."""

    width: int
    height: int
    density: float = 1.0
    touch: bool = False


DESKTOP = Screen(1280, 800)
PHONE = Screen(390, 844, 2.0, True)


class ChromiumError(RuntimeError):
    """The browser did not answer, or an expression failed."""


def find_chromium() -> str | None:
    """The path of the program; None where none is installed."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """A headless browser of its own profile; a context manager.

    Raises:
        ChromiumError: none is installed, or it does not start.
    """

    def __init__(self) -> None:
        program = find_chromium()
        if program is None:
            raise ChromiumError(f"no Chromium is installed: none of {', '.join(PROGRAMS)} is on the PATH")
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        self._ids = itertools.count(1)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self._pid = self._start(program)

    def _start(self, program: str) -> int:
        """Starts it; it reads commands from its descriptor 3 and answers on 4."""
        there, self._out = os.pipe()
        self._in, here = os.pipe()
        # Numbers beyond 4, so that neither is overwritten before it is copied.
        child = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in (there, here)]
        log = os.open(Path(self._profile) / "log.txt", os.O_WRONLY | os.O_CREAT)
        flags = [
            "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-sync", "--mute-audio",
            "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
            f"--user-data-dir={self._profile}", "about:blank",
        ]  # fmt: skip
        actions = [
            (os.POSIX_SPAWN_DUP2, number, target)
            for number, target in zip((*child, log, log), (3, 4, 1, 2), strict=True)
        ]
        try:
            return os.posix_spawn(program, [program, *flags], os.environ, file_actions=actions, setpgroup=0)
        finally:
            for number in (there, here, *child, log):
                os.close(number)

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer; events that come meanwhile are kept.

        Raises:
            ChromiumError: it fails, or there is no answer in `PATIENCE` seconds.
        """
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        end = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(end, method)
            if answer.get("id") == number:
                if "error" in answer:
                    raise ChromiumError(f"{method}: {answer['error'].get('message')}")
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def events(self, session: str) -> list[dict[str, Any]]:
        """Takes the events of a session that have come so far."""
        mine = [event for event in self._events if event.get("sessionId") == session]
        self._events = [event for event in self._events if event.get("sessionId") != session]
        return mine

    def wait(self, session: str, method: str) -> None:
        """Waits for an event of a session; earlier ones count, and all are kept.

        Raises:
            ChromiumError: it does not come in `PATIENCE` seconds.
        """
        end = time.monotonic() + PATIENCE
        while not any(e.get("sessionId") == session and e.get("method") == method for e in self._events):
            self._events.append(self._receive(end, method))

    def _receive(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                log = (Path(self._profile) / "log.txt").read_text("utf-8", "replace")[-500:]
                raise ChromiumError(f"{what}: Chromium {'ended' if ready else 'gave no answer'}: {log}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    @contextlib.contextmanager
    def page(self, screen: Screen = DESKTOP, *, dark: bool = False) -> Iterator[Page]:
        """A new empty tab."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        try:
            yield Page(self, session, screen, dark=dark)
        finally:
            self.send("Target.closeTarget", targetId=target)
            self.events(session)

    def close(self) -> None:
        """Ends it, and removes its profile."""
        with contextlib.suppress(ChromiumError, OSError):
            self.send("Browser.close")
        os.close(self._out)
        # Its end of the pipe closes when it ends.
        while select.select([self._in], [], [], 5.0)[0] and os.read(self._in, 1 << 20):
            pass
        os.close(self._in)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Page:
    """A tab.

    Attributes:
        problems: exceptions, errors and warnings of the console, and requests for anything but the page's own file.
    """

    def __init__(self, browser: Browser, session: str, screen: Screen, *, dark: bool) -> None:
        self._browser, self._session = browser, session
        self._problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send(
            "Emulation.setDeviceMetricsOverride", width=screen.width, height=screen.height,
            deviceScaleFactor=screen.density, mobile=screen.touch,
        )  # fmt: skip
        self.send("Emulation.setTouchEmulationEnabled", enabled=screen.touch, maxTouchPoints=5)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the debugging protocol to this tab."""
        return self._browser.send(method, self._session, **params)

    def open(self, path: Path | str) -> None:
        """Opens a file and waits until it is loaded and drawn."""
        answer = self.send("Page.navigate", url=Path(path).resolve().as_uri())
        if "errorText" in answer:
            raise ChromiumError(f"{path}: {answer['errorText']}")
        self._browser.wait(self._session, "Page.loadEventFired")
        self.settle()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, as JSON knows it; a promise is waited for.

        Raises:
            ChromiumError: it throws.
        """
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise ChromiumError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def settle(self) -> None:
        """Waits until two frames have been drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    @property
    def problems(self) -> list[str]:
        """What went wrong so far, one line each."""
        self.settle()
        for event in self._browser.events(self._session):
            self._problems += _problem(event["method"], event["params"])
        return self._problems

    def screenshot(self, *, whole: bool = False) -> bytes:
        """PNG of what is seen; of the whole page where asked."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        return base64.b64decode(data["data"])

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def center(self, selector: str) -> tuple[float, float]:
        """The middle of an element on the screen, after it is scrolled into view.

        Raises:
            ChromiumError: there is none.
        """
        found = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        if found is None:
            raise ChromiumError(f"nothing matches {selector!r}")
        return found[0], found[1]

    def move(self, x: float, y: float, *, pressed: bool = False) -> None:
        """Moves the mouse."""
        self.send(
            "Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left" if pressed else "none",
            buttons=int(pressed),
        )  # fmt: skip

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 4) -> None:
        """Presses the mouse, moves it and lets go; with the same start and end it is a click."""
        self.move(*start)
        for kind, (x, y) in (("mousePressed", start), ("mouseReleased", end)):
            if kind == "mouseReleased" and start != end:
                for step in range(1, steps + 1):
                    part = step / steps
                    self.move(*(a + (b - a) * part for a, b in zip(start, end, strict=True)), pressed=True)
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1,
                buttons=int(kind == "mousePressed"),
            )  # fmt: skip

    def click(self, selector: str) -> None:
        """Clicks on an element."""
        middle = self.center(selector)
        self.drag(middle, middle)
        self.settle()

    def wheel(self, x: float, y: float, turn: float, *, control: bool = False) -> None:
        """Turns the mouse wheel, away from the user where `turn` is negative."""
        self.send(
            "Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=turn, modifiers=2 * int(control)
        )
        self.settle()

    def touch(self, *paths: list[tuple[float, float]]) -> None:
        """Puts down a finger at the start of every path, moves them along, and lifts them; one point is a tap."""
        for step in range(max(map(len, paths))):
            points = [{"x": p[min(step, len(p) - 1)][0], "y": p[min(step, len(p) - 1)][1]} for p in paths]
            self.send("Input.dispatchTouchEvent", type="touchMove" if step else "touchStart", touchPoints=points)
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.send("Input.insertText", text=text)
        self.settle()

    def key(self, name: str, code: int = 0, text: str = "") -> None:
        """Presses a key, as "ArrowLeft", "Enter" (13) or "+"."""
        more = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code, **more)
        self.settle()


def _problem(method: str, params: dict[str, Any]) -> list[str]:
    """What an event says went wrong; [] for nothing."""
    if method == "Runtime.exceptionThrown":
        details = params["exceptionDetails"]
        return [f"exception: {details.get('exception', {}).get('description') or details['text']}"]
    if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        return [f"console {params['type']}: {' '.join(str(a.get('value', a)) for a in params['args'])}"]
    if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        return [f"log {params['entry']['level']}: {params['entry']['text']}"]
    if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("data:", "file:")):
        return [f"request: {params['request']['url']}"]
    return []
