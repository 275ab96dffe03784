"""The test files that take the most CPU time, with the processes that they start; wall time says little on a machine
that others use.

python -m pytest -p tests.benchmarks.cpu_seconds
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Generator

import pytest

SHOWN = 10
seconds: Counter[str] = Counter()


def cpu_seconds() -> float:
    """Of this process and the children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test with the fixtures that are set up for it."""
    before = cpu_seconds()
    done = yield
    seconds[item.nodeid.partition("::")[0]] += cpu_seconds() - before
    return done


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section(f"CPU seconds: {cpu_seconds():.0f}")
    for file, spent in seconds.most_common(SHOWN):
        terminalreporter.write_line(f"{spent:6.1f}  {file}")
