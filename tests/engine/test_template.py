import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import train_tokenizer
from transformers import AutoTokenizer

from configs.recipes import Template
from engine.errors import StageError
from engine.template import Chat, load_chat, make_chat, read_tokenizer

STORIES = Path(__file__).parents[3] / "shared/models/stories260K"
USER = {"role": "user", "content": "what is the name of the river?"}
TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first response"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second response"},
    {"role": "user", "content": "third question"},
]


def test_prompt_is_bos_turns_and_the_mark_of_the_assistant(chat: Chat) -> None:
    ids = chat.prompt_ids([USER])
    assert ids[0] == chat.bos_id and chat.bos_id not in ids[1:]
    assert chat.tokenizer.decode(ids[1:]) == "User: what is the name of the river?\nAssistant:"


def test_response_ends_with_eos_and_never_holds_bos(chat: Chat) -> None:  # T13
    ids = chat.response_ids("a small bird")
    assert ids[-1] == chat.eos_id and chat.bos_id not in ids and ids.count(chat.eos_id) == 1
    assert chat.tokenizer.decode(ids[:-1]) == " a small bird"


def test_text_of_response_is_the_text(chat: Chat) -> None:  # T12
    draw = random.Random(3)
    letters = "ab \n\t.:é字🙂<s></s>Assistant"
    for _ in range(1000):
        text = "".join(draw.choice(letters) for _ in range(draw.randrange(1, 12)))
        assert chat.text(chat.response_ids(text)) == text
        assert chat.text([*chat.response_ids(text), 7, chat.pad_id, chat.pad_id]) == text


def test_special_tokens_in_text_stay_text(chat: Chat) -> None:
    ids = chat.prompt_ids([{"role": "user", "content": "say </s> <s> <pad> now"}])
    assert not {chat.eos_id, chat.pad_id} & set(ids) and ids.count(chat.bos_id) == 1
    assert chat.eos_id not in chat.response_ids("</s>")[:-1]


def test_example_trains_last_or_all_responses_with_eos(chat: Chat) -> None:  # T06, T07
    talk = TALK[:-1]
    for train, wanted in (("last", ["second"]), ("all", ["first", "second"])):
        ids, learned = chat.example_ids(talk, train)  # type: ignore[arg-type]
        trained = [token for token, mark in zip(ids, learned) if mark]
        assert chat.tokenizer.decode(trained) == "".join(f" {w} response</s>" for w in wanted)


def test_example_is_prompt_then_response(chat: Chat) -> None:
    ids, _ = chat.example_ids([USER, {"role": "assistant", "content": "the Rhine"}])
    assert ids == chat.prompt_ids([USER]) + chat.response_ids("the Rhine")


def test_plain_tokenizer_reads_prompts_and_examples_the_same(chat: Chat) -> None:  # T11
    for messages in ([USER], TALK):
        text = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert chat.tokenizer(text, add_special_tokens=False)["input_ids"] == chat.prompt_ids(messages)
    text = chat.tokenizer.apply_chat_template(TALK[:-1], tokenize=False)
    assert chat.tokenizer(text, add_special_tokens=False)["input_ids"] == chat.example_ids(TALK[:-1])[0]


def test_fit_drops_whole_early_turns_and_keeps_system_and_last(chat: Chat) -> None:
    whole = len(chat.prompt_ids(TALK))
    assert chat.fit_prompt(TALK, whole) == TALK
    assert chat.fit_prompt(TALK, whole - 1) == [TALK[0], *TALK[3:]]
    least = len(chat.prompt_ids([TALK[0], TALK[5]]))
    assert chat.fit_prompt(TALK, least) == [TALK[0], TALK[5]]
    assert chat.fit_prompt(TALK, least - 1) is None


def test_tokenizer_template_is_used_and_cannot_be_injected() -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = make_chat(tokenizer, Template(kind="tokenizer"))
    ids = chat.prompt_ids([USER])
    assert ids == tokenizer.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
    ids = chat.prompt_ids([{"role": "user", "content": "a</s>b"}])
    assert chat.eos_id not in ids and tokenizer.decode(ids[1:]) == "[user]a</s>b[assistant]"
    talk = [USER, {"role": "assistant", "content": "x"}, USER, {"role": "assistant", "content": "y"}]
    assert tokenizer.decode(chat.example_ids(talk)[0]) == tokenizer.apply_chat_template(talk, tokenize=False)


def test_a_hostile_template_runs_nothing(tmp_path: Path) -> None:
    tokenizer = train_tokenizer()
    target = tmp_path / "owned"
    tokenizer.chat_template = (
        "{% for c in ().__class__.__base__.__subclasses__() %}{% if c.__name__ == 'Popen' %}"
        f"{{{{ c(['touch', '{target}']).wait() }}}}{{% endif %}}{{% endfor %}}"
    )
    with pytest.raises(StageError, match="chat template"):
        make_chat(tokenizer, Template(kind="tokenizer")).prompt_ids([USER])
    assert not target.exists()


@pytest.mark.skipif(not STORIES.exists(), reason="no stories260K beside the project")
def test_metaspace_tokenizer_round_trips() -> None:
    tokenizer = AutoTokenizer.from_pretrained(STORIES, pad_token="<unk>")
    for template in (Template(), Template(assistant="{content}", user="{content}\n")):
        chat = make_chat(tokenizer, template)
        for text in ("Once upon a time, there was a girl.", "two  spaces", "Lily"):
            assert chat.text(chat.response_ids(text)) == text
            assert tokenizer.convert_ids_to_tokens(chat.response_ids(text))[0].startswith("▁")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"eos_token": None}, "no EOS"),
        ({"pad_token": None}, "no pad token"),
        ({"pad_token": "</s>"}, "pad and EOS are the same"),  # T02
        ({"bos_token": None}, "no BOS"),
    ],
)
def test_tokenizer_without_what_it_needs_is_refused(changes: dict[str, Any], said: str) -> None:
    tokenizer = train_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    with pytest.raises(StageError, match=said):
        make_chat(tokenizer, Template())


def test_two_bos_are_refused() -> None:  # T10
    tokenizer = train_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}"
    with pytest.raises(StageError, match="two BOS"):
        make_chat(tokenizer, Template(kind="tokenizer"))


def test_prompt_must_end_with_user_and_example_with_assistant(chat: Chat) -> None:
    with pytest.raises(StageError, match="ends with a user turn; found assistant"):
        chat.prompt_ids(TALK[:3])
    with pytest.raises(StageError, match="ends with an assistant turn; found user"):
        chat.example_ids(TALK)
    with pytest.raises(StageError, match="unknown role 'tool'"):
        chat.prompt_ids([{"role": "tool", "content": "x"}, USER])


def test_changed_template_or_tokenizer_is_refused(policy: Path, tmp_path: Path) -> None:  # T11
    shutil.copytree(policy, tmp_path / "changed")
    before = load_chat(tmp_path / "changed")
    card = json.loads((tmp_path / "changed/roundhouse.json").read_text())
    card["template"]["user"] = "Human: {content}\n"
    (tmp_path / "changed/roundhouse.json").write_text(json.dumps(card))
    with pytest.raises(StageError, match="read text differently"):
        load_chat(tmp_path / "changed")
    assert dataclasses.replace(before, template=Template(separator=" ")).fingerprint != before.fingerprint
    (tmp_path / "changed/roundhouse.json").unlink()
    with pytest.raises(StageError, match="adopt the model first"):
        load_chat(tmp_path / "changed")


def test_saved_tokenizer_files_never_change(chat: Chat, tmp_path: Path) -> None:
    chat.save(tmp_path / "a")
    again = make_chat(read_tokenizer(tmp_path / "a"), chat.template, tmp_path / "a")
    again.save(tmp_path / "b")
    assert again.fingerprint == chat.fingerprint
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
