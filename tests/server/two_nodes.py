"""A Ray cluster of two nodes on this machine, in a network namespace that has nothing but loopback.

Ray listens on every interface and trusts whoever connects, so it must not run where others could. The second node also
has a mount namespace, in which folders of the first are hidden or replaced.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tools import require, require_module, require_program

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:6379"
START_SECONDS = 90
ENVIRONMENT = {
    "RAY_ADDRESS": ADDRESS,
    "RAY_AUTH_MODE": "token",  # as the docs advise
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
MAPPED = [] if os.geteuid() == 0 else ["--map-root-user"]
ENTERED = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
EMPTY = "-t tmpfs none"
INSTALL = "pip install -r .ci/python-packages.txt"


def require_cluster() -> None:
    """Skip or fail if such a cluster cannot be made here."""
    for name in ("ray", "fastapi", "pyarrow"):
        require_module(name, INSTALL)
    for name in ("unshare", "nsenter", "ip", "curl"):
        require_program(name, "apt-get install util-linux iproute2 curl")
    made = subprocess.run(["unshare", *MAPPED, "--net", "--mount", "true"], capture_output=True, check=False)
    require(made.returncode == 0, "right to make network namespaces", "run the tests as root, or allow user namespaces")


@dataclass
class Cluster:
    """Two nodes of one CPU each."""

    holder: subprocess.Popen[bytes]
    folder: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *command: str) -> list[str]:
        """A command in the namespace of the cluster."""
        return ["nsenter", "--target", str(self.holder.pid), *ENTERED, "--net", *command]

    def start(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        env = {**os.environ, **ENVIRONMENT}
        return subprocess.Popen(self.command(*command), env=env, cwd=ROOT, start_new_session=True, **options)

    def python(self, *arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[bytes]:
        """Run Python to its end."""
        process = self.start(sys.executable, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            end(process)
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def start_node(self, *options: str, mounts: Mapping[Path, str] | None = None) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", "127.0.0.1"]
        ray += ["--num-cpus", "1", "--object-store-memory", "100000000", *options]
        hidden = " && ".join(f"mount {what} {where}" for where, what in (mounts or {}).items())
        begin = ["unshare", "--mount", "sh", "-c", f'{hidden} && exec "$@"', "sh"] if hidden else []
        with open(self.folder / f"node-{len(self.nodes)}.log", "wb") as log:
            self.nodes.append(self.start(*begin, *ray, stdout=log, stderr=log))

    def wait_for(self, nodes: int) -> None:
        ask = f"import ray; ray.init(log_to_driver=False); assert sum(n['Alive'] for n in ray.nodes()) == {nodes}"
        until = time.monotonic() + START_SECONDS
        while self.python("-c", ask).returncode:
            logs = [path.read_text()[-2000:] for path in self.folder.glob("node-*.log")]
            assert time.monotonic() < until, f"the cluster does not start: {logs}"

    def replicas(self) -> list[int]:
        """The processes of the namespace that serve."""
        return [pid for pid in self._processes() if _title(pid).startswith("ray::ServeReplica")]

    def _processes(self) -> list[int]:
        own, found = Path(f"/proc/{self.holder.pid}/ns/net").readlink(), []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdecimal() and Path(f"/proc/{name}/ns/net").readlink() == own:
                    found.append(int(name))
        return found

    def memory(self) -> int:
        """Bytes of all its processes; pages that several share are counted once."""
        pages = [Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8") for pid in self._processes()]
        return 1024 * sum(int(line.split()[1]) for page in pages for line in page.splitlines() if line[:4] == "Pss:")

    def remove_last_node(self) -> None:
        end(self.nodes.pop())

    def close(self) -> None:
        for node in self.nodes:
            end(node)
        for pid in self._processes():  # the rest of Ray's: all that lives in a namespace that is ours alone
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.holder.wait()


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def two_nodes(mounts: Mapping[Path, str]) -> Iterator[Cluster]:
    """
    Args:
        mounts: what the second node sees in place of folders: arguments of `mount`.
    """
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short name: sockets lie below it
        inside = "ip link set lo up && echo up && exec sleep infinity"
        holder = subprocess.Popen(
            ["unshare", *MAPPED, "--net", "sh", "-c", inside], stdout=subprocess.PIPE, start_new_session=True
        )
        assert holder.stdout is not None and holder.stdout.readline() == b"up\n"
        cluster = Cluster(holder, Path(folder))
        try:
            cluster.start_node("--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={folder}/r")
            cluster.wait_for(1)
            cluster.start_node(f"--address={ADDRESS}", mounts=mounts)
            cluster.wait_for(2)
            yield cluster
        finally:
            cluster.close()
            holder.stdout.close()
