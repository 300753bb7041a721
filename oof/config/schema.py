# ruff: noqa: RUF009  # setting() returns a dataclass field
"""The configuration schema: one frozen dataclass per section, defaults included; this module holds the root.

:mod:`oof.config.load` reads a configuration from YAML and the command line. Nothing in it names a class or a function
to call. ``arena-distill settings`` prints every setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from oof.config.schema_data import SEEDS, Data, Folds, Groups, Prompts, StudentPrompts, Synth
from oof.config.schema_members import Lora, Member, Pretrain, Train
from oof.config.setting import setting

__all__ = [
    "Cascade", "Config", "Data", "Distill", "Folds", "Groups", "Jobs", "Lora", "Losses", "Member", "Predict",
    "Pretrain", "Prompts", "Stack", "StudentPrompts", "Synth", "Train",
]  # fmt: skip

WEIGHTS = (0.0, 1000.0)


@dataclass(frozen=True)
class Jobs:
    """Where and how fold jobs run. No content key contains these settings: finished work stays valid after a change."""

    device: str = setting(
        "auto",
        "`auto`: a GPU where torch finds one; without it, a base of over 1.3 billion parameters is not trained. "
        "`cpu`: the CPU, whatever the size; GPUs are not used",
        choices=("auto", "cpu"), speed_only=True, added=True,
    )  # fmt: skip
    workers: int = setting(
        1, "fold jobs at a time on this machine, each in a process (and on a GPU) of its own",
        unit="processes", range=(1, 256), speed_only=True,
    )  # fmt: skip
    nproc: int = setting(
        1, "processes (GPUs) of one fold job, started by torchrun. The optimizer steps stay the same; results differ "
        "by rounding, which training amplifies",
        unit="processes", range=(1, 1024),
    )  # fmt: skip
    backend: str = setting(
        "local",
        "run fold jobs on this machine, or as tasks of a Ray cluster",
        choices=("local", "ray"),
        speed_only=True,
    )
    address: str = setting(
        "", 'address of the Ray cluster ("auto", "ray://…"); empty = start Ray on this machine', speed_only=True
    )
    gpus_per_job: float | None = setting(
        None, "GPUs that Ray reserves for a fold job; null = 1 where the cluster has GPUs, else none",
        unit="GPUs", range=(0.0, 1024.0), speed_only=True,
    )  # fmt: skip
    cpus_per_job: float = setting(
        1.0, "CPU cores that Ray reserves for a fold job", unit="cores", range=(0.0, 1024.0), speed_only=True
    )
    retries: int = setting(
        2, "times that Ray restarts a job whose worker died; it continues from its last checkpoint",
        unit="restarts", range=(0, 100), speed_only=True,
    )  # fmt: skip
    report_to: str = setting(
        "none", "experiment tracker, where installed; `metrics.jsonl` is always written",
        choices=("none", "trackio", "tensorboard", "wandb", "mlflow"), speed_only=True,
    )  # fmt: skip
    time_limit: float = setting(
        0.0, "after this time the command saves its work and stops with exit status 75; run it again to continue; "
        "0 = no limit",
        unit="seconds", range=(0.0, 1e8), speed_only=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """Stage two: combiners of the members' out-of-fold logits, and calibration, both cross-fitted."""

    trials: int = setting(50, "Optuna trials per study; there are K + 1 studies", unit="trials", range=(1, 100_000))
    rounds: int = setting(
        400, "largest number of boosting rounds of LightGBM; early stopping usually ends sooner",
        unit="rounds", range=(1, 100_000),
    )  # fmt: skip
    order: str = setting(
        "auto",
        "position bias in calibration. `symmetric`: none; `position`: terms for the response shown first; `auto`: "
        "those terms where the members scored one order only, or if their cross-validated gain in log loss exceeds its "
        "standard error",
        choices=("symmetric", "position", "auto"),
    )
    calibrator: str = setting(
        "vector", "calibration method. `temperature`: one number; `vector`: also a scale and a bias of the tie, where "
        "there is evidence for them",
        choices=("temperature", "vector", "none"),
    )  # fmt: skip
    final: str = setting(
        "pool",
        "the final stack. `pool`: all candidates, weighted by their out-of-fold predictions; `best`: the one with the "
        "smallest loss; `auto`: the simplest within one standard error of that; or the name of a candidate",
        choices=(
            "pool",
            "best",
            "auto",
            "lightgbm",
            "extra_trees",
            "logistic",
            "greedy",
            "log_pool",
            "mean",
            "plain_mean",
            "text",
            "length_only",
            "prior",
        ),
    )
    text_member: bool = setting(
        False, "also stack the TF-IDF baseline as a member; of use where members are weak or battles many"
    )
    workers: int = setting(
        0, "processes, at most K + 1; 0 = one per core where there is enough work. Results are identical",
        unit="processes", range=(0, 256), speed_only=True,
    )  # fmt: skip
    logits: dict[str, str] = setting({}, "member name: file of logits made elsewhere; empty = the logits of stage one")
    test_logits: dict[str, str] = setting(
        {}, "member name: file of its logits of the test battles; where `logits` has files, `predict` needs them",
        added=True,
    )  # fmt: skip
    in_sample_margin: float = setting(
        0.05, "log loss by which a member must beat every other member before it is reported as possibly in-sample",
        unit="nats", range=(0.0, 100.0),
    )  # fmt: skip
    strict: bool = setting(
        False, "leave possibly in-sample members out of the stack, the tables and the report; only those of `logits`",
        added=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Losses:
    """Weights of the terms of the student's loss, which is their weighted mean; 0 leaves a term out."""

    ce: float = setting(
        0.0, "cross-entropy with the label; a battle without a label is averaged over its other terms", range=WEIGHTS
    )
    kl: float = setting(1.0, "T^2 KL(teacher || student) of the distributions softened by temperature T", range=WEIGHTS)
    cosine: float = setting(0.0, "1 - cosine similarity of the softened distributions", range=WEIGHTS)
    mse: float = setting(0.0, "mean squared difference of the centred logits", range=WEIGHTS)

    @property
    def soft(self) -> float:
        """Sum of the weights of the terms that need no label."""
        return self.kl + self.cosine + self.mse


@dataclass(frozen=True)
class Distill:
    """Stage three: one student that learns from the ensemble's out-of-fold probabilities."""

    student: Member = field(default_factory=Member)
    teacher: str = setting(
        "oof",
        "models that label the training battles of a fold student. `oof`: the cross-fitted stack; `nested`: members "
        "and stack trained without that fold, too; `fold_matched`: the members' own fold jobs",
        choices=("oof", "nested", "fold_matched"),
    )
    teachers: str = setting(
        "stack", "`stack`: the calibrated ensemble; `members`: each member is a separate teacher; or one member's name"
    )
    start: str = setting(
        "auto",
        "weights that a student starts from. `auto`: `member` if a member fits, else `base`; `base`: the checkpoint "
        "with a fresh head and fresh adapters, or its training on `pretrain.data`; `member`: fold student k from fold "
        "job k of the first member with the student's checkpoint and LoRA settings, the final student from the average "
        "of its fold jobs; `pretrain`: each student from the training of such a member on `pretrain.data`, without one "
        "of its own",
        choices=("auto", "base", "member", "pretrain"),
        added=True,
    )
    seeds: int = setting(
        1, "trainings of each student from the same first weights, with batches and dropout of their own; the student "
        "is the average of their weights",
        unit="trainings", range=(1, 100), added=True,
    )  # fmt: skip
    losses: Losses = field(default_factory=Losses)
    prompts: StudentPrompts = field(default_factory=StudentPrompts)
    temperature: float = setting(
        1.0, "temperature T of the soft targets in `losses.kl` and `losses.cosine`", range=(0.01, 100.0)
    )
    pseudo_weight: float = setting(
        1.0,
        "loss weight of a battle of `data.unlabelled`; a train battle has 1. Its loss is the mean of the terms other "
        "than `ce`, (kl KL + cosine cos + …) / (kl + cosine + …), so the weight holds whatever terms are on; 0 = leave "
        "these battles out",
        range=(0.0, 1000.0),
    )
    pseudo_share: float = setting(
        1.0, "share of the battles of `data.unlabelled` that students train on, drawn by `seed`. All of them are "
        "scored once and the scores kept, so that another share scores nothing again",
        unit="share", range=(0.001, 1.0), added=True,
    )  # fmt: skip
    rounds: int = setting(
        1, "trainings in a row. From the second on, the student of the round before labels the battles of "
        "`data.unlabelled` in place of the ensemble",
        unit="rounds", range=(1, 10), added=True,
    )  # fmt: skip
    final: str = setting(
        "all", "exported student. `all`: one more student, trained on all battles; `fold_average`: the average of the "
        "fold students' weights, at a temperature of its own",
        choices=("all", "fold_average"),
    )  # fmt: skip
    variants: list[str] = setting([], "also save the student quantised: `int8`, `nf4` (needs bitsandbytes)")

    @property
    def trainings(self) -> int:
        """Trainings of each student, of all seeds and rounds."""
        return self.seeds * self.rounds


@dataclass(frozen=True)
class Cascade:
    """Dearer models only where the student is uncertain; `budget`, `time` or `thresholds` switches it on."""

    budget: float = setting(
        0.0, "most compute, as share of what the ensemble would need for all battles, by the run's measured costs. The "
        "policy with the least out-of-fold loss within it is taken; `make cascade` shows them all; 0 = none",
        unit="share", range=(0.0, 1.0), added=True,
    )  # fmt: skip
    time: str = setting(
        "", "time limit of the prediction on this machine, such as `9h`, `1h30m` or `5400` (seconds); empty = none. "
        "The speed is measured as it goes, and work stops before a piece that would not fit. Leave room for what comes "
        "before and after, such as the start of the notebook",
        added=True,
    )  # fmt: skip
    thresholds: list[float] = setting(
        [], "a battle goes on to the next of `levels` if its `score` is above the threshold; empty = none", added=True
    )
    levels: list[str] = setting(
        [], "levels for `thresholds`, cheapest first, by their names in `make cascade`; empty = `student`, `ensemble`",
        added=True,
    )  # fmt: skip
    score: str = setting(
        "gain",
        "score for `thresholds`. `gain`: predicted fall of the log loss in nats; `margin`: 1 minus the difference of "
        "the two largest probabilities; `entropy`: in nats; `disagreement`: largest difference of a log-probability "
        "between the student's orders, or student and members",
        choices=("gain", "margin", "entropy", "disagreement"),
        added=True,
    )
    piece: int = setting(
        1000, "battles that are scored between two looks at the clock, and the most that a time limit is overrun by. "
        "Smaller pieces read the members' weights more often, and those below 1,000 are scored by one process",
        unit="battles", range=(1, 1_000_000), speed_only=True, added=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Predict:
    """Prediction of the test battles: `submission.csv`."""

    model: str = setting("student", "model that predicts", choices=("student", "ensemble"))
    format: str = setting(
        "probabilities",
        "columns beside `id`. `probabilities`: the three winner columns (LMSYS); `winner`: `model_a` or `model_b`, the "
        "more probable of the two, whatever the probability of a tie (WSDM Cup)",
        choices=("probabilities", "winner"), added=True,
    )  # fmt: skip
    chunk: int = setting(20_000, "battles in memory at a time", unit="battles", range=(1, 100_000_000), speed_only=True)
    cascade: Cascade = field(default_factory=Cascade)


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run."""

    run: str = setting("", "run folder; empty = `runs/<name of the configuration file>`")
    seed: int = setting(0, "seed of folds, heads, adapters, batches and tuning", range=SEEDS)
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

    def for_student(self) -> Config:
        """Return the configuration by which the student reads battles: its ``prompts`` are the student's."""
        return replace(self, prompts=self.distill.prompts.over(self.prompts))
