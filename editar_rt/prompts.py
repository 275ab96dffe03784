"""The prompt of every task, exactly as EditAR was trained with them."""

from __future__ import annotations



_FOLLOWING = "generate an image following the description: "

TASK_PREFIXES: dict[str, str] = {
    "edit": "",
    "depth": f"Given the depth image, {_FOLLOWING}",
    "canny": f"Given the canny edge image, {_FOLLOWING}",
    "segmentation": f"Given the segmentation mask, {_FOLLOWING}",
}


def build_prompt(task: str, text: str) -> str:
    """The text the encoder reads: an instruction as it is, or a description behind its task's words."""
    try:
        return TASK_PREFIXES[task] + text
    except KeyError:
        raise ValueError(f"task must be one of {', '.join(TASK_PREFIXES)}, got {task!r}") from None
