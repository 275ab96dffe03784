"""`editar serve`."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editar_rt.bundle.folder import Bundle
from editar_rt.cli.app import cli
from editar_rt.cli.options import PATH, bundle_argument, device_options, start
from editar_rt.cluster import require_ray
from editar_rt.errors import EditarError, OptionError
from editar_rt.server import KEY, key_of_environment

if TYPE_CHECKING:
    from editar_rt.server.app import Options
    from editar_rt.server.limits import Limits

NEEDED = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
MAX_KEY_BYTES = 4096
MEGA = 1_000_000
MIB = 1 << 20


class Number(click.FloatRange):
    """A finite number in a range; click's own range contains NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


@cli.command()
@bundle_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes a free port.")
@click.option(
    "--pictures", type=click.IntRange(1, 64), default=8, show_default=True, help="Pictures that are edited at once."
)
@click.option(
    "--queue", type=click.IntRange(0, 10_000), default=32, show_default=True, help="Pictures that may wait beside them."
)
@click.option(
    "--queue-timeout",
    type=Number(0, min_open=True),
    default=300,
    show_default=True,
    help="Seconds that a picture may wait.",
)
@click.option(
    "--timeout",
    type=Number(0, min_open=True),
    default=600,
    show_default=True,
    help="Seconds from a request to its answer.",
)
@click.option("--key-file", type=PATH, help=f"File with the key that clients must send; or set {KEY}.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Name by which clients reach the server; repeatable.")
@click.option(
    "--allow-origin", multiple=True, metavar="ORIGIN", help="Web origin whose pages may use the server; repeatable."
)
@click.option("--insecure", is_flag=True, help="Listen on other addresses than this machine's without a key.")
@click.option(
    "--preview-share",
    type=Number(0, 1),
    default=0.1,
    show_default=True,
    help="Largest share of the decoding time that partial pictures may take; 1 sets no limit.",
)
@click.option(
    "--max-pixels",
    type=Number(0.01, 64),
    default=16,
    show_default=True,
    metavar="MILLIONS",
    help="Largest picture, in millions of pixels.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1, 1024),
    default=20,
    show_default=True,
    metavar="MIB",
    help="Largest request, in MiB.",
)
@click.option(
    "--receive-timeout",
    type=Number(0, min_open=True),
    default=30,
    show_default=True,
    help="Seconds in which a request must arrive.",
)
@click.option(
    "--send-timeout",
    type=Number(0, min_open=True),
    default=60,
    show_default=True,
    help="Seconds in which a client must take what waits for it.",
)
@click.option(
    "--grace",
    type=Number(0),
    default=30,
    show_default=True,
    help="Seconds that running edits get after SIGTERM.",
)
@click.option("--no-page", "page", flag_value=False, default=True, help="Do not serve the page at /.")
@click.option(
    "--no-check",
    "check",
    flag_value=False,
    default=True,
    help="Do not test at the start whether pictures that are edited together have the pixels that each has alone.",
)
@click.option("--log-prompts", is_flag=True, help="Log instructions.")
@click.option("--ray", "on_ray", is_flag=True, help="Serve from a Ray cluster: the one that runs here, or a new one.")
@click.option("--replicas", metavar="N|MIN-MAX", help="With --ray, the number of servers; in a range, by their queues.")
@device_options
def serve(
    bundle: Path,
    host: str,
    port: int,
    pictures: int,
    queue: int,
    queue_timeout: float,
    timeout: float,
    key_file: Path | None,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    insecure: bool,
    preview_share: float,
    max_pixels: float,
    max_body: int,
    receive_timeout: float,
    send_timeout: float,
    grace: float,
    page: bool,
    check: bool,
    log_prompts: bool,
    on_ray: bool,
    replicas: str | None,
    device: str,
    threads: int | None,
) -> None:
    """Serve BUNDLE over HTTP, as OpenAI's images API.

    Clients send edits to /v1/images/edits. Without further options only this machine reaches the server. When it takes
    requests, its address is printed. SIGTERM and Ctrl-C let running edits end.
    """
    if on_ray:
        require_ray("editar serve --ray")
    elif replicas is not None:
        raise OptionError("--replicas needs --ray; without it, start several servers behind a balancer")
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise EditarError(
            f"editar serve needs the extra serve ({lacking[0]} is not installed); run in the clone: "
            'pip install ".[cpu,serve]"'
        )
    from editar_rt.server.app import Options
    from editar_rt.server.guard import Access
    from editar_rt.server.limits import Limits
    from editar_rt.server.run import Address, bind, is_loopback
    from editar_rt.server.run import serve as run

    key = _key(key_file)
    if key is None and not is_loopback(host) and not insecure:
        raise OptionError(
            f"on {host} anybody who reaches this machine could use the server; give a key with --key-file or {KEY}, "
            "listen on 127.0.0.1, or say --insecure"
        )
    limits = Limits(
        pictures=pictures,
        queue=queue,
        queue_timeout=queue_timeout,
        timeout=timeout,
        preview_share=preview_share,
        max_body=max_body * MIB,
        max_pixels=round(max_pixels * MEGA),
        receive_timeout=receive_timeout,
        send_timeout=send_timeout,
        grace=grace,
    )
    opened = Bundle.open(bundle)
    options = Options(Access.of([host, *allow_host], allow_origin, key), page, log_prompts, check)

    def say(url: str) -> None:
        click.echo(f"serving {opened.folder.name} on {url}")

    if on_ray:
        _serve_on_ray(opened, host, port, replicas, device, threads, limits, options, say)
        return
    listening = bind(Address(host, port))
    code = run(start(opened, device, threads), listening, limits, options, say)
    if code:
        raise SystemExit(code)


def _serve_on_ray(
    bundle: Bundle,
    host: str,
    port: int,
    replicas: str | None,
    device: str,
    threads: int | None,
    limits: Limits,
    options: Options,
    say: Callable[[str], None],
) -> None:
    from editar_rt.server.ray import Deployment, deploy, read_replicas

    if port == 0:
        raise OptionError("--port 0 is for a server alone; Ray's proxies listen on the same port on every node")
    wanted = read_replicas("1" if replicas is None else replicas)
    made = Deployment(str(bundle.folder), bundle.fingerprint, wanted, device, threads or 1, limits, options)
    deploy(bundle, made, host, port, say)


def _key(file: Path | None) -> str | None:
    """The key from a file, or else from the environment.

    Raises:
        OptionError: the file has none.
    """
    if file is None:
        return key_of_environment()
    try:
        with open(file, "rb") as f:
            key = f.read(MAX_KEY_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        raise OptionError(f"the key in {file} cannot be read: {error.strerror}") from None
    if not key:
        raise OptionError(f"{file} is empty; write the key into it")
    return key
