"""What every program of the project does around its commands: streams, signals, errors, exit codes.

Exit codes: 0; 1 for an error, one sentence on stderr; 2 for a bad option; 130 for Ctrl-C, and 128 and the signal's
number for others that end a program. A library changes nothing that the whole process shares; a program may, and does
it here. What is heavy loads inside `run`, so that Ctrl-C while it loads is met as at any other time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from editar_rt.errors import ColorProfileWarning, EditarError, EditarWarning, OptionError

if TYPE_CHECKING:
    import click

ENDS = ("SIGINT", "SIGTERM", "SIGHUP")  # signals that end a program, by name: systems differ in which they have
INTERNAL = (r"PIL\.",)  # modules whose warnings are about metadata that is not used, or sizes that are refused


def run(
    prog_name: str,
    load: Callable[[], click.Command],
    *,
    name: str | None = None,
    stopped: str = "stopped",
    internal: Iterable[str] = (),
) -> NoReturn:
    """Run a command with this process's arguments, and end the process.

    Args:
        prog_name: how a user calls it, for help texts.
        load: imports the command.
        name: that messages begin with; the last word of `prog_name` when None.
        stopped: is said when a signal has ended it.
        internal: regular expressions of modules whose warnings are about themselves.
    """
    name = name or prog_name.split()[-1]
    code: Any
    with _Signals() as signals, warnings.catch_warnings():
        try:
            _open_streams()
            _tell_warnings(name, internal)
            code = load().main(prog_name=prog_name, standalone_mode=False)
        except SystemExit as e:
            code = e.code
        except BaseException as e:
            if signals.received:  # whatever a library has made of it
                _say(f"{name}: {stopped}")
                code = 128 + signals.received
            else:
                code = _explain(e, name)
    sys.exit(code if isinstance(code, int) else 0)


class _Signals:
    """The signals that end a program, each raised as KeyboardInterrupt once: a second one ends it at once.

    One that the process was started to ignore (`nohup`, a shell's background job) stays ignored, and forked workers
    have the system's own handling.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is not threading.main_thread():  # which alone gets them
            return self
        for number in (getattr(signal, name) for name in ENDS if hasattr(signal, name)):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != self._process and number != signal.SIGINT:
            os.kill(os.getpid(), number)
            return
        self.received = number
        raise KeyboardInterrupt


def _open_streams() -> None:
    """Give the process the three streams that it may have been started without, and have them take any text.

    A closed descriptor would be that of the next file opened, into which every message would go.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode = "r" if number == 0 else "w"
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the process's life
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a terminal's encoding may lack a sign, and names of files may not be text
            reconfigure(errors="backslashreplace")


def _tell_warnings(name: str, internal: Iterable[str]) -> None:
    """Warnings as a line for users; the project's own each time."""

    def show(message: Any, category: type[Warning], *_: Any) -> None:
        kind = "" if issubclass(category, EditarWarning) else f"{category.__name__}: "
        _say(f"{name}: {kind}{message}")

    warnings.showwarning = show  # type: ignore[assignment]
    warnings.simplefilter("always", EditarWarning)
    warnings.simplefilter("default", ColorProfileWarning)  # once a picture, however often it is opened
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # of damaged files, which have their own sentence
    for module in (*INTERNAL, *internal):
        warnings.filterwarnings("ignore", module=module)


def _explain(error: BaseException, name: str) -> int:
    """Say what went wrong; an exit code. What nobody expects is raised again."""
    import click

    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):  # a prompt that met the end of its input
        _say(f"{name}: stopped")
        return 128 + signal.SIGINT
    if isinstance(error, EditarError):
        _say(f"{name}: {error}")
        return 2 if isinstance(error, OptionError) else 1
    if isinstance(error, BrokenPipeError):  # the reader of stdout has gone
        _give_up_output()
        return 1
    if isinstance(error, OSError) and error.strerror:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):
            _say(f"{name}: the output could not be written: {error.strerror}")
            _give_up_output()
        else:
            _say(f"{name}: {f'{error.filename}: ' if error.filename else ''}{error.strerror}")
        return 1
    raise error


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr may be full, or closed
        print(text, file=sys.stderr, flush=True)


def _give_up_output() -> None:
    """Let what is left to flush at the end go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
