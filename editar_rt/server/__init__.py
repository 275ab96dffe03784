"""`editar serve`: OpenAI's images API over one bundle. Needs the extra `serve`; `docs/serving.md` describes it."""
