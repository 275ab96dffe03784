"""Looks at what goes through a session's decoder."""

from __future__ import annotations

from typing import Any

import pytest

from editar_rt.backends.base import Batch
from editar_rt.session import Session


def forwarded_positions(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A list that grows by (rows, positions) with every batch that a session's decoder runs from now on."""
    assert session._scheduler is not None
    decoder: Any = session._scheduler.decoder
    run, seen = decoder.run, []

    def watched(batch: Batch, *rest: Any) -> Any:
        seen.append(batch.tokens.shape)
        return run(batch, *rest)

    monkeypatch.setattr(decoder, "run", watched)
    return seen
