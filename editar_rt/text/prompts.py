"""The prompt of every task, exactly as in EditAR's training."""

from __future__ import annotations

import re

from editar_rt.arguments import as_instance, as_one_of
from editar_rt.errors import OptionError

_NO_CHARACTER = re.compile("[\ud800-\udfff]")  # lone surrogates, which stand for bytes that are not UTF-8
_FOLLOWING = "generate an image following the description: "

TASK_PREFIXES: dict[str, str] = {
    "edit": "",
    "depth": f"Given the depth image, {_FOLLOWING}",
    "canny": f"Given the canny edge image, {_FOLLOWING}",
    "segmentation": f"Given the segmentation mask, {_FOLLOWING}",
}
TASKS = tuple(TASK_PREFIXES)


def as_text(instruction: str) -> str:
    """An instruction that can be encoded as UTF-8: U+FFFD replaces characters that could not be read.

    Raises:
        OptionError: it is not text.
    """
    if not isinstance(instruction, str):
        raise OptionError(f"an instruction must be text, got {type(instruction).__name__}")
    return _NO_CHARACTER.sub("\ufffd", instruction)


def build_prompt(task: str, text: str) -> str:
    """The text encoder's input: an instruction as it is, or a description after its task's prefix."""
    as_instance("a text", text, str, "text")
    return TASK_PREFIXES[as_one_of("task", task, TASKS)] + text
