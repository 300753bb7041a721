"""The subcommand serve: its address, errors before the model is read, its end by a signal, and a kill under load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from ensemble.__main__ import main as ensemble_main
from ensemble.serving import server
from ensemble.serving.endpoints import Endpoint
from ensemble.serving.judge import Judge
from ensemble.serving.server import listen
from ensemble.serving.verification import verify
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


def started(student: Path, port: str = "0") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ensemble.command", "serve", str(student), "--port", port]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, **pipes, text=True, env=environment)  # type: ignore[call-overload]  # noqa: S603


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().split()[1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_service_after_it_has_answered_what_it_took(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    with started(untrained_student(tmp_path / "tiny")) as process:
        address = address_of(process)
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


@pytest.mark.slow
def test_a_service_that_is_killed_under_load_is_missed_at_once_and_serves_the_same_numbers_again(
    tmp_path: Path,
) -> None:
    student = untrained_student(tmp_path / "tiny")
    files = {path.name: path.read_bytes() for path in student.iterdir()}

    def ask_until_it_ends(address: str) -> float:
        """Return the seconds of the last request, which is not answered."""
        while True:
            begun = time.monotonic()
            try:
                answer = post(f"{address}/v1/compare", BATTLE)
            except httpx2.TransportError:
                return time.monotonic() - begun
            assert answer.status_code == 200

    with started(student) as process, ThreadPoolExecutor(8) as pool:
        address = address_of(process)
        clients = [pool.submit(ask_until_it_ends, address) for _ in range(8)]
        time.sleep(2)
        assert not any(client.done() for client in clients)
        process.kill()
        assert max(client.result() for client in clients) < 10
    with started(student, address.rpartition(":")[2]) as process:
        assert address_of(process) == address
        comparisons = verify(Judge.from_pretrained(student), Endpoint(address))
        assert {comparison.differs for comparison in comparisons} == {""}
        process.terminate()
        process.communicate(timeout=30)
    assert {path.name: path.read_bytes() for path in student.iterdir()} == files
