"""Guidance that changes from token to token."""

from __future__ import annotations

import json

import numpy as np
import pytest

import editar_rt
from editar_rt.errors import OptionError
from editar_rt.generation.decoding import decode
from editar_rt.generation.guidance import Schedule
from editar_rt.generation.sampling import Sampling
from tests.runtime.demo import PICTURE, WORDS
from tests.runtime.test_decoding import KNOWN, FakeBackend, make_scheduler, plain_tokens, sequence_of, tokens
from tests.runtime.watching import forwarded_positions


def test_schedules_go_from_their_first_value_to_their_last() -> None:
    assert Sampling(cfg_scale="linear:1,5").scales(5).tolist() == [1, 2, 3, 4, 5]
    cosine = Sampling(cfg_scale="cosine:5,1").scales(5)
    np.testing.assert_allclose(cosine, [5, 3 + np.sqrt(2), 3, 3 - np.sqrt(2), 1])
    assert Sampling(cfg_scale="values:3,1,2").scales(3).tolist() == [3, 1, 2]
    assert Sampling(cfg_scale="2.5").scales(2).tolist() == [2.5, 2.5]


def test_a_function_gives_the_scale_of_every_token() -> None:
    sampling = Sampling(cfg_scale=lambda position, count: 1 + position / count)
    assert sampling.guided and sampling.scales(4).tolist() == [1, 1.25, 1.5, 1.75]


def test_an_interval_guides_from_its_start_to_before_its_stop() -> None:
    assert Sampling(cfg_interval=(2, 4)).scales(6).tolist() == [1, 1, 3, 3, 1, 1]
    assert (Sampling(cfg_interval=(0, 4)).scales(6) == Sampling(cfg_interval=2).scales(6)).all()


def test_a_schedule_that_never_exceeds_one_needs_no_null_row() -> None:
    assert not Sampling(cfg_scale="linear:0,1").guided and Sampling(cfg_scale="linear:0,1.5").guided


def test_equal_schedules_are_equal_and_hashable() -> None:
    assert Sampling(cfg_scale="linear:1,5") == Sampling(cfg_scale=Schedule("linear", (1.0, 5.0)))
    assert len({Sampling(cfg_scale="linear:1,5"), Sampling(cfg_scale=Schedule("linear", (1.0, 5.0)))}) == 1


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=3, cfg_scale="linear:1,5", cfg_interval=(2, 9)),
        Sampling(cfg_scale="cosine:0.5,2.25", temperature=0.3),
        Sampling(cfg_scale=lambda position, count: 1 + position / 3),
    ],
    ids=["linear", "cosine", "function"],
)
def test_settings_go_through_json_and_come_back(sampling: Sampling) -> None:
    again = Sampling(**json.loads(json.dumps(sampling.settings(8))))
    assert np.array_equal(again.scales(8), sampling.scales(8))
    assert again.settings(8) == sampling.settings(8)


SCHEDULES = [
    Sampling(seed=3, cfg_scale="linear:1,5"),
    Sampling(seed=3, cfg_scale="cosine:5,1"),
    Sampling(seed=3, cfg_interval=(4, 7)),
    Sampling(seed=3, cfg_scale="values:3,1,1,3,3,1,3,1,1"),
]


@pytest.mark.parametrize("sampling", SCHEDULES, ids=str)
@pytest.mark.parametrize("known", [None, KNOWN[:2]], ids=["all", "some"])
def test_tokens_are_those_of_running_both_rows_always(sampling: Sampling, known: np.ndarray | None) -> None:
    found = tokens(FakeBackend(), 2, sampling, known)
    assert np.array_equal(found, np.stack([plain_tokens(row, sampling, known) for row in range(2)]))


def test_the_null_row_stays_away_until_it_is_needed_and_then_reads_what_it_missed_at_once() -> None:
    backend = FakeBackend()
    scheduler = make_scheduler(backend, 1)
    picture = sequence_of(scheduler, 0, Sampling(cfg_interval=(4, 6)))
    scheduler.prefill(picture)
    backend.calls.clear()
    list(decode(scheduler, [picture]))
    # Tokens 1 to 3 alone; then one position, and four of the row that waited; token 5 together; the rest alone again.
    assert backend.calls == [(1, 1)] * 3 + [(1, 1), (1, 4)] + [(2, 1)] + [(1, 1)] * 3


def test_a_real_decoder_gives_the_tokens_of_the_forced_scores(
    demo_editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(cfg_scale="linear:0,4", cfg_interval=(20, 50), greedy=True)
    session = demo_editor.session(PICTURE)
    result = session.edit(WORDS, sampling=sampling)
    states = demo_editor.encode_text([WORDS])
    cond, null = demo_editor.score(states, session.condition_tokens, result.tokens[None])
    scales = sampling.scales(64).astype(np.float32)[None, :, None]
    assert np.array_equal((null + scales * (cond - null)).argmax(-1)[0], result.tokens)
    seen = forwarded_positions(session, monkeypatch)
    session.edit("remove the ball", sampling=sampling)
    assert (
        seen == [(1, demo_editor.model.text_tokens)] + [(1, 1)] * 19 + [(1, 1), (1, 20)] + [(2, 1)] * 29 + [(1, 1)] * 14
    )


@pytest.mark.parametrize(
    "scale", ["linear:1", "linear:1,2,3", "steep:1,2", "cosine:-1,2", "linear:nan,2", "linear:", "abc", None, "values:"]
)
def test_what_is_no_schedule_is_refused_with_what_is(scale: object) -> None:
    with pytest.raises(OptionError, match="cfg_scale must be 0 to 1e[+]06, linear:FIRST,LAST"):
        Sampling(cfg_scale=scale)


def test_values_and_functions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match="cfg_scale has 3 values, but a picture has 4 tokens"):
        Sampling(cfg_scale="values:3,1,2").scales(4)
    with pytest.raises(OptionError, match="must return a number from 0 to 1e[+]06"):
        Sampling(cfg_scale=lambda position, count: float("nan")).scales(4)


@pytest.mark.parametrize("interval", [(3, 3), (-1, 3), (1, 2, 3), (0, 1.5)])
def test_bad_intervals_are_refused(interval: object) -> None:
    with pytest.raises(OptionError, match="cfg_interval must be"):
        Sampling(cfg_interval=interval)
