"""Official scoring from tables made by hand, every known form of file, and real models scored two ways."""

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    GPT2Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from engine import panel, suites
from engine.errors import StageError
from engine.suites import PRIOR, SECTIONS, Question, best_of, first, score, ties
from engine.template import CARD, load_chat

SHARED = Path(os.environ.get("ROUNDHOUSE_DATA") or Path(__file__).resolve().parents[3] / "shared")
EVERY = [name for section in SECTIONS.values() for name in section]


def question(name: str, subset: str, count: int = 2, correct: int = 1) -> Question:
    return Question(name, subset, [{"role": "user", "content": "why?"}], tuple(f"r{i}" for i in range(count)), correct)


def test_sections_are_weighted_by_the_published_counts() -> None:
    """Worked by hand. Chat: (100 + 95 + 0 + 28/2 + 40/4) / 358 = 219/358. Safety: only should-respond right, 250/740."""
    table = dict.fromkeys(EVERY, 0.0)
    table |= {"alpacaeval-easy": 1.0, "alpacaeval-length": 1.0, "mt-bench-easy": 0.5, "mt-bench-med": 0.25}
    table |= {"xstest-should-respond": 1.0, "math-prm": 1.0, "llmbar-adver-neighbor": 1.0}
    found = first(table)
    assert found["sections"] == pytest.approx(
        {"Chat": 219 / 358, "Chat Hard": 134 / 456, "Safety": 250 / 740, "Reasoning": 0.5}  # T80
    )
    assert found["score"] == pytest.approx((219 / 358 + 134 / 456 + 250 / 740 + 0.5) / 4)


def test_prior_sets_count_half() -> None:
    """ArmoRM's published sections: (96.9 + 76.8 + 92.2 + 97.3 + 0.5 * 74.3) / 4.5 = 88.97."""
    sections = {"Chat": 96.9, "Chat Hard": 76.8, "Safety": 92.2, "Reasoning": 97.3}
    table = {name: sections[section] for section in SECTIONS for name in SECTIONS[section]}
    found = first({**table, **dict.fromkeys(PRIOR, 74.3)})
    assert found["score"] == pytest.approx(88.9667, abs=1e-4) and found["sections"]["Prior Sets"] == pytest.approx(74.3)
    assert first(table)["score"] == pytest.approx((96.9 + 76.8 + 92.2 + 97.3) / 4)


@pytest.mark.parametrize("gone", ["math-prm", "donotanswer", "mt-bench-med"])
def test_a_missing_subset_is_an_error_and_not_a_bad_score(gone: str) -> None:  # T81
    with pytest.raises(StageError, match=f"missing {gone}"):
        first({name: 1.0 for name in EVERY if name != gone})
    with pytest.raises(StageError, match="missing anthropic_hhh, summarize"):
        first({**dict.fromkeys(EVERY, 1.0), "anthropic_helpful": 1.0, "shp": 1.0})
    with pytest.raises(StageError, match="no subset hep-cobol"):
        first({**dict.fromkeys(EVERY, 1.0), "hep-cobol": 1.0})
    domains = [
        question(f"q{i}", name, 4) for i, name in enumerate(("Factuality", "Math", "Focus", "Safety", "Precise IF"))
    ]
    with pytest.raises(StageError, match="needs all of its domains; missing Ties"):
        score(domains, [[1.0, 0, 0, 0]] * 5)
    every = [*domains, question("tied:1", "Ties", 3, 2), question("ref:1", "Ties", 2), question("q9", "Poetry", 4)]
    with pytest.raises(StageError, match="has no domain poetry"):
        score(every, [[1.0] * len(q.responses) for q in every])
    assert score([question("q9", "Poetry", 4)], [[1.0, 0, 0, 0]])["suite"] == "best of several"


def test_equal_scores_are_wrong_in_the_first_and_share_in_the_second() -> None:
    pairs = [question(f"p{i}", name) for i, name in enumerate(EVERY)]
    assert score(pairs, [[1.0, 1.0]] * len(pairs))["score"] == 0.0
    assert score(pairs, [[1.0, 0.5]] * len(pairs))["score"] == 1.0
    assert best_of([1.0] * 4) == 0.25 and best_of([2.0, 2.0, 1.0, 0.0]) == 0.5 and best_of([0.0, 1.0, 0.0, 0.0]) == 0.0


def test_pairs_have_intervals_and_prior_sets_alone_no_score() -> None:
    """2 of 4 right: Wilson (2 + 1.9207) / (4 + 3.8415) -+ 1.96 / 7.8415 * sqrt(1 + 0.9604) = 0.5 -+ 0.350."""
    asked = [question(f"q{i}", "mine") for i in range(4)]
    found = score(asked, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert found["suite"] == "local" and found["score"] == 0.5
    assert (
        found["interval"] == pytest.approx([0.150, 0.850], abs=5e-4) and found["intervals"]["mine"] == found["interval"]
    )
    prior = [question(f"q{i}", name) for i, name in enumerate(PRIOR)]
    found = score(prior, [[1.0, 0.0]] * 4)
    assert found["suite"] == "prior sets only" and found["score"] is None and found["subsets"]["shp"] == 1.0
    assert score([*prior, *asked], [[1.0, 0.0]] * 8)["suite"] == "local"


def test_ties_by_hand() -> None:
    """N = 1: gap 2 - 1 = 1, spread 3 - 2 = 1, reference gap 0.5. N = 2: gap 3, spread 1, reference gap 4.

    tied 1, ref 1; preferred (only 3 > 1) 0.5; hard: min(0.5, 1) > 1 no, min(4, 3) > 1 yes: 0.5;
    margin (tanh(0.5 - 1) + tanh(3 - 1)) / 2 = (-0.462117 + 0.964028) / 2 = 0.250955.
    """
    answered = [
        (question("tied:1", "Ties", 4, 2), [3.0, 2.0, 1.0, 0.0]),
        (question("ref:1", "Ties", 3), [1.5, 1.0, 0.0]),
        (question("tied:2", "Ties", 3, 2), [5.0, 4.0, 1.0]),
        (question("ref:2", "Ties", 2), [5.0, 1.0]),
    ]
    found = ties(answered)
    assert found["margin"] == pytest.approx(0.250955, abs=1e-6)
    assert found["score"] == pytest.approx(0.3 + 0.3 + 0.1 + 0.1 + 0.01 * 0.250955, abs=1e-6)
    with pytest.raises(StageError, match="alone: 2"):
        ties(answered[:3])
    assert ties([(q, [1.0] * len(s)) for q, s in answered])["score"] == 0.0  # 0/0 in the margin counts as 0


def test_second_suite_is_the_plain_mean_of_its_domains() -> None:
    asked = [
        question(f"q{i}", name, 4) for i, name in enumerate(("Factuality", "Precise IF", "Math", "Safety", "Focus"))
    ]
    asked += [question("tied:7", "Ties", 3, 2), question("ref:7", "Ties", 2)]
    scores = [[1.0, 0, 0, 0], [1.0, 1.0, 0, 0], [0, 1.0, 0, 0], [1.0] * 4, [1.0, 0, 0, 0], [3.0, 3.0, 0.0], [1.0, 0.0]]
    found = score(asked, scores)
    assert found["suite"] == "RewardBench 2"
    assert [found["subsets"][q.subset] for q in asked[:5]] == [1.0, 0.5, 0.0, 0.25, 1.0]
    assert found["score"] == pytest.approx((2.75 + found["subsets"]["Ties"]) / 6) and found["subsets"]["Ties"] > 0.99


def test_every_known_form_is_read(tmp_path: Path) -> None:
    published = {
        "prompt": "why?",
        "chosen": "a",
        "chosen_model": "m",
        "rejected": "b",
        "rejected_model": "n",
        "subset": "hep-go",
        "id": 7,
    }
    pq.write_table(pa.Table.from_pylist([published]), tmp_path / "one.parquet")
    (tmp_path / "two.json").write_text(
        json.dumps(
            [
                {
                    "id": "tied:3",
                    "prompt": "why?",
                    "chosen": ["a", "c"],
                    "rejected": ["b"],
                    "num_correct": 2,
                    "subset": "Ties",
                }
            ]
        )
    )
    turns = [
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "what?"},
        {"role": "user", "content": "that"},
    ]
    said = [[*turns, {"role": "assistant", "content": text}] for text in ("a", "b")]
    (tmp_path / "three.jsonl").write_text(json.dumps({"chosen": said[0], "rejected": said[1]}) + "\n")
    (tmp_path / "llm.jsonl.gz").write_bytes(
        gzip.compress(
            b'{"input": "\\n\\nHuman: hi\\n\\nAssistant: yes?\\n\\nHuman: why?", "output_1": "b", "output_2": "a", "label": 2}'
        )
    )
    wrapped = "x\n###The instruction to evaluate:\nwhy?\n\n###Response to evaluate:\n{}\n\n###Score Rubrics:\ny"
    (tmp_path / "hhh.jsonl").write_text(
        json.dumps(
            {"source": "honest", "chosen_instruction": wrapped.format("a"), "rejected_instruction": wrapped.format("b")}
        )
    )
    found = {q.subset: q for q in suites.load(tmp_path)}
    assert set(found) == {"hep-go", "Ties", "three", "llm", "honest"}
    assert all(
        q.responses[0] == "a" and q.responses[-1] == "b" and q.messages[-1]["role"] == "user" for q in found.values()
    )
    assert found["Ties"].correct == 2 and found["Ties"].responses == ("a", "c", "b") and found["hep-go"].name == "7"
    assert found["three"].messages == turns and [m["content"] for m in found["llm"].messages] == ["hi", "yes?", "why?"]


def test_the_published_folders_are_read_as_they_are_scored(tmp_path: Path) -> None:
    """Of RewardBench the filtered split alone; a prior set is named by its file, not by its rows."""
    row = {"prompt": "why?", "chosen": "a", "rejected": "b", "subset": "hep-go", "id": 1}
    (tmp_path / "data").mkdir()
    for name, count in (("train-00000-of-00001", 3), ("filtered-00000-of-00001", 2)):
        pq.write_table(pa.Table.from_pylist([row] * count), tmp_path / "data" / f"{name}.parquet")
    assert [q.subset for q in suites.load(tmp_path)] == ["hep-go"] * 2
    pq.write_table(pa.Table.from_pylist([{**row, "subset": "askscience"}]), tmp_path / "shp-00000-of-00001.parquet")
    assert [q.subset for q in suites.load(tmp_path / "shp-00000-of-00001.parquet")] == ["shp"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"prompt": "x", "chosen": "a"}', "row 1: column 'rejected' is missing; it has chosen, prompt"),
        ('{"input": "x", "output_1": "a", "output_2": "b", "label": 3}', "label 3: want 1 or 2"),
        ('{"prompt": "x", "chosen": ["a"], "rejected": ["b"], "num_correct": 2}', "num_correct 2, but 1 chosen"),
        ("not json", "cannot be read"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(StageError) as caught:
        suites.load(tmp_path)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"question {i}?", "chosen": f"a red fox {i}", "rejected": "a tree" * (i + 1), "subset": f"s{i % 2}"}
        for i in range(6)
    ]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "suite.jsonl"


def run(suite: Path, model: Path, reference: Path | None = None, rows: int = 4) -> dict[str, Any]:
    return panel.evaluate(suite, model, reference, rows, lambda done, total: None)


def test_a_model_of_ours_and_the_same_folder_as_a_stranger_agree(
    suite: Path, rewards: list[Path], tmp_path: Path
) -> None:
    """Without its card the folder is read by its chat template and its own forward: the same tokens, the same scores."""
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for file in rewards[0].iterdir():
        if file.name != CARD:
            (stranger / file.name).write_bytes(file.read_bytes())
    ours, theirs = run(suite, rewards[0]), run(suite, stranger)
    assert ours == theirs and ours["questions"] == 6 and set(ours["subsets"]) == {"s0", "s1"}
    chat, plain = load_chat(rewards[0]), AutoModelForSequenceClassification.from_pretrained(rewards[0]).eval()
    right = []
    for asked in suites.load(suite):
        ids = [torch.tensor([chat.prompt_ids(asked.messages) + chat.response_ids(text)]) for text in asked.responses]
        right.append(plain(ids[0]).logits.item() > plain(ids[1]).logits.item())
    assert ours["score"] == pytest.approx(sum(right) / 6)


def test_implicit_reward_is_the_difference_of_log_probs(suite: Path, policies: dict[str, Path], tmp_path: Path) -> None:
    """Worked with plain transformers; a policy against itself has equal scores, which are all wrong."""
    from engine.models import load_policy, save_model

    chat, moved = load_chat(policies["llama"]), load_policy(policies["llama"], panel.Runtime())
    generator = torch.Generator().manual_seed(3)
    for parameter in moved.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_model(moved, chat, tmp_path / "moved", "policy")
    assert run(suite, policies["llama"], policies["llama"])["score"] == 0.0
    found = run(suite, tmp_path / "moved", policies["llama"])
    assert found["kind"] == "implicit"
    strangers = [tmp_path / "a", tmp_path / "b"]
    for folder, source in zip(strangers, (tmp_path / "moved", policies["llama"])):
        shutil.copytree(source, folder)
        (folder / CARD).unlink()
    assert run(suite, *strangers) == found  # read by their chat template, the same
    with pytest.raises(StageError, match="one is a model of ours and one is not"):
        run(suite, tmp_path / "moved", strangers[1])
    both = [AutoModelForCausalLM.from_pretrained(f).eval() for f in (tmp_path / "moved", policies["llama"])]
    right = []
    for asked in suites.load(suite):
        values = []
        for text in asked.responses:
            prompt, response = chat.prompt_ids(asked.messages), chat.response_ids(text)
            ids = torch.tensor([prompt + response])
            with torch.no_grad():
                gaps = [m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in both]
            at = torch.tensor(response)[:, None]
            values.append(float((gaps[0].gather(1, at) - gaps[1].gather(1, at)).sum()))
        right.append(values[0] > values[1])
    assert found["score"] == pytest.approx(sum(right) / 6)


def test_a_model_of_the_other_kind_is_refused(suite: Path, policy: Path, rewards: list[Path], tmp_path: Path) -> None:
    for pair in ((rewards[0], policy), (policy, rewards[0])):
        with pytest.raises(StageError, match="a reward model, no policy; --reference is for a policy"):
            run(suite, *pair)
    for name, source in (("reward", rewards[0]), ("policy", policy)):  # strangers: by their architecture
        shutil.copytree(source, tmp_path / name)
        (tmp_path / name / CARD).unlink()
    with pytest.raises(StageError, match="a reward model, no policy"):
        run(suite, tmp_path / "reward", tmp_path / "policy")
    with pytest.raises(StageError, match="a policy, no reward model; give --reference"):
        run(suite, tmp_path / "policy")
    config = json.loads((tmp_path / "reward/config.json").read_text())
    labels = {"id2label": {str(i): f"L{i}" for i in range(3)}, "label2id": {f"L{i}": i for i in range(3)}}
    (tmp_path / "reward/config.json").write_text(json.dumps({**config, **labels}))
    with pytest.raises(StageError, match="a classifier of 3 labels, no reward model; want one with a single output"):
        run(suite, tmp_path / "reward")


def test_batches_do_not_matter_and_long_texts_are_cut(suite: Path, rewards: list[Path], tmp_path: Path) -> None:
    assert run(suite, rewards[0], rows=1) == run(suite, rewards[0], rows=12)
    assert panel.fit(([1] * 10, [2] * 10), 12) == ([1] * 6, [2] * 6)
    assert panel.fit(([1] * 3, [2] * 20), 12) == ([1] * 3, [2] * 9)
    assert panel.fit(([0, *[1] * 20], [2] * 3), 12) == ([1] * 9, [2] * 3)
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "why " * 300, "chosen": "a", "rejected": "b"}))
    assert run(tmp_path / "long.jsonl", rewards[0])["cut"] == 2


def test_a_policy_alone_is_refused(suite: Path, policy: Path, rewards: list[Path]) -> None:
    with pytest.raises(StageError, match="a policy, no reward model; give --reference"):
        run(suite, policy)


@pytest.mark.parametrize(("name", "subsets"), [("llmbar", 4), ("hhh_alignment", 4)])
def test_shared_suites_are_read_whole(name: str, subsets: int) -> None:
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not there; set ROUNDHOUSE_DATA")
    found = suites.load(folder)
    assert len(found) == {"llmbar": 566, "hhh_alignment": 221}[name] and len({q.subset for q in found}) == subsets
    assert all(len(q.responses) == 2 and q.messages[0]["content"].strip() for q in found)  # some responses are empty


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 2,
         "initializer_range": 0.3}  # fmt: skip
STRANGERS: dict[str, Any] = {
    "gpt2": GPT2Config(
        vocab_size=400, n_positions=256, n_embd=32, n_layer=2, n_head=2, pad_token_id=2, initializer_range=0.3
    ),
    "qwen2": Qwen2Config(**SMALL, intermediate_size=64, num_key_value_heads=1, max_position_embeddings=256),
    "bert": BertConfig(**SMALL, intermediate_size=64, max_position_embeddings=256),
    "deberta-v2": DebertaV2Config(**SMALL, intermediate_size=64, max_position_embeddings=256, type_vocab_size=0),
}


def bytes_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, alphabet = ["<|im_start|>", "<|im_end|>", "<|pad|>"], pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|im_end|>")


TEMPLATES = {
    "newline": CHATML,
    "space": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "glued": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece"])
def test_a_text_is_encoded_whole_and_cut_where_the_response_begins(kind: str, template: str) -> None:
    """Also where a token reaches over the seam (a space and a word): it belongs to the response."""
    said = ["a red fox sang", " once upon a time", "\u00e9t\u00e9 \U0001f642", "42."]
    if kind == "byte-level":
        tokenizer = bytes_tokenizer([*said, "assistant: a", "user: why?\n"] * 3)
    else:
        folder = SHARED / "models/stories260K"
        if not folder.is_dir():
            pytest.skip("stories260K is not there; set ROUNDHOUSE_DATA")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATES[template]
    read = panel._theirs(tokenizer)
    asked = [{"role": "user", "content": "why?"}]
    opened = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    for text in said:
        whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": text}], tokenize=False)
        wanted = tokenizer(whole, add_special_tokens=False)["input_ids"]
        prompt, response = read(asked, text)
        assert prompt + response == wanted
        decoded = tokenizer.decode(response).lstrip(), whole[len(opened) :].lstrip()
        assert decoded[0] == decoded[1]  # all of the response, and of the prompt at most a space


@pytest.mark.parametrize("kind", STRANGERS)
def test_any_hugging_face_reward_model_is_scored_as_plain_transformers_scores_it(tmp_path: Path, kind: str) -> None:
    """A folder that knows nothing of us: its own byte-level tokenizer, ChatML, decoder or encoder; each text scored alone."""
    rows = [
        {
            "prompt": f"question {i}?",
            "chosen": f"a red fox {i}" * (i % 4 + 1),
            "rejected": "a tree" * (i + 1),
            "subset": "s",
        }
        for i in range(12)
    ]
    suite, folder = tmp_path / "suite.jsonl", tmp_path / "stranger"
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = bytes_tokenizer([row["chosen"] + row["rejected"] for row in rows])
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = STRANGERS[kind]
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    own = PreTrainedTokenizerFast.from_pretrained(folder)  # AutoTokenizer puts Qwen2's usual one in its place
    alone = []
    for row in rows:
        for said in (row["chosen"], row["rejected"]):
            talk = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": said}]
            ids = own.apply_chat_template(talk, tokenize=True, return_tensors="pt", return_dict=True)["input_ids"]
            with torch.no_grad():
                alone.append(plain(ids).logits.item())
    assert max(alone) - min(alone) > 0.1
    read, scores, _ = panel._reward(folder)
    pairs = [read(asked.messages, said) for asked in suites.load(suite) for said in asked.responses]
    with torch.inference_mode():
        assert scores(pairs) == pytest.approx(alone, abs=1e-4)  # together, padded
    found = run(suite, folder, rows=5)
    assert found["score"] == sum(a > b for a, b in zip(alone[::2], alone[1::2])) / 12 and found["cut"] == 0
