"""Hidden-state cache: training and logits equal those without it, whatever was stored before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from oof import config as configuration
from oof.common.errors import UserError
from oof.config import Config, Lora, Member, Prompts, Train
from oof.jobs.dataset import draft_battles
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.fold_job import fold_jobs
from oof.jobs.run_fold_job import fit_classifier
from oof.model import hidden_state_cache
from oof.model.classifier import load_classifier
from oof.model.optimizations import decoder_layers
from oof.plan import make_plan
from oof.training.losses import cross_entropy
from tests.fixtures.demo_run import ROOT

N = 24
MODES = ("recompute", "stored")
BASES = ["tiny-gemma2", "tiny-llama"]


def member_of(base: str, **changes: object) -> Member:
    lora = Lora(rank=4, alpha=8, layers="upper_half")
    train = Train(epochs=2, lr=0.01, head_lr=0.02, batch_battles=4, swap="random", tokens_per_batch=400)
    checkpoint = str(ROOT / "configs" / "bases" / base)
    return replace(Member(checkpoint=checkpoint, dtype="float32", lora=lora, train=train), **changes)


def table() -> pl.DataFrame:
    texts = [[f"Number {n}: the oven goes with the flour. A good piano helps. " * (1 + n % 3)] for n in range(N)]
    both = pl.DataFrame({"id": [str(i) for i in range(N)], "prompt": [["How?"]] * N, "response_a": texts})
    return both.with_columns(response_b=pl.Series(texts[3:] + texts[:3]))


def encoded_for(member: Member, run: Path) -> EncodedBattles:
    return EncodedBattles(member, table(), Config(run=str(run), prompts=Prompts(max_tokens=120)))


def trained(battles: EncodedBattles, rows: range, folder: Path) -> tuple[torch.nn.Module, dict[str, object]]:
    targets = np.eye(3, dtype=np.float32)[np.arange(len(rows)) % 3]
    return fit_classifier(
        battles, np.array(rows), targets, np.ones(len(rows)), cross_entropy, folder, seed=1, label="test"
    )


def shards(run: Path) -> list[Path]:
    return sorted((run / "frozen").rglob("*.safetensors"))


@pytest.mark.parametrize("base", [pytest.param(BASES[0], marks=pytest.mark.slow), *BASES[1:]])
def test_training_and_scoring_are_the_same_with_and_without_the_cache(base: str, tmp_path: Path) -> None:
    whole, stored = (encoded_for(member_of(base, frozen=mode), tmp_path / mode) for mode in MODES)
    histories, logits = [], []
    for battles in (whole, stored):
        folder = Path(battles.config.run) / "job"
        model, summary = trained(battles, range(16), folder)
        histories.append([entry["loss"] for entry in summary["history"]])
        logits.append(battles.logits(model, np.arange(N), "test", folder / "partial"))
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-4)
    assert histories[0][-1] != histories[0][0]
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-3)  # after twelve steps of rounding
    assert np.ptp(logits[0][:, 0, 0]) > 0.01  # the logits depend on the texts
    assert not shards(tmp_path / "recompute")
    # The same adapter with and without the cache, so that training adds no rounding.
    adapter = tmp_path / "stored" / "job" / "adapter"
    fresh = [
        t.logits(load_classifier(t.member, adapter, t.tokenizer, 0), np.arange(N), "test", tmp_path / "partial")
        for t in (whole, stored)
    ]
    np.testing.assert_allclose(fresh[1], fresh[0], atol=1e-5)


def test_stored_states_are_not_computed_again_and_the_layers_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    battles = encoded_for(member_of("tiny-gemma2", frozen="stored"), tmp_path)
    trained(battles, range(N), tmp_path / "first")
    monkeypatch.setattr(hidden_state_cache, "_states", None)
    model, _ = trained(battles, range(8, N), tmp_path / "second")  # another fold
    battles.logits(model, np.arange(8), "test", tmp_path / "partial")
    layers = decoder_layers(model)
    assert all("forward" not in vars(layer) for layer in layers)
    assert not any(layer._forward_hooks for layer in layers)


@pytest.mark.slow
def test_states_do_not_depend_on_which_others_were_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_state_cache, "CHUNK", 5)

    def stored(run: Path, row_sets: list[range]) -> dict[bytes, bytes]:
        battles = encoded_for(member_of("tiny-llama", frozen="stored"), run)
        for i, rows in enumerate(row_sets):
            trained(battles, rows, run / str(i))
        by_hash = {}
        for path in shards(run):
            with hidden_state_cache.safe_open(path, "pt") as shard:
                hashes, offsets, states = (shard.get_tensor(n).numpy() for n in ("hashes", "offsets", "states"))
            spans = zip(hashes, offsets[:-1], offsets[1:], strict=True)
            by_hash |= {name.tobytes(): states[start:stop].tobytes() for name, start, stop in spans}
        return by_hash

    at_once, in_parts = stored(tmp_path / "a", [range(N)]), stored(tmp_path / "b", [range(3), range(2, 17), range(N)])
    assert len(at_once) == 2 * N  # both orders
    assert at_once == in_parts


@pytest.mark.parametrize("how", ["flipped at 9", "flipped at 3000", "cut"])
def test_a_damaged_shard_is_named_and_replaced(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    battles = encoded_for(member_of("tiny-gemma2", frozen="stored"), tmp_path)
    trained(battles, range(6), tmp_path / "first")
    (path,) = shards(tmp_path)
    good = path.read_bytes()
    broken = bytearray(good if "flipped" in how else good[: len(good) // 2])
    if "flipped" in how:
        broken[-int(how.rsplit(" ", 1)[1])] ^= 1
    path.write_bytes(broken)
    trained(battles, range(6), tmp_path / "second")
    assert str(path) in caplog.text
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([], "lora.layers=all"),
        (["members.a.lora.rank=0"], "lora.rank=0"),
        (["members.a.lora.layers=upper_half", "jobs.nproc=2"], "jobs.nproc=2"),
        (["members.a.lora.layers=upper_half", "members.a.score_dtype=float16"], "score_dtype=float16"),
    ],
)
def test_settings_without_states_to_store_are_refused(overrides: list[str], named: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("members: {a: {checkpoint: somewhere, frozen: stored}}")
    config = configuration.load(str(path), [f"run={tmp_path / 'run'}", *overrides])
    with pytest.raises(
        UserError, match=r"members\.a\.frozen=stored cannot be combined with .*" + named.replace(".", r"\.")
    ):
        fold_jobs(config, pl.DataFrame({"id": ["1"]}))


@pytest.mark.slow
def test_the_plan_counts_the_cache_s_disk_space(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    base = ROOT / "configs" / "bases" / "tiny-llama"
    settings = f"{{checkpoint: {base}, dtype: float32, lora: {{rank: 4, layers: upper_half}}}}"
    path.write_text(f"members: {{a: {settings}}}\ndata: {{synth: {{battles: 60}}}}")
    run = tmp_path / "run"
    configs = [configuration.load(str(path), [f"run={run}", f"members.a.frozen={mode}"]) for mode in MODES]
    less, more = (make_plan(config).members[0].disk_bytes for config in configs)
    draft = draft_battles(configs[1])
    draft.write()
    table = draft.table
    encoded = EncodedBattles(configs[1].members["a"], table, configs[1])
    training_set = np.arange(60), np.eye(3, dtype=np.float32)[table["label"].to_numpy()], np.ones(60)
    fit_classifier(encoded, *training_set, cross_entropy, tmp_path / "job", seed=1, label="test")
    size = sum(shard.stat().st_size for shard in shards(run))
    assert size / 1.5 < more - less < size * 1.5


def test_the_setting_changes_no_content_key(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    base = ROOT / "configs" / "bases" / "tiny-llama"
    path.write_text(
        f"members: {{a: {{checkpoint: {base}, lora: {{layers: upper_half}}}}}}\ndata: {{synth: {{battles: 20}}}}"
    )
    keys = []
    for mode in MODES:
        config = configuration.load(str(path), [f"run={tmp_path / 'run'}", f"members.a.frozen={mode}"])
        keys.append([job.step.key for job in fold_jobs(config, draft_battles(config).table)])
    assert keys[0] == keys[1]
