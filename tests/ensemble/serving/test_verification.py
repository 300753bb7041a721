"""Verification: right endpoints pass, each planted mistake is named, and what is no endpoint is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from ensemble import Judge
from ensemble.__main__ import main as ensemble_main
from ensemble.serving import verification
from ensemble.serving.endpoints import Endpoint
from ensemble.serving.judge import battles_table
from ensemble.serving.verification import synthetic_battles, verify
from oof.common.errors import UserError
from oof.metrics import softmax
from tests.fixtures.served_students import serving, untrained_student
from tests.fixtures.wrong_endpoints import as_ours, as_vllm, endpoint, not_swapped_back


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_student(tmp_path_factory.mktemp("student") / "tiny")


@pytest.fixture(scope="module")
def judge(student: Path) -> Judge:
    return Judge.from_pretrained(student)


@pytest.fixture(autouse=True)
def few_battles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "BATTLES", 12)


def rounded(logits: np.ndarray) -> np.ndarray:
    return np.asarray(softmax(torch.tensor(logits).to(torch.bfloat16).double().numpy()))


def test_our_service_is_verified_on_both_paths(judge: Judge) -> None:
    with serving(judge) as url:
        comparisons = verify(judge, Endpoint(url))
        assert [(c.path, c.differs) for c in comparisons] == [("/v1/compare", ""), ("/classify", "")]
        assert max(c.largest for c in comparisons) < 1e-4
        assert [c.path for c in verify(judge, Endpoint(f"{url}/classify"))] == ["/classify"]


def test_the_battles_are_fifty_and_some_are_truncated(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    encoded = judge.encode(battles_table(synthetic_battles(judge.prompts.max_tokens)))
    truncated = (encoded.n_kept < encoded.n_tokens).any(axis=1)
    assert len(truncated) == 50
    assert 5 <= truncated.sum() < 50


@pytest.mark.parametrize("field", ["probs", "embedding"])
def test_an_endpoint_of_vllm_or_sglang_is_verified(field: str, judge: Judge) -> None:
    answer = as_vllm(judge, softmax if field == "probs" else np.asarray, field=field)
    with endpoint({"/classify": answer, "/v1/models": lambda _: {"data": [{"id": "judge"}]}}) as url:
        assert [comparison.differs for comparison in verify(judge, Endpoint(url))] == [""]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (lambda logits: softmax(logits)[:, [1, 0, 2]], "labels are in the order b, a, tie instead of a, b, tie"),
        (lambda logits: softmax(logits)[:, [2, 0, 1]], "labels are in the order tie, a, b instead of a, b, tie"),
        (np.asarray, "the softmax is missing"),
        (lambda logits: softmax(softmax(logits)), "the softmax twice"),
        (expit, "a sigmoid to each class"),
        (rounded, "of the size of a lower precision"),
        (lambda logits: softmax(logits)[::-1], "in another order than its inputs"),
        (lambda logits: np.full_like(logits, 1 / 3), "no known mistake explains it"),
        (lambda logits: np.full_like(logits, np.nan), "no known mistake explains it"),
        (lambda logits: softmax(logits)[:, :2], "it has 2 classes, the student 3"),
    ],
)
def test_a_mistake_after_the_model_is_named(
    values: Callable[[np.ndarray], np.ndarray], words: str, judge: Judge
) -> None:
    with endpoint({"/classify": as_vllm(judge, values)}) as url:
        comparison = verify(judge, Endpoint(url))[0]
    assert words in comparison.differs
    assert comparison.largest > 1e-4


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (lambda ids: [ids[0], *ids], "a second BOS"),
        (lambda ids: ids[1:], "drops the first token"),
        (lambda ids: ids[:-1], "drops the last token"),
    ],
)
def test_other_token_ids_are_named(ids: Callable[[list[int]], list[int]], words: str, judge: Judge) -> None:
    with endpoint({"/classify": as_vllm(judge, softmax, ids)}) as url:
        assert words in verify(judge, Endpoint(url))[0].differs


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (lambda logits: softmax(logits[:, 0]), "the order ab only"),
        (lambda logits: softmax(logits[:, 1]), "the order ba only"),
        (lambda logits: softmax(logits).mean(axis=1), "probabilities of both orders instead of logits"),
        (lambda logits: softmax(not_swapped_back(logits)), "does not swap the first two logits"),
        (lambda logits: softmax(logits.mean(axis=1))[:, [1, 0, 2]], "labels are in the order b, a, tie"),
    ],
)
def test_a_mistake_between_the_orders_is_named(
    verdict: Callable[[np.ndarray], np.ndarray], words: str, judge: Judge
) -> None:
    with endpoint({"/v1/compare": as_ours(judge, verdict, softmax)}) as url:
        assert words in verify(judge, Endpoint(f"{url}/v1/compare"))[0].differs


def test_an_endpoint_in_our_form_is_verified(judge: Judge) -> None:
    with endpoint({"/v1/compare": as_ours(judge, lambda logits: softmax(logits.mean(axis=1)), softmax)}) as url:
        assert verify(judge, Endpoint(f"{url}/v1/compare"))[0].differs == ""


@pytest.mark.slow
def test_another_precision_of_our_service_is_named(student: Path, judge: Judge) -> None:
    half = Judge.from_pretrained(student, dtype="bfloat16")
    with serving(half) as url:
        assert {c.differs for c in verify(half, Endpoint(url))} == {""}
        words = "it computes in bfloat16, not in float32: give --dtype bfloat16, or serve it in float32"
        assert {c.differs for c in verify(judge, Endpoint(url))} == {words}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": [{"index": 0}]}, r"/classify: not the answer of .* \(KeyError: 'probs'\)"),
        ([1, 2], "/classify: not the answer"),
        ({"data": [{"index": 0, "probs": [0.1, "x"]}]}, "not the answer"),
        (b"<html>", "/classify: Expecting value"),
    ],
)
def test_an_answer_of_another_form_is_refused(content: object, message: str, judge: Judge) -> None:
    with endpoint({"/classify": lambda _: content}) as url, pytest.raises(UserError, match=message):
        verify(judge, Endpoint(url))


def test_the_subcommand_tells_by_its_status_and_in_json(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = Judge.from_pretrained(student)
    with serving(judge, key="k") as url:
        assert ensemble_main(["verify", str(student), url]) == 2
        assert "this service needs its key" in capsys.readouterr().err
        key = student.parent / "key"
        key.write_text("k")
        assert ensemble_main(["verify", str(student), url, "--api-key-file", str(key)]) == 0
        assert "verify: /v1/compare: the numbers of the student (largest difference" in capsys.readouterr().out
    with endpoint({"/classify": as_vllm(judge, np.asarray)}) as url:
        assert ensemble_main(["verify", str(student), url, "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert "softmax is missing" in document["paths"][0]["differs"]
    assert ensemble_main(["verify", str(student), url]) == 2
    assert "is it running? --wait 60 waits" in capsys.readouterr().err
    assert ensemble_main(["verify", str(student), url, "--wait", "nan"]) == 2
    assert "--wait nan: give a finite number" in capsys.readouterr().err
    assert ensemble_main(["verify", str(student), "not an address"]) == 2
