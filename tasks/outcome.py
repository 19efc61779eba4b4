"""What is left for people when a run has ended: the report, and tables and links in the Prefect UI."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.campaign import Campaign
from storage import Store
from tasks.launch import ROOT, StageFailed
from tasks.run import Run

Say = Callable[[str], None]


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def view(run: Run) -> dict[str, Any]:
    """The campaign as plain data: its stages in order, with the names of their results, for report, status and gc."""
    return {
        "name": run.campaign.name,
        "digest": run.digest,
        "config": run.campaign.model_dump(mode="json"),
        "nodes": [
            {
                "label": artifact.label,
                "stage": artifact.stage.work,
                "key": artifact.ref.key,
                "inputs": list(dict.fromkeys(upstream.label for upstream in artifact.upstream)),
            }
            for artifact in run.artifacts.values()
        ],
        "versions": {
            label: {
                "model": artifact.ref.key,
                "evaluate": run.evaluations[label].ref.key if label in run.evaluations else None,
                "gate": run.verdicts[label].ref.key if label in run.verdicts else None,
            }
            for label, artifact in run.versions.items()
        },
        "compare": run.artifacts["compare"].ref.key if "compare" in run.artifacts else None,
    }


def report_name(campaign: Campaign, digest: str) -> str:
    """The report's name in the store: one a campaign, replaced as the campaign grows."""
    return f"{campaign.name}-{digest}.html"


def write_report(run: Run, say: Say = _to_stderr) -> str:
    """Build the campaign's HTML page and its model cards and put them into the store; returns where the page is."""
    return draw([run], run.store, say=say)


def draw(campaigns: Sequence[Run | str], store: Store, out: Path | None = None, say: Say = _to_stderr) -> str:
    """Build a page in a process of its own and put it into the store, or into the file `out`; returns where it is.

    A page in the store that shows more is kept: results may have been swept away since.

    Args:
        campaigns: one for its own page, with its model cards; two for a page that compares them. A text is the name-digest
            of a campaign that the store has recorded.
        say: is told in a line what must be known of the page.
    """
    with tempfile.TemporaryDirectory() as folder:
        page, given = Path(folder) / "report.html", []
        for i, campaign in enumerate(campaigns):
            given.append(campaign if isinstance(campaign, str) else f"{folder}/view-{i}.json")
            if not isinstance(campaign, str):
                Path(given[i]).write_text(json.dumps(view(campaign)))
        more = ["--beside", given[1]] if len(given) > 1 else [] if out else ["--cards"]
        done = subprocess.run(
            [sys.executable, "-m", "report", given[0], str(page), "--store", store.url, *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise StageFailed(f"report: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        told = json.loads(done.stdout)
        for line in told["notes"]:
            say(f"note: {line}")
        if out is not None:
            out.write_bytes(page.read_bytes())
            return str(out)
        return _put(store, told["name"], page, say)


def _put(store: Store, name: str, page: Path, say: Say) -> str:
    key, data = f"reports/{name}.html", page.read_bytes()
    place = f"{store.url.rstrip('/')}/{key}"
    before = _stages(store.get(key)) if store.exists(key) else 0
    if _stages(data) < before:
        say(f"note: kept {place}: it shows {before} stages, the store now has {_stages(data)}; --out FILE writes those")
        return place
    store.put(key, data)
    if (table := page.with_suffix(".md")).exists():
        store.put(f"reports/{name}.md", table.read_bytes())
    return place


def _stages(page: bytes) -> int:
    """How many finished stages a page says that it shows; 0 where it does not say."""
    found = re.search(rb'<meta name="stages-done" content="(\d+)">', page)
    return int(found[1]) if found else 0


def publish(run: Run) -> str:
    """Write the report and show the outcome in the Prefect UI; returns the key of the last stage's result."""
    place = write_report(run)
    run.listen("report", {"event": "report", "place": place})
    _show(run, place)
    return list(run.artifacts.values())[-1].ref.key


def _show(run: Run, place: str) -> None:
    from prefect.artifacts import create_link_artifact, create_table_artifact

    create_link_artifact(place, link_text=f"report of {run.campaign.name}", key=f"report-{run.campaign.name}")
    rows = [
        {
            "version": label,
            **{k: v for k, v in (artifact.summary() or {}).items() if isinstance(v, int | float | str)},
            **_verdict(run, label),
        }
        for label, artifact in run.evaluations.items()
    ]
    create_table_artifact(
        rows, key=f"versions-{run.campaign.name}", description="Every version on the held-out prompts"
    )


def _verdict(run: Run, label: str) -> dict[str, str]:
    """What the gate said about a version, and why; nothing for those that it does not judge."""
    found = run.verdicts[label].summary() if label in run.verdicts else None
    return {} if not found else {"gate": found["verdict"], "why": "; ".join(r["text"] for r in found["reasons"])}
