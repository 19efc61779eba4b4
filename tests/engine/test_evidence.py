"""engine.evidence: what is measured of a batch of rollouts (T45)."""

import math
from typing import Any

import pytest
import torch

from engine.evidence import metrics, repetition
from engine.generate import Generated
from engine.rollouts import Rolled
from methods.batch import Rollout


def rolled(responses: list[tuple[list[int], str]], width: int) -> Rolled:
    """Rollouts with log-prob -1 at every token, -2 under the reference, padded to `width`."""
    mask = torch.zeros(len(responses), width, dtype=torch.bool)
    for row, (ids, _) in enumerate(responses):
        mask[row, : len(ids)] = True
    found: list[Any] = [Generated(ids, finish, [-1.0] * len(ids)) for ids, finish in responses]
    rollout = Rollout(
        mask=mask,
        old_logp=torch.where(mask, -1.0, 0.0),
        reference_logp=torch.where(mask, -2.0, 0.0),
        score=torch.arange(len(responses)).float(),
        finished=torch.tensor([finish == "eos" for _, finish in responses]),
        group=torch.arange(len(responses)),
    )
    scores: dict[str, list[float | None]] = {"helpfulness": [1.0] * len(found), "safety": [None] * len(found)}
    return Rolled([], [], found, scores, rollout, torch.where(mask, 0.5, 0.0), torch.where(mask, -1.0, 0.0))


def test_padding_changes_no_metric() -> None:
    responses = [([5, 6, 7, 2], "eos"), ([2], "eos"), ([5, 6, 5, 6, 5, 6, 5, 6], "length")]
    narrow, padded = metrics(rolled(responses, 8)), metrics(rolled(responses, 40))
    assert narrow == padded
    assert narrow["perplexity"] == pytest.approx(math.e) and narrow["reference_perplexity"] == pytest.approx(math.e**2)
    assert narrow["entropy"] == 0.5 and narrow["sampler_drift"] == 0.0
    assert narrow["mute"] == pytest.approx(1 / 3) and narrow["loops"] == pytest.approx(1 / 3)
    assert narrow["helpfulness"] == 1.0 and "safety" not in narrow
    assert (narrow["score_min"], narrow["score_max"]) == (0.0, 2.0)


@pytest.mark.parametrize(("ids", "ended", "loops"), [
    ([9, 9, 9, 9, 9, 9, 9, 9], False, 1.0),  # one token
    ([1, 2, 3, 4, 5, 6, 5, 6], False, 1.0),  # the second half repeats two
    ([1, 2, 3, 4, 5, 6, 7, 8], False, 0.0),
    ([9, 9, 9, 9, 9, 9, 9, 2], True, 0.0),  # it ended: not a loop, though repetitive
])  # fmt: skip
def test_a_loop_is_an_unfinished_response_that_repeats_itself(ids: list[int], ended: bool, loops: float) -> None:
    assert repetition([ids], [ended])["loops"] == loops


def test_distinct_2_is_a_mean_over_responses_of_their_own_pairs() -> None:
    # pairs (1,2) (2,1) (1,2): 2 of 3; pairs (3,4) (4,5): 2 of 2; a single token has none
    assert repetition([[1, 2, 1, 2], [3, 4, 5], [2]], [True] * 3)["distinct_2"] == pytest.approx((2 / 3 + 1) / 2)
    assert repetition([[2]], [True])["distinct_2"] == 1.0
