"""The dialects that a decoder's graph is written in: one module each, called as `editar_rt.bundle.words` calls it."""
