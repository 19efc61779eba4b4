"""docs/add-a-method.md, done as it says: the file it shows is a method like any other."""

import importlib
import random
import re
import sys
from pathlib import Path

import pytest
import test_invariance as invariance
import torch
from problems import problem
from torch import tensor

import methods

PAGE = Path(methods.__file__).parent.parent / "docs" / "add-a-method.md"


@pytest.fixture
def simpo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The page's code block as methods/simpo.py, beside the others."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "simpo.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(methods, "_ROOM", tmp_path)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    methods.describe.cache_clear()
    importlib.invalidate_caches()
    yield methods.load("simpo")
    sys.modules.pop("methods.simpo", None)
    methods.describe.cache_clear()


def test_the_page_fits_on_a_screen() -> None:
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 60


def test_the_method_of_the_page_is_found_described_and_held_to_the_same_rules(simpo) -> None:
    told = methods.describe("simpo")
    assert (told.loop, told.unit, told.hooks) == ("offline", "row", ("select",))
    assert [(field.name, field.default) for field in told.fields] == [("beta", 2.0), ("gamma", 1.0)]
    for garbage in (0.0, float("nan")):
        invariance.test_padding_changes_nothing("simpo", {}, garbage)
    for rule in (
        invariance.test_order_of_responses_changes_nothing,
        invariance.test_micro_batches_add_up,
        invariance.test_no_gradient_outside_the_mask,
        invariance.test_arguments_are_not_changed_and_results_are_plain,
        invariance.test_a_step_that_counts_nothing_is_zero,
    ):
        rule("simpo", {})
    with pytest.raises(ValueError, match="simpo: beta 0"):
        simpo.Config(beta=0)


def test_the_method_of_the_page_is_simpo(simpo) -> None:
    """Means -1 and -1.5, beta 2, gamma 1: -log sigmoid(2 * 0.5 - 1) = ln 2."""
    given = problem("simpo", rows=1, width=1)
    total, metrics = simpo.loss({"policy_logp": tensor([[-1.0], [-1.5]])}, given.batch, given.config)
    torch.testing.assert_close(total, tensor(2.0).log())
    assert float(metrics["accuracy"][0]) == 1
    candidates = [{"text": t, "score": s, "finish": "eos"} for t, s in (("a", 1.0), ("b", 2.0))]
    assert simpo.select(candidates, simpo.Config(), random.Random(0))[0]["chosen"] == "b"
