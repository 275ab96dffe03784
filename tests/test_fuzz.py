"""A few tries of `tests.fuzz`, which is long by hand: nothing that strangers write ends in a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests import fuzz

TRIES = {fuzz.graphs: 20, fuzz.command_lines: 20}  # of a session each


@pytest.mark.parametrize("subject", fuzz.SUBJECTS, ids=lambda subject: subject.__name__)
def test_nothing_strange_ends_in_a_traceback(subject: Callable[[Random, Path], None]) -> None:
    assert fuzz.findings(subject, TRIES.get(subject, 40)) == []


def test_what_may_not_be_raised_is_found_with_the_command_that_makes_it_again() -> None:
    def raises(rng: Random, folder: Path) -> None:
        (folder / "none").read_bytes()

    (found,) = fuzz.findings(raises, 1, seed=7)
    assert found.startswith("python -m tests.fuzz raises --seed 7 --tries 1") and "FileNotFoundError" in found
