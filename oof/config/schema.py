"""The settings: frozen dataclasses are the schema and the defaults; beside them the choices and ranges of values.

:mod:`oof.config` reads them from YAML and the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Synth:
    """The embedded synthetic arena, used when ``data.train`` is empty."""

    battles: int = 0  # training battles; 0 = no synthetic arena
    test_battles: int = 300
    seed: int = 0


@dataclass(frozen=True)
class Data:
    """Where battles come from. Paths may be globs; relative ones start at the working folder."""

    train: list[str] = field(default_factory=list)  # labelled, scored out of fold
    extra: list[str] = field(default_factory=list)  # labelled, always trained on, never scored
    unlabelled: list[str] = field(default_factory=list)  # for distillation
    test: list[str] = field(default_factory=list)  # to predict
    truth: str | None = None  # CSV of true class probabilities (synthetic data only), read by the table alone
    columns: dict[str, str] = field(default_factory=dict)  # our column name -> the file's column name
    on_bad_row: str = "error"  # error | drop
    extra_weight: float = 1.0  # loss weight of an extra battle
    min_prompt_quality: float = (
        0.0  # battles whose prompt scores lower (oof/data/prompt_quality.py) are scored, not trained on
    )
    synth: Synth = field(default_factory=Synth)


@dataclass(frozen=True)
class Groups:
    """Battles whose prompts are near-duplicates form one group; a group never straddles folds."""

    threshold: float = 0.7  # Jaccard similarity of character 5-grams from which two prompts are near-duplicates
    column: str | None = None  # group by this column of the file instead of by prompt text
    responses: bool = False  # also join battles that share a response text


@dataclass(frozen=True)
class Folds:
    k: int = 5


@dataclass(frozen=True)
class Prompts:
    layout: str = "responses"  # responses (prompts, As, Bs) | rounds (turn by turn)
    max_tokens: int = 2048  # budget of one sequence in training
    score_max_tokens: int | None = None  # budget in scoring; null = the same as in training
    prompt_share: float = 0.25  # the prompt's cap, as a share of the budget, where the responses need the rest
    # none | lengths. On the demo hints cost: make demo RUN=runs/hints ARGS=prompts.hints=lengths ends at a calibrated
    # log loss of 0.752, without them at 0.727: its bases have never seen such words, and the stacker knows the lengths.
    hints: str = "none"


@dataclass(frozen=True)
class Lora:
    rank: int = 64  # 0 = full fine-tuning
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = "all-linear"  # all-linear, or module names separated by commas
    layers: str = "all"  # all | upper_half: no backward pass below the lowest adapter, at some cost in quality
    rslora: bool = False
    dora: bool = False


@dataclass(frozen=True)
class Train:
    epochs: float = 1.0
    lr: float = 1e-4
    head_lr: float = 1e-4  # the score head starts fresh, in float32, with its own rate
    batch_battles: int = 16  # battles per optimizer step
    tokens_per_batch: int = 8192  # padded tokens per forward/backward pass
    swap: str = "paired"  # none | random | paired (both orders of a battle in one optimizer step)
    warmup_share: float = 0.1  # share of the steps
    schedule: str = "cosine"  # a transformers scheduler name
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0 = no clipping
    checkpoint_steps: int = 0  # optimizer steps between checkpoints; 0 = none (a killed job starts again)
    activation_checkpointing: str = "auto"  # auto (where the memory plan needs it) | on | off


@dataclass(frozen=True)
class Member:
    """One base model of the ensemble with its recipe."""

    checkpoint: str = ""  # a Hugging Face folder or hub name of a decoder
    dtype: str = "bfloat16"  # float32 | bfloat16 | auto (bfloat16 where the hardware has it): the frozen base
    score_dtype: str = "same"  # same | float16: scoring on cards without bfloat16, behind a self-check
    quantise: str = "none"  # none | nf4 | int8: the frozen base in training and scoring (bitsandbytes)
    attn: str = "auto"  # auto | eager | blockwise | sdpa | flash_attention_2
    attn_softcap: str = "on"  # on | off: Gemma2's soft-capping; recorded in the adapter, never mixed
    # recompute | stored: keep in RUN/frozen what the layers below the adapters (lora.layers: upper_half) make of each
    # text, for every fold, epoch and student of this base. Takes 4 bytes of disk x width x tokens of both orders.
    frozen: str = "recompute"
    score_tokens_per_batch: int | None = None  # padded tokens per forward pass in scoring; null = as the device suits
    lora: Lora = field(default_factory=Lora)
    train: Train = field(default_factory=Train)


@dataclass(frozen=True)
class Pretrain:
    """Before the folds, members and the student are trained on other preference pairs, each by its own recipe."""

    data: list[str] = field(default_factory=list)  # preference files of any known schema; empty = no such stage
    columns: dict[str, str] = field(default_factory=dict)  # our column name -> these files' column name
    on_bad_row: str = "error"  # error | drop
    epochs: float = 1.0  # over the pairs; more would fit them rather than what they share with the battles
    lr: float | None = None  # peak rate of the adapters; null = the member's own
    head_lr: float | None = None  # peak rate of the fresh head; null = the member's own
    batch_battles: int | None = None  # pairs per optimizer step; null = the member's own


@dataclass(frozen=True)
class Jobs:
    workers: int = 1  # fold jobs at a time on this machine, each in a process (and on a GPU) of its own
    nproc: int = 1  # processes (GPUs) of one fold job, started by torchrun; the optimizer steps stay the same
    backend: str = "local"  # local | ray: where fold jobs run
    address: str = ""  # of a Ray cluster ("auto", "ray://…"); empty = a Ray of our own on this machine
    gpus_per_job: float = 0.0  # GPUs that Ray reserves for a fold job
    cpus_per_job: float = 1.0  # CPUs that Ray reserves for a fold job
    retries: int = 2  # times that Ray tries a job again whose worker died
    report_to: str = "none"  # trackio | tensorboard | wandb | mlflow, where installed; metrics.jsonl is always written
    time_limit: float = 0.0  # seconds after which the call stops in good order, to be run again; 0 = none


@dataclass(frozen=True)
class Stack:
    trials: int = 50  # Optuna trials per study; there are K + 1 studies
    rounds: int = 400  # the most boosting rounds of one booster
    order: str = "auto"  # symmetric | position | auto: may one first-shown term be modelled?
    calibrator: str = "temperature"  # temperature | vector (the tie has its own scale and bias) | none
    final: str = "auto"  # auto (the simplest within a standard error of the best), best, or a combiner's name
    text_member: bool = False  # is the text baseline also a member? Of use where members are weak or battles many
    workers: int = 0  # processes, at most K + 1; 0 = as many as cores where there is enough to do; never the result
    logits: dict[str, str] = field(default_factory=dict)  # member -> file of logits made elsewhere; empty = stage one's
    in_sample_margin: float = 0.05  # nats by which a member must beat every other to look in-sample


@dataclass(frozen=True)
class Losses:
    """Weights of the terms of the student's loss, which is their weighted mean; 0 leaves a term out."""

    ce: float = 0.0  # cross-entropy with the label; a battle without one has no such term
    kl: float = 1.0  # T^2 KL(teacher || student) of distributions softened by T
    cosine: float = 0.0  # 1 - cosine of the softened probabilities
    mse: float = 0.0  # mean squared difference of the centred logits
    consistency: float = 0.0  # symmetric KL between the two orders of a battle; needs swap: paired


@dataclass(frozen=True)
class Distill:
    student: Member = field(default_factory=Member)
    teacher: str = "oof"  # oof | nested | fold_matched: which models label a fold student's training battles
    teachers: str = "stack"  # stack | members (each one's targets kept apart) | one member's name
    losses: Losses = field(default_factory=Losses)
    temperature: float = 1.0  # T of the soft targets
    pseudo_weight: float = 1.0  # loss weight of a battle of data.unlabelled; 0 = leave them out
    final: str = "all"  # all (one more student, on everything) | fold_average (of the fold students' weights)
    variants: list[str] = field(default_factory=list)  # also save the student as: int8, nf4 (needs bitsandbytes)


@dataclass(frozen=True)
class Predict:
    model: str = "student"  # student | ensemble
    chunk: int = 20_000  # battles in memory at a time


@dataclass(frozen=True)
class Config:
    run: str = ""  # run folder; empty = runs/<config name>
    seed: int = 0
    data: Data = field(default_factory=Data)
    groups: Groups = field(default_factory=Groups)
    folds: Folds = field(default_factory=Folds)
    prompts: Prompts = field(default_factory=Prompts)
    members: dict[str, Member] = field(default_factory=dict)
    pretrain: Pretrain = field(default_factory=Pretrain)
    jobs: Jobs = field(default_factory=Jobs)
    stack: Stack = field(default_factory=Stack)
    distill: Distill = field(default_factory=Distill)
    predict: Predict = field(default_factory=Predict)


# field name, or the path of one field -> the values that it may have
CHOICES: dict[str, tuple[str, ...]] = {
    "on_bad_row": ("error", "drop"),
    "layers": ("all", "upper_half"),
    "layout": ("responses", "rounds"),
    "hints": ("none", "lengths"),
    "dtype": ("float32", "bfloat16", "auto"),
    "score_dtype": ("same", "float16"),
    "frozen": ("recompute", "stored"),
    "quantise": ("none", "nf4", "int8"),
    "attn_softcap": ("on", "off"),
    "activation_checkpointing": ("auto", "on", "off"),
    "backend": ("local", "ray"),
    "report_to": ("none", "trackio", "tensorboard", "wandb", "mlflow"),
    "attn": ("auto", "eager", "blockwise", "sdpa", "flash_attention_2"),
    "swap": ("none", "random", "paired"),
    "order": ("symmetric", "position", "auto"),
    "calibrator": ("temperature", "vector", "none"),
    "stack.final": ("auto", "best", "lightgbm", "log_pool", "logistic", "greedy", "mean"),
    "model": ("student", "ensemble"),
    "teacher": ("oof", "nested", "fold_matched"),
    "distill.final": ("all", "fold_average"),
}
# field name, or the path of one field -> (smallest, largest) value, both allowed
RANGES: dict[str, tuple[float, float]] = {
    "k": (2, 100),
    "seed": (0, 2**31 - 1),
    "battles": (0, 10_000_000),
    "test_battles": (1, 10_000_000),
    "threshold": (0.1, 1.0),
    "max_tokens": (32, 1_000_000),
    "score_max_tokens": (32, 1_000_000),
    "prompt_share": (0.0, 1.0),
    "rank": (0, 4096),
    "alpha": (1e-6, 1e6),
    "dropout": (0.0, 0.99),
    "epochs": (0.01, 1000),
    "lr": (0.0, 1.0),
    "head_lr": (0.0, 1.0),
    "batch_battles": (1, 1_000_000),
    "tokens_per_batch": (1, 100_000_000),
    "score_tokens_per_batch": (1, 100_000_000),
    "warmup_share": (0.0, 1.0),
    "max_grad_norm": (0.0, 1e6),
    "weight_decay": (0.0, 10.0),
    "checkpoint_steps": (0, 10_000_000),
    "workers": (1, 256),
    "stack.workers": (0, 256),
    "nproc": (1, 1024),
    "gpus_per_job": (0.0, 1024.0),
    "cpus_per_job": (0.0, 1024.0),
    "retries": (0, 100),
    "time_limit": (0.0, 1e8),
    "trials": (1, 100_000),
    "rounds": (1, 100_000),
    "in_sample_margin": (0.0, 100.0),
    "temperature": (0.01, 100.0),
    "ce": (0.0, 1000.0),
    "kl": (0.0, 1000.0),
    "cosine": (0.0, 1000.0),
    "mse": (0.0, 1000.0),
    "consistency": (0.0, 1000.0),
    "pseudo_weight": (0.0, 1000.0),
    "chunk": (1, 100_000_000),
    "extra_weight": (0.0, 1000.0),
    "min_prompt_quality": (0.0, 1.0),
}
