"""Converts colours to sRGB by their ICC profile.

The models were trained on sRGB, and results are sRGB. The embedded profile defines the meaning of a file's numbers: the
same green is (60, 180, 60) in Display P3 and (0, 185, 22) in sRGB. Without a profile, sRGB is assumed.
"""

from __future__ import annotations

import functools
import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from editar_rt.errors import ColorProfileWarning

# Flags of lcms2.h, for which Pillow 10.1 has no names.
_BLACK_POINT_COMPENSATION = 0x2000
_NO_OPTIMIZATION = (
    0x0100  # the shortcut for grey is wrong in the shadows by up to 9 levels, and saves nothing for 256 values
)
_MODE_OF_SPACE = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}

Curves = NDArray[np.uint8]  # [256, 3]: the sRGB of every grey


def to_srgb(colors: Image.Image | NDArray[np.float32], profile: bytes | None, name: str) -> Image.Image:
    """Convert colours from their profile to sRGB.

    Args:
        colors: an image of mode L, RGB or CMYK, or grey of more than 8 bits as float32 [H, W] from 0 to 255.
        profile: the embedded ICC profile. None means sRGB; empty means a profile that could not be read.
        name: of the picture, for warnings.

    Returns:
        an image of mode L or RGB. If the profile equals sRGB up to rounding, the pixels are unchanged.

    Warns:
        ColorProfileWarning: the profile is damaged or for another mode; the colours are taken as sRGB.
    """
    if profile is not None:
        mode = colors.mode if isinstance(colors, Image.Image) else "L"
        try:
            conversion = _conversion(profile, mode)
        except Exception as error:  # ImageCms raises several kinds, or is missing
            reason = str(error) or type(error).__name__
            warnings.warn(
                f"{name} has a colour profile that cannot be used ({reason}); its colours are taken as sRGB",
                ColorProfileWarning,
                stacklevel=2,
            )
        else:
            if conversion is not None:
                return _converted(colors, conversion)
    if isinstance(colors, Image.Image):
        return colors.convert("RGB") if colors.mode == "CMYK" else colors
    return Image.fromarray(_rounded(colors))


@functools.lru_cache(maxsize=16)
def _conversion(profile: bytes, mode: str) -> Curves | ImageCms.ImageCmsTransform | None:
    """The conversion of a mode to sRGB: `Curves` for grey, a transform of ImageCms for others, None if not needed.

    Raises:
        ValueError: the profile is for another mode, or empty.
        ImageCms.PyCMSError, OSError: the profile is damaged.
        ImportError: Pillow was built without LittleCMS.
    """
    if not profile:
        raise ValueError("it is damaged")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = _MODE_OF_SPACE.get(source.profile.xcolor_space)
    if space is None or (
        space != mode and (space, mode) != ("RGB", "L")
    ):  # grey written with its program's RGB profile is usual
        raise ValueError(f"it is for {source.profile.xcolor_space.strip()} and the picture is {mode}")
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        space,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        _BLACK_POINT_COMPENSATION | (_NO_OPTIMIZATION if mode == "L" else 0),  # type: ignore[arg-type]
    )
    if mode == "CMYK":
        return transform
    probe = _greys() if mode == "L" else _lattice()
    seen: Curves = np.asarray(transform.apply(probe.convert(space)))
    if np.abs(seen.astype(int) - np.asarray(probe.convert("RGB"))).max() <= 1:
        return None
    return seen[0] if mode == "L" else transform


def _converted(
    colors: Image.Image | NDArray[np.float32], conversion: Curves | ImageCms.ImageCmsTransform
) -> Image.Image:
    if not isinstance(conversion, np.ndarray):
        assert isinstance(colors, Image.Image)  # only grey comes as an array
        return conversion.apply(colors)
    if isinstance(colors, Image.Image):
        return Image.fromarray(conversion[np.asarray(colors)])
    # Between the 256 greys the curves are practically straight, even in the shadows of linear profiles.
    channels = [_rounded(np.interp(colors, np.arange(256), curve)) for curve in conversion.T]
    return Image.fromarray(np.stack(channels, axis=-1))


def _greys() -> Image.Image:
    return Image.frombytes("L", (256, 1), bytes(range(256)))


def _lattice() -> Image.Image:
    """Colours spread over RGB, 9 per channel."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3))


def _rounded(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(values, 0, 255) + 0.5, np.uint8)
