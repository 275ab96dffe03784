"""From a form's fields to a request: every field is used, refused with a reason, or named in the warnings."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from editar_rt.editor import Editor
from editar_rt.errors import OptionError, PictureError
from editar_rt.images import masks
from editar_rt.images.fit import Fitted
from editar_rt.request import Request, make_request, variant_seeds
from editar_rt.server.errors import ApiError, bad, from_error
from editar_rt.server.limits import PROMPT_CHARACTERS, Limits
from editar_rt.server.pictures import read_image, read_mask
from editar_rt.server.warned import collecting

NAME = re.compile(r"(?:editar\[(?P<ours>\w{1,40})\]|(?P<flat>\w{1,40}))(?P<list>\[\d{0,2}\])?", re.ASCII)
FILE_FIELDS = ("image", "mask")
SEED_BITS = 32  # of seeds that are drawn here; JavaScript's numbers hold them exactly
TOKEN = np.dtype("<u2")  # of tokens on the wire


# One value.


def integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        raise ValueError("an integer")
    return int(text)


def number(text: str) -> float:
    if not re.fullmatch(r"[+-]?[0-9.]{1,40}(?:[eE][+-]?[0-9]{1,3})?", text):
        raise ValueError("a number")
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def flag(text: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise ValueError("true or false")
    return words[text.lower()]


def interval(text: str) -> int | tuple[int, ...]:
    parts = text.split(",")
    if len(parts) > 2:
        raise ValueError("an integer, or two separated by a comma")
    numbers = tuple(integer(part.strip()) for part in parts)
    return numbers if len(numbers) == 2 else numbers[0]


def word(text: str) -> str:
    return text


def speculate(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return integer(text)
    except ValueError:
        raise ValueError("auto or an even integer") from None


OURS: dict[str, Callable[[str], Any]] = {
    "seed": integer,
    "cfg_scale": word,
    "cfg_interval": interval,
    "temperature": number,
    "top_k": integer,
    "top_p": number,
    "greedy": flag,
    "noise": word,
    "speculate": speculate,
    "task": word,
    "mask_margin": integer,
    "composite": flag,
    "fit": word,
    "restore": flag,
}
"""Fields of `Request` by their own names."""

FORMATS = ("png", "jpeg", "webp")
PLAIN = (
    "prompt", "model", "n", "size", "response_format", "output_format", "output_compression", "stream",
    "partial_images", "background", "quality", "input_fidelity", "user", "known_tokens", "from_row",
)  # fmt: skip
"""All others that are known."""
FIXED = {
    "response_format": (("b64_json",), "pictures are not stored, so there is no url to give; read data[].b64_json"),
    "background": (("auto", "opaque"), "these models make opaque pictures"),
    "quality": (("auto",), "a bundle has one quality"),
    "input_fidelity": (("auto",), "a bundle has one fidelity; pixels outside a mask stay exactly as they are"),
}
"""Fields that have one meaning here: what is accepted, and why nothing else is."""


@dataclass
class Asked:
    """What a form asks for."""

    picture: Fitted
    request: Request
    """Without the picture, and without `restore`: results are pasted back where they are encoded, since the engine's
    thread has others to serve."""
    seeds: tuple[int, ...]
    model: str
    share: NDArray[np.float32] | None = None
    """Weight of the result in each pixel of the square, where it is pasted back; None is 1."""
    kept: NDArray[np.int32] | None = None
    stream: bool = False
    partial_images: int = 0
    output_format: str = "png"
    quality: int | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def restores(self) -> bool:
        """Whether results are pasted back into the whole picture."""
        return self.picture.original is not None


def file_name(name: str) -> str:
    """The field of a file: clients send `image`, `image[]` or `image[0]`."""
    return re.sub(r"\[\d{0,2}\]$", "", name, flags=re.ASCII)


class Form:
    """The plain fields of a form, by their names without `editar[…]` and `[]`.

    Raises:
        ApiError: a field is given twice.
    """

    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        self.fields: dict[str, str] = {}
        self.unknown: list[str] = []
        for name, value in items:
            found = NAME.fullmatch(name)
            own = (found["ours"] or found["flat"]) if found else ""
            if found is None or (own not in OURS and own not in PLAIN) or (found["ours"] and own not in _OWN):
                self.unknown.append(name)
            elif own == "cfg_interval" and found["list"] and own in self.fields:
                self.fields[own] += f",{value}"  # the list [3, 9] as clients send it
            elif own in self.fields:
                raise bad(f"the field {own} is given twice", own)
            else:
                self.fields[own] = value

    def read(self, name: str, parse: Callable[[str], Any], default: Any = None) -> Any:
        """A field's value.

        Raises:
            ApiError: it is not what `parse` reads.
        """
        if name not in self.fields:
            return default
        try:
            return parse(self.fields[name].strip())
        except ValueError as error:
            raise bad(f"{name} must be {error}, got {self.fields[name]!r:.60}", name) from None

    def ranged(self, name: str, least: int, most: int, default: int | None = None) -> Any:
        """An integer from `least` to `most`."""
        value = self.read(name, integer, default)
        if value is not None and not least <= value <= most:
            raise bad(f"{name} must be {least} to {most}, got {value}", name)
        return value


_OWN = {*OURS, "known_tokens", "from_row"}


def read_form(
    items: Iterable[tuple[str, str]], files: dict[str, list[BinaryIO]], editor: Editor, limits: Limits
) -> Asked:
    """Check a whole form, and decode its pictures.

    Args:
        files: by field.

    Raises:
        ApiError: something in it is wrong; nothing of it has reached the engine.
    """
    form = Form(items)
    warned = [f"the field {name!r:.60} is not known, and was ignored" for name in (*form.unknown, *_strange(files))]
    _refuse_fixed(form, editor)
    model = check_model(form.fields.get("model", ""), editor)
    prompt = form.fields.get("prompt")
    if prompt is None or not prompt.strip():
        raise bad("the field prompt is missing; say in it what to change", "prompt", "missing_field")
    if len(prompt) > PROMPT_CHARACTERS:
        raise bad(f"prompt has {len(prompt)} characters; at most {PROMPT_CHARACTERS} are read", "prompt")
    seed = form.read("seed", integer)
    options = {name: form.read(name, parse) for name, parse in OURS.items() if name in form.fields}
    options["seed"] = secrets.randbits(SEED_BITS) if seed is None else seed
    n = form.ranged("n", 1, limits.pictures, 1)
    output_format = form.fields.get("output_format", "png").strip()
    if output_format not in FORMATS:
        raise bad(f"output_format must be one of {', '.join(FORMATS)}, got {output_format!r:.60}", "output_format")
    quality = form.ranged("output_compression", 0, 100)
    if output_format == "png" and quality not in (None, 100):
        raise bad("a png has no output_compression; leave it out, or ask for jpeg or webp", "output_compression")
    stream = form.read("stream", flag, False)
    partial = form.ranged("partial_images", 0, editor.grid, 0)
    if partial and not stream:
        raise bad("partial_images needs stream=true", "partial_images")
    kept = _kept(form, editor)
    warned += _without_effect(form, options, masked="mask" in files)
    with collecting(warned):
        picture, request, share = _request(prompt, options, files, editor, limits)
    return Asked(
        picture,
        request,
        variant_seeds(options["seed"], n),
        model,
        share,
        kept,
        stream,
        partial,
        output_format,
        None if quality is None else max(quality, 1),
        warned,
    )


def check_model(name: str, editor: Editor) -> str:
    """The bundle's name, if `name` is empty, this or its fingerprint.

    Raises:
        ApiError: it is another model.
    """
    bundle = editor.bundle
    own, fingerprint = bundle.folder.name, bundle.fingerprint
    if name in ("", own) or (len(name) >= 12 and fingerprint.startswith(name)):
        return own
    raise ApiError(404, f"there is no model {name!r:.80}; this server has {own}", "model_not_found", "model")


def _refuse_fixed(form: Form, editor: Editor) -> None:
    for name, (allowed, why) in FIXED.items():
        value = form.fields.get(name, allowed[0]).strip()
        if value not in allowed:
            raise bad(f"{name} must be {' or '.join(allowed)}, got {value!r:.60}: {why}", name, "unsupported_value")
    side = editor.image_size
    size = form.fields.get("size", "auto").strip()
    if size not in ("auto", f"{side}x{side}"):
        raise bad(
            f"size must be auto or {side}x{side}, got {size!r:.60}: the model makes squares of one size; "
            "restore=true pastes one back into the whole picture",
            "size",
            "unsupported_value",
        )


def _without_effect(form: Form, options: dict[str, Any], masked: bool) -> list[str]:
    """Warnings about fields that other fields make useless."""
    useless = [] if masked else [(name, "without a mask") for name in ("mask_margin", "composite")]
    if options.get("greedy"):
        useless += [(name, "with greedy") for name in ("temperature", "top_k", "top_p", "noise")]
    return [f"{name} has no effect {why}" for name, why in useless if name in form.fields]


def _strange(files: dict[str, list[BinaryIO]]) -> list[str]:
    return [name for name in files if name not in FILE_FIELDS]


def _request(
    prompt: str, options: dict[str, Any], files: dict[str, list[BinaryIO]], editor: Editor, limits: Limits
) -> tuple[Fitted, Request, NDArray[np.float32] | None]:
    """The picture, the request, and its mask's weights for pasting back.

    Picture and mask are fitted to the model's square here: whole ones would take much memory in a queue.
    """
    images, given_masks = files.get("image", []), files.get("mask", [])
    if not images:
        raise bad("the file image is missing; send a PNG, JPEG or WebP picture as image", "image", "missing_field")
    for name, found in (("image", images), ("mask", given_masks)):
        if len(found) > 1:
            raise bad(f"one {name} is edited at a time, got {len(found)}", name, "unsupported_value")
    try:
        # Settings first: they are cheap to refuse.
        checked = make_request(None, prompt, options)
        checked.sampling_over(editor.default_sampling).scales(editor.picture_tokens)
        image = read_image(images[0], limits.max_pixels)
        white = read_mask(given_masks[0], limits.max_pixels) if given_masks else None
        request = make_request(None, prompt, {**options, "mask": white})
        picture = Fitted.of(image, editor.image_size, request.fit, request.restore)
    except OptionError as error:
        named = str(error).split()[0]  # messages about a value begin with its name
        raise from_error(error, named if named in OURS else None) from None
    if white is not None:
        try:
            mask = masks.read_mask(white, image.size, editor.image_size, picture.placement.how)
        except (OptionError, PictureError) as error:
            raise bad(str(error), "mask") from None
        request = replace(request, mask=masks.FittedMask(mask))
        if request.restore and request.composite:
            return picture, replace(request, restore=False), masks.feather(mask, editor.grid)
    return picture, replace(request, restore=False), None


def _kept(form: Form, editor: Editor) -> NDArray[np.int32] | None:
    """The tokens of an earlier result that stay, [rows · grid]."""
    given, rows = form.fields.get("known_tokens"), editor.grid
    row = form.ranged("from_row", 0, rows)
    if given is None and row is None:
        return None
    if given is None or row is None:
        raise bad(
            "known_tokens and from_row belong together: the tokens of a result, and the row from which on they are "
            "drawn again",
            "from_row" if row is None else "known_tokens",
        )
    tokens = read_tokens(given, editor)
    return tokens[: row * rows]


def read_tokens(text: str, editor: Editor) -> NDArray[np.int32]:
    """Tokens [N] as results give them: base64 of little-endian uint16.

    Raises:
        ApiError: they are not.
    """
    count, size = editor.picture_tokens, editor.model.codebook_size
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise bad("known_tokens must be base64, as data[].editar.tokens gives it", "known_tokens") from None
    if len(raw) != count * TOKEN.itemsize:
        raise bad(
            f"known_tokens must have {count} tokens, {count * TOKEN.itemsize} bytes, got {len(raw)} bytes",
            "known_tokens",
        )
    tokens = np.frombuffer(raw, TOKEN).astype(np.int32)
    if size is not None and int(tokens.max()) >= size:
        raise bad(f"known_tokens must be 0 to {size - 1}, got {tokens.max()}", "known_tokens")
    return tokens


def write_tokens(tokens: NDArray[np.int32]) -> str:
    """The inverse of `read_tokens`."""
    return base64.b64encode(tokens.astype(TOKEN).tobytes()).decode()
