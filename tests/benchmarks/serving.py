"""What a server costs and gives: one command makes all figures of docs/serving.md, and their plot.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.serving engines/demo --plot docs/serving/load.png

Servers run in processes of their own, with one thread; everything goes over the loopback. What is compared is
interleaved. The last line of stdout is a JSON document.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import click
import httpx2 as httpx
import numpy as np

import editar_rt
from editar_rt.images.writing import picture_bytes
from editar_rt.machine import description
from tests.runtime.demo import PICTURE, WORDS
from tests.server.running import Server, form, serving

CLIENTS = (1, 2, 4, 8, 16)
EDITS = "/v1/images/edits"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
HALF_A_REQUEST = b"POST /v1/images/edits HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n"


def cpu_seconds(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident_bytes(server: Server) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text(encoding="utf-8").split()[1]) * PAGE


class Client:
    """A client that costs little: a request made once, over one connection."""

    def __init__(self, server: Server, **fields: Any) -> None:
        request = httpx.Request("POST", server.url + EDITS, **form(seed=None, **fields))
        self._content, self._headers = request.read(), {"content-type": request.headers["content-type"]}
        self._connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)

    def edit(self) -> tuple[float, bytes]:
        """Seconds until the answer has come, and the answer."""
        started = time.perf_counter()
        self._connection.request("POST", EDITS, self._content, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content[:200]
        return time.perf_counter() - started, content

    def first_event(self) -> float:
        """Seconds until the first partial picture; the rest is read."""
        started = time.perf_counter()
        self._connection.request("POST", EDITS, self._content, self._headers)
        answer = self._connection.getresponse()
        assert b"partial_image" in answer.readline()
        seconds = time.perf_counter() - started
        answer.read()
        return seconds


def together(server: Server, clients: int, seconds: float) -> list[float]:
    """Latencies of clients that ask without a pause for some seconds."""
    found: list[float] = []
    end = time.perf_counter() + seconds

    def ask() -> None:
        client = Client(server)
        while time.perf_counter() < end:
            found.append(client.edit()[0])

    asking = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    return found


@contextlib.contextmanager
def load(server: Server, clients: int) -> Iterator[None]:
    """Clients that ask without a pause while the block runs."""
    going = threading.Event()
    going.set()

    def ask() -> None:
        client = Client(server)
        while going.is_set():
            client.edit()

    asking = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in asking:
        thread.start()
    time.sleep(1)
    try:
        yield
    finally:
        going.clear()
        for thread in asking:
            thread.join()


def share(values: list[float], part: float) -> float:
    return float(np.quantile(values, part))


def ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


# The figures.


def cost_of_http(server: Server, bundle: Path, edits: int) -> dict[str, Any]:
    """One edit over HTTP and by Python with its PNG, in turn; and the CPU time of the server's threads."""
    editor, client = editar_rt.load(bundle, "cpu", 1), Client(server)
    content = PICTURE.read_bytes()

    def python() -> float:
        started = time.perf_counter()
        result = editor.edit(content, WORDS)
        picture_bytes(result.image, "PNG", result.parameters)
        return time.perf_counter() - started

    def pair() -> tuple[float, float]:
        return client.edit()[0], python()

    for _ in range(3):  # both are warm
        pair()
    before = threads(server)
    over, alone = zip(*[pair() for _ in range(edits)])
    used = {number: seconds - before.get(number, 0) for number, seconds in threads(server).items()}
    http_only, engine = used.pop(str(server.process.pid)), max(used.values())
    return {
        "http_ms": ms(statistics.median(over)),
        "python_ms": ms(statistics.median(alone)),
        "cpu_ms_http_and_queue": ms(http_only / edits),
        "cpu_ms_pictures": ms((sum(used.values()) - engine) / edits),
        "cpu_ms_engine": ms(engine / edits),
    }


def threads(server: Server) -> dict[str, float]:
    """CPU seconds of each thread, from the scheduler's nanoseconds."""
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    return {task.name: int((task / "schedstat").read_text(encoding="utf-8").split()[0]) / 1e9 for task in tasks}


def tokens_per_cpu_second(server: Server, tokens: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Of the whole server, HTTP and pictures included: 8 clients against 1, in turn."""
    rates: dict[int, list[float]] = {1: [], 8: []}
    for turn in range(rounds):
        for clients in (1, 8) if turn % 2 == 0 else (8, 1):
            before = cpu_seconds(server)
            edits = len(together(server, clients, seconds))
            rates[clients].append(edits * tokens / (cpu_seconds(server) - before))
    ratios = [eight / one for one, eight in zip(rates[1], rates[8])]
    found = {str(clients): round(statistics.median(each)) for clients, each in rates.items()}
    return {
        "tokens_per_cpu_second": found,
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def latencies(servers: dict[str, Server], seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Of edits, by the number of clients, for servers that take turns."""
    found: dict[tuple[str, int], list[list[float]]] = {}
    used: dict[tuple[str, int], float] = {}
    for turn in range(rounds):
        for clients in CLIENTS:
            for name in list(servers) if turn % 2 == 0 else reversed(list(servers)):
                before = cpu_seconds(servers[name])
                found.setdefault((name, clients), []).append(together(servers[name], clients, seconds))
                used[name, clients] = used.get((name, clients), 0) + cpu_seconds(servers[name]) - before
    rows = []
    for (name, clients), runs in found.items():
        every = [each for run in runs for each in run]
        # The rate by Little's law: the clients are always waiting.
        rate = clients * len(every) / sum(every)
        rows.append(
            {
                "server": name,
                "clients": clients,
                "p50_ms": ms(share(every, 0.5)),
                "p99_ms": ms(share(every, 0.99)),
                "pictures_per_second": round(rate, 2),
                "pictures_per_cpu_second": round(len(every) / used[name, clients], 2),
                "edits": len(every),
            }
        )
    return rows


def health(server: Server, asked: int) -> dict[str, Any]:
    """Latency of /health while the batch is full, and while nothing runs."""

    def measured() -> list[float]:
        found = []
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        for _ in range(asked):
            started = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            found.append(time.perf_counter() - started)
            time.sleep(0.01)
        return found

    idle = measured()
    with load(server, 16):
        full = measured()
    return {
        "idle": {"p50_ms": ms(share(idle, 0.5)), "p99_ms": ms(share(idle, 0.99))},
        "full": {"p50_ms": ms(share(full, 0.5)), "p99_ms": ms(share(full, 0.99))},
    }


def first_row(server: Server, rows: int, asked: int) -> dict[str, Any]:
    """Time until a newcomer's first partial picture, alone and with 7 others."""
    newcomer = Client(server, stream="true", partial_images=str(rows))
    newcomer.first_event()
    alone = [newcomer.first_event() for _ in range(asked)]
    with load(server, 7):
        among = [newcomer.first_event() for _ in range(asked)]
    return {"alone_ms": ms(statistics.median(alone)), "with_7_others_ms": ms(statistics.median(among))}


def memory(server: Server, edits: int) -> dict[str, Any]:
    """Resident memory over many edits, after a tenth of them."""
    sizes = []
    each = -(-edits // 80)
    for _ in range(10):
        done = threading.Barrier(9)

        def ask(done: threading.Barrier = done) -> None:
            client = Client(server)
            for _ in range(each):
                client.edit()
            done.wait()

        for _ in range(8):
            threading.Thread(target=ask).start()
        done.wait()
        sizes.append(resident_bytes(server))
    return {
        "edits": each * 80,
        "resident_mb": [round(size / 1e6, 1) for size in sizes],
        "growth_percent": round(100 * (sizes[-1] / sizes[0] - 1), 2),
    }


def slow_clients(server: Server, count: int, edits: int, rounds: int) -> dict[str, Any]:
    """Edits while many clients hold half a request, and without them, in turn."""
    client = Client(server)
    without, during = [], []
    for _ in range(rounds):
        without += [client.edit()[0] for _ in range(edits)]
        with contextlib.ExitStack() as stack:
            held = []
            for _ in range(count):
                held.append(stack.enter_context(socket.create_connection(("127.0.0.1", port(server)))))
                held[-1].sendall(HALF_A_REQUEST)
            during += [client.edit()[0] for _ in range(edits)]
            for each in held:
                each.settimeout(60)
                with contextlib.suppress(ConnectionError):
                    assert each.recv(1) == b"", "a slow client was not closed"
    return {
        "slow_clients": count,
        "p50_ms": ms(share(during, 0.5)),
        "p50_without_them_ms": ms(share(without, 0.5)),
        "all_closed": True,
    }


def port(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Latency and rate by the number of clients, for both servers."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    styles = {"eight at once": ("#0b6e99", "o"), "one at a time": ("#c2571a", "s")}
    for name, (color, marker) in styles.items():
        own = [row for row in rows if row["server"] == name]
        clients = [row["clients"] for row in own]
        left.plot(clients, [row["p50_ms"] for row in own], color=color, marker=marker, label=f"{name}, median")
        left.plot(
            clients, [row["p99_ms"] for row in own], color=color, marker=marker, ls=":", mfc="w", label=f"{name}, p99"
        )
        right.plot(clients, [row["pictures_per_cpu_second"] for row in own], color=color, marker=marker, label=name)
    left.set_ylabel("latency, ms")
    right.set_ylabel("images per CPU second of the server")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(CLIENTS, [str(each) for each in CLIENTS])
        axes.set_xlabel("clients")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


PARTS = ("cost", "cpu", "load", "health", "row", "memory", "slow")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--seconds", type=float, default=4.0, show_default=True, help="Length of one run of a load.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each load.")
@click.option("--edits", type=click.IntRange(1), default=1000, show_default=True, help="Edits of the memory's figure.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, help="Figures to make.")
@click.option("--plot", type=click.Path(path_type=Path), help="Where the loads are drawn.")
def main(bundle: Path, seconds: float, rounds: int, edits: int, parts: tuple[str, ...], plot: Path | None) -> None:
    """Print the figures of a server of BUNDLE."""
    editor = editar_rt.load(bundle, "cpu", 1)
    tokens, rows = editor.picture_tokens, editor.grid
    found: dict[str, Any] = {"bundle": editor.bundle.folder.name, "machine": description(), "date": str(date.today())}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(bundle=bundle))
        shown = stack.enter_context(serving("--preview-share", "1", "--receive-timeout", "5", bundle=bundle))
        lone = stack.enter_context(serving("--pictures", "1", bundle=bundle))
        makers: dict[str, Callable[[], Any]] = {
            "cost": lambda: cost_of_http(server, bundle, 40),
            "cpu": lambda: tokens_per_cpu_second(server, tokens, seconds, rounds + 2),
            "load": lambda: latencies({"eight at once": server, "one at a time": lone}, seconds, rounds),
            "health": lambda: health(server, 500),
            "row": lambda: first_row(shown, rows, 20),
            "memory": lambda: memory(server, edits),
            "slow": lambda: slow_clients(shown, 500, 5, rounds),
        }
        for part in parts:
            found[part] = makers[part]()
            click.echo(f"{part}: {json.dumps(found[part])}", err=True)
    if plot is not None:
        draw(found["load"], plot)
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
