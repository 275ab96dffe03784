"""Files are written beside their place, whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from editar_rt.errors import PictureError
from editar_rt.files import placing


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
