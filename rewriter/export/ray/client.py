"""A client that asks again where a replica was lost: the model keeps no state, so that asking twice does no harm."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewriter.errors import BackendError, ConversionError, ConverterStateError, InputError, InvalidParameterError
from rewriter.export.ray.checks import check_amount
from rewriter.export.ray.importing import import_ray
from rewriter.export.ray.wire import NPZ, from_npz, to_npz
from rewriter.runtime.inputs import first_line

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
        target: what is asked, for messages.
    """

    def __init__(
        self, send: Send, *, retries: int, timeout_s: float, pause_s: float, target: str = "the deployment"
    ) -> None:
        self._send, self._retries, self._timeout, self._pause = send, retries, timeout_s, pause_s
        self._target = target
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
            f"{self._target} did not answer in {self._retries + 1} tries, last: {reason}; see `serve status`"
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
        InvalidParameterError: an option out of bounds, or a `target` that is nothing of these.
        MissingDependencyError: Ray is not installed, and `target` is no URL.
        ConverterStateError: `target` is a name, and this process is not connected to a cluster that could be asked.
        BackendError: Serve has no application of that name.
    """
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise InvalidParameterError(f"retries must be a whole number of at least 0, not {retries!r}")
    check_amount("timeout_s", timeout_s, above=True)
    check_amount("pause_s", pause_s)
    if isinstance(target, str) and target.startswith(("http://", "https://")):
        send = _http(_checked_url(target))
    else:
        send = _handle(_named(target) if isinstance(target, str) else target)
    name = target if isinstance(target, str) else "the deployment"
    return Client(send, retries=retries, timeout_s=timeout_s, pause_s=pause_s, target=name)


def _checked_url(url: str) -> str:
    """The URL.

    Raises:
        InvalidParameterError: nothing can be reached under it.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.hostname and (parts.port is None or parts.port) and url.isprintable() and " " not in url
    except ValueError as error:  # a port that is no number
        raise InvalidParameterError(f"{url!r} is no URL: {error}") from error
    if not good:
        raise InvalidParameterError(f"{url!r} is no URL of a server, as 'http://127.0.0.1:8000/digits' is")
    return url


def _named(name: str) -> Any:
    """The handle of a Serve application.

    Raises:
        ConverterStateError: no cluster could be asked (Ray itself would start one).
        BackendError: there is no such application.
    """
    serve, errors = import_ray("ray.serve"), import_ray("ray.serve.exceptions")
    if not import_ray().is_initialized():
        raise ConverterStateError(
            f"the cluster is asked for {name!r}: call ray.init() first, or give a URL (http://...)"
        )
    try:
        return serve.get_app_handle(name)
    except errors.RayServeException as error:
        raise BackendError(f"no handle of {name!r}: {first_line(error)} `serve status` lists what there is") from error


def _http(url: str) -> Send:
    def send(inputs: Mapping[str, Any], timeout: float) -> Mapping[str, np.ndarray]:
        body = to_npz(inputs)
        request = urllib.request.Request(url, body, {"Content-Type": NPZ})  # noqa: S310 - http(s) only, see client()
        try:
            status, answer = _exchange(request, timeout)
        except urllib.error.URLError as error:
            raise PassingError(type(error.reason).__name__) from error
        except (OSError, http.client.HTTPException) as error:  # a connection that breaks, or no answer in time
            raise PassingError(type(error).__name__) from error
        if status >= 500 or status in _PASSING_CODES:
            raise PassingError(f"HTTP {status}")
        if status != 200:
            kind = InputError if status == 400 else ConversionError
            raise kind(f"the deployment refuses the request (HTTP {status}): {_said(answer)}")
        try:
            return from_npz(answer)
        except InputError as error:
            raise BackendError(
                f"{url} answers with no npz file: is it the URL of a deployment of this package?"
            ) from error

    return send


def _exchange(request: urllib.request.Request, timeout: float) -> tuple[int, bytes]:
    """(status, body) of the answer, whatever the status says."""
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310 - http(s) only, see client()
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def _said(body: bytes) -> str:
    """The message in the body of a refusal: ours is {"error": text}, a proxy's anything."""
    text = body.decode("utf-8", "replace").strip()
    try:
        data = json.loads(text)
    except ValueError:
        return text[:500]
    return str(data["error"]) if isinstance(data, dict) and "error" in data else text[:500]


def _handle(handle: Any) -> Send:
    if not isinstance(handle, import_ray("ray.serve.handle").DeploymentHandle):
        raise InvalidParameterError(f"target must be a URL, an application's name or a handle, not {handle!r}")
    errors = import_ray("ray.exceptions")
    serve_errors = import_ray("ray.serve.exceptions")
    # A replica or its node is lost; too many requests wait.
    passing = (
        errors.RayActorError, errors.ActorUnavailableError, errors.NodeDiedError, errors.ObjectLostError,
        serve_errors.BackPressureError, serve_errors.DeploymentUnavailableError,
    )  # fmt: skip

    def send(inputs: Mapping[str, Any], timeout: float) -> Mapping[str, np.ndarray]:
        response = None
        try:
            with _ROUTING:
                response = handle.infer.remote(dict(inputs))
            found: Mapping[str, np.ndarray] = response.result(timeout_s=timeout)
        except TimeoutError as error:  # Ray's and Serve's are such, too
            if response is not None:
                response.cancel()  # or what nobody waits for any more piles up at the replica
            raise PassingError(type(error).__name__) from error
        except passing as error:
            raise PassingError(type(error).__name__) from error
        except errors.RayTaskError as error:
            if isinstance(error.cause, ConversionError):
                raise error.cause from error
            raise
        return found

    return send
