"""The learning rate of each step of continued pretraining, as a function of the step alone."""

import math

from configs.continuing import Infinite, Warmed
from methods import schedules


class Rates:
    """Learning rates of steps 1 .. total. Phases are whole steps: shares are rounded up, a warm-up is at most half a run."""

    def __init__(self, recipe: Warmed | Infinite, total: int) -> None:
        self.recipe, self.total = recipe, total
        self.warmup = min(_steps(recipe.warmup, total), total // 2)
        if isinstance(recipe, Infinite):
            self.cooldown = self.warmup + max(1, _steps(recipe.cooldown, total))
            self.anneal = _steps(recipe.anneal, total)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        recipe = self.recipe
        if isinstance(recipe, Infinite):
            return self._infinite(recipe, step)
        if recipe.kind == "constant":
            return recipe.peak * schedules.constant(step, warmup=self.warmup)
        shape = schedules.cosine if recipe.kind == "cosine" else schedules.linear
        return recipe.peak * shape(step, total=self.total, warmup=self.warmup, floor=recipe.floor)

    def _infinite(self, recipe: Infinite, step: int) -> float:
        """A restarted run is one whose warm-up and cool-down lie before its first step."""
        past = self.cooldown if recipe.restart else 0
        end = past + self.total
        begin = max(end - self.anneal, self.cooldown)  # rounding up may cost the annealing a step
        return schedules.infinite(
            past + step,
            peak=recipe.peak,
            constant=recipe.constant,
            least=recipe.least,
            warmup=self.warmup,
            cooldown=self.cooldown,
            anneal=begin,
            end=max(end, begin + 1),
            shape=recipe.shape,
        )


def _steps(share: float, total: int) -> int:
    return math.ceil(round(share * total, 9))
