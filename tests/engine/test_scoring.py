"""engine.scoring: raw scores that depend on the row alone (traps T11, T15, T75, T85)."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.recipes import Limits
from configs.runtime import Runtime
from engine import scoring
from engine.errors import StageError
from engine.scoring import load_scorers, names, score_all, score_texts

LIMITS = Limits(prompt_tokens=60, response_tokens=20)
TALK = [{"role": "user", "content": "tell me about rain"}]
ROWS = [(TALK, "it rains"), (TALK, "the old tree sings in the rain"), ([*TALK, {"role": "assistant", "content": "no"},
        {"role": "user", "content": "why?"}], "because"), (TALK, "it rains"), (TALK, "")]  # fmt: skip


def alone(scorer: Any, row: Any) -> float:
    """The reference: one sequence without padding through the model's own head."""
    ids = scorer.chat.prompt_ids(row[0]) + scorer.chat.response_ids(row[1])
    with torch.inference_mode():
        return float(scorer.model(torch.tensor([ids])).logits[0, 0])


def test_scores_are_the_models_own_whatever_the_batch(rewards: list[Path]) -> None:
    for scorer in load_scorers(rewards, Runtime()):
        wanted = [alone(scorer, row) for row in ROWS]
        assert len({round(w, 4) for w in wanted}) == 4  # rows 0 and 3 are the same
        for size in (1, 2, 64):
            assert score_texts(scorer.model, scorer.chat, ROWS, LIMITS, size) == pytest.approx(wanted, abs=1e-4)
        backwards = score_texts(scorer.model, scorer.chat, ROWS[::-1], LIMITS, 3)
        assert backwards[::-1] == pytest.approx(wanted, abs=1e-4)


def test_a_model_left_in_training_mode_scores_the_same(rewards: list[Path]) -> None:
    scorer = load_scorers(rewards, Runtime())[0]
    first = score_texts(scorer.model, scorer.chat, ROWS, LIMITS, 4)
    for layer in scorer.model.model.layers:
        layer.self_attn.attention_dropout = 0.5  # what training mode would do
    scorer.model.train()
    assert score_texts(scorer.model, scorer.chat, ROWS, LIMITS, 4) == first


def test_token_ids_are_scored_as_they_are(rewards: list[Path]) -> None:
    scorer = load_scorers(rewards, Runtime())[0]
    ids = scorer.chat.response_ids("it rains")
    rows: list[Any] = [(TALK, "it rains"), (TALK, ids), (TALK, ids[:-1])]
    found = score_texts(scorer.model, scorer.chat, rows, LIMITS, 4)
    assert found[0] == found[1] and abs(found[1] - found[2]) > 1e-4  # the EOS is read


def test_what_is_too_long_is_cut_or_refused(rewards: list[Path]) -> None:
    scorer = load_scorers(rewards, Runtime())[0]
    ids = scorer.chat.response_ids("the old tree sings in the rain")
    short = Limits(prompt_tokens=60, response_tokens=4)
    rows: list[Any] = [(TALK, "the old tree sings in the rain"), (TALK, ids[:4])]
    assert len(set(score_texts(scorer.model, scorer.chat, rows, short, 4))) == 1
    with pytest.raises(StageError, match=r"longer than limits\.prompt_tokens 2"):
        score_texts(scorer.model, scorer.chat, ROWS, Limits(prompt_tokens=2), 4)
    with pytest.raises(StageError, match="without tokens"):
        score_texts(scorer.model, scorer.chat, [(TALK, [])], LIMITS, 4)


def test_kinds_without_a_model_have_no_scores(rewards: list[Path]) -> None:
    texts = [(messages, text) for messages, text in ROWS]
    both = score_all(load_scorers(rewards, Runtime()), texts, LIMITS, 8)
    one = score_all(load_scorers(rewards[:1], Runtime()), texts, LIMITS, 8)
    assert one["helpfulness"] == both["helpfulness"] and one["safety"] == [None] * 5
    assert None not in both["safety"] and both["safety"] != both["helpfulness"]


def test_reward_models_are_named_by_their_weights(rewards: list[Path]) -> None:
    assert names(load_scorers(rewards, Runtime())) != names(load_scorers(rewards[::-1], Runtime()))
    assert names([]) == ""
    with pytest.raises(StageError, match="3 reward models given"):
        load_scorers([*rewards, rewards[0]], Runtime())


def test_a_reward_model_with_another_template_is_refused(rewards: list[Path], tmp_path: Path) -> None:
    """T11: the policy writes one text, the reward model would read another."""
    scorer = load_scorers(rewards[:1], Runtime())[0]
    load_scorers(rewards, Runtime(), scorer.chat.fingerprint)
    with pytest.raises(StageError, match="the helpfulness reward model has template and tokenizer"):
        load_scorers(rewards, Runtime(), "another")
    other = tmp_path / "other"
    shutil.copytree(rewards[0], other)
    card = json.loads((other / "roundhouse.json").read_text())
    card["template"]["user"] = "Human: {content}\n"
    (other / "roundhouse.json").write_text(json.dumps(card))
    with pytest.raises(StageError, match="fingerprint"):
        load_scorers([other], Runtime())


def test_a_broken_reward_model_is_named(rewards: list[Path]) -> None:
    scorer = load_scorers(rewards, Runtime())[0]
    with torch.no_grad():
        scorer.model.score.weight[0, 0] = math.nan
    with pytest.raises(StageError, match="score that is not finite"):
        score_texts(scorer.model, scorer.chat, ROWS, LIMITS, 4)


def test_equal_rows_are_computed_once(rewards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, seen, real = load_scorers(rewards, Runtime())[0], [], scoring.arrange

    def counted(pairs: Any, **more: Any) -> Any:
        seen.append(len(pairs))
        return real(pairs, **more)

    monkeypatch.setattr(scoring, "arrange", counted)
    score_texts(scorer.model, scorer.chat, ROWS * 3, LIMITS, 64)
    assert seen == [4]


def test_reward_models_that_read_alike_share_tokens_and_layout(
    rewards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 rows, 4 of them different: one layout for both models, and the scores that each gives by itself."""
    scorers, seen, real = load_scorers(rewards, Runtime()), [], scoring.arrange
    alone = {s.kind: score_texts(s.model, s.chat, ROWS, LIMITS, 64) for s in scorers}

    def counted(pairs: Any, **more: Any) -> Any:
        seen.append(len(pairs))
        return real(pairs, **more)

    monkeypatch.setattr(scoring, "arrange", counted)
    assert score_all(scorers, ROWS, LIMITS, 64) == alone
    assert seen == [4]
