"""The facts that C++ shares with Python are those of Python's tables."""

from __future__ import annotations

from tests.cpp import make_facts


def test_the_facts_of_the_cpp_runtime_are_pythons() -> None:
    stale = make_facts.FACTS.read_text(encoding="utf-8") != make_facts.text()
    assert not stale, "facts.h is stale; run: python -m tests.cpp.make_facts"
