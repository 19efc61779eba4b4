"""The hinge loss with the reference in it and without."""

from benchmarks.claims.lab import Effect, Lab
from configs import Entrant

WITH = Entrant(method="rso", family="preference", config={"accepted": 4, "loss": "hinge-norm"})
WITHOUT = Entrant(method="rso", family="preference", config={"accepted": 4, "loss": "hinge"})

TEXT = "the hinge loss without the reference term is worse than with it"
SOURCE = "Liu et al. 2023, table 1"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    return [lab.evaluation("rso-hinge-norm", entrant=WITH), lab.evaluation("rso-hinge", entrant=WITHOUT)]


def measure(lab: Lab) -> Effect:
    return lab.better("rso-hinge-norm", "rso-hinge")
