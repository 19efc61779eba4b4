"""A reward model is right more often where the preference was strong."""

from benchmarks.claims.lab import Effect, Lab, difference_effect
from benchmarks.claims.margin import right_by_grade

TEXT = "reward accuracy rises with the strength of the preference"
SOURCE = "Llama 2, table 8"
MATTERS, UNIT = 0.1, "accuracy"


def stages(lab: Lab) -> list:
    return [lab.shared.rewards[0], lab.shared.preferences]


def measure(lab: Lab) -> Effect:
    """Accuracy on the two strongest grades less that on the two weakest, on held-out pairs of helpfulness."""
    found = right_by_grade(lab, lab.shared.rewards[0])
    weak, strong = found[0] + found[1], found[2] + found[3]
    shares = ", ".join(f"grade {grade} {sum(v) / len(v):.2f} of {len(v)}" for grade, v in sorted(found.items()) if v)
    return difference_effect(strong, weak, shares)
