"""What the demo's training does beside EditAR's; every part of it is off where a recipe's `[demo]` does not name it.

Tokens of objects weigh more than those of the background, which is most of a picture and learned first. (With more
weight on changed tokens alone, all objects get edited: what stays must weigh as much as what changes.)

Later the model is blindfolded: in half of the rows it does not see some of the target tokens that it has made. With all
of them in sight, only an object's first cell needs the text, the others continue what is there; which
colour the text gives to which shape is then learned from one cell in ten.

Stages say from which step on what share of translations is drawn, and from how many groups.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.batches import Batch, draw
from training.data.scenes import SHAPES
from training.errors import TrainingError
from training.recipes.transformer import Recipe, Stage

SHARDS = (20, 0.72), (100, 0.4)  # up to this number, of 500 groups each; the share of edits in them
OBJECT_COVER = 0.05  # share of a cell from which on it shows an object


class StagedGroups:
    """Which groups a step sees; follows from the recipe and the step alone.

    Args:
        is_translation: bool, for every group.

    Raises:
        TrainingError: a stage asks for translations, or for edits, of which it has none.
    """

    def __init__(self, recipe: Recipe, is_translation: NDArray[np.bool_]) -> None:
        self.stages, self.seed, self.pictures = recipe.demo.stages or (Stage(0),), recipe.seed, recipe.data.pictures
        self.size = len(is_translation)
        self.pools = [self._pools(stage, is_translation) for stage in self.stages]

    def _pools(self, stage: Stage, is_translation: NDArray[np.bool_]) -> list[tuple[bool, int, NDArray[np.intp]]]:
        """Translations and edits: which they are, how many a step takes, and from which groups."""
        if stage.translation_share < 0:
            return []
        among = is_translation[: stage.groups or None]
        translations = round(self.pictures * stage.translation_share)
        pools = []
        for which, count, name in (
            (True, translations, "translations"),
            (False, self.pictures - translations, "edits"),
        ):
            pool = np.flatnonzero(among == which)
            if count and not len(pool):
                raise TrainingError(
                    f"the stage that begins at step {stage.begins} takes {count} groups with {name} a step "
                    f"(translation_share {stage.translation_share:g}), and its {len(among)} groups have none; make "
                    "shards that have some, or change demo.stages"
                )
            pools.append((which, count, pool))
        return pools

    def of_step(self, step: int) -> NDArray[np.int64]:
        """Groups [pictures]."""
        number = max(i for i, stage in enumerate(self.stages) if stage.begins <= step)
        stage, since = self.stages[number], step - self.stages[number].begins
        if stage.translation_share < 0:
            seed = [self.seed, number] if number else [self.seed]
            return draw(seed, since * self.pictures, self.pictures, min(stage.groups or self.size, self.size))
        return np.concatenate(
            [
                pool[draw([self.seed, number, which], since * count, count, len(pool))]
                for which, count, pool in self.pools[number]
                if count
            ]
        )


def hidden_targets(rng: np.random.Generator, recipe: Recipe, step: int, shape: tuple[int, int]) -> Tensor | None:
    """Which target tokens are hidden, bool [rows, N]: in a blindfolded row each with that row's own probability."""
    if step < recipe.demo.blindfold_from or not recipe.demo.blindfolded:
        return None
    rows, tokens = shape
    shares = rng.random(rows) * (rng.random(rows) < recipe.demo.blindfolded)
    return torch.from_numpy(rng.random((rows, tokens)) < shares[:, None])


def weigh_objects(batch: Batch, weight: float) -> None:
    """Gives `weight` to the tokens that show an object, in the condition or the target, or that an edit changes.

    Batches that do not know what their cells show stay as they are.
    """
    if batch.condition_meaning is None or batch.target_meaning is None:
        return
    condition, target = (
        meaning[..., : len(SHAPES)].sum(-1) > OBJECT_COVER
        for meaning in (batch.condition_meaning, batch.target_meaning)
    )
    matters = batch.changed | target | condition.repeat_interleave(len(target) // len(condition), dim=0)
    batch.weights = 1 + (weight - 1) * matters.float()
