# ruff: noqa: RUF009  # setting() returns a dataclass field
"""Settings of the models: base checkpoint, adapters, training, and pretraining on other preference pairs."""

from __future__ import annotations

from dataclasses import dataclass, field

from oof.config.setting import setting

EPOCHS = (0.01, 1000)
RATES = (0.0, 1.0)
COUNTS = (1, 1_000_000)
BATCH_TOKENS = (1, 100_000_000)


@dataclass(frozen=True)
class Lora:
    """LoRA adapters on the frozen base model."""

    rank: int = setting(64, "rank of the adapters; 0 = full fine-tuning of every weight", range=(0, 4096))
    alpha: float = setting(
        16.0, "scale: an adapter's output is multiplied by alpha/rank (with `rslora` by alpha/sqrt(rank))",
        range=(1e-6, 1e6),
    )  # fmt: skip
    dropout: float = setting(0.0, "dropout probability at the adapters' input", range=(0.0, 0.99))
    targets: str = setting(
        "all-linear", "adapted modules: `all-linear` (every linear layer but the score head), or names and commas"
    )
    layers: str = setting(
        "all",
        "`upper_half`: adapters in the upper half of the layers only. There is then no backward pass below the lowest "
        "adapter, which saves time at some cost in quality",
        choices=("all", "upper_half"),
    )
    rslora: bool = setting(False, "rank-stabilised scale: alpha/sqrt(rank) instead of alpha/rank")
    dora: bool = setting(False, "DoRA: separate adapters for the magnitude and the direction of each weight")


@dataclass(frozen=True)
class Train:
    """Optimisation: AdamW over the adapters and the score head."""

    epochs: float = setting(1.0, "passes over the training battles; a fraction is allowed", unit="epochs", range=EPOCHS)
    lr: float = setting(1e-4, "peak learning rate of the adapters", range=RATES)
    head_lr: float = setting(1e-4, "peak learning rate of the score head", range=RATES)
    head_init: str = setting(
        "zero",
        "weights that the score head starts from. `zero`: all classes are equally probable at first; `random`: normal, "
        "with the base's own standard deviation, so that the first predictions can be far from equal, which few steps "
        "do not mend",
        choices=("zero", "random"),
        added=True, older="random",
    )  # fmt: skip
    batch_battles: int = setting(16, "battles per optimizer step", unit="battles", range=COUNTS)
    tokens_per_batch: int = setting(
        8192,
        "padded tokens per forward and backward pass; an optimizer step accumulates as many passes as it needs. "
        "Results differ by rounding, which training amplifies",
        unit="tokens",
        range=BATCH_TOKENS,
    )
    swap: str = setting(
        "paired",
        "swap augmentation against position bias. `paired`: both orders of a battle in one optimizer step; `random`: "
        "in each epoch a random half of the battles is swapped; `none`: the files' order",
        choices=("none", "random", "paired"),
    )
    warmup_share: float = setting(
        0.1, "optimizer steps in which the learning rate rises from 0", unit="share of the steps", range=(0.0, 1.0)
    )
    schedule: str = setting("cosine", "learning rate after the warm-up: the name of a scheduler of transformers")
    optimizer: str = setting(
        "adamw",
        "`adamw`: moments in float32, 8 bytes per trained weight; `adamw_8bit`: in 8 bits (bitsandbytes), 2 bytes, for "
        "full fine-tuning or very high ranks. Results differ slightly",
        choices=("adamw", "adamw_8bit"),
        added=True,
    )
    average_last: float = setting(
        0.0, "last part of the optimizer steps over which the trained weights are averaged; 0 = the weights after the "
        "last step",
        unit="share of the steps", range=(0.0, 1.0), added=True,
    )  # fmt: skip
    weight_decay: float = setting(0.0, "decoupled weight decay of AdamW", range=(0.0, 10.0))
    max_grad_norm: float = setting(1.0, "gradient norm above which gradients are clipped; 0 = never", range=(0.0, 1e6))
    # The weights do not depend on it, but the content keys of existing runs do: so it is not marked "speed only".
    checkpoint_steps: int = setting(
        0,
        "optimizer steps between checkpoints, beside those of `checkpoint_minutes`; 0 = none. After a change, finished "
        "jobs are trained again, so prefer `checkpoint_minutes`",
        unit="optimizer steps",
        range=(0, 10_000_000),
    )
    checkpoint_minutes: float = setting(
        10.0,
        "training time after which a checkpoint is written, beside those of `checkpoint_steps`; 0 = none. One takes "
        "12 bytes of disk per trained weight, and the last two are kept",
        unit="minutes",
        range=(0.0, 100_000.0),
        speed_only=True,
        added=True,
    )
    monitor_battles: int = setting(
        0,
        "held-out battles whose loss is written to `metrics.jsonl` and the tracker at each twentieth of the steps; it "
        "chooses nothing and changes no weight. Fold jobs and fold students only",
        unit="battles",
        range=(0, 1_000_000),
        speed_only=True,
        added=True,
    )
    activation_checkpointing: str = setting(
        "auto",
        "recompute activations in the backward pass instead of keeping them: less memory, more time. `auto`: where the "
        "planned memory of a step exceeds the GPU's, and where one sequence alone runs out of memory",
        choices=("auto", "on", "off"),
        speed_only=True,
    )


@dataclass(frozen=True)
class Member:
    """One base model of the ensemble and how it is trained. The student (`distill.student`) has the same settings."""

    checkpoint: str = setting("", "decoder model: a local Hugging Face folder or the name of a model on the hub")
    revision: str = setting(
        "",
        "branch, tag or commit of a hub checkpoint; empty = `main`. The run records the commit at its first job "
        "(`RUN/checkpoints.json`), and later jobs load that one",
        added=True,
    )
    dtype: str = setting(
        "bfloat16", "precision of the frozen base (adapters and head are float32); `float16` trains with loss scaling, "
        "for GPUs without bfloat16; `auto`: bfloat16 where the hardware has it, else float16 on GPUs, float32 on CPUs",
        choices=("float32", "bfloat16", "float16", "auto"),
    )  # fmt: skip
    score_dtype: str = setting(
        "same",
        "precision of scoring: `same` as in training, or `float16` for cards without bfloat16, after a check of a "
        "sample of the sequences against the precision of training",
        choices=("same", "float16"),
    )
    quantise: str = setting(
        "none", "quantisation of the frozen base in training and scoring (bitsandbytes): 4 bits (`nf4`) or 8 (`int8`) "
        "per weight",
        choices=("none", "nf4", "int8"),
    )  # fmt: skip
    score_quantise: str = setting(
        "same",
        "quantisation of the base in scoring alone: `same` as in training; `int8` or `nf4` after training with "
        "`quantise: none`, for scoring on smaller GPUs. Each job then scores a sample both ways and records the "
        "difference (`score_drift` in `job.json`). Members only",
        choices=("same", "int8", "nf4"),
        added=True,
    )
    attn: str = setting(
        "auto",
        "attention implementation. `auto`: the first of FlashAttention 4, 3, 2 (if installed; 16 bits on a GPU of "
        "compute capability 8.0 or higher), `sdpa` and `blockwise` that agrees with `eager` on this machine; `eager` "
        "in a training for which the plan predicts that it is faster than `blockwise`, and fits. Soft-capped attention "
        "scores never run on sdpa, which does not compute them",
        choices=(
            "auto",
            "eager",
            "blockwise",
            "sdpa",
            "flash_attention_2",
            "flash_attention_3",
            "flash_attention_4",
        ),
    )
    fused_layers: str = setting(
        "auto",
        "RMSNorm and gated activations as one kernel each. `auto`: on a CUDA GPU, where liger-kernel is installed and "
        "its kernels agree with eager PyTorch on this machine. Results differ by rounding",
        choices=("auto", "off"),
        added=True,
    )
    attn_softcap: str = setting(
        "on",
        "Gemma2's soft-capping of attention scores. Recorded in the adapter: an adapter is never loaded with another "
        "value than it was trained with",
        choices=("on", "off"),
    )
    frozen: str = setting(
        "recompute",
        "hidden states of the layers below the adapters (needs `lora.layers: upper_half`). `stored`: computed once per "
        "text and kept in `RUN/frozen` for every fold, epoch and student of this base; takes 4 bytes of disk x model "
        "width x tokens of both orders",
        choices=("recompute", "stored"),
        speed_only=True,
        added=True,
    )
    score_tokens_per_batch: int | None = setting(
        None, "padded tokens per forward pass in scoring; null = 16,384 on a GPU, 4,096 on a CPU",
        unit="tokens", range=BATCH_TOKENS, speed_only=True,
    )  # fmt: skip
    lora: Lora = field(default_factory=Lora)
    train: Train = field(default_factory=Train)


@dataclass(frozen=True)
class Pretrain:
    """Optional pretraining on other preference pairs: members and the student learn from them before the folds.

    Pairs whose prompt is a near-duplicate of a scored battle's are left out.
    """

    data: list[str] = setting([], "preference files of any known schema; empty = no pretraining")
    columns: dict[str, str] = setting({}, "our column name: the column name of these files")
    on_bad_row: str = setting(
        "error", "what to do with a row that cannot be used: stop, or leave it out and list it in `dropped.csv`",
        choices=("error", "drop"),
    )  # fmt: skip
    epochs: float = setting(
        1.0, "passes over the pairs; more fit the pairs themselves rather than what they share with the battles",
        unit="epochs", range=EPOCHS,
    )  # fmt: skip
    lr: float | None = setting(None, "peak learning rate of the adapters; null = the member's `train.lr`", range=RATES)
    head_lr: float | None = setting(
        None, "peak learning rate of the fresh score head; null = the member's `train.head_lr`", range=RATES
    )
    batch_battles: int | None = setting(
        None, "pairs per optimizer step; null = the member's `train.batch_battles`", unit="pairs", range=COUNTS
    )
