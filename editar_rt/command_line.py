"""The common frame of the project's programs: streams, signals, errors and exit codes.

Exit codes: 0 for success, 1 for an error (one sentence on stderr), 2 for a bad option, and 128 plus the signal's number
if a signal ended the program (130 for Ctrl-C). A library must not change the state that the whole process shares; a
program may, and does so here. Heavy modules load inside `run`, so that Ctrl-C is handled while they load.
"""

from __future__ import annotations

import contextlib
import errno
import io
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

ENDS = ("SIGINT", "SIGTERM", "SIGHUP")  # signals that end a program, by name: not every system has all
AGAIN = 0.01  # seconds until a dropped signal is sent again, by which time the finalizer that dropped it has ended
INTERNAL = (r"PIL\.",)  # modules whose warnings are about unused metadata or rejected sizes


def run(
    prog_name: str,
    load: Callable[[], click.Command],
    *,
    name: str | None = None,
    stopped: str = "stopped",
    internal: Iterable[str] = (),
    install: str | None = None,
) -> NoReturn:
    """Run a command with this process's arguments, then exit.

    Args:
        prog_name: the program's name in help texts.
        load: imports the command.
        name: prefix of messages; None means the last word of `prog_name`.
        stopped: message after a signal ended the program.
        internal: regular expressions of modules whose warnings are not for users.
        install: the command that installs the program's dependencies, if they may be missing.
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
            if signals.received:  # whatever exception a library turned it into
                _say(f"{name}: {stopped}")
                code = 128 + signals.received
            else:
                code = _explain(e, name, install)
    sys.exit(code if isinstance(code, int) else 0)


class _Signals:
    """Raises the first of the signals that end a program as KeyboardInterrupt; a second one ends it immediately.

    A signal that the process was started to ignore (`nohup`, a shell's background job) stays ignored. Forked workers
    use the system's default handling. Python drops an exception that is raised in a finalizer or in a callback from C;
    a signal that arrives there is sent again.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook
        self._again: threading.Timer | None = None

    def __enter__(self) -> _Signals:
        if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
            return self
        for number in (getattr(signal, name) for name in ENDS if hasattr(signal, name)):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        sys.unraisablehook = self._report_dropped
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel_again()
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != self._process and number != signal.SIGINT:
            os.kill(os.getpid(), number)
            return
        self._cancel_again()
        self.received = number
        raise KeyboardInterrupt

    def _report_dropped(self, dropped: Any) -> None:
        number = self.received
        if number is None or os.getpid() != self._process or not isinstance(dropped.exc_value, KeyboardInterrupt):
            self._hook(dropped)
            return
        signal.signal(number, self._receive)
        self._again = threading.Timer(AGAIN, os.kill, (self._process, number))
        self._again.daemon = True
        self._again.start()

    def _cancel_again(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None


class _Closed(io.TextIOBase):
    """A standard stream that the process was started without: empty, and it drops what is written.

    It has no `buffer`, so that a picture is not written into nothing.
    """

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> str:
        return ""

    def write(self, text: str, /) -> int:
        return len(text)


def _open_streams() -> None:
    """Open standard streams that the process was started without, and make them accept any text.

    Otherwise the next file that is opened would get a closed stream's descriptor, and receive every message.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, _Closed())
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # the encoding may lack a character, and file names may not be text
            reconfigure(errors="backslashreplace")


def _tell_warnings(name: str, internal: Iterable[str]) -> None:
    """Show warnings as one line for users; the project's own warnings every time."""

    def show(message: Any, category: type[Warning], *_: Any) -> None:
        kind = "" if issubclass(category, EditarWarning) else f"{category.__name__}: "
        _say(f"{name}: {kind}{message}")

    warnings.showwarning = show  # type: ignore[assignment]
    warnings.simplefilter("always", EditarWarning)
    warnings.simplefilter("default", ColorProfileWarning)  # once per picture, however often it is opened
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # about damaged files, which get a message of their own
    for module in (*INTERNAL, *internal):
        warnings.filterwarnings("ignore", module=module)


def _explain(error: BaseException, name: str, install: str | None) -> int:
    """Print an expected error and return its exit code. Unexpected errors are raised again."""
    import click

    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):  # a prompt reached the end of its input
        _say(f"{name}: stopped")
        return 128 + signal.SIGINT
    if isinstance(error, EditarError):
        _say(f"{name}: {error}")
        return 2 if isinstance(error, OptionError) else 1
    if isinstance(error, ModuleNotFoundError) and install and name.split()[0] != str(error.name).partition(".")[0]:
        _say(f"{name}: {error.name} is not installed; run in the clone: {install}")
        return 1
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
    """Discard the output that is left to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
