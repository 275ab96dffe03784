"""Instructions over the procedural world: what to change, in which words, and what the picture should become.

Every example carries its meaning as `slots` beside the words: the text encoder is pre-trained to recover them, and
nothing else reads them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from training.data.kinds import EDIT_KINDS, KINDS, TRANSLATION_TASKS
from training.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURE_SHARES,
    TEXTURES,
    Object,
    Scene,
    condition_picture,
    random_scene,
    render,
)

PLACE_PHRASES = {
    "left": ("on the left", "at the left", "to the left"),
    "right": ("on the right", "at the right", "to the right"),
    "front": ("in front", "in the foreground", "at the front"),
}
BACKGROUND_PHRASES = {
    "meadow": ("a meadow", "a green meadow", "a grassy field"),
    "beach": ("a beach", "a sandy beach", "the seaside"),
    "night": ("night", "the night", "a dark night"),
    "snow": ("snow", "a snowy field", "a winter landscape"),
    "room": ("a room", "a brown room", "the inside of a house"),
    "sunset": ("sunset", "the sunset", "an evening sky"),
}
TEXTURE_PHRASES = {
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "polka-dotted"),
    "checked": ("checked", "chequered"),
    "plain": ("plain", "smooth"),
}
TEXTURE_NOUNS = {
    "striped": ("stripes", "a striped pattern"),
    "dotted": ("dots", "a dotted pattern"),
    "checked": ("checks", "a chequered pattern"),
}

# A category a question about a text's meaning; index 0 of each is "not said".
SLOTS: dict[str, tuple[str, ...]] = {
    "kind": (*EDIT_KINDS, "describe"),
    "target": SHAPES,
    "new_shape": SHAPES,
    "new_colour": tuple(COLOURS),
    "new_texture": TEXTURES,
    "new_size": tuple(SIZES),
    "place": tuple(PLACES),
    "background": tuple(BACKGROUNDS),
    **{f"{shape}_colour": tuple(COLOURS) for shape in SHAPES},
    **{f"{shape}_texture": TEXTURES for shape in SHAPES},
    **{f"{shape}_place": tuple(PLACES) for shape in SHAPES},
}


def slot_indices(slots: dict[str, str]) -> NDArray[np.int64]:
    """Values by slot name → class indices [len(SLOTS)], 0 for a slot not named."""
    indices = [1 + values.index(slots[name]) if name in slots else 0 for name, values in SLOTS.items()]
    return np.asarray(indices, np.int64)


@dataclasses.dataclass(frozen=True)
class Example:
    """One task: a condition picture and a text, and the scene whose picture they ask for."""

    kind: str  # one of KINDS
    source: Scene
    target: Scene
    text: str  # the instruction or the description, without the task's prompt
    slots: dict[str, str]
    subject: Object | None = None  # the object an edit names, as it is in `source` (in `target` for "add")

    @property
    def task(self) -> str:
        """EditAR's task: `edit`, or the translation's own name."""
        return self.kind if self.kind in TRANSLATION_TASKS else "edit"

    def condition(self, size: int) -> NDArray[np.uint8]:
        """The picture the model is given, uint8 [size, size, 3]."""
        return render(self.source, size) if self.task == "edit" else condition_picture(self.source, self.task, size)


def _pick(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return str(options[int(rng.integers(len(options)))])


def noun_phrase(rng: np.random.Generator, o: Object, article: str = "a", size: bool = True) -> str:
    """`a small red striped ball`; plain and large go unsaid."""
    words = ["small"] if size and o.size == "small" else []
    words.append(o.colour)
    if o.texture != "plain":
        words.append(_pick(rng, TEXTURE_PHRASES[o.texture]))
    return " ".join([article, *words, o.shape])


def reference(rng: np.random.Generator, o: Object) -> str:
    """How an instruction names an object that is there: by its shape, sometimes with more of what it is."""
    if rng.random() < 0.65:
        return f"the {o.shape}"
    if rng.random() < 0.7:
        return f"the {o.colour} {o.shape}"
    return f"the {o.shape} {_pick(rng, PLACE_PHRASES[o.place])}"


def caption(rng: np.random.Generator, scene: Scene) -> str:
    """A description: every object with its colour, texture and (mostly) place, and the background."""
    parts = []
    for i in rng.permutation(len(scene.objects)):
        o = scene.objects[i]
        phrase = noun_phrase(rng, o)
        parts.append(f"{phrase} {_pick(rng, PLACE_PHRASES[o.place])}" if rng.random() < 0.6 else phrase)
    things = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    where = _pick(rng, BACKGROUND_PHRASES[scene.background])
    return _pick(rng, [f"{things}, with {where} behind", f"{things} before {where}", f"{where} with {things}"])


def caption_slots(scene: Scene, text: str) -> dict[str, str]:
    slots = {"kind": "describe", "background": scene.background}
    for o in scene.objects:
        slots |= {f"{o.shape}_colour": o.colour, f"{o.shape}_texture": o.texture}
    # Only places that the words give can be recovered from them.
    for part in text.replace(" and ", ", ").split(", "):
        for o in scene.objects:
            if o.shape in part.split() and any(p in part for p in PLACE_PHRASES[o.place]):
                slots[f"{o.shape}_place"] = o.place
    return slots


def _recolour(rng: np.random.Generator, scene: Scene) -> Example:
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    colour = _pick(rng, [c for c in COLOURS if c != o.colour])
    the = reference(rng, o)
    text = _pick(
        rng,
        [
            f"make {the} {colour}",
            f"turn {the} {colour}",
            f"paint {the} {colour}",
            f"change the colour of {the} to {colour}",
            f"{the} should be {colour}",
            f"let {the} become {colour}",
            f"recolour {the} in {colour}",
            f"i want {the} in {colour}",
        ],
    )
    slots = {"target": o.shape, "new_colour": colour}
    return Example("recolour", scene, scene.replace(o, dataclasses.replace(o, colour=colour)), text, slots, o)


def _retexture(rng: np.random.Generator, scene: Scene) -> Example:
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    texture = _pick(rng, [t for t in TEXTURES if t != o.texture])
    the, word = reference(rng, o), _pick(rng, TEXTURE_PHRASES[texture])
    wordings = [f"make {the} {word}", f"turn {the} {word}", f"{the} should be {word}"]
    if texture in TEXTURE_NOUNS:
        noun = _pick(rng, TEXTURE_NOUNS[texture])
        wordings += [f"give {the} {noun}", f"put {noun} on {the}", f"cover {the} with {noun}"]
    else:
        wordings += [f"remove the pattern from {the}", f"{the} without any pattern"]
    slots = {"target": o.shape, "new_texture": texture}
    target = scene.replace(o, dataclasses.replace(o, texture=texture))
    return Example("retexture", scene, target, _pick(rng, wordings), slots, o)


def _replace(rng: np.random.Generator, scene: Scene) -> Example:
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    shape = _pick(rng, [s for s in SHAPES if s not in {x.shape for x in scene.objects}])
    the = reference(rng, o)
    text = _pick(
        rng,
        [
            f"replace {the} with a {shape}",
            f"swap {the} for a {shape}",
            f"turn {the} into a {shape}",
            f"put a {shape} in place of {the}",
            f"{the} should become a {shape}",
        ],
    )
    slots = {"target": o.shape, "new_shape": shape}
    return Example("replace", scene, scene.replace(o, dataclasses.replace(o, shape=shape)), text, slots, o)


def _remove(rng: np.random.Generator, scene: Scene) -> Example:
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    the = reference(rng, o)
    text = _pick(
        rng,
        [
            f"remove {the}",
            f"delete {the}",
            f"take away {the}",
            f"erase {the}",
            f"get rid of {the}",
            f"take {the} out of the picture",
            f"make {the} disappear",
        ],
    )
    return Example("remove", scene, scene.replace(o, None), text, {"target": o.shape}, o)


def _add(rng: np.random.Generator, scene: Scene) -> Example:
    place = _pick(rng, [p for p in PLACES if scene.at(p) is None])
    shape = _pick(rng, [s for s in SHAPES if s not in {x.shape for x in scene.objects}])
    # Added objects are large and stand in the middle of their place: the words leave no other choice open.
    o = Object(shape, _pick(rng, list(COLOURS)), str(rng.choice(TEXTURES, p=TEXTURE_SHARES)), "large", place)
    what, where = noun_phrase(rng, o), _pick(rng, PLACE_PHRASES[place])
    text = _pick(
        rng,
        [
            f"add {what} {where}",
            f"put {what} {where}",
            f"place {what} {where}",
            f"{where}, add {what}",
            f"insert {what} {where}",
            f"there should be {what} {where}",
        ],
    )
    slots = {"new_shape": shape, "new_colour": o.colour, "new_texture": o.texture, "place": place}
    return Example("add", scene, scene.add(o), text, slots, o)


def _background(rng: np.random.Generator, scene: Scene) -> Example:
    background = _pick(rng, [b for b in BACKGROUNDS if b != scene.background])
    where = _pick(rng, BACKGROUND_PHRASES[background])
    text = _pick(
        rng,
        [
            f"change the background to {where}",
            f"make the background {where}",
            f"replace the background with {where}",
            f"set the scene in {where}",
            f"put the objects before {where}",
            f"show {where} behind the objects",
        ],
    )
    target = dataclasses.replace(scene, background=background)
    return Example("background", scene, target, text, {"background": background})


_EDITS = {
    "recolour": _recolour,
    "retexture": _retexture,
    "replace": _replace,
    "remove": _remove,
    "add": _add,
    "background": _background,
}


def example(rng: np.random.Generator, kind: str, scene: Scene) -> Example:
    """An example of `kind` on a given scene (an "add" needs a free place)."""
    if kind in TRANSLATION_TASKS:
        text = caption(rng, scene)
        return Example(kind, scene, scene, text, caption_slots(scene, text))
    made = _EDITS[kind](rng, scene)
    return dataclasses.replace(made, slots={"kind": kind, **made.slots})


def random_example(rng: np.random.Generator, kind: str) -> Example:
    """An example of `kind` on a scene of its own; two objects for "add", two or three else."""
    return example(rng, kind, random_scene(rng, 2 if kind == "add" else None))


def held_out(kind: str, count: int, seed: int = 0) -> list[Example]:
    """The first `count` held-out examples of a kind; training draws from other streams of numbers."""
    streams = np.random.SeedSequence([seed, 0x6E1D0, KINDS.index(kind)]).spawn(count)
    return [random_example(np.random.default_rng(s), kind) for s in streams]
