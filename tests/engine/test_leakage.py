"""Planted leaks are all found, natural likeness is not taken for one, and splits do not move."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.certify import Leakage
from configs.recipes import Ingest, Source
from configs.runtime import Runtime
from engine import ingest, leakage
from engine.job import Job
from engine.overlap import Text, search, words
from storage.rows import read_rows, write_rows

SUBJECTS = ("a wooden bridge", "an old radio", "my tomato plants", "the town library", "a sailing boat", "our choir",
            "the night train", "a bread oven", "my bicycle chain", "the harbour museum", "a rain barrel",
            "a stone wall")  # fmt: skip
TASKS = ("repair {} before the winter storms arrive", "describe {} to somebody who has never seen one",
         "plan a weekend around {} with two small children", "write a short speech about {} for the mayor",
         "list three reasons why {} is worth more money than neighbours think")  # fmt: skip
ENDINGS = ("without spending much", "and keep it under a page", "in plain words", "as if it were 1920", "for my aunt")


def prompts(count: int, seed: int = 0) -> list[str]:
    """Different requests that share subjects and phrases, as people's do."""
    rng = random.Random(seed)
    every = [f"Please {task.format(subject)} {ending}." for task in TASKS for subject in SUBJECTS for ending in ENDINGS]
    return rng.sample(every, count)


EVALUATION = (
    "How should a beekeeper move three hives across the valley before the lime trees start to flower?",
    "Which knots hold best when a wet rope carries a heavy anchor over sharp granite rocks?",
    "Why did the clockmaker of Strasbourg hide a second pendulum behind the painted zodiac?",
    "What would happen to the village well if the quarry pumped water all through the summer?",
)
RESPONSE = (
    "Move the hives on a cold evening, close every entrance with wire mesh, and wait two days before you open "
    "them again near the lime trees."
)
LEAKS = (
    EVALUATION[0],
    "  which knots hold BEST, when a wet rope carries a heavy anchor over sharp granite rocks ",
    EVALUATION[2] + " Answer in the voice of his youngest apprentice, please, and mention the bells.",
    "What would happen to the village spring if the quarry drained water all through the summer?",
)


def rows(texts: Sequence[str], kind: str, response: str = "Yes.") -> list[dict[str, Any]]:
    found = []
    for i, text in enumerate(texts):
        turns = [{"role": "user", "content": text}]
        row = {"id": f"{kind}{i}", "messages": turns, "category": "c", "is_safety": False, "source": kind}
        if kind == "demonstration":
            row["messages"] = [*turns, {"role": "assistant", "content": f"Gladly, take {i}." if i else response}]
        if kind == "pair":
            row |= {
                "prompt_id": row.pop("id"),
                "chosen": response,
                "rejected": "No.",
                "kind": "helpfulness",
                "annotator": "human",
            }
        found.append(row)
    return found


def store(folder: Path, schema: str, train: list[dict[str, Any]], held: list[dict[str, Any]]) -> Path:
    write_rows(folder / "rows.parquet", schema, train)
    write_rows(folder / "held_out.parquet", schema, held)
    return folder


def screen(tmp_path: Path, leaks: Sequence[str] = (), copied: str = "", **settings: Any) -> dict[str, Any]:
    """The stage on 200 training prompts with the leaks among them; `copied` is a demonstration's response."""
    texts = prompts(260)
    train, held = rows([*texts[:200], *leaks], "prompt"), rows([*EVALUATION, *texts[200:]], "prompt")
    pairs, judged = rows(texts[:50], "pair"), rows(EVALUATION[:1], "pair", RESPONSE)
    given = {
        "prompts": store(tmp_path / "p", "Prompt", train, held),
        "preferences": store(tmp_path / "q", "Preference", pairs, judged),
        "demonstrations": store(tmp_path / "d", "Example", rows(texts[:100], "demonstration", copied or "Gladly."), []),
    }
    out = tmp_path / "out"
    out.mkdir()
    return leakage.run(Job("leakage", Leakage(**settings), given, out, Runtime()))


def listed(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / "leaks.jsonl").read_text().splitlines()]


def test_all_five_planted_leaks_are_found_and_named(tmp_path: Path) -> None:
    found = screen(tmp_path, LEAKS, copied=RESPONSE)
    by_text = {row["text"]: row for row in listed(tmp_path)}
    kinds = [by_text[text]["kind"] for text in EVALUATION]
    assert kinds == ["verbatim", "respelled", "appended", "near"]
    copied = by_text[RESPONSE]
    assert (copied["what"], copied["kind"]) == ("responses", "verbatim")
    assert copied["found_in"].startswith("demonstrations")
    assert not found["passed"] and found["prompts"]["verbatim"] == found["prompts"]["respelled"] == 1
    assert found["problems"][0] == "2 of 64 evaluation prompts stand in the training rows, none wanted"


def test_prompts_that_are_merely_alike_are_counted_and_accepted(tmp_path: Path) -> None:
    found = screen(tmp_path)
    assert found["passed"] and found["prompts"]["natural"] > 0.3 and found["prompts"]["beyond"] == 0
    assert {row["kind"] for row in listed(tmp_path)} == {"near"}
    assert not {row["text"] for row in listed(tmp_path)} & set(EVALUATION)


def test_a_wholesale_paraphrase_is_refused_where_likeness_is_not_natural(tmp_path: Path) -> None:
    rng = random.Random(3)
    nouns = [
        f"{a}{b}" for a in ("bar", "cel", "dor", "fen", "gil", "hob", "jun", "kes") for b in ("ta", "mo", "ri", "lu")
    ]
    texts = [" ".join(rng.sample(nouns, 12)) for _ in range(120)]
    changed = [" ".join([*text.split()[:5], "other", *text.split()[6:]]) for text in texts[:60]]
    corpus = [Text(f"t{i}", text) for i, text in enumerate([*texts[60:], *changed])]
    numbers, found = leakage.compare([Text(f"e{i}", text) for i, text in enumerate(texts[:60])], corpus, Leakage())
    assert {leak.kind for leak in found} == {"near"} and len(found) == 60 and numbers["natural"] < 0.1
    assert leakage.judge(numbers, "prompts", Leakage())[0].startswith("100% of the evaluation prompts have a near-dup")


def test_recording_is_not_refusing(tmp_path: Path) -> None:
    found = screen(tmp_path, LEAKS, on_leak="record")
    assert found["on_leak"] == "record" and found["problems"]
    assert Leakage.model_validate("record") == Leakage(on_leak="record")


def test_words_ignore_case_punctuation_and_spacing() -> None:
    assert words("  It's  \uff26ULL-width,\n isn't it? ") == ["it", "s", "full", "width", "isn", "t", "it"]


def test_a_text_is_no_leak_of_itself_and_empty_texts_are_nobodys() -> None:
    texts = [Text("row 1", "one two three four"), Text("row 2", "?!"), Text("row 3", "")]
    assert search(texts, texts, 0.6) == []
    assert [leak.kind for leak in search(texts, [Text("row 9", "One two, three four")], 0.6)] == ["respelled"]


def test_what_everybody_says_is_weighed_less() -> None:
    """Of two texts that share as many words with another, the one that shares the rare ones is nearer."""
    filler = [Text(f"f{i}", f"please tell me what you think of the number {i}") for i in range(100)]
    corpus = [*filler, Text("x", "please tell me what you think of violet umbrellas in gale season")]
    asked = [
        Text("a", "explain violet umbrellas in gale season"),
        Text("b", "please tell me what you think of the moon"),
    ]
    found = {leak.text.place: leak for leak in search(asked, corpus, 0.6)}
    assert found["a"].found.place == "x" and "b" not in found


@pytest.mark.parametrize("seed", [1, 2])
def test_splits_do_not_move_when_rows_are_appended_or_reordered(tmp_path: Path, seed: int) -> None:
    texts = prompts(150, seed)

    def sides(name: str, given: list[str]) -> tuple[set[str], set[str]]:
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in given))
        recipe = Ingest(rows="prompts", sources=(Source(path=str(source)),), held_out=0.3)
        out = tmp_path / name
        out.mkdir()
        ingest.run(Job("ingest", recipe, {}, out, Runtime()))
        train, held = (
            {row["messages"][0]["content"] for row in read_rows(out / file)}
            for file in ("rows.parquet", "held_out.parquet")
        )
        return train, held

    train, held = sides("first", texts[:100])
    shuffled = random.Random(seed).sample(texts, len(texts))
    more_train, more_held = sides("more", shuffled)
    assert train <= more_train and held <= more_held and not more_train & more_held
    assert 15 < len(held) < 45
    respelled, _ = sides("respelled", [f"  {text.upper()} " for text in train])
    assert len(respelled) == len(train)  # the side is that of the normalised text
