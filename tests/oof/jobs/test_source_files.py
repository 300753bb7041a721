"""Data files of a run: their record, and every difference that a later command refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oof.common.errors import UserError
from oof.config import Config, load
from oof.config.stored import FILES, STORED
from oof.jobs.source_files import check_files, digested_files, record_files, remember
from tests.fixtures.demo_run import ROOT


def config_of(run: Path, *overrides: str) -> Config:
    return load(ROOT / "configs" / "demo.yaml", [f"run={run}", *overrides])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run folder in the working folder; its record names a.csv and b.csv."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        Path(f"{name}.csv").write_text(f"id\n{name}\n")
    Path("run").mkdir()
    record_files(config_of(Path("run"), "data.train=[a.csv, b.csv]"))
    return Path("run")


@pytest.mark.parametrize("train", ["[a.csv, b.csv]", "['[ab].csv']", "[b.csv, ./a.csv]", "[copy.csv, b.csv]"])
def test_the_same_content_is_the_same_data(run: Path, train: str) -> None:
    Path("copy.csv").write_bytes(Path("a.csv").read_bytes())
    for reads in (False, True):
        check_files(config_of(run, f"data.train={train}"), reads)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=[a.csv]"], "was made from a.csv, b.csv .data.train., not from a.csv"),
        (["data.train=[a.csv, c.csv]"], "not from a.csv, c.csv: their content differs"),
        ([], "made from a.csv, b.csv .data.train., and this call names no such file"),
        (["data.train=[a.csv, d.csv]"], "d.csv: no such file"),
        (["data.train=[a.csv, b.csv]", "data.unlabelled=[c.csv]"], "made without data.unlabelled=c.csv"),
    ],
)
def test_other_data_is_an_error_that_names_run_and_files(run: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"^run: .*{message}.*RUN"):
        check_files(config_of(run, *overrides), reads=False, redo=True)


def test_a_changed_file_is_named_with_both_sizes_and_digests(run: Path) -> None:
    Path("b.csv").write_text("id\nb2\n")
    config = config_of(run, "data.train=[a.csv, b.csv]")
    with pytest.raises(
        UserError, match=r"b.csv \(data.train\) has changed .*: 5 bytes then, 6 now; sha256 \w{8}… then"
    ):
        check_files(config, reads=True)
    check_files(config, reads=True, redo=True)
    remember(config)
    check_files(config, reads=True)


def test_a_missing_file_is_put_back_named_elsewhere_or_done_without(run: Path) -> None:
    Path("b.csv").rename("moved.csv")
    config = config_of(run, "data.train=[a.csv, b.csv]")
    with pytest.raises(UserError, match=r"b.csv .data.train., which is missing; put it back, .*REDO=1 goes on"):
        check_files(config, reads=False)
    check_files(config, reads=False, redo=True)
    remember(config, ("stack",))  # the record stays as it was
    assert [file["path"] for file in json.loads((run / FILES).read_text())["files"]["data.train"]] == ["a.csv", "b.csv"]
    check_files(config_of(run, "data.train=[a.csv, moved.csv]"), reads=False)


def test_synthetic_battles_are_not_exchanged_for_files(run: Path) -> None:
    record_files(config_of(run))
    check_files(config_of(run), reads=True)
    with pytest.raises(UserError, match=r"made from synthetic battles, not from c\.csv"):
        check_files(config_of(run, "data.train=[c.csv]"), reads=False)


def test_a_run_without_a_record_is_compared_with_its_settings(run: Path) -> None:
    (run / FILES).write_text("{")  # damaged: as in runs of older versions, only the paths are known
    remember(config_of(run, "data.train=[a.csv, b.csv]"))
    (run / "battles.json").write_text("{}")
    (run / FILES).unlink()
    check_files(config_of(run, "data.train=[a.csv, ./b.csv]"), reads=False)
    for overrides in ([], ["data.train=[c.csv]"]):
        with pytest.raises(UserError, match=r"was made from a\.csv, b\.csv"):
            check_files(config_of(run, *overrides), reads=False)


def test_a_file_that_changes_is_digested_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1")
    before = digested_files([str(path)])
    path.write_text("22")
    assert digested_files([str(path)]) != before


def test_damaged_settings_do_not_refuse_a_configuration_that_is_named(run: Path) -> None:
    (run / "battles.json").write_text("{}")
    (run / FILES).unlink()
    check_files(config_of(run, "data.train=[a.csv]"), reads=True)  # begun by an older version: nothing to compare
    (run / STORED).write_text("a: [")
    check_files(config_of(run, "data.train=[a.csv]"), reads=True)
    remember(config_of(run, "data.train=[a.csv]"))
    check_files(config_of(run, "data.train=[a.csv]"), reads=True)
