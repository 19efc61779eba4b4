"""A stage's job without a store: inputs and result are folders, save points a real store in another."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ARCHITECTURES, tiny_config, train_tokenizer

from configs.runtime import Runtime
from engine.job import Job

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """`make_job(stage, recipe, role=folder, ...)`; `out` names the result's folder, `saves` its save points."""

    def make(
        stage: str,
        recipe: Any,
        *,
        out: str = "out",
        saves: Any = None,
        runtime: Mapping[str, Any] | None = None,
        **inputs: Any,
    ) -> Job:
        folder = tmp_path / out
        folder.mkdir(parents=True, exist_ok=True)
        chosen = Runtime(**{"sample_rows": 64, "score_rows": 64, **(runtime or {})})
        return Job(stage=stage, recipe=recipe, inputs=inputs, out=folder, runtime=chosen, saves=saves)

    return make


@pytest.fixture(scope="session")
def chat() -> Any:
    """A tokenizer with the default template."""
    from configs.recipes import Template
    from engine.template import make_chat

    return make_chat(train_tokenizer(), Template())


@pytest.fixture(scope="session")
def policies(chat: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random policies by architecture, saved as the pipeline saves them. Never write into them."""
    import torch

    from engine.models import new_model, save_model

    found = {}
    for architecture in ARCHITECTURES:
        found[architecture] = tmp_path_factory.mktemp(architecture)
        model = new_model(tiny_config(architecture, len(chat.tokenizer)), seed=5)
        generator = torch.Generator().manual_seed(6)
        for parameter in model.parameters():  # far from symmetric, so that a wrong position or mask shows
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        save_model(model, chat, found[architecture], "policy")
    return found


@pytest.fixture(scope="session")
def policy(policies: dict[str, Path]) -> Path:
    """A random Llama policy."""
    return policies["llama"]


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ingested prompts artifact of the world: 60 prompts, a third held out."""
    from configs.recipes import Ingest, Source
    from engine import ingest

    folder = tmp_path_factory.mktemp("prompts")
    recipe = Ingest(rows="prompts", sources=(Source(world="prompts", count=60),), held_out=0.33, seed=4)
    ingest.run(Job(stage="ingest", recipe=recipe, inputs={}, out=folder, runtime=Runtime()))
    return folder


@pytest.fixture(scope="session")
def rewards(policy: Path, chat: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Random helpfulness and safety models on the policy's body."""
    from engine.models import reward_from_policy, save_model

    found = []
    for seed, kind in enumerate(("helpfulness", "safety")):
        found.append(tmp_path_factory.mktemp(kind))
        save_model(reward_from_policy(policy, Runtime(), seed=seed), chat, found[-1], "reward")
    return found


@pytest.fixture
def save_points(tmp_path: Path) -> Callable[[], Any]:
    """The save points of one stage in a real store; every call opens them anew, as another process would."""
    from storage import Ref, open_store

    def opened() -> Any:
        return open_store((tmp_path / "store").as_uri()).save_points(Ref("rows", "stage", "0123456789abcdef"))

    return opened


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested demonstrations of the world."""
    from configs.recipes import Ingest, Source
    from engine import ingest

    folder = tmp_path_factory.mktemp("examples")
    chosen = Ingest(rows="examples", sources=(Source(world="demonstrations", count=40),))
    ingest.run(Job(stage="ingest", recipe=chosen, inputs={}, out=folder, runtime=Runtime()))
    return folder


@pytest.fixture
def start(make_job: Any, policy: Path, rewards: list[Path], prompts: Path) -> Callable[..., Any]:
    """`start(recipe, out=..)`: an online job on random models."""

    def made(chosen: Any, **more: Any) -> Any:
        return make_job("online", chosen, **{"policy": policy, "rewards": rewards, "prompts": prompts, **more})

    return made
