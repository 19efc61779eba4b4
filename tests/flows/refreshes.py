"""What the tests of refreshes share: a small campaign, a refresh of it over a folder, and documents to put there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import world
from configs.load import FOLDER
from flows import continued
from flows.rounds import align
from storage import open_store
from tasks import Run
from tasks.refreshing import Work, open_work

TRAINING = {
    "replay": 0.25,
    "sequence_length": 32,
    "batch_size": 4,
    "steps": 6,
    "schedule": {"kind": "cosine", "peak": 0.003},
}


def shore() -> list[str]:
    """Different documents about the shore, always the same."""
    texts = (row["text"] for row in world.documents(3, 3000, "second"))
    return list(dict.fromkeys(texts))


class House:
    """A folder with a store, an inbox, and the files of a campaign and of a refresh."""

    def __init__(self, root: Path, rounds: list[dict[str, Any]], **refresh: Any) -> None:
        self.root, self.inbox = root, root / "inbox"
        self.inbox.mkdir(parents=True)
        campaign = yaml.safe_load((FOLDER / "micro.yaml").read_text()) | {"rounds": rounds}
        if not rounds:
            campaign.pop("rewards")
        self.write("campaign", campaign)
        self.write("refresh", {
            "name": "again", "campaign": str(root / "campaign.yaml"), "seed": 12, "inboxes": [{"url": str(self.inbox)}],
            "gather": {"near": 0.95}, "training": TRAINING, "measure": {"sequence_length": 32, "bootstrap": 200},
            "decide": {"bootstrap": 200}, "short_sft": {"epochs": 0.25, "batch_size": 8}, **refresh,
        })  # fmt: skip

    @property
    def store(self) -> str:
        return (self.root / "store").as_uri()

    def write(self, name: str, config: dict[str, Any]) -> None:
        (self.root / f"{name}.yaml").write_text(yaml.safe_dump(config))

    def put(self, name: str, texts: list[str]) -> None:
        (self.inbox / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def align(self) -> Run:
        """Run the campaign, here and now."""
        from configs import load

        campaign = load(self.root / "campaign.yaml")
        run = Run(campaign, open_store(self.store), campaign.runtime, mode="direct")
        align(run)
        return run

    def copy(self, root: Path) -> "House":
        """The same house elsewhere, as it is now; the inbox's path stays in its names, so it is shared."""
        shutil.copytree(self.root / "store", root / "store")
        other = object.__new__(House)
        other.root, other.inbox = root, self.inbox
        for name in ("campaign", "refresh"):
            shutil.copyfile(self.root / f"{name}.yaml", root / f"{name}.yaml")
        return other

    def open(self, listen: Callable[[str, Any], None] = lambda label, event: None) -> Work:
        return open_work(str(self.root / "refresh.yaml"), store=self.store, mode="direct", listen=listen)

    def refresh(self, listen: Callable[[str, Any], None] = lambda label, event: None) -> tuple[Work, list[Any]]:
        """One run of the refresh, without Prefect."""
        work = self.open(listen)
        return work, continued.refresh(work.run, work.plan, work.standing, work.chain)


def roots(work: Work) -> dict[str, str]:
    """The digest of every result that the chain's record names, by label."""
    found = {}
    for label, refs in work.run.record.notes().items():
        manifest = work.run.store.manifest(refs[-1])
        assert manifest is not None
        found[label] = manifest.root
    return found
