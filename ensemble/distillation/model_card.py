"""Model card of the student: use, data, recipe, metrics with intervals, limits, licence. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ensemble.distillation.plan import StudentPlan
from ensemble.statistics.interval_words import in_words
from oof.classes import WINNER_COLUMNS, classes_of_data
from oof.config import Distill

# prefix of the base model's name -> licence tag, and what the licence requires of derived models
LICENCES = {
    "google/gemma": (
        "gemma",
        "Gemma Terms of Use: pass them on with the model, state that it was modified, follow the use policy",
    ),
    "meta-llama/": (
        "llama3.1",
        "Llama Community License: include a copy, show 'Built with Llama', begin the model's name with Llama",
    ),
    "HuggingFaceTB/SmolLM": ("apache-2.0", "Apache-2.0: keep the notices, state that files were modified"),
    "Qwen/": (None, "Apache-2.0 for most sizes, the Qwen licence for some; read the base model's card"),
}
TEACHERS = {
    "oof": "out-of-fold probabilities: a battle is labelled by models that were not trained on it",
    "nested": "nested out-of-fold probabilities: student k is labelled by models that were not trained on fold k",
    "fold_matched": "in-sample probabilities of the members' fold job of the same fold",
}


def student_card(plan: StudentPlan, temperatures: dict[str, Any], metrics: dict[str, Any]) -> ModelCard:
    """Return the model card of a student.

    Args:
        plan: data and recipe.
        temperatures: ``temperature``, which is folded into the head; for the average of the fold students' weights
            also ``fold_students_temperature``, that of the students themselves.
        metrics: of the fold students, as :func:`ensemble.distillation.stage.student_metrics` returns them.
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
        _use(plan, temperatures["temperature"]),
        _data(plan),
        _recipe(plan, temperatures),
        _metrics(plan, metrics),
        LIMITS,
        f"## Licence\n\nThe weights are derived from `{base}`: {note}. The licence of the training battles applies as "
        "well; their texts are not part of this folder.",
    )
    body = "\n\n".join(section.strip() for section in sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n# Preference student\n\n{body}\n")


def _licence(base: str) -> tuple[str | None, str]:
    for prefix, licence in LICENCES.items():
        if base.startswith(prefix):
            return licence
    return None, "read that model's terms, which apply to derived models"


def _use(plan: StudentPlan, temperature: float) -> str:
    prompts = plan.config.for_student().prompts
    classes = classes_of_data(plan.config.data.ties)
    order = ", ".join(f"`{label}`" for label in WINNER_COLUMNS[: len(classes)])
    without = (
        ""
        if "tie" in classes
        else "\nIt has two classes, because no battle of its data ends in a tie: `tie` below is 0."
    )
    return f"""
A stock sequence classifier: given a prompt and two responses, the probabilities of {order}.{without}
The calibration temperature ({temperature:.4f}) is folded into the bias-free head, so the softmax of the logits is
calibrated.

```python
from ensemble import Judge

judge = Judge.from_pretrained("this folder")
a, b, tie = judge.compare("a prompt", "response A", "response B")
```

Over HTTP, with vLLM's `/classify` and a page to try it:

```bash
arena-distill serve "this folder"
```

Without that package: call `tokenizer.apply_chat_template` with the roles `user`, `response_a`, `response_b` (layout
`{prompts.layout}`) and add no special tokens. Score both orders of the responses and average the logits, so that the
order has no influence. Battles longer than {prompts.score_max_tokens or prompts.max_tokens} tokens are truncated by the
rules in `prompts.json`."""


def _data(plan: StudentPlan) -> str:
    table = plan.table
    groups = len(set(plan.inputs.groups.tolist()))
    classes = classes_of_data(plan.config.data.ties)
    shares = ", ".join(f"{name} {(plan.labels == i).sum()}" for i, name in enumerate(classes))
    roles = {role: int((table["role"] == role).sum()) for role in ("train", "extra", "unlabelled")}
    languages = table["language"].drop_nulls().value_counts(sort=True)["language"].head(5).to_list()
    note = f" Most frequent languages: {', '.join(map(str, languages))}." if languages else ""
    return f"""
## Data

{roles["train"]} battles with verdicts (with the extra ones: {shares}) in {groups} groups of near-duplicate prompts \
and {plan.config.folds.k} folds. {roles["extra"]} extra and {roles["unlabelled"]} unlabelled battles were used for \
training only.{note}"""


def _recipe(plan: StudentPlan, temperatures: dict[str, Any]) -> str:
    distill: Distill = plan.config.distill
    student, train = distill.student, distill.student.train
    teacher = "the calibrated ensemble of" if plan.teachers == ["stack"] else "one per member:"
    names = ", ".join(plan.config.members if plan.teachers == ["stack"] else plan.teachers)
    terms = ", ".join(f"{name} {weight:g}" for name, weight in asdict(distill.losses).items() if weight)
    tuning = (
        f"LoRA of rank {student.lora.rank}, alpha {student.lora.alpha:g}" if student.lora.rank else "full fine-tuning"
    )
    commit = f" at commit {student.revision}" if student.revision else ""
    pretraining = ""
    if plan.pretrain is not None:
        files = ", ".join(f"`{Path(path).name}`" for path in plan.config.pretrain.data)
        whose = f" by the member {plan.pretrain.name}" if plan.pretrain.name else ""
        pretraining = (
            f"* Pretraining{whose} on other preference pairs ({files}), decontaminated against the scored prompts.\n"
        )
    if plan.start:
        pretraining = (
            f"* Start: the weights of the member {plan.start[0].name} after its own training on the verdicts. Fold "
            "student k started from the fold job that held fold k out, the exported student from all of them.\n"
        )
    if distill.seeds > 1:
        pretraining += (
            f"* Each student is the average of the weights of {distill.seeds} trainings from the same first weights, "
            "with batches of their own.\n"
        )
    if distill.rounds > 1:
        pretraining += (
            f"* {distill.rounds} rounds: from the second on, the battles without a verdict have the probabilities of "
            "the student of the round before, which did not see the fold either.\n"
        )
    final = "one student trained on every battle, at the temperature of the fold students' held-out logits"
    if distill.final == "fold_average":
        final = (
            "the average of the fold students' weights. Some of them saw each battle, so its temperature is fitted "
            "without labels, to the calibrated probabilities of each battle by the student that did not see it, whose "
            f"own temperature is {temperatures['fold_students_temperature']:.4f}"
        )
    return f"""
## Recipe

* Teacher: {teacher} {names}; {TEACHERS[distill.teacher]}.
* Loss: weighted mean of {terms}; temperature {distill.temperature:g}.
* Student: `{student.checkpoint}`{commit}, {tuning}, {train.epochs:g} epochs of {train.batch_battles} battles a step, \
learning rate {train.lr:g} (head {train.head_lr:g}), orders: {train.swap}.
{pretraining}* These weights: {final}. Seed {plan.config.seed}."""


def _metrics(plan: StudentPlan, metrics: dict[str, Any]) -> str:
    scores = metrics["scores"]
    optimistic = (
        " The targets came from models that were trained on the held-out fold, so the figures are slightly optimistic."
    )
    note = optimistic if plan.config.distill.teacher == "oof" else ""
    return f"""
## Metrics

Of the {plan.config.folds.k} fold students on {scores["n"]} battles, each battle scored in both orders by the student \
that was not trained on its fold; 95 % intervals over groups.{note}

| metric | value |
|---|---|
| log loss (nats) | {in_words(metrics["interval"], ".4f")} |
| log loss of calibrated, the ensemble | {in_words(metrics["calibrated"], ".4f")} |
| student - calibrated | {in_words(metrics["student_minus_calibrated"])} |
| accuracy | {scores["accuracy"]:.4f} |
| Brier score | {scores["brier"]:.4f} |
| calibration error (expected from chance alone) | {scores["ece"]:.4f} ({scores["ece_bias"]:.4f}) |"""


LIMITS = """
## Limits

* It predicts the preferences of the people who judged its training battles, on similar texts, with their biases
  (length, style, formatting). It does not check facts: a verdict does not mean that a response is correct.
* It reads only what truncation leaves. It predicts worse on languages and domains that are rare in the data.
* Do not use it for decisions about people, or as the only reward of a policy that is optimised against it."""
