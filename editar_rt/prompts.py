"""The prompt of every task, exactly as EditAR was trained with them."""

from __future__ import annotations

from editar_rt.errors import OptionError

_FOLLOWING = "generate an image following the description: "

TASK_PREFIXES: dict[str, str] = {
    "edit": "",
    "depth": f"Given the depth image, {_FOLLOWING}",
    "canny": f"Given the canny edge image, {_FOLLOWING}",
    "segmentation": f"Given the segmentation mask, {_FOLLOWING}",
}
TASKS = tuple(TASK_PREFIXES)


def build_prompt(task: str, text: str) -> str:
    """The text the encoder reads: an instruction as it is, or a description behind its task's words."""
    if task not in TASK_PREFIXES:
        raise OptionError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return TASK_PREFIXES[task] + text
