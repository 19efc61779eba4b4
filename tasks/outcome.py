"""What is left for people when a run has ended: the report, and tables and links in the Prefect UI."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from configs.campaign import Campaign
from tasks.launch import ROOT, StageFailed
from tasks.run import Run


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
                "inputs": [upstream.label for upstream in artifact.upstream],
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


def write_report(run: Run, beside: Run | None = None) -> str:
    """Build the HTML page in a process of its own and put it into the store; returns where it is.

    With `beside`, the page compares two campaigns; else it is the campaign's own, and its model cards are put there too.
    """
    name = report_name(run.campaign, run.digest)
    if beside is not None:
        name = f"{name.removesuffix('.html')}-and-{report_name(beside.campaign, beside.digest)}"
    with tempfile.TemporaryDirectory() as folder:
        spec, other, page = (Path(folder) / file for file in ("view.json", "other.json", "report.html"))
        spec.write_text(json.dumps(view(run)))
        if beside is not None:
            other.write_text(json.dumps(view(beside)))
        more = ["--cards"] if beside is None else ["--beside", str(other)]
        done = subprocess.run(
            [sys.executable, "-m", "report", str(spec), str(page), "--store", run.store.url, *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise StageFailed(f"report: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        run.store.put(f"reports/{name}", page.read_bytes())
        if (table := page.with_suffix(".md")).exists():
            run.store.put(f"reports/{name.removesuffix('.html')}.md", table.read_bytes())
    return f"{run.store.url.rstrip('/')}/reports/{name}"


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
