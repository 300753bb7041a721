"""Probabilities for new battles, from the student or the whole ensemble, as a competition submission."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble import stack
from ensemble.stack import softmax_mean
from oof import fold_jobs, store
from oof.config import Config, Member, Prompts
from oof.dataset import FORMAT, load_battles, read_test
from oof.errors import UserError

SUBMISSION = "submission.csv"
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")


def run_predict(config: Config) -> bool:
    """Predict the test battles with ``predict.model`` and write ``RUN/submission.csv``; return whether it was stale.

    Raises:
        UserError: no test battles, or the stage that makes the model is missing.
    """
    test = read_test(config)
    if not test.height:
        raise UserError("no battles to predict: set data.test (make predict TEST=test.csv)")
    run = Path(config.run)
    stage = {"student": ("distill", "make distill"), "ensemble": ("stack", "make stack")}[config.predict.model]
    manifest = run / stage[0] / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"{manifest}: no {config.predict.model} here yet; run '{stage[1]}' with this RUN first")
    made = store.read_json(manifest)["key"]
    key = store.digest("submission", FORMAT, config.predict, made, config.prompts, fold_jobs.battles_key(test))
    step = store.Step(run, key, manifest="submission.json")
    if step.done:
        return False
    probs = student_probabilities(config, test) if config.predict.model == "student" else _ensemble(config, test)
    write_submission(run / SUBMISSION, test["id"], probs)
    step.finish({"model": config.predict.model, "n": test.height}, files=[SUBMISSION])
    return True


def student_probabilities(config: Config, test: pl.DataFrame) -> NDArray[np.float64]:
    """Return (n, 3) probabilities by the exported student: softmax of the mean of both orders' logits."""
    folder = Path(config.run) / "distill" / "student"
    from oof.models import device, load_tokenizer, load_trained
    from oof.predict import predict_logits
    from oof.prompts import encode_battles

    recipe = config.distill.student
    member: Member = replace(recipe, checkpoint=str(folder))
    prompts = Prompts(**store.read_json(folder / "prompts.json"))  # as the student was trained, whatever today's config
    tokenizer = load_tokenizer(str(folder), prompts.hints)
    encoded = encode_battles(test, tokenizer, prompts, prompts.max_tokens)
    model = load_trained(member, tokenizer).to(device()).eval()
    return softmax_mean(predict_logits(model, member, encoded, tokenizer.pad_token_id, "student: predict"))


def _ensemble(config: Config, test: pl.DataFrame) -> NDArray[np.float64]:
    _, result = stack.load_ensemble(config)
    jobs = fold_jobs.fold_jobs(config, load_battles(Path(config.run)))
    logits = fold_jobs.test_logits(jobs, test)
    if logits is None:
        from oof.jobs import score_test

        score_test(config, jobs, test)
        logits = fold_jobs.test_logits(jobs, test)
    if logits is None:
        raise UserError(f"{config.run}: the members' test logits cannot be read back; check the disk and run again")
    return result.predict(stack.design_of(test, logits))


def write_submission(path: Path, ids: pl.Series, probs: NDArray[np.floating]) -> None:
    """Check and write a submission; an older one is replaced only by a whole, valid one.

    Raises:
        UserError: ids repeat, or a row is not a probability distribution.
    """
    if ids.n_unique() != len(ids):
        raise UserError("the test file has repeated ids; a submission needs each once")
    probs = np.asarray(probs, dtype=np.float64)
    probs = probs / probs.sum(axis=1, keepdims=True)
    if probs.shape != (len(ids), 3) or not np.isfinite(probs).all() or (probs < 0).any():
        raise UserError("the model gave probabilities that are not finite; nothing was written")
    frame = pl.DataFrame({"id": ids} | {name: probs[:, i] for i, name in enumerate(WINNERS)})
    with store.replacing(path) as temporary:
        frame.write_csv(temporary)
