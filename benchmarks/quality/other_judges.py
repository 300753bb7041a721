"""One fold of another library's judge: pairjudge, or TRL's RewardTrainer, through their public interfaces.

    python -m benchmarks.quality.other_judges job.json

``benchmarks/quality/peers.py`` writes the job and starts this script in the environment that has both, so it imports
the two libraries and :mod:`oof.classes` alone. It trains on the job's training battles, scores its held-out battles and
writes ``scores.npy`` and ``facts.json`` beside the job. Seconds of training are those of the training loop (pairjudge's
own count, which includes its validation; ``RewardTrainer.train``), without reading the base or writing the model;
seconds of scoring run from texts to scores.

The reward model reads one response at a time, as plain text, and is trained on the decided battles. Its texts are cut
to as many tokens as a judge has for both responses.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from oof.classes import TIE, swap_classes

AT_ONCE = 8  # sequences of a forward pass of the reward model
Job = dict[str, Any]


def pairjudge(job: Job, folder: Path) -> tuple[np.ndarray, dict[str, float]]:
    """Return (n, 2, 3) probabilities of the held-out battles in both orders and canonical class order, and the cost."""
    import pandas as pd
    from pairjudge import PairwiseJudge
    from pairjudge.splits import row_keys
    from pairjudge.training import JudgeTrainConfig, train

    def frame(name: str) -> Any:
        return pd.read_json(folder / f"{name}.jsonl", lines=True, dtype={"id": str})

    # It refuses validation battles that share a prompt or a pair of responses with the training battles.
    seen = {key for _, row in frame("train").iterrows() for key in row_keys(row)[:2]}
    validation = frame("validation")
    kept = [not seen.intersection(row_keys(row)[:2]) for _, row in validation.iterrows()]
    validation[kept].to_json(folder / "disjoint.jsonl", orient="records", lines=True)
    trained = folder / "trained"
    config = JudgeTrainConfig(
        train_path=str(folder / "train.jsonl"),
        validation_path=str(folder / "disjoint.jsonl"),
        label_mode=job["labels"],
        seed=job["seed"],
        model_name=job["checkpoint"],
        max_length=job["tokens"],
        lora_r=job["rank"],
        lora_alpha=job["alpha"],
        n_epochs=job["epochs"],
        gradient_accumulation_steps=job["batch"] // JudgeTrainConfig.per_device_train_batch_size,
        output_dir=str(trained),
        **job["settings"],
    )
    train(config)
    receipt = json.loads((trained / "training.json").read_text(encoding="utf-8"))
    judge = PairwiseJudge.from_pretrained(str(trained / "merged"))
    held_out = frame("held_out")
    swapped = held_out.assign(response_a=held_out["response_b"], response_b=held_out["response_a"])
    begun = time.perf_counter()
    given, exchanged = judge.predict_proba(held_out), judge.predict_proba(swapped)
    seconds = time.perf_counter() - begun
    facts = {"train_seconds": receipt["elapsed_s"], "steps": receipt["optimizer_steps"], "score_seconds": seconds}
    return np.stack([given, swap_classes(exchanged)], axis=1), facts | {"trained": receipt["train_rows"]}


def reward_trainer(job: Job, folder: Path) -> tuple[np.ndarray, dict[str, float]]:
    """Return (n, 2) rewards of the responses to the held-out battles, and the cost."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["checkpoint"])
    battles = [row for row in _rows(folder / "train.jsonl") if row["label"] != TIE]
    ids = [[_reward_ids(tokenizer, row, side, job["tokens"]) for side in ("a", "b")] for row in battles]
    pairs = [
        {"chosen_ids": pair[row["label"]], "rejected_ids": pair[1 - row["label"]]}
        for pair, row in zip(ids, battles, strict=True)
    ]
    model = AutoModelForSequenceClassification.from_pretrained(job["checkpoint"], num_labels=1, dtype="float32")
    model.config.pad_token_id = tokenizer.pad_token_id
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=job["rank"],
        lora_alpha=job["alpha"],
        target_modules="all-linear",
        modules_to_save=["score"],
    )
    settings = RewardConfig(
        output_dir=str(folder / "trained"),
        per_device_train_batch_size=job["batch"],
        num_train_epochs=job["epochs"],
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_length=None,  # it would leave longer pairs out; they are cut already
        gradient_checkpointing=False,
        bf16=job["bf16"],
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
        **job["settings"],
    )
    trainer = RewardTrainer(
        model, settings, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer, peft_config=lora
    )
    begun = time.perf_counter()
    trainer.train()
    facts = {"train_seconds": time.perf_counter() - begun, "steps": trainer.state.global_step, "trained": len(pairs)}
    begun = time.perf_counter()
    held_out = _rows(folder / "held_out.jsonl")
    sequences = [_reward_ids(tokenizer, row, side, job["tokens"]) for row in held_out for side in ("a", "b")]
    rewards = _rewards(trainer.model.eval(), tokenizer, sequences, job["bf16"])
    return rewards.reshape(-1, 2), facts | {"score_seconds": time.perf_counter() - begun}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _reward_ids(tokenizer: Any, row: dict[str, Any], side: str, limit: int) -> list[int]:
    """Return the token ids of one side of a battle: its end before the last response, and that response's beginning."""
    *earlier, last = zip(row["prompt"], row[f"response_{side}"], strict=True)
    text = "".join(f"### Prompt\n{prompt}\n\n### Response\n{response}\n\n" for prompt, response in earlier)
    context, response = (
        tokenizer(part, add_special_tokens=False)["input_ids"]
        for part in (f"{text}### Prompt\n{last[0]}\n\n### Response\n", last[1])
    )
    response = response[: max(limit - len(context), limit // 2)]
    return [*context[-(limit - len(response)) :], *response]


def _rewards(model: Any, tokenizer: Any, sequences: list[list[int]], bf16: bool) -> np.ndarray:
    """Return (n,) rewards, scored in batches of similar length."""
    import torch

    rewards, by_length = np.empty(len(sequences)), np.argsort([len(ids) for ids in sequences])
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        for start in range(0, len(sequences), AT_ONCE):
            rows = by_length[start : start + AT_ONCE]
            batch = tokenizer.pad({"input_ids": [sequences[row] for row in rows]}, return_tensors="pt")
            rewards[rows] = model(**batch.to(model.device)).logits[:, 0].float().cpu().numpy()
    return rewards


def main() -> int:
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    tool = {"pairjudge": pairjudge, "reward_trainer": reward_trainer}[job["tool"]]
    scores, facts = tool(job, path.parent)
    np.save(path.parent / "scores.npy", scores)
    (path.parent / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
