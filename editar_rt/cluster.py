"""A Ray cluster: joining one, finding the nodes that can do the work, and spreading a folder's work over it.

Ray is imported when it is used, here and in `server.ray` only. Within a cluster every process trusts every other:
Ray runs what any of them sends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import signal
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from editar_rt.backends import AUTO, CUDA, TENSORRT
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError, BundleError, EditarError
from editar_rt.version import __version__

NEEDED = ("ray", "fastapi", "pyarrow", "starlette")  # fastapi and pyarrow stand for Ray's own extras
INSTALL = 'pip install ".[cpu,ray]"'
ADDRESS = "RAY_ADDRESS"
USAGE = "RAY_USAGE_STATS_ENABLED"
SHOWN = 12  # hexadecimal digits of a fingerprint in messages


def require_ray(what: str) -> None:
    """
    Raises:
        EditarError: Ray is not installed.
    """
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise EditarError(f"{what} needs the extra ray ({lacking[0]} is not installed); run in the clone: {INSTALL}")


@contextlib.contextmanager
def joined() -> Iterator[bool]:
    """The cluster that `RAY_ADDRESS` names or that runs on this machine, or else a new one of this machine alone.

    Gives whether it is a new one, which ends with the block.

    Raises:
        BackendError: no cluster answers at `RAY_ADDRESS`, or it cannot be joined.
    """
    refuse_usage_statistics()
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    new = False
    try:
        try:
            ray.init("auto", **quiet)
        except ConnectionError:
            if os.environ.get(ADDRESS):
                raise
            ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
            new = True
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = os.environ.get(ADDRESS) or "this machine"
        raise BackendError(
            f"the Ray cluster at {where} cannot be joined: {_first_line(error)}; start one with: ray start --head"
        ) from None
    for number, handler in handlers.items():  # Ray has put its own in place of the program's
        signal.signal(number, handler)
    try:
        yield new
    finally:
        ray.shutdown()


def refuse_usage_statistics() -> None:
    """Keep a cluster that this process starts from reporting usage, unless the user has set Ray's variable."""
    os.environ.setdefault(USAGE, "0")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".;")[:300]


@dataclass(frozen=True)
class Need:
    """What one worker or replica takes from its node."""

    cpus: int
    gpus: int = 0

    @classmethod
    def of(cls, device: str, threads: int) -> Need:
        """One GPU where the device is one; `auto` takes one if the joined cluster has any."""
        import ray

        gpu = device in (CUDA, TENSORRT)
        if device == AUTO and ray.is_initialized():
            gpu = ray.cluster_resources().get("GPU", 0) >= 1
        return cls(threads, int(gpu))

    def fits(self, resources: dict[str, float]) -> int:
        """How many of them the resources of a node hold."""
        found = int(resources.get("CPU", 0)) // self.cpus
        return min(found, int(resources.get("GPU", 0)) // self.gpus) if self.gpus else found

    def __str__(self) -> str:
        cpus = f"{self.cpus} CPU{'s' * (self.cpus > 1)}"
        return f"{cpus} and a GPU" if self.gpus else cpus


@dataclass(frozen=True)
class Seen:
    """What a node says about a bundle."""

    fingerprint: str | None
    """None if it cannot be opened."""
    why: str
    version: str


def look(folder: str) -> Seen:
    """Runs on a node."""
    try:
        return Seen(Bundle.open(folder).fingerprint, "", __version__)
    except EditarError as error:
        return Seen(None, str(error), __version__)


def check_nodes(bundle: Bundle, need: Need) -> int:
    """Make sure that every node that may do the work has the same bundle.

    Returns:
        how many workers the cluster has room for.

    Raises:
        BackendError: no node can do the work, or one has another version of this package, or none.
        BundleError: a node has no such bundle, or another one.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and need.fits(node["Resources"])]
    if not nodes:
        raise BackendError(f"no node of the cluster has {need}; see what they have with: ray status")
    asked = ray.remote(num_cpus=0)(look)
    answers = [
        asked.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            str(bundle.folder)
        )
        for node in nodes
    ]
    for node, answer in zip(nodes, answers, strict=True):
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}:{node['NodeManagerPort']})"
        try:
            seen = ray.get(answer)
        except ray.exceptions.RayError as error:
            raise BackendError(
                f"the node {name} cannot run editar_rt: {sentence(error)}; install the same packages on every node"
            ) from None
        check_seen(bundle, seen, name)
    return sum(need.fits(node["Resources"]) for node in nodes)


def check_seen(bundle: Bundle, seen: Seen, node: str) -> None:
    """
    Raises:
        BackendError, BundleError: as `check_nodes`.
    """
    if seen.version != __version__:
        raise BackendError(
            f"the node {node} has editar_rt {seen.version}, this machine {__version__}; install the same on every node"
        )
    if seen.fingerprint is None:
        raise BundleError(
            f"the node {node} lacks the bundle: {seen.why}; copy it to {bundle.folder} on every node, or share the "
            "folder"
        )
    check_fingerprint(bundle.folder, seen.fingerprint, bundle.fingerprint, node)


def check_fingerprint(folder: object, found: str, expected: str, node: str) -> None:
    """
    Raises:
        BundleError: they differ.
    """
    if found != expected:
        raise BundleError(
            f"the bundle {folder} on the node {node} differs from its peers' (fingerprint {found[:SHOWN]}, theirs "
            f"{expected[:SHOWN]}); copy the same bundle to every node"
        )


def sentence(error: BaseException | str) -> str:
    """What this package said in an error that came through Ray, which wraps errors in tracebacks; else its end."""
    text = error if isinstance(error, str) else f"{error}\n{''.join(traceback.format_exception_only(error))}"
    own = re.findall(r"editar_rt\.errors\.\w+: (.+)", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (own or lines or ["unknown"])[-1][:1000].rstrip(".")


def spread(
    paths: Iterable[bytes],
    reader: type,
    worker: type,
    arguments: tuple[Any, ...],
    need: Need,
    workers: int,
) -> Iterator[dict[str, Any]]:
    """Run every path through Ray Data: the `reader` on this machine, then an instance of `worker` on any node.

    A worker that dies is replaced, and its work is done again elsewhere. Rows come as they are done, in any order.

    Args:
        reader: a class whose instance gets a row with `path`, and returns it with more columns.
        worker: a class whose instances get a row and return one. Made with `arguments`, once in each process.

    Raises:
        BackendError: the workers fail for another reason than a picture.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"path": path} for path in paths]
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    # A row is a block, so that it is a task: work is shared evenly, and little is lost when the command is stopped.
    # Reading takes no CPU of Ray's count: with the workers holding all of them it would wait for ever. One process
    # does it, since Ray bounds the processes of its tasks by the CPUs that they take, and would start one for each.
    done = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(reader, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0, label_selector=here)
        .map(
            worker,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=need.cpus,
            **({"num_gpus": need.gpus} if need.gpus else {}),
        )
    )
    try:
        yield from done.iter_rows()
    except ray.exceptions.RayError as error:
        raise BackendError(f"the work on the cluster failed: {sentence(error)}") from None
