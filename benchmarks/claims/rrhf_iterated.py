"""RRHF on samples of the moving policy, on samples of the start, and on responses that another model gave."""

from benchmarks.claims.lab import Effect, Lab
from tasks import Artifact, select, train

TEXT = "RRHF: own iterated samples beat own first samples, and these beat given responses"
SOURCE = "Yuan et al. 2023, tables 2 and 4"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    if "rrhf-given" not in lab.policies:
        lab.policies["rrhf-given"] = _given(lab)
    return [lab.evaluation("rrhf-iterated"), lab.evaluation("rrhf"), lab.evaluation("rrhf-given")]


def _given(lab: Lab) -> Artifact:
    """As rrhf, all of it, but the responses to its prompts are the other writer's."""
    shared, run, entry = lab.shared, lab.run, lab.ready("rrhf").rounds[0]
    assert entry.select and entry.train
    scored = shared.pool(entry, "given", lab.writer)
    rows = select(run, shared.label("rrhf-given-select"), entry.select, scored=[scored])
    return train(run, shared.label("rrhf-given"), entry.train, model=shared.start, rows=[rows])


def measure(lab: Lab) -> dict[str, Effect]:
    return {
        "iterated against first": lab.better("rrhf-iterated", "rrhf"),
        "first against given": lab.better("rrhf", "rrhf-given"),
    }
