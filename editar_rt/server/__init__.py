"""`editar serve`: OpenAI's images API over one bundle. Needs the extra `serve`; `docs/serving.md` describes it."""

from __future__ import annotations

import os

KEY = "EDITAR_API_KEY"
"""The environment variable with the key that clients must send."""


def key_of_environment() -> str | None:
    """The key; an empty variable has none."""
    return os.environ.get(KEY, "").strip() or None
