"""The section `bake_off:` of a config: which methods compete, and what is equal for all of them."""

from typing import Literal

from pydantic import Field, model_validator

from configs.fields import Count, Name, Natural, Setting, Share, Strict
from configs.recipes import Online, Train

FamilyName = Literal["imitation", "preference", "listwise", "online"]


class Entrant(Strict):
    """One competitor: a method and its own settings; all else is its family's. `configs/methods/NAME.yaml` is one.

    turns: into how many parts its prompts are dealt; each part is answered by the policy that the part before it trained.
    cost: responses that are sampled for one rollout, where the method needs more than the rollout itself.
    """

    method: Name
    family: FamilyName
    rows: Literal["samples", "preferences", "demonstrations"] = "samples"
    config: dict[str, Setting] = Field(default_factory=dict)
    preset: str | None = None  # online
    k: Count = 1  # online: responses a prompt
    turns: Count = 1
    cost: Count = 1


class Families(Strict):
    """One way of training, and one learning rate, for all methods of a family."""

    imitation: Train | None = None
    preference: Train | None = None
    listwise: Train | None = None
    online: Online | None = None


class BakeOff(Strict):
    """Every competitor starts from the same SFT model, under the same reward models, on the same prompts.

    The budget is the number of sampled responses, `sample.prompts` x `sample.k` of the campaign: offline methods share
    one pool of that size, an online method draws as many rollouts in all. Steps, tokens and seconds are measured, not matched.
    """

    seeds: tuple[Natural, ...] = Field((1,), min_length=1)
    methods: tuple[Name, ...] = Field(min_length=2)  # files of configs/methods
    planted: Name | None = None  # among the methods: a learner that must come last
    families: Families
    bootstrap: Count = 50_000  # so many that a p-value can stay small when it is multiplied by all pairs
    level: Share = 0.05  # of the family-wise error

    @model_validator(mode="after")
    def _sound(self) -> "BakeOff":
        if len(set(self.methods)) != len(self.methods) or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"methods and seeds must be different: {', '.join(self.methods)}; {self.seeds}")
        if self.planted is not None and self.planted not in self.methods:
            raise ValueError(f"planted {self.planted} is not among the methods {', '.join(self.methods)}")
        for family, recipe in self.families:
            if recipe is not None and (recipe.config or "method" in recipe.model_fields_set):
                raise ValueError(f"families.{family}: method and config belong to configs/methods, not to the family")
        return self
