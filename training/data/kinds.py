"""Names of what examples ask for: EditAR's translations, and the edits of the procedural world."""

from __future__ import annotations

TRANSLATION_TASKS = ("depth", "canny", "segmentation")
EDIT_KINDS = ("recolour", "retexture", "replace", "remove", "add", "background")  # of the procedural world
KINDS = (*EDIT_KINDS, *TRANSLATION_TASKS)  # in the order in which shards of that world number them
