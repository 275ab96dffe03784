"""From results to OpenAI's shapes: the plain answer, and the events of a stream."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from typing import Any

from PIL import Image

from editar_rt.editor import Editor
from editar_rt.results import Result
from editar_rt.server.errors import ApiError
from editar_rt.server.forms import Asked, write_tokens
from editar_rt.server.limits import Limits
from editar_rt.server.pictures import encode
from editar_rt.server.warned import collecting
from editar_rt.text.prompts import TASKS

PREVIEW_FORMAT = "png"


def base64_of(content: bytes) -> str:
    return b64encode(content).decode()


def datum(asked: Asked, result: Result, warned: list[str], editor: Editor) -> dict[str, Any]:
    """One picture of an answer, with all that is needed to make it again."""
    found: list[str] = [*asked.warnings, *(each for each in warned if each not in asked.warnings)]
    whole = asked.picture.restored(result.image, asked.share)
    with collecting(found):
        content = encode(whole, asked.output_format, asked.quality, result.parameters)
    return {
        "b64_json": base64_of(content),
        "editar": {
            "seed": result.seed,
            "tokens": write_tokens(result.tokens),
            "finished": result.finished,
            "passes": result.passes,
            "settings": settings_of(asked, editor),
            "timings": {stage: round(seconds, 6) for stage, seconds in result.timings.items()},
            "bundle": editor.bundle.fingerprint,
            "backend": editor.backend.name,
            "warnings": found,
        },
    }


def settings_of(asked: Asked, editor: Editor) -> dict[str, Any]:
    """The settings of an edit without its seed, as a request may give them again."""
    request = asked.request
    sampling = request.sampling_over(editor.default_sampling).settings(editor.picture_tokens)
    own = {name: value for name, value in sampling.items() if name != "seed"}
    more = {"speculate": request.speculate, "fit": request.fit or "crop", "restore": asked.restores}
    return {"task": request.task, **own, **more}


def usage(asked: Asked, editor: Editor, pictures: int) -> dict[str, Any]:
    """OpenAI's usage: positions that the model read, and tokens of the pictures."""
    image, text = editor.picture_tokens, editor.model.text_tokens or 0
    made = pictures * editor.picture_tokens
    return {
        "input_tokens": image + text,
        "input_tokens_details": {"image_tokens": image, "text_tokens": text},
        "output_tokens": made,
        "total_tokens": image + text + made,
    }


def size_of(asked: Asked) -> str:
    """OpenAI's size of the results."""
    picture = asked.picture.original or asked.picture.square
    return f"{picture.width}x{picture.height}"


def answer(asked: Asked, results: list[tuple[Result, list[str]]], editor: Editor) -> bytes:
    """The document of a plain answer."""
    return _json(
        {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": asked.output_format,
            "quality": "auto",
            "size": size_of(asked),
            "data": [datum(asked, result, warned, editor) for result, warned in results],
            "usage": usage(asked, editor, len(results)),
        }
    )


def partial_event(asked: Asked, variant: int, image: Image.Image, index: int, row: int, editor: Editor) -> bytes:
    """A partial picture; always a PNG's square, whatever the result will be."""
    return event(
        "image_edit.partial_image",
        {
            "b64_json": base64_of(encode(image, PREVIEW_FORMAT, None, {})),
            "background": "opaque",
            "created_at": int(time.time()),
            "output_format": PREVIEW_FORMAT,
            "partial_image_index": index,
            "quality": "auto",
            "size": f"{image.width}x{image.height}",
            "editar": {"row": row, "rows": editor.grid, "variant": variant, "seed": asked.seeds[variant]},
        },
    )


def completed_event(asked: Asked, variant: int, result: Result, warned: list[str], editor: Editor) -> bytes:
    own = datum(asked, result, warned, editor)
    return event(
        "image_edit.completed",
        {
            "b64_json": own["b64_json"],
            "background": "opaque",
            "created_at": int(time.time()),
            "output_format": asked.output_format,
            "quality": "auto",
            "size": size_of(asked),
            "usage": usage(asked, editor, 1),
            "editar": {**own["editar"], "variant": variant},
        },
    )


def error_event(error: ApiError) -> bytes:
    return event("error", error.body)


def event(kind: str, document: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), _json({"type": kind, **document}))


def model_of(editor: Editor, limits: Limits) -> dict[str, Any]:
    """The bundle as `/v1/models` lists it."""
    bundle, defaults = editor.bundle, editor.default_sampling
    return {
        "id": bundle.folder.name,
        "object": "model",
        "created": int((bundle.folder / "bundle.json").stat().st_mtime),
        "owned_by": "editar",
        "editar": {
            "bundle": bundle.fingerprint,
            "backend": editor.backend.name,
            "size": editor.image_size,
            "rows": editor.grid,
            "codebook": editor.model.codebook_size,
            "tasks": list(TASKS),
            "defaults": defaults.settings(editor.picture_tokens),
            "parts": sorted(bundle.manifest.parts),
            "limits": {
                "n": limits.pictures,
                "max_body": limits.max_body,
                "max_pixels": limits.max_pixels,
                "partial_images": editor.grid,
            },
        },
    }


def _json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
