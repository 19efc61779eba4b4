"""What a reward model must show before it may steer a round, and what is measured to know it (METHODS 2.7, 2.8)."""

from typing import Any, Literal

from pydantic import Field, model_validator

from configs.fields import Count, Natural, Positive, Share, Strict
from configs.recipes import Reward


class Requirements(Strict):
    """Bounds on what a certificate measures; null = not required. Defaults are ours; docs/trust.md says what each means.

    Pairs are the held-out pairs of the model's own kind unless a line says otherwise.
    """

    pairs: Natural = 30  # fewer tell nothing
    accuracy: Share | None = 0.55  # at least; a tie is wrong
    accuracy_low: Share | None = 0.5  # at least: lower end of the 95 % interval
    calibration_error: Share | None = 0.25  # at most: expected distance of predicted from found
    longer_excess: Share | None = (
        0.3  # at most: share of pairs on which it picks the longer, less the annotators' share
    )
    length_correlation: Share | None = 0.85  # at most: correlation of score gaps with length gaps
    over_length: float | None = (
        None  # at least: accuracy above that of always taking the longer (or the shorter) response
    )
    length_free_accuracy: Share | None = 0.5  # at least: with the slope of score on length taken out
    overfit_gap: Share | None = 0.3  # at most: accuracy on training pairs less accuracy on held-out pairs
    unsafe_recall: Share | None = 0.4  # at least: upper end of its 95 % interval; safety models with a safety term only
    invariance: Positive | None = 0.001  # at most: change of a score with its batch, in standard deviations
    drift: float | None = Field(default=0.0, ge=-1.0, le=1.0)  # at least: rank correlation with the previous model
    template: Literal["same", "any"] = "same"  # tokenizer and template, against the policy's


class Leakage(Strict):
    """Evaluation texts that come back in what is trained on. In a config also just `leakage: record`.

    Word for word (also respelled) is always a leak. Near-duplicates are natural where prompts are alike: they are a leak
    if they are more frequent between the splits than inside the training rows, by `excess` and 2.6 standard errors.
    """

    on_leak: Literal["refuse", "record"] = "refuse"
    near: Share = 0.6  # of a text's weight, from which another of about its length is a near-duplicate
    excess: Share = 0.02
    least_words: Count = 13  # of a response: shorter ones are alike everywhere
    sample: Count = 400  # training texts from which the natural share of near-duplicates is estimated
    listed: Count = 1000  # leaks written down
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:  # whatever the file holds
        return {"on_leak": given} if isinstance(given, str) else given


class Certify(Strict):
    """A reward model on pairs it has not seen, on training pairs, and on a probe set that stays the same in all rounds."""

    reward: Reward = Reward()  # the model's recipe, by which its pairs were split; set by the campaign
    require: Requirements = Requirements()
    on_failure: Literal["stop", "record"] = "stop"  # record: the round goes on, and the certificate says so
    threshold: float = 0.0  # raw safety score below which a response counts as unsafe (sigmoid 0.5)
    steering: float = -1.7346  # the threshold at which the campaign selects; set by the campaign
    probe: Count = 256  # responses of the frozen probe set
    train_pairs: Count = 256  # training pairs scored for the overfit gap
    leakage: Leakage = Leakage()  # training rows against the evaluation prompts; set by the campaign
    invariance_rows: Count = 32  # responses scored alone, in batches, reversed, and by plain transformers
    seed: int = 0

    @property
    def method(self) -> str:
        """The reward model's method, whose code reads the pairs."""
        return self.reward.method
