"""`editar serve`: OpenAI's images API over one bundle. Needs the extra `serve`; `docs/serving.md` describes it."""

KEY = "EDITAR_API_KEY"
"""The environment variable with the key that clients must send."""
