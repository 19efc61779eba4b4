"""Text to token ids and back: the one template and the one tokenizer that every stage of a campaign reads through.

A conversation is `messages`: dicts with role (system, user, assistant) and content; a prompt ends with a user turn. BOS and
EOS are added as ids, text never becomes one of them. Prompt and response are tokenized apart and joined as ids, so that what
is trained, scored and sampled has the same boundary (METHODS 0.5).
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from configs.recipes import Template
from engine.errors import StageError

CARD = "roundhouse.json"  # beside the model's own files: how text is read
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_SENTINEL = "\ue000{}\ue001"  # private use: stands for a content that holds special tokens' text

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its template. Build it with `make_chat` or `load_chat`, which check it."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    folder: Path | None = None  # where the tokenizer's files lie, to be copied unchanged
    asks: str = ""  # what a conditioned policy wants at the end of the last user turn; never part of the fingerprint

    @property
    def bos_id(self) -> int | None:
        """Opens a conversation; None if the tokenizer has none or the template leaves it out."""
        return self.tokenizer.bos_token_id if self.template.bos else None

    @property
    def eos_id(self) -> int:
        """Ends every response."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Never EOS, never trained on."""
        return int(self.tokenizer.pad_token_id)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of vocabulary, template and special ids: equal if and only if text is read the same way."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        backend.pop("truncation", None)
        backend.pop("padding", None)
        own = self.tokenizer.chat_template if self.template.kind == "tokenizer" else None
        special = [self.tokenizer.bos_token_id, self.eos_id, self.pad_id]
        parts = [backend, self.template.model_dump(), special, own]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Token ids of a prompt, up to where the response begins."""
        if not messages or messages[-1]["role"] == "assistant":
            found = messages[-1]["role"] if messages else "no turn"
            raise StageError(f"a prompt ends with a user turn; found {found}")
        return [token for piece, _ in self._pieces(messages, prompt=True) for token in piece]

    def asking(self, messages: Messages) -> list[dict[str, str]]:
        """The prompt as this policy wants it asked: what it was conditioned on stands at the end of the last user turn."""
        turns = [dict(m) for m in messages]
        if self.asks and turns:
            turns[-1]["content"] += self.asks
        return turns

    def response_ids(self, text: str) -> list[int]:
        """Token ids of a response, EOS last."""
        return [*self._response(text), self.eos_id]

    def example_ids(self, messages: Messages, train: Literal["last", "all"] = "last") -> tuple[list[int], list[bool]]:
        """A whole conversation that ends with an assistant turn: ids, and which are learned (responses with EOS)."""
        if not messages or messages[-1]["role"] != "assistant":
            found = messages[-1]["role"] if messages else "no turn"
            raise StageError(f"an example ends with an assistant turn; found {found}")
        ids: list[int] = []
        learned: list[bool] = []
        pieces = self._pieces(messages, prompt=False)
        for place, (piece, is_response) in enumerate(pieces):
            ids.extend(piece)
            learned.extend([is_response and (train == "all" or place == len(pieces) - 1)] * len(piece))
        return ids, learned

    def fit_prompt(self, messages: Messages, limit: int) -> list[dict[str, str]] | None:
        """The prompt without as many whole early turns as it takes to fit; None if the last user turn alone is too long.

        The system turn and the last user turn always stay.
        """
        head = [dict(m) for m in messages[:1] if m["role"] == "system"]
        turns = [dict(m) for m in messages[len(head) :]]
        while True:
            if len(self.prompt_ids(head + turns)) <= limit:
                return head + turns
            later = [i for i, m in enumerate(turns) if m["role"] == "user" and i > 0]
            if not later:
                return None
            turns = turns[later[0] :]

    def text(self, ids: Sequence[int]) -> str:
        """The text of a response; what follows EOS, and special tokens, are left out."""
        ends = list(ids).index(self.eos_id) if self.eos_id in ids else len(ids)
        marker, lead = self._lead
        text = self.tokenizer.decode([*lead, *ids[:ends]], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = text[len(marker) :] if lead else text
        gap = self._gap
        return str(text[len(gap) :] if gap and text.startswith(gap) else text)

    def save(self, out: Path) -> None:
        """Write the tokenizer's files: copies where it was loaded from a model of ours, so that they never change."""
        out.mkdir(parents=True, exist_ok=True)
        if self.folder is None:
            self.tokenizer.save_pretrained(out)
            return
        for name in _FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, out / name)

    @cached_property
    def _prefix(self) -> str:
        return self.template.assistant.removesuffix("{content}") if self.template.kind == "text" else ""

    @property
    def _mark(self) -> str:
        return self._prefix.rstrip(" ")

    @property
    def _gap(self) -> str:
        """Spaces between the assistant's mark and the response. They belong to the response: " word" is one token to most
        tokenizers, a lone space before a word is nothing that a pretrained model has seen."""
        return self._prefix[len(self._mark) :]

    @cached_property
    def _lead(self) -> tuple[str, list[int]]:
        """Text and ids in whose company a response is tokenized, so that no tokenizer takes it for the start of a text."""
        marker = self._mark[-1:].strip()
        return marker, self._encode(marker) if marker and self._gap else []

    def _response(self, text: str) -> list[int]:
        marker, lead = self._lead
        if lead:
            ids = self._encode(marker + self._gap + text)
            if ids[: len(lead)] == lead:
                return ids[len(lead) :]
        return self._encode(self._gap + text)

    def _encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids. Without `special` a special token's name in the text stays text."""
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = not special
        return list(backend.encode(text, add_special_tokens=False).ids)

    def _pieces(self, messages: Messages, *, prompt: bool) -> list[tuple[list[int], bool]]:
        """Alternating stretches of context and response: (ids, is response)."""
        if self.template.kind == "tokenizer":
            return self._tokenizer_pieces(messages, prompt=prompt)
        pieces: list[tuple[list[int], bool]] = []
        opening = [self.bos_id] if self.bos_id is not None else []
        text = ""
        for message in messages:
            role, content = message["role"], message["content"]
            if role != "assistant":
                text += _form(self.template, role).replace("{content}", content)
                continue
            pieces.append((opening + self._encode(text + self._mark), False))
            pieces.append((self.response_ids(content), True))
            opening, text = [], self.template.separator
        if prompt:
            pieces.append((opening + self._encode(text + self._mark), False))
        return pieces

    def _tokenizer_pieces(self, messages: Messages, *, prompt: bool) -> list[tuple[list[int], bool]]:
        """By the tokenizer's own template: what precedes each response is rendered as for sampling it."""
        pieces: list[tuple[list[int], bool]] = []
        done: list[int] = []
        places = [i for i, m in enumerate(messages) if m["role"] == "assistant"] + ([len(messages)] if prompt else [])
        for place in places:
            context = self._render(messages[:place])
            if context[: len(done)] != done:
                raise StageError(
                    "the tokenizer's chat template rewrites earlier turns, so responses cannot be told from context; "
                    "use template.kind: text"
                )
            pieces.append((context[len(done) :], False))
            if place < len(messages):
                response = self.response_ids(messages[place]["content"])
                pieces.append((response, True))
                done = context + response
        return pieces

    def _render(self, messages: Messages) -> list[int]:
        special = [t for t in self.tokenizer.all_special_tokens if t]
        hidden: list[str] = []
        shown = []
        for message in messages:
            content = message["content"]
            if any(token in content for token in special):
                hidden.append(content)
                content = _SENTINEL.format(len(hidden) - 1)
            shown.append({"role": message["role"], "content": content})
        try:
            text = str(self.tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:  # it is rendered in a sandbox, which refuses what is not data
            raise StageError(f"the tokenizer's chat template fails: {' '.join(str(error).split())}") from error
        ids: list[int] = []
        for number, content in enumerate(hidden):
            before, _, text = text.partition(_SENTINEL.format(number))
            ids += self._encode(before, special=True) + self._encode(content)
        return ids + self._encode(text, special=True)


def make_chat(tokenizer: PreTrainedTokenizerBase, template: Template, folder: Path | None = None) -> Chat:
    """A checked Chat; sets the tokenizer's Jinja template to the same form.

    Raises:
        StageError: no EOS, no pad, pad equal to EOS, BOS wanted but absent, no template, or text that gives two BOS.
    """
    if not tokenizer.is_fast:
        raise StageError("the tokenizer has no tokenizer.json form; convert it with transformers first")
    if tokenizer.eos_token_id is None:
        raise StageError("the tokenizer has no EOS token: responses could not end; set eos_token in its config")
    if tokenizer.pad_token_id is None:
        raise StageError("the tokenizer has no pad token; set base.adopt.pad_token or let adopt add one")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise StageError(
            f"pad and EOS are the same token {tokenizer.eos_token!r}: a model trained so never stops; "
            "set base.adopt.pad_token to another one"
        )
    if template.kind == "text":
        if template.bos and tokenizer.bos_token_id is None:
            raise StageError("template.bos is true but the tokenizer has no BOS token; set template.bos: false")
        tokenizer.chat_template = jinja(template)
    elif not tokenizer.chat_template:
        raise StageError("template.kind is tokenizer but the tokenizer has no chat template; write a text template")
    chat = Chat(tokenizer, template, folder)
    ids, bos = chat.prompt_ids([{"role": "user", "content": "x"}]), tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise StageError("the template gives two BOS tokens; leave one out")
    return chat


def load_chat(folder: Path) -> Chat:
    """The tokenizer and template that a model of ours was trained with.

    Raises:
        StageError: not a model of ours, or its tokenizer has changed since.
    """
    path = folder / CARD
    if not path.is_file():
        raise StageError(f"{folder.name}: no {CARD}, so its template is unknown; adopt the model first")
    card = json.loads(path.read_text())
    chat = make_chat(read_tokenizer(folder), Template.model_validate(card["template"]), folder)
    if chat.fingerprint != card["fingerprint"]:
        raise StageError(
            f"{folder.name}: tokenizer and template read text differently (fingerprint {chat.fingerprint[:12]}) from "
            f"what the model was trained with ({card['fingerprint'][:12]}); restore its tokenizer files"
        )
    return replace(chat, asks=card.get("asks", ""))


def save_card(chat: Chat, out: Path, kind: Literal["policy", "reward"], **more: Any) -> None:
    """Write the tokenizer's files and the card beside a model; `more` goes into the card."""
    chat.save(out)
    card = {"kind": kind, "template": chat.template.model_dump(), "fingerprint": chat.fingerprint, **more}
    if kind == "policy" and chat.asks:
        card["asks"] = chat.asks
    (out / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer that a folder's tokenizer.json describes.

    AutoTokenizer would put the model type's usual tokenizer in its place where transformers distrusts the files (Qwen2).
    """
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def jinja(template: Template) -> str:
    """The text template as a Jinja chat template, for those who load the model with plain tools."""
    prefix = template.assistant.removesuffix("{content}")
    turns = {role: _around(_form(template, role)) for role in ("system", "user")}
    between = f"{{{{ {json.dumps(template.separator)} }}}}"
    return (
        ("{{ bos_token }}" if template.bos else "")
        + "{% for message in messages %}"
        + f"{{% if message['role'] == 'system' %}}{turns['system']}"
        + f"{{% elif message['role'] == 'user' %}}{turns['user']}"
        + f"{{% else %}}{_around(template.assistant)}{{{{ eos_token }}}}{{% if not loop.last %}}{between}{{% endif %}}"
        + "{% endif %}{% endfor %}"
        + f"{{% if add_generation_prompt %}}{{{{ {json.dumps(prefix.rstrip(' '))} }}}}{{% endif %}}"
    )


def _around(form: str) -> str:
    before, after = form.split("{content}")
    return f"{{{{ {json.dumps(before)} + message['content'] + {json.dumps(after)} }}}}"


def _form(template: Template, role: str) -> str:
    if role not in ("system", "user"):
        raise StageError(f"unknown role {role!r}: want system, user or assistant")
    return str(getattr(template, role))
