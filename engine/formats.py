"""Raw rows -> typed rows: the shapes in which people keep instruction data, each read into our row types (METHODS 0.5)."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from configs.recipes import Source
from engine.drawing import share_of
from engine.sources import Raw, Refusal

Message = dict[str, str]
Typed = dict[str, Any]  # a row of one of storage.rows' types
ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatbot": "assistant",
}  # fmt: skip
_TURN = re.compile(r"\n\n(Human|Assistant):")
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
FORMATS = {
    "documents": ("text",),
    "examples": ("messages", "prompt-response", "dialogue"),
    "prompts": ("messages", "prompt-response", "dialogue"),
    "preferences": ("pair", "dialogue"),
    "rankings": ("ranking", "qa-feedback", "steerlm"),
}


def typed(raw: Raw, source: Source, rows: str, label: str, max_chars: int) -> Typed:
    """Read one row of a source.

    Args:
        raw: the row as found.
        rows: documents | examples | prompts | preferences.
        label: what the row's `source` column says.
        max_chars: most characters a row may have, checked before any tokenizer sees it.

    Raises:
        Refusal: the row lacks a column, holds a wrong type, or says nothing.
    """
    row = _mapped(raw, source.columns)
    form = _detect(row, rows) if source.format == "auto" else source.format
    if form not in FORMATS[rows]:
        raise Refusal(f"format {form} does not give {rows}; want one of {', '.join(FORMATS[rows])}")
    made = _MAKERS[rows](row, form)
    size = sum(len(v) for v in made.values() if isinstance(v, str)) + sum(
        len(m["content"]) for m in made.get("messages", ())
    )
    if size > max_chars:
        raise Refusal(f"{size} characters, at most {max_chars}")
    if rows != "documents":
        made["category"] = source.category or _text_or(row, "category", "general")
        made["is_safety"] = _flag(row, source, rows)
    key = "prompt_id" if rows in ("preferences", "rankings") else "id"
    name = row.get(key)
    made[key] = str(name) if name is not None else _name(made, rows)
    if rows == "preferences":
        made |= {"kind": source.kind, "annotator": "human", "agreement": _number(row, "agreement")}
    made["source"] = label if not source.world else str(row.get("source", label))
    return made


def first_user_turn(row: Mapping[str, Any]) -> str:
    """What decides the split: the first user turn, without case and spacing; a document without turns as a whole.

    A document that is a dialogue is split by its first turn like the pairs made of it: nobody pretrains on what a
    reward model or a version is judged by.
    """
    if "messages" in row:
        text = next(m["content"] for m in row["messages"] if m["role"] == "user")
    else:
        text = str(row["text"])
        text = _TURN.split(text)[2] if text.startswith("\n\nHuman:") else text
    return " ".join(text.casefold().split())


def is_held_out(row: Mapping[str, Any], share: float, stream: str = "") -> bool:
    """Whether the row belongs to the held-out part: a property of its text alone, never of its place.

    Splits of different streams are independent: one can be taken from what another has left.
    """
    return share_of(stream + first_user_turn(row)) < share


def has_bidi(row: Mapping[str, Any]) -> bool:
    """Whether a row holds characters that turn the reading direction (they can hide text from a reader)."""
    return bool(_BIDI.search(json.dumps(row, ensure_ascii=False, default=str)))


def dialogue(text: str) -> list[Message]:
    r"""`\n\nHuman: .. \n\nAssistant: ..` -> messages; a last assistant turn may be empty (then it is left out).

    Raises:
        Refusal: it does not begin with a human turn, or the turns do not alternate.
    """
    if not text.startswith("\n\nHuman:"):
        raise Refusal(r"a dialogue must begin with '\n\nHuman:'")
    parts = _TURN.split(text)[1:]
    turns = [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2])
    ]
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return chat(turns)


def chat(value: Any) -> list[Message]:
    """Messages, checked: known roles, at most one system turn and that first, user and assistant in turn, nothing empty."""
    if not isinstance(value, list) or not value:
        raise Refusal(f"want a list of messages, found {type(value).__name__ if value else 'nothing'}")
    turns = [_message(item) for item in value]
    spoken = turns[1:] if turns[0]["role"] == "system" else turns
    for place, turn in enumerate(spoken):
        wanted = ("user", "assistant")[place % 2]
        if turn["role"] != wanted:
            raise Refusal(f"turn {place + 1} is by {turn['role']}, want {wanted}: user and assistant must alternate")
    if not spoken:
        raise Refusal("only a system turn")
    return turns


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise Refusal(f"a message is a {type(item).__name__}, want an object with role and content")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise Refusal(f"role {str(role)[:40]!r}: want system, user or assistant")
    if not isinstance(content, str) or not content.strip():
        raise Refusal(f"an empty {ROLES[role.lower()]} turn")
    return {"role": ROLES[role.lower()], "content": content.replace("\r\n", "\n")}


def _mapped(raw: Raw, columns: Mapping[str, str]) -> Raw:
    missing = [theirs for theirs in columns.values() if theirs not in raw]
    if missing:
        raise Refusal(f"column {missing[0]!r} is missing; the row has {', '.join(sorted(raw))[:200]}")
    return {**raw, **{ours: raw[theirs] for ours, theirs in columns.items()}}


def _detect(row: Raw, rows: str) -> str:
    """The format that a row's columns speak for."""
    if rows in ("documents", "rankings"):
        return "text" if rows == "documents" else "ranking"
    if rows == "preferences":
        whole = isinstance(row.get("chosen"), str) and str(row["chosen"]).startswith("\n\nHuman:")
        return "dialogue" if whole and "prompt" not in row and "messages" not in row else "pair"
    if "messages" in row:
        return "messages"
    return "prompt-response" if "prompt" in row else "dialogue"


def _document(row: Raw, form: str) -> Typed:
    return {"text": _text(row, "text").replace("\r\n", "\n")}


def _example(row: Raw, form: str) -> Typed:
    turns = _turns(row, form)
    if form == "prompt-response":
        turns = [*turns, {"role": "assistant", "content": _text(row, "response").strip()}]
    if turns[-1]["role"] != "assistant":
        raise Refusal("an example must end with an assistant turn")
    return {"messages": turns, "weight": _number(row, "weight")}


def _prompt(row: Raw, form: str) -> Typed:
    turns = _turns(row, form)
    return {"messages": turns[:-1] if turns[-1]["role"] == "assistant" else turns}


def _preference(row: Raw, form: str) -> Typed:
    if form == "dialogue" or isinstance(row.get("chosen"), list):
        both = [dialogue(_text(row, c)) if form == "dialogue" else chat(row.get(c)) for c in ("chosen", "rejected")]
        if any(turns[-1]["role"] != "assistant" for turns in both):
            raise Refusal("a dialogue must end with an assistant turn that says something")
        if both[0][:-1] != both[1][:-1]:
            raise Refusal("chosen and rejected differ before the last assistant turn")
        turns, chosen, rejected = both[0][:-1], both[0][-1]["content"], both[1][-1]["content"]
    else:
        turns = _turns(row, "messages" if "messages" in row else "prompt-response")
        chosen, rejected = (_text(row, c).replace("\r\n", "\n").strip() for c in ("chosen", "rejected"))
    if turns[-1]["role"] != "user":
        raise Refusal("the prompt of a pair must end with a user turn")
    if chosen == rejected:
        raise Refusal("chosen equals rejected")
    safe = {c: _boolean(row, c) for c in ("chosen_safe", "rejected_safe")}
    return {"messages": turns, "chosen": chosen, "rejected": rejected, "grade": _grade(row), **safe}


def _ranking(row: Raw, form: str) -> Typed:
    """K responses to one prompt, with a score each, or with levels of attributes each, or both."""
    if form == "qa-feedback":
        return _qa_feedback(row)
    if form == "steerlm":
        return _steerlm(row)
    turns = _turns(row, "messages" if "messages" in row else "prompt-response")
    texts = row.get("responses")
    if turns[-1]["role"] != "user" or not isinstance(texts, list) or not texts:
        raise Refusal("a ranking needs a prompt that ends with a user turn and a list of responses")
    said = [_text({"responses": text}, "responses").replace("\r\n", "\n").strip() for text in texts]
    scores, attributes = row.get("scores"), row.get("attributes")
    if scores is None and attributes is None:
        raise Refusal("a ranking needs scores or attributes")
    for name, values in (("scores", scores), ("attributes", attributes)):
        if values is not None and (not isinstance(values, list) or len(values) != len(said)):
            raise Refusal(f"{name} must be a list of {len(said)}, one for each response")
    if scores is not None:
        scores = [_number({"scores": value}, "scores") for value in scores]
        if None in scores:
            raise Refusal("scores must all be numbers")
    return {"messages": turns, "responses": said, "scores": scores, "attributes": attributes}


def _qa_feedback(row: Raw) -> Typed:
    """Four answers and all six comparisons between them (0 tie, 1 first, 2 second): a win counts 1, a tie half.

    Wu et al. 2023 (Fine-grained RLHF). Of its 2,478 comparisons 41 say otherwise than the order of these counts.
    """
    said = [_text(row, f"prediction {i}").strip() for i in (1, 2, 3, 4)]
    verdicts = row.get("preference")
    if not isinstance(verdicts, list) or len(verdicts) != 6 or any(v not in (0, 1, 2) for v in verdicts):
        raise Refusal("preference must hold six of 0, 1, 2: pairs 1-2, 1-3, 1-4, 2-3, 2-4, 3-4")
    scores = [0.0] * 4
    for (a, b), verdict in zip(itertools.combinations(range(4), 2), verdicts):
        scores[a] += (0.5, 1.0, 0.0)[verdict]
        scores[b] += (0.5, 0.0, 1.0)[verdict]
    turns = chat([{"role": "user", "content": _text(row, "question").strip()}])
    return {"messages": turns, "responses": said, "scores": scores, "attributes": None}


def _steerlm(row: Raw) -> Typed:
    """A conversation whose last turn has the label `helpfulness:4,correctness:4,..` (NeMo-Aligner): levels in its order."""
    said = row.get("conversations")
    if not isinstance(said, list) or not said or not isinstance(said[-1], dict):
        raise Refusal("want conversations, a list of turns with from and value")
    system = _text_or(row, "system", "")
    head = [{"role": "system", "content": system}] if system.strip() else []
    turns = chat([*head, *said])
    label = said[-1].get("label")
    if turns[-1]["role"] != "assistant" or not isinstance(label, str):
        raise Refusal("the last turn must be the assistant's and have a label")
    parts = [part.partition(":")[2] for part in label.split(",")]
    if not all(part.strip().isdigit() for part in parts):
        raise Refusal(f"label {label[:40]!r}: want name:level,name:level,..")
    levels = [[float(part) for part in parts]]
    return {"messages": turns[:-1], "responses": [turns[-1]["content"]], "scores": None, "attributes": levels}


def _turns(row: Raw, form: str) -> list[Message]:
    if form == "messages":
        return chat(row.get("messages"))
    if form == "dialogue":
        column = next((c for c in ("dialogue", "text", "chosen") if c in row), "dialogue")
        return dialogue(_text(row, column))
    prompt = _text(row, "prompt")
    if prompt.startswith("\n\nHuman:"):
        return dialogue(prompt)
    extra = _text_or(row, "input", "")
    content = f"{prompt.strip()}\n\n{extra.strip()}" if extra.strip() else prompt.strip()
    system = _text_or(row, "system", "")
    head = [{"role": "system", "content": system.strip()}] if system.strip() else []
    return chat([*head, {"role": "user", "content": content}])


def _text(row: Raw, column: str) -> str:
    if column not in row:
        raise Refusal(f"column {column!r} is missing; the row has {', '.join(sorted(row))[:200]}")
    value = row[column]
    if not isinstance(value, str):
        raise Refusal(f"column {column!r} holds a {type(value).__name__}, want text")
    if not value.strip():
        raise Refusal(f"column {column!r} is empty")
    return value


def _text_or(row: Raw, column: str, default: str) -> str:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise Refusal(f"column {column!r} holds a {type(value).__name__}, want text")
    return value if value else default


def _flag(row: Raw, source: Source, rows: str) -> bool:
    given = _boolean(row, "is_safety")
    if source.is_safety is not None:
        return source.is_safety
    return given if given is not None else rows == "preferences" and source.kind == "safety"


def _boolean(row: Raw, column: str) -> bool | None:
    value = row.get(column)
    if value is not None and not isinstance(value, bool):
        raise Refusal(f"column {column!r} holds a {type(value).__name__}, want true or false")
    return value


def _number(row: Raw, column: str) -> float | None:
    value = row.get(column)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise Refusal(f"column {column!r} holds a {type(value).__name__}, want a number")
    return None if value is None else float(value)


def _grade(row: Raw) -> int | None:
    value = row.get("grade")
    if value is not None and (isinstance(value, bool) or value not in (0, 1, 2, 3)):
        raise Refusal(f"grade {str(value)[:20]}: want 0 (negligibly better) to 3 (significantly better)")
    return value


def _name(made: Typed, rows: str) -> str:
    """A row's id from its content. Pairs are named by their prompt, so that pairs on one prompt stay together."""
    content = made["messages"] if rows in ("preferences", "rankings") else made
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


_MAKERS: dict[str, Callable[[Raw, str], Typed]] = {
    "documents": _document,
    "examples": _example,
    "prompts": _prompt,
    "preferences": _preference,
    "rankings": _ranking,
}
