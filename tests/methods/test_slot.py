"""The slot: what a method's source declares is what its module has, and importing the package costs nothing."""

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from problems import FIELD

import methods
from methods.batch import Rollout, batch_of, denominator

NAMES = methods.names()
ROOM = Path(methods.__file__).parent
COLUMNS = {
    *("messages", "text", "prompt", "chosen", "rejected", "grade", "chosen_safe", "rejected_safe"),
    *("responses", "scores", "attributes", "weight"),
}
FORWARDS = {
    *("policy_logp", "policy_entropy", "reference_logp", "value", "reward", "old_logp", "old_value"),
}


def test_the_field_is_here() -> None:
    """One more file is one more method and breaks nothing here."""
    assert len(FIELD) == 20 and set(FIELD) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_description_equals_module(name: str) -> None:
    told, method = methods.describe(name), methods.load(name)
    assert method.__name__ == f"methods.{name.replace('-', '_')}"
    assert (told.loop, told.unit, told.columns, told.forwards) == (
        method.loop,
        method.unit,
        method.columns,
        method.forwards,
    )
    assert told.summary == method.__doc__.split("\n")[0] and told.name == name
    assert told.presets == getattr(method, "PRESETS", {})
    assert told.hooks == tuple(hook for hook in methods.HOOKS if hasattr(method, hook))
    hints = typing.get_type_hints(method.Config)
    assert len(told.fields) == len(dataclasses.fields(method.Config))
    for told_field, field in zip(told.fields, dataclasses.fields(method.Config)):
        assert (told_field.name, told_field.default) == (field.name, field.default)
        assert eval(told_field.type, {**vars(typing), "__builtins__": __builtins__}) == hints[field.name]
        assert isinstance(field.default, (bool, int, float, str, tuple))


@pytest.mark.parametrize("name", NAMES)
def test_declarations_use_the_words_of_the_slot(name: str) -> None:
    method = methods.load(name)
    assert method.loop in ("offline", "online") and method.unit in ("token", "row")
    assert set(method.columns) <= COLUMNS and method.columns
    assert set(method.forwards) <= FORWARDS and method.forwards
    assert method.Config.__dataclass_params__.frozen
    assert hasattr(method, "signal") == (method.loop == "online") == hasattr(method, "initial_state")
    for preset in getattr(method, "PRESETS", {}).values():
        method.Config(**preset)


def test_listing_and_describing_import_no_torch() -> None:
    script = (
        "import sys, methods\n"
        "for name in methods.names(): methods.describe(name)\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOM.parent, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["pppo", "ppo_", "ops", "batch", "curriculum_dpo", "../ppo", "no-such-thing"])
@pytest.mark.parametrize("ask", [methods.load, methods.describe])
def test_unknown_methods_are_named_with_the_file_that_was_wanted(ask, name: str) -> None:
    with pytest.raises(ValueError, match=r"no method '.*': want a file methods/.*\.py") as error:
        ask(name)
    hint = {"pppo": "did you mean ppo", "curriculum_dpo": "did you mean curriculum-dpo", "no-such-thing": "there are"}
    assert hint.get(name, "") in str(error.value)
    assert "\n" not in str(error.value)


def test_at_most_three_near_names_are_offered() -> None:
    with pytest.raises(ValueError, match="did you mean") as error:
        methods.load("reward-rating")
    assert str(error.value).count(" or ") == 2


def write_method(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    (folder / "mine.py").write_text(text)
    monkeypatch.setattr(methods, "_ROOM", folder)
    methods.describe.cache_clear()


GOOD = '''"""Mine."""
loop, = "offline",
unit = "token"
columns = ("messages",)
forwards = ("policy_logp",)
class Config:
    a: float = 1.0
def loss(): ...
def select(): ...
'''


def test_a_missing_declaration_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_method(monkeypatch, tmp_path, GOOD)
    with pytest.raises(ValueError, match=r"methods/mine\.py declares no loop;"):
        methods.describe("mine")


def test_a_default_that_is_no_literal_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_method(monkeypatch, tmp_path, GOOD.replace("= 1.0", "= max(1, 2)").replace("loop, =", "loop ="))
    with pytest.raises(ValueError, match=r"methods/mine\.py:7: want a literal, found max\(1, 2\)"):
        methods.describe("mine")


def test_a_new_file_is_a_new_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_method(monkeypatch, tmp_path, GOOD.replace('loop, = "offline",', 'loop: str = "offline"'))
    (tmp_path / "ours_alone.py").write_text("def loss(): ...\n")
    assert methods.names() == ["mine"]
    told = methods.describe("mine")
    assert told.loop == "offline" and told.hooks == ("select",) and told.fields[0].type == "float"
    methods.describe.cache_clear()


def test_presets_of_the_loop_are_settings_of_the_loop() -> None:
    recipes = pytest.importorskip("configs.recipes")
    ppo = methods.load("ppo")
    assert set(ppo.LOOP) <= set(ppo.PRESETS)
    for settings in ppo.LOOP.values():
        recipes.Online(**settings)


def test_batch_of_fills_in_the_rest() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    batch = batch_of(mask)
    assert batch.group.tolist() == [0, 1] and batch.rank.tolist() == [0, 0] and batch.weight.tolist() == [1.0, 1.0]
    assert float(batch.count) == 3 and batch.count.dtype == torch.float32 and batch.progress == 0
    assert not batch.score.any() and not batch.grade.any() and batch.label.shape == batch.label_mask.shape == (2, 0)
    labelled = batch_of(mask, label=torch.ones(2, 3, dtype=torch.int64), count=torch.tensor(7), progress=0.5)
    assert labelled.label_mask.all() and labelled.label.dtype == torch.float32
    assert batch.rank.dtype == torch.int64 and labelled.label_mask.dtype == torch.bool
    assert float(labelled.count) == 7 and labelled.progress == 0.5
    whole = torch.tensor([1, 2])
    numbers = batch_of(mask, score=whole, grade=whole, weight=whole, count=torch.tensor(7))
    for name in ("score", "grade", "weight", "count"):
        assert getattr(numbers, name).dtype == torch.float32


def test_batch_of_stays_on_the_masks_device() -> None:
    batch = batch_of(torch.ones(2, 3, dtype=torch.bool, device="meta"))
    assert {value.device.type for value in vars(batch).values() if isinstance(value, torch.Tensor)} == {"meta"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(2, 2)}, "want mask"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, "want mask"),
        ({"score": torch.ones(2, 1)}, r"want score \[2\], found \[2, 1\]"),
        ({"weight": torch.ones(3)}, r"want weight \[2\]"),
        ({"label": torch.ones(3, 1)}, "want label and label_mask"),
        ({"label": torch.ones(2, 1), "label_mask": torch.ones(2, 2, dtype=torch.bool)}, "want label and label_mask"),
    ],
)
def test_a_batch_of_wrong_shapes_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_of(**{"mask": torch.ones(2, 2, dtype=torch.bool), **change})


def rollout_of(**change: torch.Tensor) -> Rollout:
    mask = torch.ones(2, 3, dtype=torch.bool)
    given = {"mask": mask, "old_logp": torch.zeros(2, 3), "reference_logp": torch.zeros(2, 3)}
    return Rollout(**{**given, "score": torch.zeros(2), "finished": mask[:, 0], "group": torch.arange(2), **change})


def test_a_response_without_tokens_is_refused() -> None:
    """T85: an empty row never reaches a mean."""
    rollout_of()
    with pytest.raises(ValueError, match=r"responses \[1\] have no token"):
        rollout_of(mask=torch.tensor([[True, True, True], [False, False, False]]))


@pytest.mark.parametrize(
    "name", ["old_logp", "reference_logp", "value", "score", "finished", "branch", "baseline_score"]
)
def test_a_rollout_of_wrong_shapes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"want {name} "):
        rollout_of(**{name: torch.zeros(2, 2)})


def test_denominators() -> None:
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    batch = batch_of(mask, group=torch.tensor([3, 3, 8]), label=torch.zeros(3, 2))
    assert float(denominator(methods.load("sft"), batch)) == 4
    assert float(denominator(methods.load("dpo"), batch)) == 2
    assert float(denominator(methods.load("grpo"), batch)) == 3
    assert float(denominator(methods.load("reward-attributes"), batch)) == 6
    for name in ("sft", "dpo", "reward-attributes"):
        assert denominator(methods.load(name), batch).dtype == torch.float32


def test_the_page_of_methods_names_tests_that_exist() -> None:
    page = (ROOM.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    there = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert len(named) > 15 and not {name for name in named if f"def {name}(" not in there}


@pytest.mark.parametrize("name", FIELD)
def test_the_page_of_methods_names_every_method_and_setting(name: str) -> None:
    page = (ROOM.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    told = methods.describe(name)
    assert f"| `{name}` |" in page
    missing = [word for word in (*(field.name for field in told.fields), *told.presets) if word not in page]
    assert not missing
