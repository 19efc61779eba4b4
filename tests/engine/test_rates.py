"""Learning rates of continued pretraining: METHODS 8.1 and 8.3, traps T55 and T79."""

from itertools import pairwise

import pytest
from pydantic import ValidationError

from configs.continuing import Infinite, Warmed
from engine.rates import Rates

PAPER = Infinite(peak=3e-4, constant=1.65e-4, least=3e-5, warmup=0.01, cooldown=0.6, anneal=0.1)


def curve(recipe: Warmed | Infinite, total: int) -> list[float]:
    rates = Rates(recipe, total)
    return [rates.rate(step) for step in range(1, total + 1)]


def test_infinite_has_the_papers_golden_values() -> None:
    """10,000 steps: warm-up 100, cool-down to 6100, constant to 9000, anneal (METHODS 8.3)."""
    rates = Rates(PAPER, 10_000)
    golden = {50: 1.5e-4, 100: 3e-4, 3100: 2.325e-4, 6100: 1.65e-4, 7000: 1.65e-4, 9000: 1.65e-4, 9500: 7.0356e-5,
              10_000: 3e-5}  # fmt: skip
    for step, wanted in golden.items():
        assert rates.rate(step) == pytest.approx(wanted, rel=2e-5), step
    inverse = Rates(PAPER.model_copy(update={"shape": "inverse_sqrt"}), 10_000)
    assert inverse.rate(3100) == pytest.approx(1.8563e-4, rel=2e-5)


def test_rewarming_is_the_first_trainings_cosine() -> None:
    """eta(t) = least + (peak - least) / 2 * (1 + cos(pi (t - w) / (T - w))), w = 1 % of T = 1000 (METHODS 8.1)."""
    found = curve(Warmed(peak=3e-4, floor=0.1), 1000)
    assert found[0] == pytest.approx(3e-5) and found[9] == pytest.approx(3e-4)
    assert found[504] == pytest.approx(3e-5 + 1.35e-4) and found[-1] == pytest.approx(3e-5)
    assert max(found) == found[9] and all(a > b for a, b in pairwise(found[9:]))


def test_linear_and_constant() -> None:
    assert curve(Warmed(kind="linear", peak=1.0, floor=0.5, warmup=0.2), 10) == pytest.approx(
        [0.5, 1, 0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625, 0.5]
    )
    assert curve(Warmed(kind="constant", peak=2e-4, warmup=0.0), 7) == [2e-4] * 7


@pytest.mark.parametrize("total", [7, 100, 333])
def test_a_restart_goes_on_where_the_constant_phase_ended(total: int) -> None:
    """T79: no jump where one run ends and the next begins, nor where the annealing branches off."""
    first = curve(PAPER.model_copy(update={"anneal": 0.0}), total)
    held = curve(PAPER.model_copy(update={"anneal": 0.0, "restart": True}), total)
    branch = curve(PAPER.model_copy(update={"anneal": 1.0, "restart": True}), total)
    assert first[-1] == held[0] == held[-1] == PAPER.constant
    assert set(held) == {PAPER.constant}
    assert branch[0] == pytest.approx(PAPER.constant * (PAPER.least / PAPER.constant) ** (1 / total), rel=1e-12)
    assert branch[-1] == pytest.approx(PAPER.least, rel=1e-12)
    assert all(a > b for a, b in pairwise(branch))


@pytest.mark.parametrize("total", [1, 2, 3, 5, 11, 40])
@pytest.mark.parametrize("restart", [False, True])
def test_shares_fill_runs_of_any_length(total: int, restart: bool) -> None:
    found = curve(PAPER.model_copy(update={"restart": restart}), total)
    assert len(found) == total and all(0 < rate <= PAPER.peak * (1 + 1e-12) for rate in found)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"warmup": 0.5, "cooldown": 0.6}, "take 1.1 of the steps"),
        ({"restart": True, "anneal": 1.5}, "less than or equal to 1"),
        ({"cooldown": 0.0}, "cooldown is 0"),
        ({"constant": 1e-3}, "want peak >= constant >= least"),
    ],
)
def test_impossible_phases_are_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Infinite(**changes)
