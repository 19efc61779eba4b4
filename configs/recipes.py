"""The recipe of every kind of stage: what to compute. A recipe names its result, so nothing of speed or place is in it.

Defaults are the paper's where it has one (METHODS numbers in brackets), else ours.
"""

from typing import Literal

from pydantic import Field, model_validator

from configs.fields import Count, Name, Natural, Positive, Setting, Share, Strict

Rows = Literal["documents", "examples", "prompts", "preferences", "rankings"]
Columns = dict[str, str]


class Template(Strict):
    """Chat text around each turn; `{content}` stands for the turn. The tokenizer's BOS opens, its EOS ends each response."""

    kind: Literal["text", "tokenizer"] = "text"  # tokenizer: the model's own chat template, rendered in the sandbox
    system: str = "System: {content}\n"
    user: str = "User: {content}\n"
    assistant: str = "Assistant: {content}"
    separator: str = "\n"  # after an assistant turn (and its EOS) that another turn follows
    bos: bool = True

    @model_validator(mode="after")
    def _content_once(self) -> "Template":
        for field in ("system", "user", "assistant"):
            if getattr(self, field).count("{content}") != 1:
                raise ValueError(f"template.{field} must hold {{content}} exactly once, found {getattr(self, field)!r}")
        if not self.assistant.endswith("{content}"):
            raise ValueError("template.assistant must end with {content}: the response is what comes last")
        return self


class Limits(Strict):
    """Token budgets. A longer prompt loses whole early turns, then is dropped and counted; a longer response is cut."""

    prompt_tokens: Count = 48
    response_tokens: Count = 32


class Source(Strict):
    """One source of rows. Exactly one of `world`, `path`, `hub`; the stories of `world` are made from texts in `path`.

    path: a .jsonl, .jsonl.gz, .json or .parquet file or a folder of them, relative to ROUNDHOUSE_DATA or the working folder.
    format: how a row is read; `columns` maps our names (prompt, response, chosen, rejected, messages, text, ...) to the file's.
    weight: share of the mixture when several sources are given; a source is cycled or cut to its share.
    """

    world: Literal["documents", "demonstrations", "prompts", "stories-prompts", "stories-demonstrations"] | None = None
    path: str | None = None
    hub: str | None = None
    revision: str | None = None  # hub: a commit; a branch works but moves, and what it stood for is recorded
    split: str = "train"  # hub
    sha256: str | None = None  # path: filled in when the campaign is resolved, so that the bytes name the result
    format: Literal[
        "auto", "text", "prompt-response", "messages", "pair", "dialogue", "ranking", "qa-feedback", "steerlm"
    ] = "auto"
    columns: Columns = Field(default_factory=dict)
    domain: str = "main"  # world: which variety of the corpus
    kind: Literal["helpfulness", "safety"] = "helpfulness"  # preferences: what was judged
    category: str | None = None
    is_safety: bool | None = None
    count: Count | None = None
    weight: Positive = 1.0

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        stories = bool(self.world and self.world.startswith("stories-"))
        if stories and not self.path:
            raise ValueError(f"a source of {self.world} needs path: a file of texts with a column `text`")
        given = [k for k in ("world", "path", "hub") if getattr(self, k) and not (k == "path" and stories)]
        if len(given) != 1:
            raise ValueError(f"a source needs exactly one of world, path, hub; found {given or 'none'}")
        if self.hub and not self.revision:
            raise ValueError(f"hub source {self.hub} needs revision: a commit, so that the result can be reproduced")
        return self


class Optimizer(Strict):
    """AdamW. Llama 2: betas 0.9/0.95, eps 1e-5, weight decay 0.1, clip 1.0 (METHODS 1.3).

    Norms, biases, embeddings and scalar heads are not decayed.
    """

    learning_rate: Positive = 2e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.03  # share of the steps
    min_warmup_steps: Natural = 5
    floor: Share = 0.1  # of the learning rate, at the end
    betas: tuple[float, float] = (0.9, 0.95)
    eps: Positive = 1e-5
    weight_decay: float = Field(default=0.1, ge=0.0)
    clip: float = Field(default=1.0, ge=0.0)  # global gradient norm; 0 = off


class Lora(Strict):
    """Low-rank adapters (arXiv 2106.09685) instead of training every weight; what is published has them merged."""

    rank: Count = 8
    alpha: Positive = 16.0  # the adapters' part is multiplied by alpha / rank
    targets: Literal["linear", "attention"] = "linear"  # all linear layers of the blocks, or those of attention


class Ingest(Strict):
    """Outside data -> typed rows, validated, mixed and split by the hash of the normalised first user turn."""

    rows: Rows
    sources: tuple[Source, ...] = Field(min_length=1)
    held_out: Share = 0.0
    apart: Share = 0.0  # of the training part, by hash: rows for the judge models alone ..
    part: Literal["main", "apart"] = "main"  # .. which one ingest leaves out and the other one keeps
    max_rejected: Share = 0.05  # more malformed rows than this fails the stage
    max_chars: Count = 200_000
    seed: int = 0


class Tokenizer(Strict):
    vocab_size: Count = 512


class Pretrain(Strict):
    """A base model from nothing: a BPE tokenizer and a Llama-architecture model trained on the documents."""

    architecture: dict[str, int | float | bool | str]  # LlamaConfig fields
    tokenizer: Tokenizer = Tokenizer()
    template: Template = Template()
    optimizer: Optimizer = Optimizer(learning_rate=3e-3)
    sequence_length: Count = 128
    batch_size: Count = 32  # sequences a step
    steps: Count = 300
    seed: int = 0


class Adopt(Strict):
    """An existing Hugging Face model, from a local folder or the hub, with pad and EOS made sure of."""

    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    sha256: str | None = None  # of the folder's files, filled in when the campaign is resolved
    architecture: dict[str, int | float | bool | str] = Field(default_factory=dict)  # for `plan` without the weights
    random_init: bool = False  # weights from the seed instead of the checkpoint (tests of architectures)
    pad_token: str | None = None  # an existing token to reserve for padding when the tokenizer has none
    template: Template = Template()
    dtype: Literal["float32", "bfloat16"] = "float32"
    trust_remote_code: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _one_origin(self) -> "Adopt":
        if bool(self.path) == bool(self.hub):
            raise ValueError("base needs exactly one of path, hub")
        return self


class Gatt(Strict):
    """Ghost Attention for dialogues of several user turns (METHODS 3.5): an instruction said once is kept."""

    constraints: tuple[str, ...] = Field(min_length=1)  # one to all of them make an instruction
    short_forms: tuple[str, ...]  # of the constraints, in their order; half of the rows are trained with these
    share: Share = 1.0  # of such dialogues
    answers: Literal["sampled", "given"] = "sampled"  # by the model that is trained further, or those of the rows
    temperature: Positive = 0.8

    @model_validator(mode="after")
    def _as_many(self) -> "Gatt":
        if len(self.constraints) != len(self.short_forms):
            raise ValueError(
                f"{len(self.constraints)} constraints and {len(self.short_forms)} short forms: want as many"
            )
        return self


class Train(Strict):
    """One offline training run: rows -> a model, by the method's loss."""

    method: Name = "sft"
    config: dict[str, Setting] = Field(default_factory=dict)  # the method's own Config, checked against its file
    optimizer: Optimizer = Optimizer()
    epochs: Positive = 2.0
    max_steps: Natural = 0  # 0 = epochs decide
    batch_size: Count = 64  # rows an optimizer step
    replay: Share = 0.0  # share of extra SFT rows mixed in (METHODS 3.2: 0.1, ours)
    gatt: Gatt | None = None  # imitation of dialogues only
    limits: Limits = Limits()
    dropout: Share = 0.0
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


class Reward(Strict):
    """A scalar reward model on all preferences so far (METHODS 2)."""

    kind: Literal["helpfulness", "safety"] = "helpfulness"
    method: Name = "reward"
    config: dict[str, Setting] = Field(default_factory=dict)  # margin: small|large|none, safety_weight
    head: Literal["new", "token"] = "new"  # token: the policy's own logit of `head_token` instead of a new head
    head_token: str | None = None
    reads: Literal["policy", "own"] = (
        "policy"  # own: on a base of its own (`reward_bases` sets it), maybe another tokenizer
    )
    own_share: Share = 0.5  # of the rows, from this kind's own preferences: 50/50 helpfulness, 90/10 safety
    optimizer: Optimizer = Optimizer(learning_rate=1e-5)
    epochs: Positive = 1.0
    batch_size: Count = 512
    held_out: Share = 0.1  # of the training prompts, by hash, for the certificate; given held-out pairs add to it
    limits: Limits = Limits()
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    @model_validator(mode="after")
    def _one_head(self) -> "Reward":
        if (self.head == "token") != (self.head_token is not None):
            raise ValueError(
                f"head {self.head} with head_token {self.head_token!r}: a token is given for head token only"
            )
        return self


class Annotate(Strict):
    """Preferences of a round. Two responses a prompt from two policies at different temperatures (METHODS 2.3)."""

    annotator: Literal["gold", "dataset", "reward_model", "tier"] = "gold"
    prompts: Count = 256  # drawn from the training prompts; a fresh slice each round where there are enough
    kinds: tuple[Literal["helpfulness", "safety"], ...] = ("helpfulness", "safety")
    temperatures: tuple[Positive, Positive] = (0.8, 1.1)
    batches: Count = 1  # dataset: into how many rounds the given pairs are dealt
    judge: Literal["world", "stories", "none"] = "world"
    threshold: float = -1.7346  # raw safety score = logit(0.15) (METHODS 4.1)
    limits: Limits = Limits()
    round: Count = 1
    seed: int = 0


class Probe(Strict):
    """The temperature that maximises E[best of K] under this round's reward models (METHODS 3.3)."""

    temperatures: tuple[Positive, ...] = (0.6, 0.8, 1.0, 1.2, 1.4)
    prompts: Count = 32
    k: Count = 4
    threshold: float = -1.7346  # raw safety score = logit(0.15) (METHODS 4.1)
    limits: Limits = Limits()
    seed: int = 0


class Sample(Strict):
    """K responses a prompt. top_p = 1 and top_k = 0 always: truncation biases the KL (METHODS 0.6)."""

    prompts: Count = 256
    k: Count = 8
    temperature: Positive | None = None  # None = what the probe found
    shards: Count = 4
    limits: Limits = Limits()
    round: Count = 1
    seed: int = 0


class Score(Strict):
    """Raw scores of every response under the round's reward models."""

    limits: Limits = Limits()


class Select(Strict):
    """Scored responses of all rounds -> training rows, by the piecewise rule and the method's `select`."""

    method: Name = "rejection"
    config: dict[str, Setting] = Field(default_factory=dict)
    rounds: Literal["all", "previous"] = "all"  # Llama 2 lost its rhymes with "previous" (METHODS 3.4)
    threshold: float = -1.7346  # raw safety score = logit(0.15) (METHODS 4.1)
    seed: int = 0


class Tripwires(Strict):
    """Rules that watch an online run (METHODS 5.4). Relative ones compare with the rollouts of the policy at the start.

    A rule that holds for `patience` iterations in a row is an alarm. `record` writes it to the summary. `stop` also ends
    the run and publishes the weights of the last anchor, taken every `anchor` iterations while no rule held. `ladder`
    goes back to that anchor and takes the next rung: a lower learning rate, a higher KL coefficient, back to the version
    that the run began with, the end. Each rung once, what they changed stays; after the last one an alarm stops the run.
    """

    on_alarm: Literal["record", "stop", "ladder"] = "ladder"
    ladder: tuple[Literal["lower_learning_rate", "raise_kl", "previous_version", "stop"], ...] = (
        "lower_learning_rate", "raise_kl", "previous_version", "stop",
    )  # fmt: skip
    rate_factor: float = Field(default=0.3, gt=0.0, lt=1.0)  # of the learning rates, by lower_learning_rate
    kl_factor: float = Field(default=4.0, gt=1.0)  # of the KL coefficient, by raise_kl ..
    kl_least: Positive = 0.05  # .. which is at least this afterwards (a coefficient of 0 cannot be multiplied)
    anchor: Count = 10  # iterations
    patience: Count = 2  # iterations
    kl_budget: Positive = 20.0  # nats a response; twice the budget is an alarm
    min_nll: float = Field(default=0.25, ge=0.0)  # of the start's nats a token on its own responses (log perplexity)
    max_length: Positive = 1.5  # of the start's mean, together with the missing-EOS share
    missing_eos: Share = 0.2
    endless: Share = 0.5  # share of responses cut at the limit, above the start's
    min_length: float = Field(default=0.3, ge=0.0)  # of the start's mean
    mute: Share = 0.5  # share of responses that are an EOS and nothing else, above the start's
    min_distinct: float = Field(default=0.5, ge=0.0)  # distinct-2 inside a response, of the start's mean
    loops: Share = 0.3  # share of responses that repeat themselves up to the limit, above the start's
    min_entropy: float = Field(default=0.05, ge=0.0)  # of the start's mean token entropy
    reward_sigmas: Positive = (
        6.0  # 95th percentile of the raw scores above the start's, in the start's standard deviations
    )
    clip_fraction: Share = 0.6
    min_explained: float = -2.0  # explained variance of the critic

    @model_validator(mode="after")
    def _rungs_once(self) -> "Tripwires":
        if not self.ladder or len(set(self.ladder)) != len(self.ladder) or "stop" in self.ladder[:-1]:
            raise ValueError(
                f"tripwires.ladder {list(self.ladder)}: want at least one rung, each once, and stop only at the end"
            )
        return self


class Online(Strict):
    """One online training run: the policy samples, the reward models score, the method updates."""

    method: Name = "ppo"
    preset: str | None = None
    config: dict[str, Setting] = Field(default_factory=dict)
    optimizer: Optimizer = Optimizer(learning_rate=1e-6, schedule="constant", warmup=0.0, min_warmup_steps=0)
    critic_optimizer: Optimizer = Optimizer(learning_rate=5e-6, schedule="constant", warmup=0.0, min_warmup_steps=0)
    iterations: Count = 200
    batch_size: Count = 512  # rollouts an iteration: batch_size / k prompts, k responses each
    k: Count = 1  # responses a prompt; group methods need at least 2
    minibatch_size: Count = 64  # rollouts an optimizer step
    epochs: Count = 1  # passes over an iteration's rollouts
    temperature: Positive = 1.0
    threshold: float = -1.7346
    critic_head: Literal["reward", "zero"] = (
        "reward"  # the critic is the helpfulness reward model; zero: V = 0 at first
    )
    warmup_batches: Natural = (
        2  # critic warm-up (METHODS 5.3): rollouts of the frozen policy, at most so many batches ..
    )
    warmup_steps: Natural = 20  # .. with so many value steps on each ..
    warmup_target: float = 0.2  # .. until the explained variance is above this
    ptx_weight: float = Field(default=0.0, ge=0.0)  # language-model loss on the examples, added to each policy step
    ptx_batch_size: Count = 32  # examples a policy step
    tripwires: Tripwires = Tripwires()
    limits: Limits = Limits()
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    @model_validator(mode="after")
    def _divides(self) -> "Online":
        if self.preset is not None and not {"batch_size", "minibatch_size"} <= self.model_fields_set:
            return self  # the preset gives the rest; checked again then
        if self.batch_size % self.minibatch_size:
            raise ValueError(
                f"online.batch_size {self.batch_size} must be a multiple of minibatch_size {self.minibatch_size}"
            )
        if self.minibatch_size % self.k:
            raise ValueError(f"online.minibatch_size {self.minibatch_size} must be a multiple of k {self.k}")
        return self


class Evaluate(Strict):
    """One version on the held-out prompts, against every earlier version."""

    version: str = "v0"  # the label of the version being evaluated
    earlier: tuple[str, ...] = ()  # labels of the `earlier` inputs, in their order
    prompts: Count = 320
    temperature: Positive = 0.8
    judge: Literal["world", "stories", "none"] = "world"
    threshold: float = -1.7346  # raw safety score = logit(0.15) (METHODS 4.1)
    bootstrap: Count = 2000
    limits: Limits = Limits()
    smoke_prompts: tuple[str, ...] = ()
    seed: int = 0


class Compare(Strict):
    """All versions of the campaign side by side under the last reward models."""

    versions: tuple[str, ...] = ()  # labels of the `versions` inputs, in their order
    threshold: float = -1.7346
    bootstrap: Count = 2000
    judge: Literal["world", "stories", "none"] = "world"
    limits: Limits = Limits()
    seed: int = 0


class Rank(Strict):
    """The competitors of a bake-off, each against every other on the same held-out prompts."""

    versions: tuple[str, ...] = ()  # names of the competitors; of each, one evaluation a seed
    seeds: tuple[int, ...] = ()  # the `evaluations` inputs are those of the first seed, then of the next
    start: str = "v0"  # what all began from
    planted: str | None = None  # a bad learner that must come last
    bootstrap: Count = 50_000  # so many that a p-value can stay small when it is multiplied by all pairs
    level: Share = 0.05  # of the family-wise error after Holm's correction
