"""The programs in processes that are not as one expects them: signals, streams, users, locales."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

import editar_rt
from editar_rt import command_line
from editar_rt.backends import kept_folder
from editar_rt.backends.ort import backend, library
from editar_rt.backends.ort.threads import set_threads
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError, OptionError
from tests.runtime.demo import BUNDLE

ROOT = Path(__file__).parents[2]
PICTURE = BUNDLE / "samples" / "recolour-0.png"
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals and descriptors as POSIX has them")
# What a service's account may have: no home that can be written, no name, no locale.
BARE = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def heard_signals() -> Iterator[None]:
    """Signals as in a foreground job, also where these tests run in the background or under `nohup`."""
    numbers = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def editar(
    *arguments: object, env: dict[str, str] | None = None, around: str = "", **process: Any
) -> subprocess.CompletedProcess[bytes]:
    """`editar ARGUMENTS`, with a shell's redirections `around`."""
    command = [sys.executable, "-m", "editar_rt", *map(str, arguments)]
    if around:
        command = ["sh", "-c", f'"$@" {around}', "sh", *command]
    return subprocess.run(command, capture_output=True, env=env, cwd=ROOT, timeout=120, **process)


# Telemetry and the home folder.


@needs_posix
def test_an_edit_leaves_an_empty_home_empty(tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out.png"
    home.mkdir()
    done = editar("edit", BUNDLE, PICTURE, "make the ball green", "-o", out, env={**BARE, "HOME": str(home)})
    assert done.returncode == 0 and out.exists(), done.stderr
    assert not list(home.iterdir())


def test_what_the_user_says_about_usage_data_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    library.import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    library.import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_user_without_a_home_keeps_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EDITAR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    assert kept_folder.cache_folder() is None


def test_a_bundle_is_found_after_the_process_has_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    opened = Bundle.open("bundle")
    monkeypatch.chdir("/")
    opened.check()


# Streams.


@needs_posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_take_nothing_from_the_output(closed: str, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    words = ("edit", BUNDLE, PICTURE, "make the ball green", "-o", out, "--threads", 1)
    done = editar(*words, around=closed)
    assert done.returncode == 0, done.stderr
    with Image.open(out) as written:
        written.load()


@needs_posix
def test_a_picture_is_not_written_into_a_closed_stdout() -> None:
    done = editar("edit", BUNDLE, PICTURE, "make the ball green", "-o", "-", around=">&-")
    assert done.returncode == 1 and b"stdout is closed" in done.stderr


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_program_without_a_console_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, name, None)  # as pythonw has them
    assert code_of(lambda: click.echo("said", err=name == "stderr")) == 0


@needs_posix
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "shift-jis"])
def test_what_is_said_fits_any_encoding(encoding: str) -> None:
    env = {**BARE, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": encoding}
    done = editar("info", BUNDLE, "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["model"]


# Errors and signals, in this process.


def code_of(work: Callable[[], object]) -> object:
    """The exit code of a program whose command does some work."""
    command = click.Command("try", callback=work)
    before = sys.argv
    sys.argv = ["try"]
    try:
        with pytest.raises(SystemExit) as ended:
            command_line.run("try", lambda: command)
    finally:
        sys.argv = before
    return ended.value.code


def raising(error: BaseException) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (BackendError("no engine"), 1, "try: no engine"),
        (OptionError("too large"), 2, "try: too large"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 1, "try: a.txt: No such file or directory"),
        (OSError(28, "No space left on device", "a.png"), 1, "try: a.png: No space left on device"),
        (click.ClickException("no such thing"), 1, "Error: no such thing"),
        (KeyboardInterrupt(), 130, "try: stopped"),
        (SystemExit(7), 7, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_end_has_its_code_and_one_sentence(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(raising(error)) == code
    assert capsys.readouterr().err.strip() == says


@needs_posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_unwinds_the_command(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(number)

    before = signal.getsignal(number)
    assert code_of(work) == 128 + number
    assert cleaned == [number] and capsys.readouterr().err.strip() == "try: stopped"
    assert signal.getsignal(number) is before


@needs_posix
def test_a_library_that_hides_ctrl_c_is_not_believed(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as e:
            raise ImportError("numpy failed to load") from e

    assert code_of(work) == 130
    assert capsys.readouterr().err.strip() == "try: stopped"


@needs_posix
def test_a_signal_that_arrives_in_a_finalizer_ends_the_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Python drops the exception that a finalizer raises."""

    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def work() -> None:
        Interrupted()
        time.sleep(60)

    before = sys.unraisablehook
    assert code_of(work) == 130 and sys.unraisablehook is before
    assert capsys.readouterr().err.strip() == "try: stopped"


@needs_posix
def test_a_signal_that_the_process_was_told_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert code_of(partial(signal.raise_signal, signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_onnx_runtime_loads_does_not_say_that_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> object:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as e:
            raise ImportError("initialization failed") from e  # as compiled modules do

    monkeypatch.setattr(library.importlib, "import_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        library.import_onnxruntime()


@needs_posix
@pytest.mark.parametrize("program", ["editar_rt", "export", "training"])
def test_ctrl_c_while_modules_load_ends_in_one_sentence(program: str, tmp_path: Path) -> None:
    """A module that everything imports sends it, so that it comes while others load."""
    (tmp_path / "click.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n", encoding="utf-8"
    )
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    command = [sys.executable, "-m", program, "--help"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=env, cwd=ROOT, timeout=120, preexec_fn=heard
    )
    assert done.returncode == 130, done.stderr
    assert len(done.stderr.split("\n")) == 2 and ": stopped" in done.stderr


@needs_posix
def test_sigterm_leaves_nothing_half_written(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "editar_rt", "demo", "--bundle", str(BUNDLE), "-o", str(folder), "--threads", "1"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.png")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors.strip()) == (128 + signal.SIGTERM, b"editar: stopped")
    assert not list(folder.glob("*.partial*")) and not (folder / "contact-sheet.png").exists()


def test_threads_are_not_more_than_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "set_threads", set_threads)  # the tests' own takes one
    editor = editar_rt.load(BUNDLE, device="cpu")
    session: Any = editor.backend.session("prefix")  # type: ignore[attr-defined]
    assert 1 <= session.get_session_options().intra_op_num_threads <= (os.cpu_count() or 1)
