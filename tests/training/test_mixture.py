"""Which sample comes when follows from the seed and the step alone, in the published shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.data_sets import world_samples
from training.data import sources
from training.data.folder import write_folder
from training.data.mixture import CYCLE, Mixture, draw, quotas
from training.data.records import BadRecord, BadRecords, DataError, Sample

SIZES, SHARES = (7, 30, 1000), (0.15, 0.25, 0.6)


def test_shares_are_exact_in_every_cycle_and_mixed_within() -> None:
    for cycle in (0, 5):
        drawn = draw(3, SIZES, SHARES, cycle * CYCLE, CYCLE)[:, 0]
        assert np.bincount(drawn).tolist() == [150, 250, 600]
        assert (np.bincount(drawn[:100], minlength=3) > 0).all()


def test_every_record_comes_once_an_epoch_in_a_new_order() -> None:
    drawn = draw(3, SIZES, SHARES, 0, CYCLE)
    small = drawn[drawn[:, 0] == 0][:, 1]
    epochs = small[: len(small) // 7 * 7].reshape(-1, 7)
    assert (np.sort(epochs, axis=1) == np.arange(7)).all()
    assert len({tuple(e) for e in epochs}) > len(epochs) // 2


def test_the_stream_is_the_same_wherever_it_is_entered() -> None:
    whole = draw(3, SIZES, SHARES, 0, 2500)
    assert np.array_equal(draw(3, SIZES, SHARES, 990, 1200), whole[990:2190])
    assert not np.array_equal(draw(4, SIZES, SHARES, 0, 2500), whole)


@pytest.mark.parametrize(
    ("shares", "message"), [((), "at least one"), ((1.0, -1.0), "positive"), ((1.0, 1e-6), "less than one sample")]
)
def test_shares_that_make_no_mixture_are_refused(shares: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        quotas(shares)


class HalfBroken:
    """Samples whose text is their index; those of odd index are broken."""

    name = "half"

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        if index % 2:
            raise BadRecord(f"record {index} is broken")
        empty = np.zeros((2, 2, 3), np.uint8)
        return Sample(empty, empty, str(index), "edit", self.name)


def test_a_bad_record_is_counted_and_the_next_taken() -> None:
    mixture = Mixture([HalfBroken()], [1.0])
    assert mixture.sample(0, 5).text == "0"
    assert mixture.bad.counts == {"half": 1} and mixture.bad.messages == ["record 5 is broken"]


def test_a_bad_record_is_told_of_once_however_often_it_comes() -> None:
    said: list[str] = []
    mixture = Mixture([HalfBroken()], [1.0], said.append)
    for index in (5, 1, 5):
        mixture.sample(0, index)
    assert said == ["bad: record 5 is broken", "bad: record 1 is broken"] and mixture.bad.total == 2


def test_of_many_bad_records_the_first_are_named_and_the_others_counted() -> None:
    said: list[str] = []
    bad = BadRecords(shown=2, tell=said.append)
    for index in range(5):
        bad.add("set", BadRecord(f"record {index}"))
    assert said == ["bad: record 0", "bad: record 1", "bad: and more than these 2, which are counted and not named"]
    assert bad.total == 5 and len(bad.messages) == 2


def test_a_data_set_of_bad_records_alone_stops_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: HalfBroken, index: int) -> Sample:
        raise BadRecord("broken")

    monkeypatch.setattr(HalfBroken, "__getitem__", broken)
    with pytest.raises(DataError, match="half has 6 bad records in a row; the last: broken"):
        Mixture([HalfBroken()], [1.0]).sample(0, 0)


def test_the_published_mixture_has_the_published_shares() -> None:
    plan = sources.read_plan(Path(sources.__file__).with_name("editar.toml"))
    shares = {source.format: source.share for source in plan.sources}
    assert shares == {
        "multigen-depth": 0.15,
        "multigen-canny": 0.15,
        "segmentation": 0.15,
        "pipe": 0.25,
        "seed-data-edit": 0.30,
    }


def test_a_plan_opens_data_sets_beside_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "edits", world_samples(2, ("recolour",)))
    write_folder(tmp_path / "depths", world_samples(1, ("depth",)))
    plan = '[[source]]\npath = "edits"\nshare = 3\n[[source]]\npath = "depths"\nname = "d"\nformat = "folder"\n'
    (tmp_path / "plan.toml").write_text(plan)
    mixture = sources.read_plan(tmp_path / "plan.toml").mixture(size=16)
    batch = [mixture.sample(*place) for place in draw(0, mixture.sizes, mixture.shares, 0, 100).tolist()]
    assert sum(s.task == "edit" for s in batch) > 50
    assert {s.task for s in batch} == {"edit", "depth"} and batch[0].target.shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[source", "is not TOML"),
        ("", r"has no \[\[source\]\]"),
        ("seed = 1\n[[source]]\npath='a'", "sets seed, but the order of a mixture follows from the recipe's seed"),
        ("steps = 1\n[[source]]\npath='a'", r"sets steps; allowed: \[\[source\]\]"),
        ("[[source]]\nshare = 1", "has no path"),
        ("[[source]]\npath = 3", "path = 3 has the wrong type"),
        ("[[source]]\npath = 'a'\nsplti = 'b'", "sets 'splti'; allowed: format, path"),
    ],
)
def test_a_plan_that_says_something_unknown_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(DataError, match=message):
        sources.read_plan(tmp_path / "plan.toml")
