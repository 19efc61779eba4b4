"""Learning rates: METHODS C.3 and 8.3, and that a resumed run continues the curve."""

import pytest

from methods import schedules


@pytest.mark.parametrize(
    ("floor", "table"),
    [
        (0.0, {0: 0.0, 1: 0.2, 4: 0.8, 5: 1.0, 52: 0.508267, 99: 0.000273, 100: 0.0, 120: 0.0}),
        (0.1, {0: 0.0, 5: 1.0, 52: 0.55744, 99: 0.100246, 100: 0.1, 500: 0.1}),
    ],
)
def test_cosine(floor: float, table: dict[int, float]) -> None:
    for step, wanted in table.items():
        assert schedules.cosine(step, total=100, warmup=5, floor=floor) == pytest.approx(wanted, abs=1e-6)


def test_cosine_decays_to_a_tenth_by_default() -> None:
    assert schedules.cosine(100, total=100, warmup=5) == pytest.approx(0.1)


def test_linear_and_constant() -> None:
    found = [schedules.linear(step, total=10, warmup=2) for step in (0, 1, 2, 6, 10, 11)]
    assert found == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert schedules.linear(6, total=10, warmup=2, floor=0.2) == pytest.approx(0.6)
    assert [schedules.constant(step, warmup=4) for step in (0, 1, 3, 4, 99)] == [0, 0.25, 0.75, 1, 1]
    assert schedules.constant(0) == 1


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_warmup_as_long_as_the_run_ends_at_the_floor(name: str) -> None:
    schedule = getattr(schedules, name)
    assert schedule(4, total=4, warmup=4, floor=0.3) == pytest.approx(0.3)
    assert schedule(3, total=4, warmup=4, floor=0.3) == pytest.approx(0.75)
    assert schedule(0, total=0, warmup=0, floor=0.3) == pytest.approx(0.3)


@pytest.mark.parametrize(("total", "wanted"), [(50, 5), (100, 5), (167, 6), (200, 6), (1000, 30), (1001, 31)])
def test_reward_model_warmup_rounds_up(total: int, wanted: int) -> None:
    """METHODS C.3; 0.03 * 200 is 6, not 7 for a rounding error of floats."""
    assert schedules.warmup_steps(total) == wanted


def test_a_resumed_run_continues_the_curve() -> None:
    """T54, T55: a schedule is a function of the step alone; the first step is not spent at 0."""
    curve = [schedules.cosine(step, total=100, warmup=5) for step in range(1, 101)]
    resumed = [schedules.cosine(step, total=100, warmup=5) for step in range(51, 101)]
    assert curve[50:] == resumed and curve[0] > 0


PAPER = {
    "peak": 3e-4,
    "constant": 1.65e-4,
    "least": 3e-5,
    "warmup": 100,
    "cooldown": 6100,
    "anneal": 9000,
    "end": 10000,
}


@pytest.mark.parametrize(
    ("shape", "table"),
    [
        ("cosine", {0: 0.0, 50: 1.5e-4, 100: 3e-4, 3100: 2.325e-4, 6100: 1.65e-4, 7000: 1.65e-4, 9000: 1.65e-4}),
        ("inverse_sqrt", {3100: 1.8563e-4, 9500: 7.0356e-5, 10000: 3e-5, 20000: 3e-5}),
    ],
)
def test_infinite(shape: str, table: dict[int, float]) -> None:
    for step, wanted in table.items():
        assert schedules.infinite(step, **PAPER, shape=shape) == pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize("shape", ["cosine", "inverse_sqrt"])
def test_infinite_is_continuous_at_its_joints(shape: str) -> None:
    """T79: just after each joint the rate is the joint's, up to the slope of one phase."""
    for joint in ("warmup", "cooldown", "anneal"):
        at = schedules.infinite(PAPER[joint], **PAPER, shape=shape)
        after = schedules.infinite(PAPER[joint] + 1e-9, **PAPER, shape=shape)
        assert abs(at - after) < 1e-12 * PAPER["peak"]


def test_infinite_without_warmup_starts_at_the_peak() -> None:
    assert schedules.infinite(0, **{**PAPER, "warmup": 0}) == 3e-4


@pytest.mark.parametrize("change", [{"cooldown": 100}, {"anneal": 6099}, {"end": 9000}, {"warmup": -1}])
def test_infinite_refuses_steps_that_do_not_rise(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="want 0 <= warmup < cooldown"):
        schedules.infinite(1, **{**PAPER, **change})
    schedules.infinite(1, **{**PAPER, "anneal": 6100})  # an empty constant phase is one
