"""RRHF on samples of the moving policy against RRHF on samples of the start."""

from benchmarks.claims.lab import Effect, Lab

TEXT = "RRHF iterated on its own samples beats RRHF on the first samples"
SOURCE = "Yuan et al. 2023, table 2"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    return [lab.evaluation("rrhf-iterated"), lab.evaluation("rrhf")]


def measure(lab: Lab) -> Effect:
    return lab.better("rrhf-iterated", "rrhf")
