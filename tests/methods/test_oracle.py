"""Every loss and every signal against an independent float64 implementation, on random problems."""

import methods_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import FIELD, problem, rollout
from test_invariance import VARIANTS

import methods

quick = settings(max_examples=12, deadline=None, derandomize=True, database=None)


def arrays(values: dict) -> dict:
    numbers = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            numbers[name] = value.numpy().astype(bool if value.dtype == torch.bool else np.float64)
        elif value is not None:
            numbers[name] = value
    return numbers


@pytest.mark.parametrize(("name", "config"), VARIANTS, ids=[f"{n}-{s}" for n, s in VARIANTS])
@quick
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), width=st.integers(1, 7))
def test_loss_equals_the_oracle(name: str, config: dict, seed: int, rows: int, width: int) -> None:
    found = problem(name, seed, rows, width, **config)
    if float(found.batch.count) == 0:
        return
    formula = getattr(oracle, name.replace("-", "_"), None)
    if formula is None:
        assert name not in FIELD
        pytest.skip("its own test holds its numbers")
    wanted = formula(arrays(found.forwards), arrays(vars(found.batch)), found.config)
    assert float(found.loss()[0]) == pytest.approx(wanted, rel=2e-5, abs=2e-6)


SIGNALS = [
    *(("ppo", preset) for preset in methods.describe("ppo").presets.values()),
    ("ppo", {"reward_scaling": "scale", "missing_eos": "subtract", "reward_clip": 0.7}),
    ("ppo", {"reward_scaling": "normalise", "missing_eos": "replace", "advantage_clip": 0.5}),
    ("ppo", {"reward_scaling": "whiten", "missing_eos": "subtract", "missing_eos_value": 2.0}),
    ("ppo", {"reward_scaling": "none", "kl_estimator": "k2", "gamma": 0.9, "lam": 0.5}),
    ("ppo", {"reward_scaling": "none", "kl_estimator": "k3", "missing_eos": "replace", "whiten_rewards": True}),
    ("ppo", {"kl_estimator": "abs", "kl_coef": 0.5, "whiten_rewards": True, "whiten_advantages": False}),
    ("remax", {}),
    ("remax", {"gamma": 0.9, "clip": 0.5, "missing_eos": "none"}),
    ("remax", {"clip": 0.0}),
    ("rloo", {}),
    ("rloo", {"kl_coef": 0.7}),
    ("grpo", {}),
    ("grpo", {"scale": "none"}),
]


@pytest.mark.parametrize(("name", "config"), SIGNALS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(SIGNALS)])
@quick
@given(seed=st.integers(0, 10_000), prompts=st.integers(4, 6), k=st.integers(2, 4), width=st.integers(1, 7))
def test_signal_equals_the_oracle(name: str, config: dict, seed: int, prompts: int, k: int, width: int) -> None:
    method = methods.load(name)
    c = method.Config(**config)
    given_rollout = rollout(seed, prompts, k, width)
    if int(given_rollout.finished.sum()) < 2:
        return
    found, _, _ = method.signal(given_rollout, c, method.initial_state(c))
    values = arrays(vars(given_rollout))
    wanted = getattr(oracle, f"{name}_signal")(values, c)
    if name == "ppo":
        np.testing.assert_allclose(found["returns"], wanted[1], rtol=1e-4, atol=1e-5)
        wanted = wanted[0]
    np.testing.assert_allclose(found["advantages"], wanted, rtol=1e-4, atol=1e-4)
