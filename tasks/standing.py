"""A campaign as its record in the store tells it, whatever the code is today: base, chat model, what they were made of."""

from collections.abc import Sequence
from typing import Any

from configs import Campaign, ConfigError
from configs.recipes import Evaluate, Train
from storage import Manifest, Ref, Store, digest
from tasks.run import Artifact, Run
from tasks.stage import Made
from tasks.train import train

MAKES_BASE = ("pretrain", "adopt", "continuing")


class Given(Artifact):
    """A finished artifact of the store as an input of a run that did not make it."""

    def __init__(self, label: str, manifest: Manifest, store: Store) -> None:
        self._label, self._ref, self._store = label, manifest.ref, store
        self.upstream: Sequence[Artifact] = ()
        self._made, self._future = Made(manifest, cached=True), None

    @property
    def label(self) -> str:
        return self._label

    @property
    def ref(self) -> Ref:
        return self._ref

    @property
    def manifest(self) -> Manifest:
        """What it holds, and the record of its making."""
        assert self._made is not None
        return self._made.manifest

    def file(self, name: str) -> bytes | None:
        """One of its small files; None if it has none of that name."""
        if name not in self.manifest.files:
            return None
        return self._store.get(f"artifacts/{self._ref.key}/{self.manifest.attempt}/{name}")


def find_given(store: Store, label: str, key: str) -> Given | None:
    """The artifact of that name, None if the store lacks it."""
    manifest = store.manifest(Ref.parse(key))
    return None if manifest is None else Given(label, manifest, store)


def given(store: Store, label: str, key: str) -> Given:
    """The artifact of that name.

    Raises:
        ConfigError: it is not in the store.
    """
    if (found := find_given(store, label, key)) is None:
        raise ConfigError(f"{store.url}: {label} {key} is not in the store; run what makes it again")
    return found


class Standing:
    """What a campaign has come to: its last accepted version, the evaluation of it, and the base below it."""

    def __init__(self, store: Store, campaign: Campaign, record: str | None = None) -> None:
        self.store, self.name = store, campaign.name
        self.mark = (record or "").removeprefix(f"{campaign.name}-") or digest(
            campaign.model_dump(mode="json", exclude={"runtime"})
        )
        if not store.exists(f"campaigns/{campaign.name}-{self.mark}.json"):
            others = [f"{n}-{d}" for n, d in store.campaigns() if n == campaign.name]
            known = f"; the store has {', '.join(others)}, made by another config, seed or version of this software"
            raise ConfigError(
                f"{store.url}: campaign {campaign.name}-{self.mark} has not been run here: run it first, "
                f"`roundhouse run {campaign.name}`" + (f"{known}: name it as record: {others[-1]}" if others else "")
            )
        found = store.campaign(campaign.name, self.mark)
        self._notes = found.notes()
        self._labels = ["v0", *(str(entry["version"]) for entry in found.body()["rounds"])]
        self.version, self.evaluation = self._accepted()
        self.recipe = Evaluate.model_validate(self.evaluation.manifest.record["identity"]["recipe"])
        self.chat = self._input(self.evaluation, "policy")
        self.reference = self._input(self.evaluation, "reference")
        self.prompts = self._input(self.evaluation, "prompts")
        self.rewards = self._inputs(self.evaluation, "rewards")
        self.base = self._base(self.chat)

    def newest(self, label: str) -> Given | None:
        """The newest finished result under a label; None if there is none."""
        for ref in reversed(self._notes.get(label, [])):
            if (manifest := self.store.manifest(ref)) is not None:
                return Given(label, manifest, self.store)
        return None

    def rebuild(self, run: Run, prefix: str, base: Artifact) -> Artifact:
        """Lay out the training of the chat model once more, from the rows it was trained on, on another base.

        What was trained online has no rows: it is rebuilt as the model that it began as.
        """
        return self._rebuilt(run, prefix, self.chat, base)

    def _rebuilt(self, run: Run, prefix: str, model: Given, base: Artifact) -> Artifact:
        if model.ref == self.base.ref:
            return base
        identity = model.manifest.record["identity"]
        if identity["work"] == "online":
            return self._rebuilt(run, prefix, self._input(model, "policy"), base)
        start = self._rebuilt(run, prefix, self._input(model, "model"), base)
        reference = self._input(model, "reference") if "reference" in identity["inputs"] else None
        return train(
            run,
            f"{prefix}-{model.label}",
            Train.model_validate(identity["recipe"]),
            model=start,
            rows=self._inputs(model, "rows"),
            replay=self._input(model, "replay") if "replay" in identity["inputs"] else None,
            reference=None if reference is None else self._rebuilt(run, f"{prefix}-reference", reference, base),
        )

    def seed_of_base(self, otherwise: int) -> int:
        """The seed that ordered the documents of the base's pretraining; `otherwise` for a base that came from outside."""
        identity = self.base.manifest.record["identity"]
        return int(identity["recipe"]["seed"]) if identity["work"] == "pretrain" else otherwise

    def demonstrations(self) -> Given | None:
        """The SFT rows, if the campaign has any."""
        return self.newest("demonstrations")

    def _accepted(self) -> tuple[str, Given]:
        """The last version that the gate accepted (v0 needs no gate), and its evaluation."""
        for label in reversed(self._labels):
            found, verdict = self.newest(f"{label}-evaluate"), self.newest(f"{label}-gate")
            accepted = label == "v0" or (verdict is not None and bool((verdict.summary() or {}).get("accepted")))
            if found is not None and accepted:
                return label, found
        raise ConfigError(
            f"{self.store.url}: campaign {self.name} has no accepted version yet: run it to its end first, "
            f"`roundhouse run {self.name}`"
        )

    def _base(self, model: Given) -> Given:
        """The base model at the bottom of a model's making."""
        while (work := model.manifest.record["identity"]["work"]) not in MAKES_BASE:
            model = self._input(model, "policy" if work == "online" else "model")
        return model

    def _input(self, artifact: Given, role: str) -> Given:
        (found,) = self._inputs(artifact, role)
        return found

    def _inputs(self, artifact: Given, role: str) -> list[Given]:
        keys: Any = artifact.manifest.record["identity"]["inputs"].get(role, [])
        return [self._given(key) for key in ([keys] if isinstance(keys, str) else keys)]

    def _given(self, key: str) -> Given:
        ref = Ref.parse(key)
        label = next((label for label, refs in self._notes.items() if ref in refs), ref.name)
        return given(self.store, label, key)
