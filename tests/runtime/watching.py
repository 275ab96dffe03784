"""Looks at what goes through a session's decoder."""

from __future__ import annotations

from typing import Any

import pytest

from editar_rt.session import Session


def forwarded_positions(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A list that grows by (rows, positions) with every chunk that a session's cache runs from now on."""
    assert session._prefix is not None
    cache: Any = session._prefix.cache
    forward, seen = cache.forward, []

    def watched(tokens: Any, *rest: Any) -> Any:
        seen.append(tokens.shape)
        return forward(tokens, *rest)

    monkeypatch.setattr(cache, "forward", watched)
    return seen
