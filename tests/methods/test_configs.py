"""Settings that make no sense are refused in one line that names method, setting and what was found."""

import pytest

import methods

BAD = [
    ("rejection", {"keep": 0}, "keep 0"),
    ("rejection", {"take": "any"}, "take 'any'"),
    ("rejection", {"truncated": "drop"}, "truncated 'drop'"),
    ("rejection", {"penalty": -1.0}, "penalty -1.0"),
    ("rejection", {"penalty": float("nan")}, "penalty nan"),
    ("reward", {"margin": "huge"}, "margin 'huge'"),
    ("reward", {"safety_weight": -0.1}, "safety_weight -0.1"),
    ("reward-pointwise", {"verdict": "good"}, "verdict 'good'"),
    ("reward-attributes", {"attributes": ()}, "attributes"),
    ("reward-attributes", {"attributes": ("a", "a")}, "each once"),
    ("reward-attributes", {"low": 4}, "range 4 .. 4"),
    ("dpo", {"loss": "sigmoids"}, "loss 'sigmoids'"),
    ("dpo", {"beta": 0.0}, "beta 0.0"),
    ("dpo", {"loss": "cdpo"}, "needs label_smoothing"),
    ("dpo", {"loss": "robust", "label_smoothing": 0.5}, "needs label_smoothing"),
    ("dpo", {"label_smoothing": 0.1}, "ignores label_smoothing"),
    ("dpo", {"truncated": "no"}, "truncated 'no'"),
    ("curriculum-dpo", {"direction": "up"}, "direction 'up'"),
    ("curriculum-dpo", {"by": "chance"}, "by 'chance'"),
    ("curriculum-dpo", {"hard_share": 0.0}, "hard_share 0.0"),
    ("curriculum-dpo", {"hard_share": 1.0}, "hard_share 1.0"),
    ("curriculum-dpo", {"beta": -1.0}, "beta -1.0"),
    ("curriculum-dpo", {"truncated": "x"}, "truncated 'x'"),
    ("rso", {"beta": -0.1}, "beta -0.1"),
    ("rso", {"gamma": 0.0}, "gamma 0.0"),
    ("rso", {"accepted": 1}, "accepted 1"),
    ("rso", {"pairs": "all"}, "pairs 'all'"),
    ("rso", {"loss": "sigmoid"}, "loss 'sigmoid'"),
    ("rso", {"penalty": -1.0}, "penalty -1.0"),
    ("rrhf", {"rank_coef": -1.0}, "rank_coef -1.0"),
    ("rrhf", {"sft_coef": -1.0, "rank_coef": 2.0}, "sft_coef -1.0"),
    ("rrhf", {"sft_coef": 0.0, "rank_coef": 0.0}, "not both 0"),
    ("rrhf", {"size": 1}, "size 1"),
    ("rrhf", {"truncated": "x"}, "truncated 'x'"),
    ("pro", {"sft_coef": -0.1}, "sft_coef -0.1"),
    ("pro", {"size": -1}, "size -1"),
    ("pro", {"truncated": "x"}, "truncated 'x'"),
    ("filtered", {"quantile": 1.0}, "quantile 1.0"),
    ("filtered", {"quantile": -0.1}, "quantile -0.1"),
    ("filtered", {"truncated": "x"}, "truncated 'x'"),
    *(("rwr", {name: 0.0}, f"{name} 0.0") for name in ("beta", "max_weight", "score_std", "normaliser")),
    ("rwr", {"truncated": "x"}, "truncated 'x'"),
    ("conditional", {"decimals": -1}, "decimals -1"),
    ("conditional", {"score_std": 0.0}, "score_std 0.0"),
    ("conditional", {"truncated": "x"}, "truncated 'x'"),
    ("steerlm", {"attributes": ()}, "attributes"),
    ("steerlm", {"attributes": ("a", "b", "a")}, "each once"),
    ("steerlm", {"high": 0}, "range 0 .. 0"),
    ("steerlm", {"wanted": (1,)}, "1 wanted levels for 5"),
    ("steerlm", {"wanted": (0, 1, 2, 3, 5)}, "want levels in 0 .. 4"),
    ("steerlm", {"wanted": (0, 1, 2, 3, -1)}, "want levels in 0 .. 4"),
    ("steerlm", {"scale": "raw"}, "scale 'raw'"),
    ("steerlm", {"truncated": "x"}, "truncated 'x'"),
    *(("remax", {name: -1.0}, f"{name} -1.0") for name in ("kl_coef", "clip", "missing_eos_value")),
    ("remax", {"gamma": 1.1}, "gamma 1.1"),
    ("remax", {"gamma": -0.1}, "gamma -0.1"),
    ("remax", {"missing_eos": "drop"}, "missing_eos 'drop'"),
    *(("rloo", {name: -1.0}, f"{name} -1.0") for name in ("kl_coef", "clip", "missing_eos_value")),
    ("rloo", {"clip": 1.0}, "clip 1.0"),
    ("rloo", {"missing_eos": "drop"}, "missing_eos 'drop'"),
    *(("grpo", {name: -1}, f"{name} -1") for name in ("kl_coef", "clip", "missing_eos_value", "length_constant")),
    ("grpo", {"clip": 1.0}, "clip 1.0"),
    ("grpo", {"kl_estimator": "k1"}, "kl_estimator 'k1'"),
    ("grpo", {"scale": "batch"}, "scale 'batch'"),
    ("grpo", {"missing_eos": "drop"}, "missing_eos 'drop'"),
    *(
        ("ppo", {name: value}, f"{name} '?{value}'?")
        for name, value in (
            *(("kl_estimator", "k4"), ("kl_control", "auto"), ("missing_eos", "drop"), ("reward_scaling", "z")),
            *((name, -1.0) for name in ("kl_coef", "missing_eos_value", "reward_clip", "advantage_clip", "clip")),
            *((name, -1.0) for name in ("value_clip", "vf_coef", "entropy_coef", "entropy_clip")),
            *(("kl_coef", float("inf")), ("gamma", 1.5), ("lam", -0.5), ("kl_target", 0.0), ("kl_horizon", 0.0)),
            *(("kl_target", float("inf")), ("clip", 1.0)),
        )
    ),
    ("ppo", {"entropy_clip": 2.0}, "entropy_clip without entropy_coef"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD, ids=[f"{n}-{s}" for n, s, _ in BAD])
def test_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        methods.load(name).Config(**settings)
    assert str(error.value).startswith(f"{name}: ") and "\n" not in str(error.value)


EDGES = [
    ("rejection", {"penalty": 0.0}),
    ("reward", {"safety_weight": 0.0}),
    ("rso", {"beta": 0.0, "accepted": 2}),
    ("rrhf", {"rank_coef": 0.0, "size": 2}),
    ("rrhf", {"sft_coef": 0.0, "size": 0}),
    ("pro", {"sft_coef": 0.0, "size": 0}),
    ("filtered", {"quantile": 0.0}),
    ("conditional", {"decimals": 0}),
    ("steerlm", {"wanted": (0, 4, 0, 4, 2)}),
    ("remax", {"gamma": 0.0, "kl_coef": 0.0, "clip": 0.0, "missing_eos_value": 0.0}),
    ("rloo", {"kl_coef": 0.0, "clip": 0.0, "missing_eos_value": 0.0}),
    ("grpo", {"kl_coef": 0.0, "clip": 0.0, "missing_eos_value": 0.0, "length_constant": 0}),
    ("ppo", {"gamma": 0.0, "lam": 0.0, "kl_coef": 0.0, "vf_coef": 0.0, "clip": 0.0, "missing_eos_value": 0.0}),
    ("ppo", {"gamma": 1.0, "lam": 1.0, "entropy_coef": 0.1, "entropy_clip": 1.0}),
]


@pytest.mark.parametrize(("name", "settings"), EDGES, ids=[f"{n}-{s}" for n, s in EDGES])
def test_the_edges_are_allowed(name: str, settings: dict) -> None:
    methods.load(name).Config(**settings)


@pytest.mark.parametrize("name", methods.names())
def test_defaults_are_allowed(name: str) -> None:
    methods.load(name).Config()
