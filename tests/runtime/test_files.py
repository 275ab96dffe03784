"""Files are written beside their place, whole or not at all; links and what is no file stay what they are."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from editar_rt.errors import OptionError, PictureError
from editar_rt.files import check_outputs, check_writable, placing

posix = pytest.mark.skipif(sys.platform == "win32", reason="devices, FIFOs, modes and links of POSIX")


def write(final: Path, content: str) -> None:
    with placing(final, PictureError) as partial:
        partial.write_text(content)


def test_two_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    final, both, failures = tmp_path / "out", threading.Barrier(2), []

    def write(content: str) -> None:
        try:
            with placing(final, PictureError) as partial:
                both.wait(10)
                partial.write_text(content)
                both.wait(10)
                assert partial.read_text() == content
                both.wait(10)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=write, args=(content,)) for content in ("one", "another")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and final.read_text() in ("one", "another") and list(tmp_path.iterdir()) == [final]


def test_a_failure_is_told_and_what_was_there_stays(tmp_path: Path) -> None:
    final = tmp_path / "out"
    final.write_text("old")
    with pytest.raises(PictureError, match="cannot write .*out: disk full"), placing(final, PictureError) as partial:
        partial.write_text("half")
        raise OSError(28, "disk full")
    assert final.read_text() == "old" and list(tmp_path.iterdir()) == [final]


def test_cleaning_up_does_not_hide_what_went_wrong(tmp_path: Path) -> None:
    with (
        pytest.raises(PictureError, match="File name too long"),
        placing(tmp_path / ("n" * 300), PictureError) as partial,
    ):
        partial.write_text("whole")
    assert not list(tmp_path.iterdir())
    with pytest.raises(PictureError, match="gone"), placing(tmp_path / "out", PictureError) as partial:
        partial.mkdir()  # cannot be unlinked
        raise OSError(5, "gone")


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    final = tmp_path / "out"
    final.touch()
    final.chmod(mode)
    write(final, "new")
    assert stat.S_IMODE(final.stat().st_mode) == mode and final.read_text() == "new"


@posix
@pytest.mark.parametrize("is_there", [True, False])
def test_the_target_of_a_link_is_written_and_the_link_stays(tmp_path: Path, is_there: bool) -> None:
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.parent.mkdir()
    if is_there:
        target.write_text("old")
    (tmp_path / "between").symlink_to("folder/target")
    link.symlink_to("between")
    check_writable(link)
    write(link, "new")
    assert link.is_symlink() and target.read_text() == "new" and list(target.parent.iterdir()) == [target]


@posix
def test_a_device_is_written_and_stays_a_device(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    write(tmp_path / "null", "gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    if Path("/dev/full").exists():
        with pytest.raises(PictureError, match="cannot write /dev/full: No space left"):
            write(Path("/dev/full"), "much")


@posix
def test_a_fifo_gets_the_whole_content(tmp_path: Path) -> None:
    fifo, read = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    write(fifo, "content " * 50_000)  # more than a pipe holds
    reader.join(10)
    assert read == ["content " * 50_000] and fifo.is_fifo()


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd here")
def test_an_open_descriptor_is_written_where_it_stands(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before ")
    with open(log, "a", encoding="utf-8") as file:
        write(Path(f"/dev/fd/{file.fileno()}"), "content")
        file.write(" behind")
    assert log.read_text() == "before content behind"


# What an output may not be.


def same(path: Path, folder: Path) -> Path:
    return path


def other_spelling(path: Path, folder: Path) -> Path:
    return folder / "sub" / ".." / path.name


def link(path: Path, folder: Path) -> Path:
    (folder / "link").symlink_to(path)
    return folder / "link"


def hard_link(path: Path, folder: Path) -> Path:
    os.link(path, folder / "hard")
    return folder / "hard"


@posix
@pytest.mark.parametrize("name", [same, other_spelling, link, hard_link])
def test_an_output_that_is_an_input_is_refused_by_whatever_name(
    tmp_path: Path, name: Callable[[Path, Path], Path]
) -> None:
    source = tmp_path / "source"
    source.write_text("mine")
    (tmp_path / "sub").mkdir()
    with pytest.raises(OptionError, match="would overwrite the input .*source; give another name"):
        check_outputs([tmp_path / "other", name(source, tmp_path)], [None, source])


@posix
def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("out")  # which is not there yet
    with pytest.raises(OptionError, match="two of the outputs would be written to"):
        check_outputs([tmp_path / "out", None, tmp_path / "link"])
    check_outputs([Path("/dev/null"), Path("/dev/null")], [Path("/dev/null")])


@posix
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none/out", "there is no folder"),
        (".", "it is a folder"),
        ("n" * 300, "File name too long"),
        ("circle", "symbolic links"),
        ("a\0b", "null"),
        ("file/out", "there is no folder"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").touch()
    with pytest.raises(PictureError, match=f"cannot write .*{says}"):
        check_outputs([tmp_path / name])
