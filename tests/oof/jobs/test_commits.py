"""Commits of hub checkpoints: recorded at a run's first job, loaded by all later ones, part of keys and manifests."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from huggingface_hub import constants

from oof.common.errors import UserError
from oof.config import Config, Folds, Member
from oof.jobs import commits
from oof.jobs.fold_job import fold_jobs, pinned_fold_jobs
from oof.model.classifier import load_base, load_tokenizer
from tests.fixtures.demo_run import BASES, only_llama
from tests.fixtures.fold_job_calls import call
from tests.fixtures.hub_cache import MODEL, NEW, OLD, move_branch, write_hub_cache
from tests.fixtures.run_files import bytes_of_jobs

TABLE = pl.DataFrame({"id": ["1"], "role": ["train"]})
FROM_HUB = f"members.llama3_1.checkpoint={MODEL}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, for this process and for those that it starts."""
    folder = tmp_path / "home"
    for name, value in write_hub_cache(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def config_of(run: Path, **settings: Any) -> Config:
    member = Member(**{"checkpoint": MODEL, "dtype": "float32", "attn": "eager"} | settings)
    return Config(run=str(run), members={"m": member}, folds=Folds(k=2))


def job_json(run: Path, fold: int) -> dict[str, Any]:
    return json.loads((run / "oof" / "llama3_1" / f"fold-{fold}" / "job.json").read_text())


@pytest.mark.slow
def test_a_moved_branch_changes_nothing_in_a_run_and_another_revision_trains_anew(home: Path, tmp_path: Path) -> None:
    config, run = only_llama(tmp_path), tmp_path / "run"
    first = call(config, run, FROM_HUB)
    assert first.returncode == 0, first.stderr
    assert json.loads((run / commits.RECORD).read_text()) == {f"{MODEL}@main": OLD}
    before = bytes_of_jobs(run)
    adapter = json.loads((run / "oof" / "llama3_1" / "fold-1" / "adapter" / "adapter_config.json").read_text())
    assert (job_json(run, 1)["commit"], adapter["revision"]) == (OLD, OLD)
    move_branch(home, "main", NEW)
    (run / "oof" / "llama3_1" / "fold-1" / "job.json").unlink()
    again = call(config, run, FROM_HUB)
    assert again.returncode == 0, again.stderr
    assert "1 fold jobs run" in again.stdout
    assert bytes_of_jobs(run) == before
    other = call(config, run, FROM_HUB, f"members.llama3_1.revision={NEW}", "--redo")
    assert other.returncode == 0, other.stderr
    assert "changed: revision" in other.stderr
    assert [job_json(run, fold)["commit"] for fold in (0, 1)] == [NEW, NEW]
    unknown = call(config, run, FROM_HUB, "members.llama3_1.revision=nope", "--redo")
    assert unknown.returncode == 2
    assert unknown.stderr.splitlines()[-1].startswith(f"error: checkpoint '{MODEL}'")
    assert "no revision 'nope'" in unknown.stderr


def test_two_revisions_give_two_keys_and_two_models(home: Path, tmp_path: Path) -> None:
    move_branch(home, "next", NEW)
    keys, heads = [], []
    for name in ("main", "next"):
        jobs = pinned_fold_jobs(config_of(tmp_path / "run", revision=name), TABLE)
        member = jobs[0].member
        keys.append(jobs[0].step.key)
        tokenizer = load_tokenizer(member.checkpoint, revision=member.revision)
        heads.append(load_base(member, tokenizer, 0).get_input_embeddings().weight)
    assert len(set(keys)) == 2
    assert not heads[0].equal(heads[1])
    # A branch and the commit that it is at are the same base.
    assert pinned_fold_jobs(config_of(tmp_path / "run", revision=NEW), TABLE)[0].step.key == keys[1]


def test_jobs_of_a_run_without_recorded_commits_stay_valid(home: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    unpinned = fold_jobs(config, TABLE)
    unpinned[0].folder.mkdir(parents=True)
    unpinned[0].step.finish({}, files=[])
    jobs = pinned_fold_jobs(config, TABLE)
    assert [job.step.done for job in jobs] == [True, False]
    assert [job.step.key for job in jobs] == [job.step.key for job in unpinned]
    assert pinned_fold_jobs(config, TABLE) == jobs
    interrupted = replace(config, run=str(tmp_path / "interrupted"))
    job = fold_jobs(interrupted, TABLE)[1]
    job.step.begin()
    assert pinned_fold_jobs(interrupted, TABLE)[1].step.begun


def test_a_local_folder_has_no_commit_and_a_revision_of_it_is_refused(tmp_path: Path) -> None:
    local = config_of(tmp_path / "run", checkpoint=str(BASES / "tiny-llama"))
    assert pinned_fold_jobs(local, TABLE) == fold_jobs(local, TABLE)
    assert not (tmp_path / "run" / commits.RECORD).exists()
    with pytest.raises(UserError, match="local folder, which has no revisions"):
        pinned_fold_jobs(config_of(tmp_path / "run", checkpoint=str(BASES / "tiny-llama"), revision="x"), TABLE)


def test_a_commit_that_is_in_no_cache_is_one_clear_error(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"'{MODEL}' at revision {'c' * 40} cannot be opened") as caught:
        load_tokenizer(MODEL, revision="c" * 40)
    assert "\n" not in str(caught.value)
    (home / "hub" / "models--arena--tiny-llama" / "refs" / "main").write_text("no commit")
    with pytest.raises(UserError, match="no revision 'main'"):
        pinned_fold_jobs(config_of(tmp_path / "run"), TABLE)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / commits.RECORD).write_text('["x"]')
    with pytest.raises(UserError, match="not a record of commits"):
        fold_jobs(config_of(tmp_path), TABLE)


class _Hub(BaseHTTPRequestHandler):
    """The hub's answer about one model with one branch."""

    def do_GET(self) -> None:
        known = self.path.startswith(f"/api/models/{MODEL}")
        body = json.dumps({"id": MODEL, "sha": NEW}).encode() if known and self.path.endswith("/main") else b"{}"
        self.send_response(200 if body != b"{}" else 404)
        self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_hub_is_asked_before_the_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commits.resolve_commit(MODEL, "") == OLD  # offline, from the cache
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        assert commits.resolve_commit(MODEL, "") == NEW
        with pytest.raises(UserError, match="the hub has no revision 'nope'"):
            commits.resolve_commit(MODEL, "nope")
        with pytest.raises(UserError, match="no model of that name"):
            commits.resolve_commit("arena/unknown", "")
    finally:
        server.shutdown()
        server.server_close()
    assert commits.resolve_commit(MODEL, "") == OLD  # the hub does not answer
