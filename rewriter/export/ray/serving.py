"""An artifact as an application of Ray Serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.artifact import load_artifact
from rewriter.errors import ConversionError, InputError, InvalidParameterError
from rewriter.export.batching import largest_batch
from rewriter.export.ray.checks import check_amount, checked_mapping, shared_path
from rewriter.export.ray.importing import gpus_of_one, import_ray
from rewriter.export.ray.replica import ReplicaCore, ReplicaOptions, checked_load_options
from rewriter.export.ray.wire import JSON, NPZ, decode, encode, media_type

__all__ = ["deployment"]


def deployment(
    artifact: str | Path,
    *,
    name: str = "trt-rewriter",
    num_replicas: int | str = 1,
    max_batch_size: int | None = None,
    batch_wait_timeout_s: float = 0.005,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    strict: bool = False,
    warmup: bool = True,
    unhealthy_after: int | None = 5,
    deployment_options: Mapping[str, Any] | None = None,
    **load_options: Any,
) -> Any:
    """An application for `ray.serve.run`: replicas that each load the artifact, with engines where their GPU can.

    1. A replica is ready once its engines are loaded and warmed up; each chooses engine or native by its own GPU.
    2. Requests are joined along the batch dimension where every input and output has it, and run one by one elsewhere.
    3. HTTP: POST {"inputs": {name: nested lists}} as JSON, or an npz file with Content-Type application/x-npz; the
       answer has the same form. Wrong inputs are 400, a model that fails on them is 422. GET returns `stats()`.
    4. Handle: `handle.infer.remote({name: array})` and `handle.stats.remote()` (of the replica that answers).

    Args:
        artifact: the folder; every node that runs a replica must be able to read it under this path.
        name: of the deployment.
        num_replicas: how many, or "auto": Serve adds and removes them with the load, between the `min_replicas` and
            `max_replicas` of deployment_options={"autoscaling_config": {...}}; there a replica's share is one full
            batch, unless "target_ongoing_requests" says otherwise.
        max_batch_size: rows of a batch; default: what the engines' profiles take, 8 without any, 1 where inputs and
            outputs do not share a batch dimension.
        batch_wait_timeout_s: how long a request may wait for others to be joined with, in seconds.
        num_cpus: CPUs that a replica takes, as Ray counts them; without `threads` it computes natively with as many
            threads, at least one, so that replicas of one machine do not fight for its cores.
        num_gpus: GPUs likewise; default: 1 where the cluster has one, else 0.
        strict: True: a replica that cannot use an engine does not come up, instead of running its segment natively.
        warmup: False leaves out the warm-up.
        unhealthy_after: so many failed runs in a row restart a replica, whatever the inputs (but those that do not fit
            the signature are not run, and do not count). None: never.
        deployment_options: further arguments of `ray.serve.deployment`, which go before those made here; what they
            leave out of "ray_actor_options" stays.
        load_options: further arguments of `rewriter.load`, by name.

    Raises:
        MissingDependencyError: Ray Serve is not installed.
        ArtifactError: not an artifact, or a damaged one.
        InvalidParameterError: no such signature or option, a value that is not allowed, or a `max_batch_size` that
            cannot be had.
        ConverterStateError: no `num_gpus`, and this process is not connected to a cluster that could be asked.
    """
    serve = import_ray("ray.serve")
    root = shared_path(artifact)
    found = load_artifact(root, check_hashes=False, signature=load_options.get("signature"))
    maximum = largest_batch(found.signature, found.engines, max_batch_size)
    check_amount("batch_wait_timeout_s", batch_wait_timeout_s)
    given = checked_mapping("deployment_options", deployment_options, serve.deployment)
    actor = {"num_cpus": num_cpus, **checked_mapping("ray_actor_options", given.pop("ray_actor_options", None))}
    if "num_gpus" not in actor:
        actor["num_gpus"] = gpus_of_one(num_gpus)
    for resource in ("num_cpus", "num_gpus"):
        check_amount(resource, actor[resource])
    loads = checked_load_options({"strict": strict, **load_options}, actor["num_cpus"])
    options = ReplicaOptions(str(root), maximum, warmup, unhealthy_after, loads)
    arguments = {
        "name": name,
        "ray_actor_options": actor,
        # Serve's default of 5 would never let a batch fill; as many again wait meanwhile.
        "max_ongoing_requests": max(2 * maximum, 8),
        **_replicas(num_replicas, given, maximum),
    }
    return serve.deployment(**arguments)(_replica_class(serve, maximum, batch_wait_timeout_s)).bind(options)


def _replicas(wanted: int | str, given: Mapping[str, Any], share: int) -> dict[str, Any]:
    """The deployment's options with the number of replicas, which Serve takes only where it does not scale itself."""
    scaling = given.get("autoscaling_config")
    if wanted != "auto" and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1):
        raise InvalidParameterError(f'num_replicas must be a whole number of at least 1, or "auto", not {wanted!r}')
    if wanted == "auto" and scaling is None:
        scaling = {}
    if isinstance(scaling, Mapping):
        scaling = {"target_ongoing_requests": max(share, 2), **scaling}
    if scaling is None:
        return {"num_replicas": wanted, **given}
    if wanted not in ("auto", 1):
        raise InvalidParameterError(
            f"num_replicas={wanted} leaves nothing to scale: say min_replicas and max_replicas in autoscaling_config"
        )
    return {**({"num_replicas": "auto"} if wanted == "auto" else {}), **given, "autoscaling_config": scaling}


def _replica_class(serve: Any, maximum: int, wait: float) -> type:
    """The class of a replica. Serve's decorator needs its numbers when the class is made, hence the function."""

    class Replica:
        def __init__(self, options: ReplicaOptions) -> None:
            self._core = ReplicaCore(options)

        async def infer(self, inputs: Mapping[str, Any]) -> Any:
            answer = await self._batched(inputs)
            if isinstance(answer, ConversionError):
                raise answer
            return answer

        async def stats(self) -> dict[str, Any]:
            return {**_place(serve), **self._core.stats()}

        def check_health(self) -> None:
            self._core.check_health()

        def __del__(self) -> None:
            # Serve calls it when a replica has answered its last request; there is no core where making it failed.
            if core := self.__dict__.pop("_core", None):
                core.close()

        @serve.batch(max_batch_size=maximum, batch_wait_timeout_s=wait)  # type: ignore[untyped-decorator]
        async def _batched(self, requests: list[Mapping[str, Any]]) -> list[Any]:
            # In a thread, so that health checks are answered meanwhile.
            return await asyncio.to_thread(self._core.answer, requests)

        async def __call__(self, request: Any) -> Any:
            body = await request.body()
            kind = media_type(request.headers.get("content-type", JSON))
            status, content, kind = await _respond(self, request.method, body, kind)
            return import_ray("starlette.responses").Response(content, status_code=status, media_type=kind)

    return Replica


def _place(serve: Any) -> dict[str, str]:
    """Which replica this is, and on which node."""
    ray = import_ray()
    return {"replica": serve.get_replica_context().replica_id.unique_id, "node": ray.util.get_node_ip_address()}


async def _respond(replica: Any, method: str, body: bytes, kind: str) -> tuple[int, bytes, str]:
    """(status, body, content type) of the answer to an HTTP request."""
    if method == "GET":
        return 200, json.dumps(await replica.stats(), default=str).encode(), JSON
    kind = NPZ if kind == NPZ else JSON
    try:
        return 200, encode(await replica.infer(decode(body, kind)), kind), kind
    except InputError as error:
        return 400, json.dumps({"error": str(error)}).encode(), JSON
    except ConversionError as error:
        return 422, json.dumps({"error": str(error)}).encode(), JSON
