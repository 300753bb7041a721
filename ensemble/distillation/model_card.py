"""The student's model card: data, recipe, metrics with intervals, limits, licence notes. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ensemble.distillation.plan import StudentPlan
from oof.classes import CLASSES, WINNER_COLUMNS
from oof.config import Distill

# base model's name begins with -> what its licence asks of a derived model
LICENCES = {
    "google/gemma": (
        "gemma",
        "Gemma Terms of Use: pass them on with the model, say that it was changed, keep to the use policy",
    ),
    "meta-llama/": (
        "llama3.1",
        "Llama Community License: ship a copy, show 'Built with Llama', put Llama first in its name",
    ),
    "HuggingFaceTB/SmolLM": ("apache-2.0", "Apache-2.0: keep the notices, say that files were changed"),
    "Qwen/": (None, "Apache-2.0 for most sizes, the Qwen licence for some; read the base model's card"),
}
TEACHERS = {
    "oof": "out-of-fold probabilities: each battle was labelled by models that had not seen it",
    "nested": "nested out-of-fold probabilities: what labelled the training battles of fold k had not seen fold k",
    "fold_matched": "in-sample probabilities of the members of the same fold",
}


def student_card(plan: StudentPlan, temperature: float, facts: dict[str, Any]) -> ModelCard:
    """Return the card of a student.

    Args:
        plan: data and recipe.
        temperature: what was folded into the head.
        facts: ``scores``, ``interval`` and ``student_minus_ensemble`` of the fold students.
    """
    base = plan.config.distill.student.checkpoint
    licence, note = _licence(base)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["preference-model", "reward-model", "llm-as-a-judge"],
        base_model=None if Path(base).is_dir() else base,
        license=licence,
    )
    sections = (
        _use(plan, temperature),
        _data(plan),
        _recipe(plan),
        _metrics(plan, facts),
        LIMITS,
        f"## Licence\n\nThe weights are derived from `{base}`: {note}. The licence of the battles it was trained on "
        "applies as well; text of the training data is not part of this folder.",
    )
    body = "\n\n".join(section.strip() for section in sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n# Preference student\n\n{body}\n")


def _licence(base: str) -> tuple[str | None, str]:
    for prefix, found in LICENCES.items():
        if base.startswith(prefix):
            return found
    return None, "read that model's terms, which bind derived models"


def _use(plan: StudentPlan, temperature: float) -> str:
    prompts = plan.config.prompts
    order = ", ".join(f"`{label}`" for label in WINNER_COLUMNS)
    return f"""
Given a prompt and two responses, the probabilities of {order}.
A stock sequence classifier; the calibration temperature ({temperature:.4f}) is folded into its bias-free head, so the
softmax of its logits is calibrated.

```python
from ensemble import Judge

judge = Judge.from_pretrained("this folder")
a, b, tie = judge.compare("a prompt", "response A", "response B")
```

Without our package: `tokenizer.apply_chat_template` with the roles `user`, `response_a`, `response_b` (layout
`{prompts.layout}`), no special tokens added; score both orders and average their logits, so that order cannot matter.
Longer texts than {prompts.score_max_tokens or prompts.max_tokens} tokens: `prompts.json` says how they were cut."""


def _data(plan: StudentPlan) -> str:
    table = plan.table
    groups = len(set(plan.inputs.groups.tolist()))
    labels = [int((plan.labels == i).sum()) for i in range(3)]
    shares = ", ".join(f"{name} {n}" for name, n in zip(CLASSES, labels, strict=True))
    roles = {role: int((table["role"] == role).sum()) for role in ("train", "extra", "unlabelled")}
    languages = table["language"].drop_nulls().value_counts(sort=True)["language"].head(5).to_list()
    said = f" Most frequent languages: {', '.join(map(str, languages))}." if languages else ""
    return f"""
## Data

{roles["train"]} battles with verdicts ({shares}, extra ones included) in {groups} groups of near-duplicate prompts \
and {plan.config.folds.k} folds; {roles["extra"]} extra and {roles["unlabelled"]} unlabelled battles were trained on \
and never scored.{said}"""


def _recipe(plan: StudentPlan) -> str:
    distill: Distill = plan.config.distill
    student, train = distill.student, distill.student.train
    who = "the calibrated stack of" if plan.teachers == ["stack"] else "each for itself of"
    names = ", ".join(plan.config.members if plan.teachers == ["stack"] else plan.teachers)
    terms = ", ".join(f"{name} {weight:g}" for name, weight in asdict(distill.losses).items() if weight)
    how = f"LoRA of rank {student.lora.rank}, alpha {student.lora.alpha:g}" if student.lora.rank else "full fine-tuning"
    first = ""
    if plan.pretrain is not None:
        files = ", ".join(f"`{Path(path).name}`" for path in plan.config.pretrain.data)
        first = f"* Before that: trained on other preference pairs ({files}), none near a scored prompt.\n"
    final = "one more student, trained on every battle" if distill.final == "all" else "the fold students' average"
    return f"""
## Recipe

* Teacher: {who} {names}; {TEACHERS[distill.teacher]}.
* Loss: weighted mean of {terms}; temperature {distill.temperature:g}.
* Student: `{student.checkpoint}`, {how}, {train.epochs:g} epochs of {train.batch_battles} battles a step, \
learning rate {train.lr:g} (head {train.head_lr:g}), orders: {train.swap}.
{first}* These weights: {final}. Seed {plan.config.seed}."""


def _metrics(plan: StudentPlan, facts: dict[str, Any]) -> str:
    scores, interval, apart = facts["scores"], facts["interval"], facts["student_minus_ensemble"]
    optimistic = (
        "Their targets came from models that had seen those battles' verdicts: the figure is slightly optimistic."
    )
    clean = "" if plan.config.distill.teacher != "oof" else f" {optimistic}"
    return f"""
## Metrics

Of the {plan.config.folds.k} fold students, each on the {scores["n"]} battles that it had not seen, both orders \
averaged, with 95 % intervals over groups.{clean}

| metric | value |
|---|---|
| log loss (nats) | {interval["value"]:.4f} [{interval["low"]:.4f}, {interval["high"]:.4f}] |
| minus the ensemble's | {apart["value"]:+.4f} [{apart["low"]:+.4f}, {apart["high"]:+.4f}] |
| accuracy | {scores["accuracy"]:.4f} |
| Brier score | {scores["brier"]:.4f} |
| calibration error (what chance alone would give) | {scores["ece"]:.4f} ({scores["ece_bias"]:.4f}) |"""


LIMITS = """
## Limits

* It predicts the preferences of the people who made its training data, on text like theirs, with their biases (length,
  style, formatting). It does not check facts, and its verdict is no statement of correctness.
* It reads what is left after truncation. Languages and domains that are rare in the data are predicted worse.
* Do not use it to decide about people, or as the only reward of a policy that is optimised against it."""
