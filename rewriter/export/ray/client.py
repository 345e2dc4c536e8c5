"""A client that asks again where a replica was lost: the model keeps no state, so that asking twice does no harm."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewriter.errors import BackendError, ConversionError, InputError, InvalidParameterError
from rewriter.export.ray.importing import import_ray
from rewriter.export.ray.wire import NPZ, from_npz, to_npz

__all__ = ["Client", "client"]

#: Longest pause between two tries, in seconds.
_LONGEST_PAUSE = 2.0
#: HTTP: no answer in time; too many requests.
_PASSING_CODES = (408, 429)
#: Ray makes a handle's router with its first request. Two threads that do so at once get one router too many, and Serve
#: may then miss the load (seen with 2.60: it does not scale). To send a request takes no time.
_ROUTING = threading.Lock()


class PassingError(Exception):
    """A try failed in a way that another one may not; its text is the reason that is counted."""


#: One try: inputs and timeout in seconds -> outputs; raises `PassingError` or a final error.
Send = Callable[[Mapping[str, Any], float], Mapping[str, np.ndarray]]


class Client:
    """Asks a deployment; safe to share between threads. Made by `client`.

    Args:
        send: one try.
        retries: tries after the first one.
        timeout_s: of one try, in seconds.
        pause_s: before the second try, in seconds; doubled with every further one, up to 2.
    """

    def __init__(self, send: Send, *, retries: int, timeout_s: float, pause_s: float) -> None:
        self._send, self._retries, self._timeout, self._pause = send, retries, timeout_s, pause_s
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def infer(self, /, **inputs: Any) -> dict[str, np.ndarray]:
        """The outputs by public name.

        Raises:
            InputError: the inputs do not fit the signature.
            ConversionError: the model fails on them.
            BackendError: no try was answered; the message has the last reason.
        """
        self._count("requests")
        reason = ""
        for number in range(self._retries + 1):
            if number:
                self._count("retries")
                time.sleep(min(self._pause * 2 ** (number - 1), _LONGEST_PAUSE))
            try:
                return dict(self._send(inputs, self._timeout))
            except PassingError as error:
                reason = str(error)
                with self._lock:
                    self._reasons[reason] += 1
        self._count("failed")
        raise BackendError(
            f"the deployment did not answer in {self._retries + 1} tries, last: {reason}; see `serve status`"
        )

    async def infer_async(self, /, **inputs: Any) -> dict[str, np.ndarray]:
        """`infer` for asyncio, in a thread: as many at once as the event loop's default executor has threads."""
        return await asyncio.to_thread(self.infer, **inputs)

    def stats(self) -> dict[str, Any]:
        """requests; retries; failed (no try was answered); reasons: why a try failed -> number."""
        with self._lock:
            counts = {name: self._counts.get(name, 0) for name in ("requests", "retries", "failed")}
            return {**counts, "reasons": dict(self._reasons)}

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def client(target: Any, *, retries: int = 8, timeout_s: float = 60.0, pause_s: float = 0.1) -> Client:
    """A client of a deployment that `deployment` made.

    It asks again where a replica died or cannot be reached, where the proxy says 5xx or breaks the connection, and
    where no answer came in time. Wrong inputs and a model that fails on them are errors at once.

    Args:
        target: a URL ("http://..."), the name of a Serve application, or a `DeploymentHandle`.
        retries: tries after the first one, 0 or more.
        timeout_s: of one try, in seconds, above 0.
        pause_s: before the second try, in seconds; doubled with every further one, up to 2.

    Raises:
        InvalidParameterError: an option out of bounds.
        MissingDependencyError: Ray is not installed, and `target` is no URL.
    """
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise InvalidParameterError(f"retries must be a whole number of at least 0, not {retries!r}")
    if not timeout_s > 0 or not pause_s >= 0:
        raise InvalidParameterError(f"timeout_s must be above 0 and pause_s at least 0, not {timeout_s!r}, {pause_s!r}")
    if isinstance(target, str) and target.startswith(("http://", "https://")):
        send = _http(target)
    else:
        send = _handle(import_ray("ray.serve").get_app_handle(target) if isinstance(target, str) else target)
    return Client(send, retries=retries, timeout_s=timeout_s, pause_s=pause_s)


def _http(url: str) -> Send:
    def send(inputs: Mapping[str, Any], timeout: float) -> Mapping[str, np.ndarray]:
        body = to_npz(inputs)
        request = urllib.request.Request(url, body, {"Content-Type": NPZ})  # noqa: S310 - http(s) only, see client()
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310 - likewise
                return from_npz(response.read())
        except urllib.error.HTTPError as error:
            if error.code >= 500 or error.code in _PASSING_CODES:
                raise PassingError(f"HTTP {error.code}") from error
            kind = InputError if error.code == 400 else ConversionError
            raise kind(f"the deployment refuses the request (HTTP {error.code}): {_said(error.read())}") from error
        except urllib.error.URLError as error:
            raise PassingError(type(error.reason).__name__) from error
        except OSError as error:  # a connection that breaks, or no answer in time
            raise PassingError(type(error).__name__) from error

    return send


def _said(body: bytes) -> str:
    """The message in the body of a refusal: ours is {"error": text}, a proxy's anything."""
    text = body.decode("utf-8", "replace").strip()
    try:
        data = json.loads(text)
    except ValueError:
        return text[:500]
    return str(data["error"]) if isinstance(data, dict) and "error" in data else text[:500]


def _handle(handle: Any) -> Send:
    errors = import_ray("ray.exceptions")
    serve_errors = import_ray("ray.serve.exceptions")
    # A replica or its node is lost; too many requests wait; nothing came in time.
    passing = (
        errors.RayActorError, errors.ActorUnavailableError, errors.NodeDiedError, errors.ObjectLostError,
        errors.GetTimeoutError, serve_errors.BackPressureError, serve_errors.DeploymentUnavailableError, TimeoutError,
    )  # fmt: skip

    def send(inputs: Mapping[str, Any], timeout: float) -> Mapping[str, np.ndarray]:
        try:
            with _ROUTING:
                response = handle.infer.remote(dict(inputs))
            found: Mapping[str, np.ndarray] = response.result(timeout_s=timeout)
        except passing as error:
            raise PassingError(type(error).__name__) from error
        except errors.RayTaskError as error:
            if isinstance(error.cause, ConversionError):
                raise error.cause from error
            raise
        return found

    return send
