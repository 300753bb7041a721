"""Base checkpoints of the demo: a tiny Gemma2 and a tiny Llama, pre-trained on synthetic text.

    arena-distill bases configs/bases --seed 1000003        (make bases; about 15 minutes on 2 cores)

They replace ``google/gemma-2-9b-it`` and ``meta-llama/Llama-3.1-8B-Instruct`` where no hub is reachable. They have the
real architectures (soft-capping, sliding window, grouped-query attention) and tokenizers trained with the
``tokenizers`` library, are saved as plain causal language models and loaded with ``from_pretrained`` like any other.

Pre-training is causal language modelling on transcripts with another seed than any demo's: a prompt, two responses,
and a rating from 1 to 9 of how much better the first response keeps to the prompt. An auxiliary head on the third of
the four layers predicts for each sentence whether it keeps to the prompt, so that a tiny model learns to read in
minutes; the head is discarded. Large instruct models have that skill from pre-training. The other causes of a verdict
(verbosity, position, the tie band, the weight of quality) are not in these transcripts: the fold jobs learn them, and
the three-class head.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from oof.common.progress import progress
from oof.config import Prompts
from oof.data import synth
from oof.encoding.batches import collate, cut
from oof.encoding.encode import encode_battles
from oof.encoding.templates import prepare_tokenizer
from oof.training.progress import StepProgress

VOCABULARY = 1024
RATINGS = "123456789"
AUXILIARY_LAYER = 3
AUXILIARY_WEIGHT = 2.0
GEMMA_SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
LLAMA_SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
]
LLAMA_PATTERN = r" ?[^\s\d\p{P}]+|\d|\p{P}|\s+"
BATCH_SEQUENCES = 32


def gemma_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer like Gemma's: a visible mark for spaces, bytes for unknown characters."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation("isolated"),  # in a corpus this small, "oven." must share the token of "oven"
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=GEMMA_SPECIALS + byte_tokens)
    tokenizer.train_from_iterator(texts, trainer)
    tree = json.loads(tokenizer.to_str())  # the bytes must be ordinary tokens, not strings to match in a text
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in GEMMA_SPECIALS]
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    return _with_bos(tokenizer, bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>")


def llama_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer like Llama 3's, without a pad token like the original."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=LLAMA_SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_bos(tokenizer, bos="<|begin_of_text|>", eos="<|eot_id|>")


def _with_bos(tokenizer: Tokenizer, bos: str, eos: str, **names: str) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    tokens = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, **tokens
    )


def gemma_model(tokenizer: PreTrainedTokenizerFast) -> Gemma2ForCausalLM:
    config = Gemma2Config(
        **_shape(tokenizer), head_dim=24, query_pre_attn_scalar=24, sliding_window=64, max_position_embeddings=4096
    )
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config)


def llama_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**_shape(tokenizer), tie_word_embeddings=True, max_position_embeddings=4096))


def _shape(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def transcripts(n: int, seed: int) -> tuple[pl.DataFrame, list[int], list[list[bool]]]:
    """Return ``n`` battles as a table; for each the rating (index into ``RATINGS``) of A against B, and for each
    sentence of A, then B, whether it is on topic.
    """
    prompts, a, b, _ = synth.make_battles(n, seed)
    difference = np.array([x.quality - y.quality for x, y in zip(a, b, strict=True)])
    ratings = np.clip(np.rint(difference * 4) + 4, 0, 8).astype(int)
    table = pl.DataFrame(
        {
            "id": [str(i) for i in range(n)],
            "prompt": [p.turns for p in prompts],
            "response_a": [[_clean(turn) for turn in r.turns] for r in a],
            "response_b": [[_clean(turn) for turn in r.turns] for r in b],
        }
    )
    return table, ratings.tolist(), [x.on_topic + y.on_topic for x, y in zip(a, b, strict=True)]


def _clean(turn: str | None) -> str:
    return (turn or "").replace("\ud83d", "\ufffd")


class _Transcripts(Dataset[dict[str, torch.Tensor]]):
    """Batches of similar lengths in random order; ``on_topic`` (b, t) is 1, 0, or -1 where there is no target."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, n: int, seed: int) -> None:
        table, ratings, flags = transcripts(n, seed)
        encoded = encode_battles(table, tokenizer, Prompts(max_tokens=512), 512, orders=("ab",))
        answers = np.array([tokenizer.convert_tokens_to_ids(digit) for digit in RATINGS], dtype=np.int32)
        self.sequences = [np.append(encoded.sequence(i, 0), answers[rating]) for i, rating in enumerate(ratings)]
        stop = int(tokenizer.convert_tokens_to_ids("."))  # type: ignore[arg-type]
        self.on_topic = [_mark_sentences(*pair, stop) for pair in zip(self.sequences, flags, strict=True)]
        lengths = np.array([len(sequence) for sequence in self.sequences])
        budget = BATCH_SEQUENCES * int(lengths.mean())
        batches = cut(lengths, budget, spare=budget)
        self.batches = [batches[i] for i in np.random.default_rng(seed).permutation(len(batches))]
        self.pad_id = int(tokenizer.pad_token_id or 0)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rows = self.batches[index]
        batch = collate([self.sequences[row] for row in rows], self.pad_id)
        marks = torch.full_like(batch["input_ids"], -1)
        for i, row in enumerate(rows):
            marks[i, : len(self.on_topic[row])] = torch.from_numpy(self.on_topic[row])
        mask = (batch["input_ids"] != self.pad_id).long()
        return {**batch, "attention_mask": mask, "on_topic": marks}


def _mark_sentences(sequence: NDArray[np.int32], flags: list[bool], stop: int) -> NDArray[np.int64]:
    """Mark the last word and the full stop of each response sentence (the last ``len(flags)`` full stops)."""
    marks = np.full(len(sequence), -1, dtype=np.int64)
    ends = np.flatnonzero(sequence == stop)[-len(flags) :] if flags else np.empty(0, dtype=int)
    for end, flag in zip(ends, flags, strict=True):
        marks[end - 1 : end + 1] = flag
    return marks


class _LanguageModelTrainer(Trainer):
    auxiliary: nn.Linear

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=lambda items: items[0])  # type: ignore[arg-type]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        trained: Any = self.model
        parameters = [*trained.parameters(), *self.auxiliary.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=self.args.learning_rate, betas=(0.9, 0.98))
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over all next tokens, plus mean over the ratings alone, plus the auxiliary sentence marks."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        losses = nn.functional.cross_entropy(
            output.logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none"
        )
        last = mask.sum(dim=1) - 2  # the position that predicts the rating
        ratings = losses.gather(1, last[:, None]).mean()
        marks = self.auxiliary(output.hidden_states[AUXILIARY_LAYER]).transpose(1, 2)
        sentences = nn.functional.cross_entropy(marks, inputs["on_topic"], ignore_index=-1)
        return (losses * mask[:, 1:]).sum() / mask[:, 1:].sum() + ratings + AUXILIARY_WEIGHT * sentences


def _corpus(seed: int) -> Iterator[str]:
    table, _, _ = transcripts(3000, seed)
    for column in ("prompt", "response_a", "response_b"):
        yield from (turn for turns in table[column].to_list() for turn in turns)
    yield from ("Prompt\n", "Response A\n", "Response B\n", "Verdict\n", "Verdict\n\n", RATINGS, "\n\n", "…")


BASES = {"tiny-gemma2": (gemma_tokenizer, gemma_model), "tiny-llama": (llama_tokenizer, llama_model)}


def build_bases(out: Path, seed: int, battles: int = 40_000, epochs: int = 2, names: Sequence[str] = ()) -> None:
    """Train and write ``out/tiny-gemma2`` and ``out/tiny-llama``, or those of ``names`` (bf16, about 1 MB each)."""
    texts = list(_corpus(seed))
    for offset, (name, (make_tokenizer, make_model)) in enumerate(BASES.items()):
        if names and name not in names:
            continue
        tokenizer = make_tokenizer(texts)
        prepare_tokenizer(tokenizer)
        torch.manual_seed(seed + offset)
        model: Any = make_model(tokenizer)
        data = _Transcripts(tokenizer, battles, seed + 1 + offset)
        arguments = TrainingArguments(
            output_dir=str(out / name),
            num_train_epochs=epochs,
            per_device_train_batch_size=1,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=50,
            seed=seed,
            save_strategy="no",
            logging_steps=100,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = _LanguageModelTrainer(model=model, args=arguments, train_dataset=data)
        trainer.auxiliary = nn.Linear(model.config.hidden_size, 2)
        trainer.remove_callback(PrinterCallback)
        with progress(name, len(data) * epochs, "steps") as shown:
            trainer.add_callback(StepProgress(shown))
            trainer.train()
        for entry in trainer.state.log_history[-3:]:
            print(name, {key: round(value, 4) for key, value in entry.items()})
        model.to(torch.bfloat16).save_pretrained(out / name)
        make_tokenizer(texts).save_pretrained(out / name)  # as published, without our template and pad token
