"""Configuration: frozen dataclasses are the schema and the defaults; YAML holds what differs.

``load("configs/demo.yaml", ["stack.trials=5"])`` gives one immutable :class:`Config`. Nothing in a
configuration names a class or a function to call. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from oof.errors import UserError

MAX_CONFIG_BYTES = 1_000_000


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
    hints: str = "none"  # none | lengths


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
    checkpoint_steps: int = 0  # optimizer steps between checkpoints; 0 = only at each epoch's end


@dataclass(frozen=True)
class Member:
    """One base model of the ensemble with its recipe."""

    checkpoint: str = ""  # a Hugging Face folder or hub name of a decoder
    dtype: str = "bfloat16"  # float32 | bfloat16: the frozen base; adapters and head are float32
    attn: str = "auto"  # auto | eager | sdpa | flash_attention_2 | flex_attention
    score_tokens_per_batch: int = 16384
    lora: Lora = field(default_factory=Lora)
    train: Train = field(default_factory=Train)


@dataclass(frozen=True)
class Jobs:
    workers: int = 1  # fold jobs at a time on this machine, each in a process of its own when more than 1


@dataclass(frozen=True)
class Stack:
    trials: int = 50  # Optuna trials per study; there are K + 1 studies
    rounds: int = 400  # the most boosting rounds of one booster
    order: str = "auto"  # symmetric | position | auto: may one first-shown term be modelled?
    calibrator: str = "temperature"


@dataclass(frozen=True)
class Distill:
    student: Member = field(default_factory=Member)
    temperature: float = 1.0  # T of the soft targets
    soft_weight: float = 1.0  # weight of the KL term; 1 - soft_weight goes to hard cross-entropy


@dataclass(frozen=True)
class Predict:
    model: str = "student"  # student | ensemble


@dataclass(frozen=True)
class Config:
    run: str = ""  # run folder; empty = runs/<config name>
    seed: int = 0
    data: Data = field(default_factory=Data)
    groups: Groups = field(default_factory=Groups)
    folds: Folds = field(default_factory=Folds)
    prompts: Prompts = field(default_factory=Prompts)
    members: dict[str, Member] = field(default_factory=dict)
    jobs: Jobs = field(default_factory=Jobs)
    stack: Stack = field(default_factory=Stack)
    distill: Distill = field(default_factory=Distill)
    predict: Predict = field(default_factory=Predict)


CHOICES: dict[str, tuple[str, ...]] = {
    "on_bad_row": ("error", "drop"),
    "layers": ("all", "upper_half"),
    "layout": ("responses", "rounds"),
    "hints": ("none", "lengths"),
    "dtype": ("float32", "bfloat16"),
    "attn": ("auto", "eager", "sdpa", "flash_attention_2", "flex_attention"),
    "swap": ("none", "random", "paired"),
    "order": ("symmetric", "position", "auto"),
    "calibrator": ("temperature", "none"),
    "model": ("student", "ensemble"),
}
# field name -> (smallest, largest) value, both allowed
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
    "trials": (1, 100_000),
    "rounds": (1, 100_000),
    "temperature": (0.01, 100.0),
    "soft_weight": (0.0, 1.0),
    "extra_weight": (0.0, 1000.0),
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file with ``key.sub=value`` overrides laid over it.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, a value has the wrong type or range.
    """
    path = Path(path)
    tree = _read_yaml(path)
    for override in overrides:
        if not re.match(r"[A-Za-z_][\w.-]*=", override):
            raise UserError(f"override {override!r}: expected key.sub=value, for example stack.trials=5")
    try:
        changes = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"overrides {' '.join(overrides)}: {_first_line(error)}") from error
    for origin, part in ((str(path), tree), ("overrides", changes)):
        _refuse_unknown(origin, part, Config)
    try:
        schema = OmegaConf.structured(Config)
        OmegaConf.set_readonly(schema, None)  # a frozen dataclass makes a read-only node that nothing can be laid over
        merged = OmegaConf.merge(schema, tree, changes)
        assert isinstance(merged, DictConfig)
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    assert isinstance(config, Config)
    _check_values(str(path), config)
    return config if config.run else dataclasses.replace(config, run=str(Path("runs") / path.stem))


def to_dict(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain JSON values."""
    return dataclasses.asdict(config)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(f"{path}: larger than {MAX_CONFIG_BYTES:,} bytes; this is not a configuration")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise UserError(f"{path}: YAML aliases (*name) are not supported; write the value out")
        tree = yaml.safe_load(text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the configuration ({error.strerror}); see configs/ for examples"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {_first_line(error)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{path}: expected 'key: value' lines at the top level")
    return tree


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n\n")[0].split())[:300] or type(error).__name__


def _refuse_unknown(origin: str, tree: object, schema: Any, prefix: str = "") -> None:
    """Walk ``tree`` beside the dataclass ``schema``; free-form mappings (members, columns) keep their own names."""
    if not isinstance(tree, dict):
        raise UserError(f"{origin}: {prefix[:-1]}: expected settings below it ('key: value'), not {tree!r:.60}")
    fields = {f.name: f.type for f in dataclasses.fields(schema)}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in fields:
            near = difflib.get_close_matches(str(key), list(fields), n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(fields)}"
            raise UserError(f"{origin}: unknown key {name!r}; {hint}")
        inner = globals().get(str(fields[key]))
        if dataclasses.is_dataclass(inner):
            _refuse_unknown(origin, value, inner, f"{name}.")
        elif name == "members":
            if not isinstance(value, dict):
                raise UserError(f"{origin}: members: expected a recipe under each member's name, not {value!r:.60}")
            for member, recipe in value.items():
                if not NAME.fullmatch(str(member)):
                    raise UserError(f"{origin}: member name {str(member)!r}: use letters, digits, '_', '-' and '.'")
                _refuse_unknown(origin, recipe, Member, f"members.{member}.")


def _leaves(value: object, prefix: str = "") -> Iterator[tuple[str, str, object]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            inner = getattr(value, item.name)
            yield from _leaves(inner, f"{prefix}{item.name}.")
            yield f"{prefix}{item.name}", item.name, inner
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}{key}.")


def _check_values(origin: str, config: Config) -> None:
    for path, name, value in _leaves(config):
        if name in CHOICES and value not in CHOICES[name]:
            raise UserError(f"{origin}: {path}={value!r}; choose one of {', '.join(CHOICES[name])}")
        if name in RANGES and isinstance(value, int | float):
            low, high = RANGES[name]
            if not low <= value <= high:  # also refuses NaN
                raise UserError(f"{origin}: {path}={value}; it must lie between {low:g} and {high:g}")
    if "\0" in config.run:
        raise UserError(f"{origin}: run={config.run!r}: a folder name cannot hold a NUL character")
