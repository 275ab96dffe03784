"""The server as a Ray Serve deployment: replicas of the same app on the nodes of a cluster, behind Ray's proxies.

Each replica is an actor with an engine and the app of `app`. Requests carry all that an edit needs, so any replica
answers any of them; what is about a replica, cancelling by id and metrics, is passed on to all.

    serve run editar_rt.server.ray:app bundle=/models/demo replicas=1-4
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from editar_rt.arguments import as_one_of
from editar_rt.backends import DEVICES, Settings, make_backend
from editar_rt.bundle.folder import Bundle
from editar_rt.cluster import Need, check_fingerprint, check_nodes, joined, sentence
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, OptionError
from editar_rt.server import KEY, key_of_environment
from editar_rt.server.app import Options, application
from editar_rt.server.engine import Engine
from editar_rt.server.guard import LOOPBACK, Access
from editar_rt.server.limits import Limits
from editar_rt.server.metrics import Together
from editar_rt.server.run import is_loopback, listening_to_warnings

NAME = "editar"  # of the application and its deployment
RESERVE = 16  # requests beside edits that a replica takes: health, metrics, cancelling
PEER_SECONDS = 5.0  # that replicas have to answer each other
HEALTH_SECONDS = 10.0  # between looks at a replica
STOP_SECONDS = 5.0  # for last answers
START_RETRIES = 3  # of replicas that fail to start
ANSWER_SECONDS = 30.0  # until the proxy has heard of the replicas
MAX_REPLICAS = 1000


@dataclass(frozen=True)
class Deployment:
    """What every replica is told."""

    bundle: str
    """The folder, absolute, the same on every node."""
    fingerprint: str
    """The bundle's; a replica that finds another bundle in its folder does not start."""
    replicas: tuple[int, int] = (1, 1)
    """The fewest and the most."""
    device: str = "auto"
    threads: int = 1
    """CPU threads of a replica, which it also reserves in the cluster."""
    limits: Limits = field(default_factory=Limits)
    options: Options = field(default_factory=Options)


def read_replicas(text: str) -> tuple[int, int]:
    """The fewest and the most replicas: `2`, or `1-8`.

    Raises:
        OptionError: it is neither.
    """
    low, _, high = text.partition("-")
    if low.isdecimal() and (high or low).isdecimal() and 1 <= int(low) <= int(high or low) <= MAX_REPLICAS:
        return int(low), int(high or low)
    raise OptionError(f"replicas must be a number, or the fewest and the most, such as 1-8, got {text!r:.40}")


class Replica:
    """One server. Ray starts another one in its place when its process ends, or when it says that it is ill."""

    async def __init__(self, deployment: Deployment) -> None:  # type: ignore[misc]  # Ray awaits it
        self._warnings = contextlib.ExitStack()
        self._warnings.enter_context(listening_to_warnings())
        self._deployment = deployment
        self._engine = await asyncio.to_thread(_warm_engine, deployment)
        self._handle: Any = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _without_own_id(application(self._engine, self._deployment.options, peers=self))

    def check_health(self) -> None:
        if not self._engine.alive:
            raise RuntimeError("the engine does not answer")

    # What a replica asks of all others, and of itself.

    async def cancel_here(self, name: str) -> bool:
        return self._engine.cancel(name)

    async def families_here(self) -> tuple[str, list[Any]]:
        return _own_name(), self._engine.metrics.families()

    # `Peers` of the app.

    async def cancel(self, name: str) -> bool:
        return any(await self._ask_all("cancel_here", name))

    async def metrics(self) -> bytes:
        return Together(dict(await self._ask_all("families_here"))).page()

    async def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of the replicas that answer in time."""
        from ray import serve

        if self._handle is None:
            own = serve.get_replica_context()
            self._handle = serve.get_deployment_handle(own.deployment, own.app_name)
        asked = self._handle.broadcast(method, *arguments)
        try:
            answers = await asked.results_async(timeout_s=PEER_SECONDS, return_exceptions=True)
        except TimeoutError:
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def _own_name() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


def _warm_engine(deployment: Deployment) -> Engine:
    """
    Raises:
        BundleError: the node lacks the bundle, or has another one.
        BackendError: it does not run here.
    """
    bundle = Bundle.open(deployment.bundle)
    check_fingerprint(bundle.folder, bundle.fingerprint, deployment.fingerprint, os.uname().nodename)
    editor = Editor(bundle, make_backend(bundle, deployment.device, Settings(deployment.threads)))
    engine = Engine(editor, deployment.limits, check=deployment.options.check)
    engine.start()
    engine.wait_until_warm()
    engine.on_death = lambda error: os._exit(1)  # Ray starts another replica
    return engine


def _without_own_id(app: ASGIApp) -> ASGIApp:
    """Ray's proxy gives each request an id and puts it into the answer: the app, which takes it over, must not too."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope.get("headers", ())).get(b"x-request-id")

        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair != (b"x-request-id", given)]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_once)

    return wrapped


def bound(deployment: Deployment, need: Need) -> Any:
    """The deployment as an application of Ray Serve."""
    from ray import serve

    limits, (low, high) = deployment.limits, deployment.replicas
    size: dict[str, Any] = {"num_replicas": low}
    if high > low:
        autoscaling = {"min_replicas": low, "max_replicas": high, "target_ongoing_requests": limits.pictures}
        size = {"autoscaling_config": autoscaling}
    made = serve.deployment(
        name=NAME,
        **size,
        ray_actor_options={"num_cpus": need.cpus, "num_gpus": need.gpus},
        # The replica's own queue refuses what is too much, with a time to try again; Ray must not hold it back.
        max_ongoing_requests=limits.pictures + limits.queue + RESERVE,
        graceful_shutdown_timeout_s=limits.grace + STOP_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
        max_constructor_retry_count=START_RETRIES,
        request_router_config={"request_router_class": f"{__name__}.LeastBusy"},
        logging_config={"enable_access_log": False},
    )
    return made(serve.ingress()(Replica)).bind(deployment)


def _least_busy() -> type:
    """A router that looks at the replicas' load alone: the less busy of two that it draws. Ray's own gives all requests
    to a replica on the proxy's node while that takes any, so that it would refuse edits while others stand idle."""
    from ray.serve.request_router import FIFOMixin, RequestRouter

    class LeastBusy(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray is not typed here
        async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]

    return LeastBusy


def __getattr__(name: str) -> Any:
    """Ray imports the router by its name; the class can only be made where Ray is."""
    if name == "LeastBusy":
        return _least_busy()
    raise AttributeError(name)


def deploy(
    bundle: Bundle, deployment: Deployment, host: str, port: int, on_ready: Callable[[str], None] = lambda url: None
) -> None:
    """Deploy to the cluster, and remove the deployment when the program is stopped.

    On a loopback address the proxy of the cluster's head node alone listens, on others each node's that has replicas.

    Raises:
        BackendError, BundleError: the cluster cannot run it.
    """
    with joined() as new:
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        need = Need.of(deployment.device, deployment.threads)
        check_nodes(bundle, need)
        where = "HeadOnly" if is_loopback(host) else "EveryNode"
        try:
            serve.start(proxy_location=where, http_options={"host": host, "port": port})
            with _deployed(bound(deployment, need), delete=not new):
                url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                _wait_for(url)
                on_ready(url)
                while True:
                    time.sleep(1)
        except KeyboardInterrupt:
            return
        finally:
            if new:
                serve.shutdown()


@contextlib.contextmanager
def _deployed(application: Any, delete: bool) -> Iterator[None]:
    from ray import serve

    try:
        serve.run(application, name=NAME, route_prefix="/")
    except RuntimeError:
        why = serve.status().applications[NAME]
        said = "\n".join([why.message, *(each.message for each in why.deployments.values())])
        serve.delete(NAME)
        raise BackendError(f"the replicas do not start: {sentence(said)}") from None
    try:
        yield
    finally:
        if delete:
            serve.delete(NAME)


def _wait_for(url: str) -> None:
    """
    Raises:
        BackendError: the server does not answer there.
    """
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=PEER_SECONDS):
                return
        except (OSError, urllib.error.HTTPError) as error:
            if time.monotonic() > end:
                raise BackendError(
                    f"the replicas run, but {url} does not answer ({error}): Ray Serve may already listen elsewhere "
                    "on this cluster; see serve status, and end it with: serve shutdown"
                ) from None
        time.sleep(0.2)


# `serve run` and `serve deploy`.

OWN = (
    "bundle",
    "fingerprint",
    "replicas",
    "device",
    "threads",
    "allow_host",
    "allow_origin",
    "insecure",
    "page",
    "check",
)
LIMITS = {each.name: each.type for each in dataclasses.fields(Limits)}


def app(arguments: dict[str, Any]) -> Any:
    """The application for Ray's own commands and configuration files.

    Args:
        arguments: `bundle`, and if wanted `replicas`, `device`, `threads`, `allow_host` and `allow_origin` (with commas
            between several), `insecure`, `page`, `check`, `fingerprint`, and the fields of `Limits`. The key is taken
            from the environment variable EDITAR_API_KEY.

    Raises:
        OptionError: a name or value is not allowed.
        BundleError: there is no bundle here, and no fingerprint is given.
    """
    deployment = read_deployment(arguments, key_of_environment())
    return bound(deployment, Need.of(deployment.device, deployment.threads))


def read_deployment(arguments: Mapping[str, Any], key: str | None) -> Deployment:
    """
    Raises:
        OptionError, BundleError: as `app`.
    """
    if unknown := sorted(arguments.keys() - {*OWN, *LIMITS}):
        raise OptionError(f"there is no argument {unknown[0]!r:.40}; those known are {', '.join((*OWN, *LIMITS))}")
    given = {name: str(value) for name, value in arguments.items()}
    if not Path(given.get("bundle", "")).is_absolute():
        raise OptionError("bundle must be the absolute path of a bundle, the same on every node: bundle=/models/demo")
    hosts, origins = (_words(given.get(name, "")) for name in ("allow_host", "allow_origin"))
    if key is None and not _flag(given, "insecure", False) and not {*hosts} <= {*LOOPBACK}:
        raise OptionError(
            f"with allow_host, others than this machine may use the server: set {KEY}, or say insecure=true"
        )
    numbers = {name: _number(given, name) for name in LIMITS if name in given}
    access, page, check = Access.of(hosts, origins, key), _flag(given, "page", True), _flag(given, "check", True)
    return Deployment(
        given["bundle"],
        given.get("fingerprint") or Bundle.open(given["bundle"]).fingerprint,
        read_replicas(given.get("replicas", "1")),
        as_one_of("device", given.get("device", "auto"), DEVICES),
        int(_number(given, "threads")) if "threads" in given else 1,
        Limits(**numbers),  # type: ignore[arg-type]
        Options(access, page, check=check),
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _flag(given: Mapping[str, str], name: str, usual: bool) -> bool:
    value = given.get(name, str(usual)).lower()
    if value not in ("true", "false"):
        raise OptionError(f"{name} must be true or false, got {value!r:.40}")
    return value == "true"


def _number(given: Mapping[str, str], name: str) -> float:
    kind = float if LIMITS.get(name) == "float" else int
    least = 0 if name in ("queue", "preview_share", "grace") else 1e-6 if kind is float else 1
    try:
        value = kind(given[name])
    except ValueError:
        value = kind(-1)
    if not least <= value < 1e12:
        raise OptionError(f"{name} must be a number of at least {least:g}, got {given[name]!r:.40}")
    return value
