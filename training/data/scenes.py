"""The procedural world: scenes of a few shaded objects with exact ground truth.

A scene is plain data; `render` makes the picture, `condition_picture` the three that EditAR translates from, and
`caption` (in `edits.py`) the words. Two scenes that differ in one property differ in the picture by that property
alone, which is what makes editing scoreable.

The world is kept learnable on two cores: at most three objects, one of each shape, standing on a 4-pixel lattice.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt.images.canny import canny_edges

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Window = tuple[slice, slice]  # rows and columns
WHOLE: Window = (slice(None), slice(None))

SIZE = 128  # side of the world's own pixels; every length below is in these

SHAPES = ("ball", "cube", "cone", "cylinder", "gem", "ring")
TEXTURES = ("plain", "striped", "dotted", "checked")
TEXTURE_SHARES = (0.4, 0.2, 0.2, 0.2)  # how often each is drawn
SIZES = {"large": 1.0, "small": 0.76}  # factor on the place's radius
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 32),
    "yellow": (240, 200, 24),
    "green": (36, 160, 52),
    "cyan": (40, 196, 208),
    "blue": (40, 76, 214),
    "purple": (156, 52, 190),
}


class Place(NamedTuple):
    """Where an object can stand: its centre line, the line its foot touches, and the radius of a large object."""

    x: int
    foot: int
    radius: float


PLACES = {"left": Place(32, 64, 21.0), "right": Place(96, 64, 21.0), "front": Place(64, 116, 24.0)}
LATTICE = 4  # objects are moved from their place's centre by multiples of this


class Backdrop(NamedTuple):
    """Colours of a background: top of the wall (or sky), wall at the horizon, floor at the horizon, floor in front."""

    wall_top: tuple[int, int, int]
    wall: tuple[int, int, int]
    floor: tuple[int, int, int]
    floor_front: tuple[int, int, int]


BACKGROUNDS: dict[str, Backdrop] = {
    "meadow": Backdrop((120, 176, 232), (196, 222, 240), (132, 164, 92), (96, 132, 64)),
    "beach": Backdrop((96, 188, 220), (206, 232, 226), (238, 218, 170), (220, 190, 132)),
    "night": Backdrop((14, 16, 40), (44, 48, 84), (58, 60, 72), (34, 36, 46)),
    "snow": Backdrop((168, 180, 196), (212, 218, 226), (244, 246, 250), (222, 228, 238)),
    "room": Backdrop((204, 184, 156), (186, 164, 134), (128, 92, 64), (96, 64, 42)),
    "sunset": Backdrop((120, 72, 128), (250, 168, 120), (112, 76, 92), (72, 48, 68)),
}
HORIZONS = (36, 40, 44)


@dataclasses.dataclass(frozen=True)
class Object:
    """One object. `dx`, `dy` move it from its place's centre, in pixels (multiples of `LATTICE`)."""

    shape: str
    colour: str
    texture: str = "plain"
    size: str = "large"
    place: str = "left"
    dx: int = 0
    dy: int = 0

    @property
    def radius(self) -> float:
        return PLACES[self.place].radius * SIZES[self.size]

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the object in pixels; its foot is one radius below."""
        place = PLACES[self.place]
        return place.x + self.dx, place.foot + self.dy - self.radius


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background and up to three objects, one of each shape, one a place."""

    background: str
    horizon: int
    objects: tuple[Object, ...]

    def at(self, place: str) -> Object | None:
        return next((o for o in self.objects if o.place == place), None)

    def replace(self, old: Object, new: Object | None) -> Scene:
        """The scene with one object exchanged, or removed where `new` is None."""
        objects = tuple(new if o == old else o for o in self.objects)
        return dataclasses.replace(self, objects=tuple(o for o in objects if o is not None))

    def add(self, new: Object) -> Scene:
        return dataclasses.replace(self, objects=(*self.objects, new))


def random_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """A scene drawn from the world; `count` objects (1..3), or two or three of them."""
    if count is None:
        count = int(rng.integers(2, 4))
    places = rng.permutation(list(PLACES))[:count]
    shapes = rng.permutation(SHAPES)[:count]
    objects = tuple(
        Object(
            shape=str(shape),
            colour=str(rng.choice(list(COLOURS))),
            texture=str(rng.choice(TEXTURES, p=TEXTURE_SHARES)),
            size="large" if rng.random() < 0.7 else "small",
            place=str(place),
            dx=int(rng.integers(-2, 3)) * LATTICE,
            dy=int(rng.integers(-1, 2)) * LATTICE,
        )
        for shape, place in zip(shapes, places, strict=True)
    )
    return Scene(str(rng.choice(list(BACKGROUNDS))), int(rng.choice(HORIZONS)), objects)


class Surface(NamedTuple):
    """What one object covers inside its window of the picture, all [h, w] but the window."""

    window: tuple[slice, slice]
    coverage: Array  # 0..1, anti-aliased
    shade: Array  # brightness factor of the albedo
    gloss: Array  # white added on top
    stripe: Array  # 0..1, the white part of a striped texture
    dot: Array  # 0..1, the white part of a dotted texture
    check: Array  # 0..1, the white part of a checked texture
    bulge: Array  # nearness beyond the foot's, 0..1


def _soft(distance: Array, radius: float) -> Array:
    """Coverage of a pixel from its signed distance (in radii, positive inside) to an edge."""
    return np.clip(distance * radius + 0.5, 0.0, 1.0)


@functools.lru_cache(maxsize=4096)
def surface(shape: str, cx: float, cy: float, radius: float) -> Surface:
    """The visible surface of a shape; the lattice keeps the number of distinct ones small enough to remember."""
    reach = int(np.ceil(radius * 1.3)) + 2
    x0, x1 = max(0, int(cx) - reach), min(SIZE, int(cx) + reach)
    y0, y1 = max(0, int(cy) - reach), min(SIZE, int(cy) + reach)
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    p = (x + 0.5 - cx) / radius  # right, in radii
    q = (y + 0.5 - cy) / radius  # down, in radii: the foot is at 1
    gloss = np.zeros_like(p)
    if shape == "ball":
        rr = p * p + q * q
        z = np.sqrt(np.clip(1 - rr, 0, 1))
        coverage = _soft(1 - np.sqrt(rr), radius)
        shade = 0.38 + 0.72 * np.clip(-0.5 * p - 0.55 * q + 0.67 * z, 0, 1)
        gloss = np.clip(1 - ((p + 0.38) ** 2 + (q + 0.42) ** 2) / 0.035, 0, 1) * 0.6
        u, v, bulge = p, q, z
    elif shape == "cube":
        # An oblique view: the front face, the top one and the right one, 0.35 back.
        left, right, top, back = -0.92, 0.57, -0.57, 0.35
        front = np.minimum(np.minimum(p - left, right - p), np.minimum(q - top, 1 - q))
        slant = np.clip(np.maximum(top - q, p - right), 0, back)
        hull = np.minimum(
            np.minimum(p - left - np.clip(top - q, 0, back), right + back - p),
            np.minimum(q - (top - back), 1 - np.clip(p - right, 0, back) - q),
        )
        coverage = _soft(hull, radius)
        on_top = (top - q > p - right) & (q < top)
        shade = np.where(front > 0, 0.86, np.where(on_top, 1.12, 0.55)).astype(np.float32)
        u, v = p - np.where(on_top, slant, 0), np.where(on_top, q, q + np.clip(p - right, 0, back))
        bulge = np.clip(1 - slant, 0, 1) * 0.6
    elif shape == "cone":
        half = 0.92 * np.clip((q + 1) / 1.84, 1e-3, 1)
        bottom = 0.84 + 0.16 * np.sqrt(np.clip(1 - (p / 0.92) ** 2, 0, 1))
        coverage = _soft(np.minimum((0.92 * (q + 1) / 1.84 - np.abs(p)) * 0.9, bottom - q), radius)
        side = np.clip(p / half, -1, 1)
        shade = 0.42 + 0.66 * np.clip(0.75 * np.sqrt(1 - side * side * 0.98) - 0.6 * side, 0, 1)
        u, v, bulge = p, q, np.sqrt(1 - side * side) * half
    elif shape == "cylinder":
        side = np.clip(p / 0.72, -1, 1)
        arc = 0.2 * np.sqrt(1 - side * side)
        coverage = _soft(np.minimum(0.72 - np.abs(p), np.minimum(q + 0.8 + arc, 0.8 + arc - q)), radius)
        lid = q < -0.8 + arc
        shade = np.where(lid, 1.12, 0.42 + 0.66 * np.clip(0.75 * np.sqrt(1 - side * side * 0.98) - 0.6 * side, 0, 1))
        u, v, bulge = p, q, np.where(lid, 0.3, np.sqrt(1 - side * side) * 0.72)
    elif shape == "gem":
        # An octahedron turned a little: four faces around a corner left of the middle.
        inside = 1 - np.abs(p) / 0.8 - np.abs(q)
        coverage = _soft(inside * 0.62, radius)
        upper = q < 0.14 * np.clip(1 - np.abs(p) / 0.8, 0, 1)
        left = p < -0.16 * np.clip(1 - np.abs(q), 0, 1)
        shade = np.where(upper, np.where(left, 1.1, 0.8), np.where(left, 0.66, 0.42)).astype(np.float32)
        u, v, bulge = p, q, np.clip(inside, 0, 1) * 0.8
    elif shape == "ring":
        # A torus that faces the viewer: what is behind shows through its middle.
        middle, tube = 0.7, 0.3
        r = np.maximum(np.sqrt(p * p + q * q), 1e-6)
        out = np.clip((r - middle) / tube, -1, 1)
        z = np.sqrt(1 - out * out)
        coverage = _soft(tube - np.abs(r - middle), radius)
        shade = 0.4 + 0.7 * np.clip((-0.5 * p - 0.55 * q) / r * out + 0.67 * z, 0, 1)
        u, v, bulge = p, q, z * 0.3
    else:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    stripe = np.clip(np.sin((v + 0.06) * (2 * np.pi / 0.66)) * radius * 0.12 * np.pi + 0.5, 0, 1)
    du, dv = (u / 0.66 + 0.5) % 1 - 0.5, (v / 0.66) % 1 - 0.5
    dot = _soft(0.22 - np.sqrt(du * du + dv * dv) * 0.66, radius)
    waves = np.sin((u + 0.02) * (2 * np.pi / 1.06)) * np.sin((v + 0.02) * (2 * np.pi / 1.06))
    check = np.clip(waves * radius * 0.16 * np.pi + 0.5, 0, 1)
    parts = (coverage, shade, gloss, stripe, dot, check, bulge)
    return Surface((slice(y0, y1), slice(x0, x1)), *(np.asarray(a, np.float32) for a in parts))


def object_surface(o: Object) -> Surface:
    return surface(o.shape, *o.centre, o.radius)


@functools.lru_cache(maxsize=64)
def _backdrop(background: str, horizon: int) -> Array:
    """The empty background, float32 [SIZE, SIZE, 3] in 0..1. Shared: copy before writing."""
    b = BACKGROUNDS[background]
    y = np.arange(SIZE, dtype=np.float32)[:, None] + 0.5
    up, down = np.clip(y / horizon, 0, 1), np.clip((y - horizon) / (SIZE - horizon), 0, 1)
    wall = np.asarray(b.wall_top, np.float32) * (1 - up) + np.asarray(b.wall, np.float32) * up
    floor = np.asarray(b.floor, np.float32) * (1 - down) + np.asarray(b.floor_front, np.float32) * down
    column = np.where(y < horizon, wall, floor) / 255
    return np.repeat(column[:, None, :], SIZE, axis=1)


@functools.lru_cache(maxsize=4096)
def _shadow(cx: float, foot: float, radius: float) -> tuple[tuple[slice, slice], Array]:
    """Soft shadow on the floor, falling to the right: window and darkening factor 0..1."""
    x0, x1 = max(0, int(cx - radius * 1.4)), min(SIZE, int(cx + radius * 2.0))
    y0, y1 = max(0, int(foot - radius * 0.6)), min(SIZE, int(foot + radius * 0.5))
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    d = np.sqrt(((x + 0.5 - cx - 0.32 * radius) / (1.22 * radius)) ** 2 + ((y + 0.5 - foot) / (0.3 * radius)) ** 2)
    return (slice(y0, y1), slice(x0, x1)), (0.5 * np.clip((1 - d) * 2.5, 0, 1)).astype(np.float32)


def albedo(colour: str) -> Array:
    return np.asarray(COLOURS[colour], np.float32) / 255


@functools.lru_cache(maxsize=512)
def _appearance(o: Object) -> tuple[tuple[slice, slice], Array, Array]:
    """An object in its colour and light: window, colours [h, w, 3] in 0..1, coverage [h, w, 1]."""
    s = object_surface(o)
    white = {"plain": None, "striped": s.stripe, "dotted": s.dot, "checked": s.check}[o.texture]
    base = np.broadcast_to(albedo(o.colour), (*s.shade.shape, 3))
    if white is not None:
        base = base + (0.96 - base) * white[..., None]
    lit = np.clip(base * s.shade[..., None] + s.gloss[..., None], 0, 1)
    return s.window, lit, s.coverage[..., None]


def _shared(part: Window, frame: Window) -> tuple[Window, Window]:
    """Where a part of the picture lies in a frame: the pixels that both have, counted in the frame and in the part."""
    inside, own = [], []
    for p, f in zip(part, frame, strict=True):
        start, stop = max(p.start, f.start), min(p.stop, f.stop)
        stop = max(start, stop)
        inside.append(slice(start - f.start, stop - f.start))
        own.append(slice(start - p.start, stop - p.start))
    return (inside[0], inside[1]), (own[0], own[1])


def _back_to_front(scene: Scene) -> list[Object]:
    return sorted(scene.objects, key=lambda o: PLACES[o.place].foot + o.dy)


def shrink(values: Array, size: int) -> Array:
    """Means over squares of pixels: [SIZE, SIZE, ...] → [size, size, ...]; `size` divides SIZE."""
    return _means(values, pixels_apart(size))


def pixels_apart(size: int) -> int:
    """How many of the world's pixels one pixel of a picture with that side stands for."""
    if SIZE % size:
        raise ValueError(f"the picture's side must divide {SIZE}, got {size}")
    return SIZE // size


def _means(values: Array, n: int) -> Array:
    """Means over squares of n pixels: [n × h, n × w, ...] → [h, w, ...]."""
    if n == 1:
        return values
    height, width = values.shape[0] // n, values.shape[1] // n
    return values.reshape(height, n, width, n, *values.shape[2:]).mean(axis=(1, 3), dtype=np.float32)


def render(scene: Scene, size: int = SIZE, window: Window = WHOLE) -> Pixels:
    """The picture of a scene, uint8 [size, size, 3].

    Args:
        window: rows and columns of the picture that are wanted, where not all are; only those are drawn.
    """
    n = pixels_apart(size)
    rows, columns = (slice(*(n * i for i in side.indices(size)[:2])) for side in window)
    picture = _backdrop(scene.background, scene.horizon)[rows, columns].copy()
    for o in scene.objects:
        shadow, dark = _shadow(o.centre[0], o.centre[1] + o.radius, o.radius)
        inside, own = _shared(shadow, (rows, columns))
        picture[inside] *= 1 - dark[own][..., None]
    for o in _back_to_front(scene):
        part, lit, coverage = _appearance(o)
        inside, own = _shared(part, (rows, columns))
        region = picture[inside]
        region += (lit[own] - region) * coverage[own]
    return (_means(picture, n) * 255 + 0.5).astype(np.uint8)


def extent(o: Object, margin: int = 0) -> Window:
    """Rows and columns of the world that hold an object, its shadow, and `margin` pixels around them."""
    shadow, _ = _shadow(o.centre[0], o.centre[1] + o.radius, o.radius)
    sides = zip(object_surface(o).window, shadow, strict=True)
    spans = [(min(a.start, b.start) - margin, max(a.stop, b.stop) + margin) for a, b in sides]
    rows, columns = (slice(max(0, start), min(SIZE, stop)) for start, stop in spans)
    return rows, columns


def object_mask(o: Object, size: int = SIZE) -> NDArray[np.bool_]:
    """Where an object covers the picture, bool [size, size]."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    s = object_surface(o)
    mask[s.window] = s.coverage
    return shrink(mask, size) > 0.5


def influence_mask(o: Object, size: int = SIZE) -> NDArray[np.bool_]:
    """Where an object changes the picture at all: itself and its shadow, bool [size, size]."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    s = object_surface(o)
    mask[s.window] = s.coverage > 0
    window, dark = _shadow(o.centre[0], o.centre[1] + o.radius, o.radius)
    mask[window] += dark > 0
    return shrink(mask, size) > 0


def _grey(values: Array) -> NDArray[np.uint8]:
    return np.repeat((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=2)


def depth_map(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """Nearness as grey, bright is near, uint8 [size, size, 3]."""
    y = np.arange(SIZE, dtype=np.float32)[:, None] + 0.5

    def floor(row: Array | float) -> Array:
        return np.asarray(0.12 + 0.5 * np.clip((row - scene.horizon) / (SIZE - scene.horizon), 0, 1), np.float32)

    near = np.repeat(np.where(y < scene.horizon, np.float32(0.06), floor(y)), SIZE, axis=1).astype(np.float32)
    for o in _back_to_front(scene):
        s = object_surface(o)
        region = near[s.window]
        region += (floor(o.centre[1] + o.radius) + 0.1 + 0.24 * s.bulge - region) * s.coverage
    return _grey(shrink(near, size))


# Flat class colours in the manner of COCO-Stuff masks; they have nothing to do with the objects' own colours.
CLASS_COLOURS: dict[str, tuple[int, int, int]] = {
    "wall": (70, 90, 120),
    "floor": (120, 110, 80),
    "ball": (230, 60, 130),
    "cube": (60, 220, 60),
    "cone": (240, 170, 30),
    "cylinder": (60, 150, 240),
    "gem": (150, 60, 220),
    "ring": (250, 250, 120),
}


def segmentation(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """Every pixel in its class colour, uint8 [size, size, 3]."""
    picture = np.empty((SIZE, SIZE, 3), np.uint8)
    picture[: scene.horizon], picture[scene.horizon :] = CLASS_COLOURS["wall"], CLASS_COLOURS["floor"]
    for o in _back_to_front(scene):
        picture[object_mask(o)] = CLASS_COLOURS[o.shape]
    step = SIZE // size
    return picture[step // 2 :: step, step // 2 :: step]  # classes do not mix: the middle pixel's, not a mean


def condition_picture(scene: Scene, task: str, size: int = SIZE) -> NDArray[np.uint8]:
    """The condition picture of a translation task (`depth`, `canny`, `segmentation`), uint8 [size, size, 3]."""
    if task == "depth":
        return depth_map(scene, size)
    if task == "canny":
        return canny_edges(render(scene, size))
    if task == "segmentation":
        return segmentation(scene, size)
    raise ValueError(f"task must be depth, canny or segmentation, got {task!r}")


MEANINGS = (*SHAPES, *COLOURS, *TEXTURES, *BACKGROUNDS)
"""What `meaning` tells of every cell."""


def meaning(scene: Scene, grid: int) -> NDArray[np.uint8]:
    """How much of each cell each of `MEANINGS` covers, uint8 [grid, grid, len(MEANINGS)], 255 for all of it.

    An object counts for its shape, its colour and its texture; the background is what no object covers.
    """
    cover = np.zeros((SIZE, SIZE, len(MEANINGS)), np.float32)
    cover[:, :, MEANINGS.index(scene.background)] = 1
    for o in _back_to_front(scene):
        s = object_surface(o)
        what = np.isin(MEANINGS, (o.shape, o.colour, o.texture)).astype(np.float32)
        region = cover[s.window]
        region += (what - region) * s.coverage[..., None]
    return (shrink(cover, grid) * 255 + 0.5).astype(np.uint8)
