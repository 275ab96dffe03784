"""One server for the whole session, and one engine without HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.running import Server, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server of the demo bundle with room for partial pictures after every row."""
    with serving("--preview-share", "1") as running:
        yield running
