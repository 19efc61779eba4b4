"""One self-contained HTML page of a campaign: no network, no handler that comes from data, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from report import certificates, lineage, matrix, responses, rewards, sampling, shift, training, trust, versions
from report.archive import Archive
from report.evidence import Evidence
from report.view import View
from storage import Store

HERE = Path(__file__).resolve().parent
AUDIT_ROOM = 900_000  # bytes of selection audit in the page

_environment = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def build(store: Store, view: View) -> str:
    """Return the page of a campaign, finished or not; what is not there yet is said where it would stand.

    Raises:
        StorageError: the store cannot be read. A single damaged result is not an error: the page names it.
    """
    return render("page.html", _context(Evidence(view, Archive(store))))


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page of ours: the template with the project's one style and script, and the policy that admits only them."""
    script = (HERE / "templates" / "page.js").read_text()
    style = Markup((HERE / "templates" / "style.css").read_text())
    return _environment.get_template(template).render(
        **context, style=style, script=Markup(script), policy=_policy(script)
    )


def write(store: Store, view: View, path: Path | str) -> Path:
    """Build the page and write it to a file."""
    path = Path(path)
    path.write_text(build(store, view), encoding="utf-8")
    return path


def _context(evidence: Evidence) -> dict[str, Any]:
    selections = sampling.selections(evidence)
    models = rewards.judged(evidence)
    side_by_side = matrix.table(evidence)
    smoke_labels, smoke = responses.smoke(evidence)
    browser = responses.side_by_side(evidence)
    audit = audit_data(selections)
    certified = certificates.certificates(evidence)
    return {
        "view": evidence.view,
        "totals": lineage.totals(evidence),
        "began": _day(lineage.totals(evidence)["began"]),
        "seed": evidence.view.config.get("seed"),
        "headline": versions.headline(evidence),
        "final": evidence.final,
        "columns": versions.columns(evidence),
        "table": versions.table(evidence),
        "one_scale": evidence.standing.one_scale,
        "trend": evidence.standing.trend,
        "prompts": max((entry["prompts"] for entry in evidence.standing.entries.values()), default=0),
        "movement": versions.movement(evidence),
        "overoptimisation": [f for f in (trust.proxy_against_gold(evidence), trust.two_win_rates(evidence)) if f],
        "matrices": trust.matrices(evidence),
        "gates": versions.gates(evidence),
        "judges": matrix.heats(side_by_side) if side_by_side else [],
        "judge_figures": [f for f in (matrix.proxy_over_kl(side_by_side), *matrix.best_of_n(side_by_side)) if f]
        if side_by_side
        else [],
        "categories": trust.categories(evidence),
        "reward_models": [node for node in evidence.view.doing("reward") if node.label in evidence.done],
        "reward_figures": rewards.figures(models),
        "reward_head": rewards.HEAD,
        "reward_rows": rewards.rows(models),
        "certificate_head": certificates.head(certified),
        "certificate_rows": certificates.rows(certified),
        "certificates": certificates.details(certified),
        "leakage_head": certificates.LEAKAGE_HEAD,
        "leakage_rows": certificates.leakage(evidence),
        "gain_figures": sampling.gain_figures(selections),
        "probe_figures": sampling.probe_figures(evidence),
        "diversity_figures": sampling.diversity_figures(evidence),
        "selection_head": sampling.HEAD,
        "selection_rows": sampling.rows(selections),
        "shifts": shift.shifts(evidence),
        "trainings": training.trainings(evidence),
        "smoke_labels": smoke_labels,
        "smoke": smoke,
        "browser": browser,
        "audit": audit,
        "graph": lineage.graph(evidence),
        "took": lineage.took(evidence),
        "config": json.dumps(evidence.view.config, indent=2),
        "islands": {
            "responses": island(browser),
            "audit": island(audit),
            "lineage": island(lineage.details(evidence)),
        },
        "problems": evidence.archive.problems,  # last: everything above has been read by now
    }


def audit_data(selections: Sequence[sampling.Selection], room: int = AUDIT_ROOM) -> dict[str, Any]:
    """The rounds' sampled prompts with all their candidates, as plain data; fewer prompts a round if they are large."""
    with_prompts = [selection for selection in selections if selection.prompts]
    share = room // max(1, len(with_prompts))
    rounds = []
    for selection in with_prompts:
        kept: list[dict[str, Any]] = []
        used = 0
        for card in selection.prompts:
            used += len(json.dumps(card))
            if used > share and kept:
                break
            kept.append(card)
        total = selection.summary.get("prompts", len(selection.prompts))
        rounds.append({"label": selection.label, "total": total, "prompts": kept})
    return {"columns": sampling.COLUMNS, "rounds": rounds}


def island(data: Any) -> Markup:
    """JSON that can stand inside a script element whatever texts it holds."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for char, escape in (("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e")):
        text = text.replace(char, escape)
    return Markup(text)


def _policy(script: str) -> str:
    """A policy under which only this page's own script runs and nothing is fetched."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _day(began: Any) -> str:
    return datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M UTC") if isinstance(began, int | float) else ""
