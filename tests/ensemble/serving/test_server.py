"""The subcommand serve: its address, errors before the model is read, and an end that answers what was taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from ensemble.__main__ import main as ensemble_main
from ensemble.serving import server
from ensemble.serving.server import listen
from tests.fixtures.demo_run import ROOT
from tests.fixtures.served_students import BATTLE, post, untrained_student


def test_an_address_that_cannot_be_used_is_refused_before_the_model_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for words in (["--port", port], ["--port", "99999"], ["--host", "203.0.113.7", "--port", "0"]):
            assert ensemble_main(["serve", str(tmp_path / "missing"), *words]) == 2
            assert "choose another, --port 0 takes a free one" in capsys.readouterr().err
    for seconds in ("-1", "nan", "inf"):
        assert ensemble_main(["serve", str(tmp_path / "missing"), "--port", "0", "--timeout", seconds]) == 2
        assert f"--timeout {seconds}: give a finite number" in capsys.readouterr().err
    assert ensemble_main(["serve", str(tmp_path / "missing"), "--port", "0"]) == 2
    assert "give the folder of an exported student" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ensemble.serving.subcommands.find_spec", lambda name: None if name == "uvicorn" else server)
    assert ensemble_main(["serve", "anything"]) == 2
    assert "serve needs the package uvicorn; run 'make setup EXTRAS=serve'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_service_after_it_has_answered_what_it_took(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    student = untrained_student(tmp_path / "tiny")
    command = [sys.executable, "-m", "ensemble.command", "serve", str(student), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:  # type: ignore[call-overload]  # noqa: S603
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        battles = [BATTLE | {"prompt": f"{i} " * 200} for i in range(256)]
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, f"{address}/v1/compare", {"battles": battles})
            while " 0.0" in next(
                line
                for line in httpx2.get(f"{address}/metrics").text.splitlines()
                if line.startswith("arena_distill_sequences_in_work ")
            ):
                assert not answer.done()
            process.send_signal(number)
            assert len(answer.result().json()["verdicts"]) == 256
        _, errors = process.communicate(timeout=30)
        assert process.returncode == status
    assert "stopped" in errors
    assert "Traceback" not in errors
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(address)
