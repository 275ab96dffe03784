"""Calls functions below the C ABI (`inside.cpp`), each as one part of the library that can be compared with Python."""

from __future__ import annotations

import ctypes
from pathlib import Path

from tests.cpp.build import PICTURE_FLAGS, build, picture_libraries
from tests.cpp.installed import installed, objects

OK, BAD_ARGUMENT, BAD_BUNDLE, MISSING_PART, BAD_PICTURE, UNSUPPORTED = 0, -1, -2, -3, -4, -8


class Failed(Exception):
    """A call that the library refused."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Inside:
    """See the module's docstring."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.inside_answer.restype = ctypes.c_void_p

    @classmethod
    def built(cls, folder: Path) -> Inside:
        """Built into a folder."""
        source, libraries = Path(__file__).with_name("inside.cpp"), picture_libraries()
        linked = [*map(str, objects(installed())), *libraries]
        flags = ["-O1", "-fPIC", "-shared", *PICTURE_FLAGS]
        return cls(ctypes.CDLL(str(build(folder / "inside.so", [source], flags, linked))))

    def call(self, name: str, *arguments: object) -> bytes:
        """What a function of `inside.cpp` answers.

        Raises:
            Failed: it refused.
        """
        status = getattr(self._library, f"inside_{name}")(*arguments)
        size = ctypes.c_size_t()
        answer = ctypes.string_at(self._library.inside_answer(ctypes.byref(size)), size.value)
        if status != OK:
            raise Failed(status, answer.decode())
        return answer
