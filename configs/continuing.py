"""The recipes of continued pretraining: pack documents, train on with replay, measure, carry a change of weights over.

Defaults are the paper's where it has one (METHODS 8; arXiv 2403.08763), else ours.
"""

from typing import Literal

from pydantic import Field, model_validator

from configs.fields import Count, Natural, Positive, Share, Strict


class Pack(Strict):
    """Documents -> one stream of token ids in shards, read again and again; held-out documents beside it.

    The stream's order is fixed here, once: replay reads a corpus in the order in which it was first trained on.
    """

    order: Literal["shuffled", "given"] = "shuffled"  # shuffled: the order of a pretraining's first epoch, same seed
    shard_tokens: Count = 1 << 22
    seed: int = 0


class Warmed(Strict):
    """Warm up linearly, then decay: what the first training did, done again on the new data (METHODS 8.1)."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    peak: Positive = 3e-4
    floor: Share = 0.1  # of the peak, at the end; a constant rate has none
    warmup: Share = 0.01  # of the steps; 0 = begin at the peak


class Infinite(Strict):
    """Warm-up, cool-down, constant for as long as one likes, anneal (METHODS 8.3). Shares are of this run's steps.

    A refresh goes on from the constant phase of the one before: `restart`. Annealing is a branch: a run of its own that
    restarts and anneals all the way, whose model is used but not continued.
    """

    kind: Literal["infinite"] = "infinite"
    peak: Positive = 3e-4
    constant: Positive = 1.65e-4
    least: Positive = 3e-5  # after annealing
    warmup: Share = 0.01
    cooldown: Share = 0.6
    anneal: Share = 0.0
    restart: bool = False  # begin in the constant phase, whatever warmup and cooldown say
    shape: Literal["cosine", "inverse_sqrt"] = "cosine"

    @model_validator(mode="after")
    def _phases_fit(self) -> "Infinite":
        used = self.anneal if self.restart else self.warmup + self.cooldown + self.anneal
        if used > 1:
            raise ValueError(f"warmup, cooldown and anneal take {used:g} of the steps; want at most 1")
        if not self.restart and self.cooldown == 0:
            raise ValueError(
                "cooldown is 0: the rate would jump from peak to constant; give it a share, or restart: true"
            )
        if not self.peak >= self.constant >= self.least:
            raise ValueError(f"want peak >= constant >= least, found {self.peak:g}, {self.constant:g}, {self.least:g}")
        return self


class Adam(Strict):
    """AdamW without its learning rate. The paper trains with GPT-NeoX's settings; these are Llama 2's (METHODS 1.3)."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: Positive = 1e-5
    weight_decay: float = Field(default=0.1, ge=0.0)
    clip: float = Field(default=1.0, ge=0.0)  # global gradient norm; 0 = off


class Continue(Strict):
    """A base model trained on: new text, and old text in place of a share of it, at the same compute.

    Every corpus is read in its packed order from where the base's earlier training left it, and from the beginning
    again at its end.
    """

    replay: float = Field(default=0.05, ge=0.0, lt=1.0)  # of the sequences; 0.05 for a weak, 0.25 for a strong shift
    weights: tuple[Positive, ...] = ()  # of the old corpora, in their order; none = by their tokens
    sequence_length: Count = 128
    batch_size: Count = 32  # sequences a step
    steps: Natural = 0  # 0 = as many as `epochs` of the new text would take without replay
    epochs: Positive = 1.0
    schedule: Warmed | Infinite = Field(default=Warmed(), discriminator="kind")
    adam: Adam = Adam()
    optimizer_state: Literal["reset", "carried"] = "reset"  # the paper resets it
    publish_optimizer: bool = False  # needed by a later run that carries it
    measure_every: Natural = 0  # steps between held-out losses in the curve; 0 = none
    measure_documents: Count = 32  # held-out documents of each corpus in the curve
    dtype: Literal["float32", "bfloat16"] = "float32"


class Measure(Strict):
    """Models on held-out text: nats a token, bits a byte, and what each lost or gained against the first."""

    labels: tuple[str, ...] = ()  # of the models, in their order; none = "0", "1", ..
    corpora: tuple[str, ...] = ()  # names of the corpora, in their order; none = "0", "1", ..
    sequence_length: Count = 128  # a longer document is read in windows
    documents: Natural = 0  # most held-out documents of a corpus; 0 = all
    bootstrap: Count = 2000
    seed: int = 0


class Transplant(Strict):
    """chat + scale * (new base - old base), weight by weight."""

    scale: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
