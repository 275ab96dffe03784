"""The C ABI by ctypes, as a thin class over it. A binding of a product looks the same."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.cpp.installed import engine_library, installed

OK, STOPPED, BAD_ARGUMENT, BAD_BUNDLE, MISSING_PART, BAD_PICTURE, BACKEND = 0, 1, -1, -2, -3, -4, -5
BUSY, UNSUPPORTED = -7, -8
GREY, RGB = 1, 3
GREEDY, NOT_GREEDY, SEED_IS_ZERO = 1, 2, 4
TO_THE_END, TOP_K_OFF = -1, -1
SHAPES = {"linear": 1, "cosine": 2}
NOISES = {"uniform": 1, "gumbel": 2}
TRUNCATED, MASK_EMPTY = 1, 2


class Struct(ctypes.Structure):
    """A struct whose size is filled in."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.size = ctypes.sizeof(self)


class ModelOptions(Struct):
    _fields_ = [
        ("size", c_size_t), ("device", c_char_p), ("threads", c_int32), ("check_all_files", c_int32),
        ("onnxruntime_path", c_char_p), ("cache_folder", c_char_p), ("plugin_path", c_char_p),
        ("engine_folder", c_char_p),
    ]  # fmt: skip


class ModelInfo(Struct):
    _fields_ = [
        ("size", c_size_t), ("image_size", c_int32), ("picture_tokens", c_int32), ("grid", c_int32),
        ("vocabulary", c_int32), ("text_tokens", c_int32), ("text_dim", c_int32), ("parts", c_int32),
        ("precision", c_char_p), ("fingerprint", c_char_p), ("backend", c_char_p),
    ]  # fmt: skip


class CPicture(Struct):
    _fields_ = [
        ("size", c_size_t), ("data", c_void_p), ("width", c_int32), ("height", c_int32), ("channels", c_int32),
        ("stride", c_int64),
    ]  # fmt: skip


class CSampling(Struct):
    _fields_ = [
        ("size", c_size_t), ("seed", c_uint64), ("cfg_scale", c_double), ("cfg_last", c_double), ("cfg_shape", c_int32),
        ("cfg_start", c_int32), ("cfg_stop", c_int32), ("top_k", c_int32), ("cfg_scales", c_void_p),
        ("temperature", c_double), ("top_p", c_double), ("flags", c_int32), ("noise", c_int32),
    ]  # fmt: skip


ON_PROGRESS = ctypes.CFUNCTYPE(c_int32, c_void_p, c_int32, c_int32, POINTER(c_int32))
ON_PREVIEW = ctypes.CFUNCTYPE(c_int32, c_void_p, c_int32, c_int32, POINTER(CPicture))


class CRequest(Struct):
    _fields_ = [
        ("size", c_size_t), ("task", c_char_p), ("instruction", c_char_p), ("text_states", c_void_p),
        ("token_ids", c_void_p), ("token_count", c_int32), ("variants", c_int32), ("sampling", POINTER(CSampling)),
        ("kept", c_void_p), ("keep", c_int32), ("mask_margin", c_int32), ("mask", POINTER(CPicture)),
        ("no_composite", c_int32), ("speculate", c_int32), ("on_progress", ON_PROGRESS), ("on_preview", ON_PREVIEW),
        ("preview_share", c_double), ("user", c_void_p), ("stop", POINTER(c_int32)),
    ]  # fmt: skip


class COutput(Struct):
    _fields_ = [
        ("size", c_size_t), ("tokens", c_void_p), ("rgb", c_void_p), ("passes", c_void_p), ("done", c_int32),
        ("prompt_tokens", c_int32),
        ("flags", c_int32), ("encode_seconds", c_double), ("text_seconds", c_double),
        ("prefill_seconds", c_double), ("decode_seconds", c_double), ("pixel_seconds", c_double),
        ("preview_seconds", c_double), ("engine_seconds", c_double),
    ]  # fmt: skip


class BenchPlan(Struct):
    _fields_ = [
        ("size", c_size_t), ("repeats", c_int32), ("warmup", c_int32), ("at", c_int32), ("steps", c_int32),
    ]  # fmt: skip


class Refused(Exception):
    """A call that returned an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Library:
    """The functions of the library, with errors as exceptions."""

    def __init__(self, path: Path) -> None:
        self.dll = ctypes.CDLL(str(path))
        self.dll.editar_last_error.restype = c_char_p
        self.dll.editar_version.restype = c_char_p
        for name in ("editar_close_model", "editar_close_session"):
            getattr(self.dll, name).argtypes = [c_void_p]
            getattr(self.dll, name).restype = None

    @property
    def last_error(self) -> str:
        return str(self.dll.editar_last_error().decode())

    def call(self, name: str, *arguments: Any) -> int:
        """Call `editar_NAME`. Returns its status, which is OK or STOPPED."""
        status = int(getattr(self.dll, f"editar_{name}")(*arguments))
        if status < 0:
            assert self.last_error, f"{name} returned {status} without a sentence"
            raise Refused(status, self.last_error)
        assert self.last_error == ""
        return status

    def text(self, name: str, *arguments: Any) -> str:
        """Call a function whose last argument is a text that it gives out."""
        given = c_char_p()
        self.call(name, *arguments, ctypes.byref(given))
        assert given.value is not None
        return given.value.decode()

    def open(self, bundle: Path, **options: Any) -> Model:
        """Open a bundle with ONNX Runtime's library of the wheel; options are fields of `ModelOptions`."""
        options = {"onnxruntime_path": str(engine_library()).encode()} | options
        handle = c_void_p()
        self.call("open_model", str(bundle).encode(), ctypes.byref(ModelOptions(**options)), ctypes.byref(handle))
        return Model(self, handle)

    def read_picture(self, file: bytes, channels: int = 0) -> NDArray[np.uint8]:
        """A PNG or JPEG as [H, W, C]."""
        picture = CPicture(channels=channels)
        self.call("read_picture", file, c_size_t(len(file)), ctypes.byref(picture))
        pixels = np.zeros((picture.height, picture.width, picture.channels), np.uint8)
        picture.data = pixels.ctypes.data
        self.call("read_picture", file, c_size_t(len(file)), ctypes.byref(picture))
        return pixels


class Model:
    """An open bundle."""

    def __init__(self, library: Library, handle: c_void_p) -> None:
        self.library, self.handle = library, handle
        self.info = ModelInfo()
        library.call("get_model_info", handle, ctypes.byref(self.info))

    def session(self, picture: NDArray[np.uint8]) -> Session:
        """A picture [H, W, 3]."""
        pixels = np.ascontiguousarray(picture)
        shown, handle = as_picture(pixels), c_void_p()
        self.library.call("open_session", self.handle, ctypes.byref(shown), ctypes.byref(handle))
        return Session(self, handle)

    def encode_square(self, square: NDArray[np.uint8]) -> NDArray[np.int32]:
        """A picture of the model's size as tokens [N]."""
        tokens = np.zeros(self.info.picture_tokens, np.int32)
        self.library.call("encode_square", self.handle, pointer(np.ascontiguousarray(square)), pointer(tokens))
        return tokens

    def decode_tokens(self, tokens: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Tokens [pictures, N] as pictures."""
        own, side = np.ascontiguousarray(tokens, np.int32), self.info.image_size
        rgb = np.zeros((len(own), side, side, 3), np.uint8)
        self.library.call("decode_tokens", self.handle, pointer(own), len(own), pointer(rgb))
        return rgb

    def score(
        self, text_states: NDArray[np.float32], condition: NDArray[np.int32] | None, tokens: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [N, V] of forced tokens, with and without text."""
        arrays = _contiguous(text_states, np.float32), _contiguous(condition, np.int32), _contiguous(tokens, np.int32)
        found = [np.zeros((self.info.picture_tokens, self.info.vocabulary), np.float32) for _ in range(2)]
        self.library.call("score", self.handle, *map(_pointer, arrays), *map(pointer, found))
        return found[0], found[1]

    def generate(
        self,
        text_states: NDArray[np.float32],
        condition: NDArray[np.int32] | None,
        sampling: CSampling,
        known: NDArray[np.int32] | None = None,
    ) -> NDArray[np.int32]:
        """The tokens [N] of one picture."""
        given = _contiguous(text_states, np.float32), _contiguous(condition, np.int32)
        fixed, tokens = _contiguous(known, np.int32), np.zeros(self.info.picture_tokens, np.int32)
        arguments = (*map(_pointer, given), ctypes.byref(sampling), _pointer(fixed), pointer(tokens))
        self.library.call("generate", self.handle, *arguments)
        return tokens

    def close(self) -> None:
        self.library.dll.editar_close_model(self.handle)


class Edited:
    """The result of an edit."""

    def __init__(
        self, status: int, tokens: NDArray[np.int32], rgb: NDArray[np.uint8], passes: NDArray[np.int32], output: COutput
    ) -> None:
        self.stopped = status == STOPPED
        self.tokens, self.rgb, self.passes, self.output = tokens, rgb, passes, output


class Session:
    """A picture and its edits."""

    def __init__(self, model: Model, handle: c_void_p) -> None:
        self.model, self.handle = model, handle

    def source(self) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """The square that the model sees, and its tokens."""
        info = self.model.info
        square = np.zeros((info.image_size, info.image_size, 3), np.uint8)
        tokens = np.zeros(info.picture_tokens, np.int32)
        self.model.library.call("get_source", self.handle, pointer(square), pointer(tokens))
        return square, tokens

    def edit(
        self,
        instruction: str = "",
        *,
        sampling: CSampling | None = None,
        mask: NDArray[np.uint8] | None = None,
        kept: NDArray[np.int32] | None = None,
        text_states: NDArray[np.float32] | None = None,
        token_ids: NDArray[np.int32] | None = None,
        variants: int = 1,
        on_progress: Callable[[int, int, NDArray[np.int32]], int] | None = None,
        on_preview: Callable[[NDArray[np.uint8], int, int], int] | None = None,
        pictures: bool = True,
        **fields: Any,
    ) -> Edited:
        """Edit; `fields` are those of `CRequest`."""
        info, held = self.model.info, []
        request = CRequest(instruction=instruction.encode("utf-8", "surrogateescape"), variants=variants, **fields)
        if sampling is not None:
            request.sampling = ctypes.pointer(sampling)
        if mask is not None:
            held.append(as_picture(np.ascontiguousarray(mask)))
            request.mask = ctypes.pointer(held[-1])
        if kept is not None:
            held.append(np.concatenate([kept, np.zeros(info.picture_tokens - len(kept))]).astype(np.int32))
            request.kept, request.keep = held[-1].ctypes.data, len(kept)
        if text_states is not None:
            held.append(np.ascontiguousarray(text_states, np.float32))
            request.text_states = held[-1].ctypes.data
        if token_ids is not None:
            held.append(np.ascontiguousarray(token_ids, np.int32))
            request.token_ids, request.token_count = held[-1].ctypes.data, len(token_ids)
        if on_progress is not None:
            watch = on_progress

            def progress(user: Any, done: int, total: int, tokens: Any) -> int:
                return watch(done, total, np.ctypeslib.as_array(tokens, (total,)).copy())

            request.on_progress = ON_PROGRESS(progress)
        if on_preview is not None:
            show = on_preview

            def preview(user: Any, done: int, total: int, shown: Any) -> int:
                picture = shown.contents
                size = picture.width * picture.height * 3
                pixels = np.frombuffer(ctypes.string_at(picture.data, size), np.uint8)
                return show(pixels.reshape(picture.height, picture.width, 3), done, total)

            request.on_preview = ON_PREVIEW(preview)
        tokens = np.full((variants, info.picture_tokens), -1, np.int32)
        rgb = np.zeros((variants, info.image_size, info.image_size, 3), np.uint8)
        passes = np.full(variants, -1, np.int32)
        output = COutput(
            tokens=tokens.ctypes.data, rgb=rgb.ctypes.data if pictures else None, passes=passes.ctypes.data
        )
        status = self.model.library.call("edit", self.handle, ctypes.byref(request), ctypes.byref(output))
        return Edited(status, tokens, rgb, passes, output)

    def texts(self, variant: int = 0) -> dict[str, str]:
        """How the last edit was made."""
        given, texts, place = POINTER(c_char_p)(), {}, 0
        self.model.library.call("get_texts", self.handle, variant, ctypes.byref(given))
        while given and given[place] is not None:
            texts[given[place].decode()] = given[place + 1].decode()
            place += 2
        return texts

    def close(self) -> None:
        self.model.library.dll.editar_close_session(self.handle)


def as_picture(pixels: NDArray[np.uint8]) -> CPicture:
    """A struct over an array [H, W] or [H, W, C], which must stay alive."""
    channels = pixels.shape[2] if pixels.ndim == 3 else GREY
    picture = CPicture(data=pixels.ctypes.data, height=pixels.shape[0], width=pixels.shape[1], channels=channels)
    picture.array = pixels
    return picture


def as_sampling(settings: Mapping[str, Any]) -> CSampling:
    """The struct of keywords of `editar_rt.Sampling`."""
    sampling = CSampling()
    for name, value in settings.items():
        if name == "cfg_scale" and isinstance(value, str):
            shape, _, listed = value.partition(":")
            numbers = [float(each) for each in listed.split(",")]
            if shape == "values":
                sampling.values = np.asarray(numbers, np.float64)
                sampling.cfg_scales = sampling.values.ctypes.data
            else:
                sampling.cfg_shape, sampling.cfg_scale, sampling.cfg_last = SHAPES[shape], *numbers
        elif name == "cfg_interval":
            start, stop = value if isinstance(value, tuple) else (0, TO_THE_END if value == -1 else value + 2)
            sampling.cfg_start, sampling.cfg_stop = start, stop
        elif name == "top_k":
            sampling.top_k = value or TOP_K_OFF
        elif name == "greedy":
            sampling.flags |= GREEDY if value else NOT_GREEDY
        elif name == "noise":
            sampling.noise = NOISES[value]
        elif name == "seed":
            sampling.seed = value
            sampling.flags |= 0 if value else SEED_IS_ZERO
        else:
            setattr(sampling, name, value)
    return sampling


def pointer(array: NDArray[Any]) -> c_void_p:
    return array.ctypes.data_as(c_void_p)


def _contiguous(array: Any, dtype: Any) -> Any:
    return None if array is None else np.ascontiguousarray(array, dtype)


def _pointer(array: NDArray[Any] | None) -> c_void_p | None:
    return None if array is None else pointer(array)


def open_library() -> Library:
    """The installed library."""
    return Library(installed() / "lib/libeditar.so")
