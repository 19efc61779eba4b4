"""How the scores of whole populations of responses move (the paper's figure 20)."""

from __future__ import annotations

from report.charts import Axis, Figure, look
from report.evidence import Evidence
from report.ridges import ridges

COLUMNS = (
    ("helpfulness", "Helpfulness model", "raw score under the last helpfulness model"),
    ("safety", "Safety model", "raw score under the last safety model"),
    ("gold", "Gold", "gold score"),
)


def shifts(evidence: Evidence) -> list[Figure]:
    """One figure a score: the histogram of every version's held-out responses, the oldest on top."""
    if not evidence.standing.one_scale:
        return []
    rows = evidence.responses
    found = []
    for column, name, axis in COLUMNS:
        groups = [(label, [r[column] for r in some if r.get(column) is not None]) for label, some in rows.items()]
        groups = [(label, values) for label, values in groups if values]
        if not groups:
            continue
        looks = [look(i, len(groups)) for i in range(len(groups))]
        caption = (
            f"Shares of {len(groups[0][1])} held-out responses of each version, one prompt each; the upright line is the mean. "
            "Half a per cent at each end is drawn in the outermost bins."
        )
        found.append(Figure(name, ridges(name, groups, Axis(axis), looks), caption))
    return found
