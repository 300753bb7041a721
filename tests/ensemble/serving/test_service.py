"""HTTP service: its numbers are the judge's, whoever else asks; /classify has vLLM's form; errors are sentences."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ensemble import Judge
from oof.classes import CLASSES, swap_classes
from oof.metrics import softmax
from tests.fixtures.served_students import BATTLE, post, serving, untrained_student

TEXTS = ("prompt", "response_a", "response_b")
LONG = {"prompt": "why " * 400, "response_a": "because " * 30, "response_b": "no"}
CHAT = {
    "response_a": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    "response_b": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hey \ud83d there"}],
}
TURNS = {"prompt": ["Hi", "And now?"], "response_a": ["Hello", None], "response_b": ["Hey", "That"]}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge.from_pretrained(untrained_student(tmp_path_factory.mktemp("student") / "tiny"))


@pytest.fixture(scope="module")
def service(judge: Judge) -> Iterator[str]:
    with serving(judge) as url:
        yield url


def offline(judge: Judge, *battles: dict[str, Any]) -> np.ndarray:
    return judge.compare_many(*([battle.get(name) for battle in battles] for name in TEXTS))  # type: ignore[arg-type]


def rows(verdicts: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[verdict[name] for name in CLASSES] for verdict in verdicts])


def test_one_verdict_is_the_judges_with_both_orders_and_token_counts(judge: Judge, service: str) -> None:
    answer = post(f"{service}/v1/compare", BATTLE).json()
    verdict = judge.compare(*BATTLE.values())
    np.testing.assert_allclose(rows([answer])[0], verdict, atol=1e-6)
    assert answer["winner"] == verdict.winner
    table = pl.DataFrame({name: [[text]] for name, text in BATTLE.items()})
    orders = softmax(judge.logits(table)[0])
    np.testing.assert_allclose(rows([answer["orders"]["ab"], answer["orders"]["ba"]]), orders, atol=1e-6)
    assert not answer["truncated"]
    counts = judge.encode(table).n_tokens[0].tolist()
    assert [answer["tokens"][name] for name in TEXTS] == [{"given": n, "kept": n} for n in counts]


def test_many_verdicts_come_in_order_for_texts_turns_and_chats(judge: Judge, service: str) -> None:
    battles = [BATTLE, LONG, CHAT, TURNS]
    answer = post(f"{service}/v1/compare", {"battles": battles}).json()["verdicts"]
    np.testing.assert_allclose(rows(answer), offline(judge, *battles), atol=1e-6)
    assert [verdict["truncated"] for verdict in answer] == [False, True, False, False]
    cut = answer[1]["tokens"]["prompt"]
    assert cut["kept"] < cut["given"]


def test_swapping_the_responses_swaps_their_probabilities(service: str) -> None:
    swapped = BATTLE | {"response_a": BATTLE["response_b"], "response_b": BATTLE["response_a"]}
    one, other = (rows([post(f"{service}/v1/compare", battle).json()]) for battle in (BATTLE, swapped))
    np.testing.assert_allclose(one, swap_classes(other), atol=1e-6)


def test_concurrent_clients_get_their_own_answers(judge: Judge, service: str) -> None:
    battles = [BATTLE | {"prompt": f"How many {'very ' * (7 * i % 60)}old cats are {i}?"} for i in range(64)]
    expected = offline(judge, *battles)

    async def ask_all() -> list[Any]:
        async with httpx2.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(client.post(f"{service}/v1/compare", json=battle) for battle in battles))

    answers = [answer.json() for answer in asyncio.run(ask_all())]
    np.testing.assert_allclose(rows(answers), expected, atol=1e-5)
    assert len(np.unique(expected.round(4), axis=0)) > 60  # a mix-up would show


def test_classify_takes_rendered_prompts_and_token_ids_as_vllm_does(judge: Judge, service: str) -> None:
    messages = [{"role": name.replace("prompt", "user"), "content": text} for name, text in BATTLE.items()]
    text = judge.tokenizer.apply_chat_template(messages, tokenize=False)
    table = pl.DataFrame({name: [[value]] for name, value in BATTLE.items()})
    both = judge.encode(table)
    sequences = [both.sequence(0, order).tolist() for order in range(2)]
    logits = judge.logits(table)[0]
    logits[1] = swap_classes(logits[1])  # as presented
    by_ids = post(f"{service}/classify", {"model": "tiny", "input": sequences, "user": "me", "priority": 0}).json()
    assert by_ids["object"] == "list"
    assert by_ids["usage"]["prompt_tokens"] == sum(map(len, sequences))
    assert [item["index"] for item in by_ids["data"]] == [0, 1]
    np.testing.assert_allclose([item["probs"] for item in by_ids["data"]], softmax(logits), atol=1e-6)
    labels = [judge.model.config.id2label[int(row.argmax())] for row in logits]
    assert [item["label"] for item in by_ids["data"]] == labels
    for body in ({"input": text}, {"input": [text]}, {"input": sequences[0]}):
        answer = post(f"{service}/classify", body | {"use_activation": False}).json()["data"]
        np.testing.assert_allclose([item["probs"] for item in answer], logits[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/compare", {"prompt": "p", "response_a": "a"}, 400, "response_b: Field required"),
        ("/v1/compare", {"battles": []}, 400, "battles: List should have at least 1"),
        ("/v1/compare", {"battles": [BATTLE] * 257}, 400, "at most 256"),
        ("/v1/compare", {"battles": [BATTLE, {"prompt": "p"}]}, 400, r"battles\.1\.response_a"),
        ("/v1/compare", BATTLE | {"response_a": 5}, 400, "battle 0: response_a: expected a text"),
        ("/v1/compare", BATTLE | {"max_eror": 0.1}, 400, "max_eror: Extra inputs are not permitted"),
        ("/v1/compare", {"prompt": ["p", "q"], "response_a": "a", "response_b": "b"}, 400, "give equally many"),
        ("/v1/compare", [1, 2], 400, "body"),
        ("/classify", {"input": [1, 2, 10**6]}, 400, "token ids are 0 to"),
        ("/classify", {"input": [[5] * 129]}, 400, "has 129 tokens; this student takes 1 to 128"),
        ("/classify", {"input": [[]]}, 400, "none is empty"),
        ("/classify", {"input": ["x", 5]}, 400, "input: give a rendered prompt or its token ids"),
        ("/classify", {"input": [True]}, 400, "input: give a rendered prompt or its token ids"),
        ("/classify", {"input": ["x"] * 513}, 400, "at most 512"),
        ("/classify", {"input": "x", "truncate_prompt_tokens": 5}, 400, "truncate_prompt_tokens"),
        ("/nothing", {}, 404, "/docs lists the paths"),
        ("/health", {}, 405, "Method Not Allowed"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(
    service: str, path: str, body: object, status: int, message: str
) -> None:
    answer = post(service + path, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, status)
    assert re.search(message, error["message"]), error
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("content", [b"{", b"", b"[" * 100_000, b'{"prompt": ' + b"9" * 5000 + b"}", b"\xff\xfe{"])
def test_a_body_that_is_not_json_is_refused(service: str, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx2.post(f"{service}/v1/compare", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_health_models_metrics_and_the_schema(judge: Judge, service: str) -> None:
    health = httpx2.get(f"{service}/health").json()
    assert (health["status"], health["dtype"], health["max_tokens"]) == ("ok", "float32", 128)
    assert httpx2.get(f"{service}/v1/models").json()["data"][0]["id"] == "tiny"
    schema = httpx2.get(f"{service}/openapi.json").json()
    assert {"/v1/compare", "/classify", "/health"} <= set(schema["paths"])
    before = metric(service, "arena_distill_battles_total")
    post(f"{service}/v1/compare", {"battles": [BATTLE] * 3})
    assert metric(service, "arena_distill_battles_total") == before + 3
    assert metric(service, "arena_distill_sequences_in_work") == 0


def metric(service: str, name: str) -> float:
    families = text_string_to_metric_families(httpx2.get(f"{service}/metrics").text)
    return next(sample.value for family in families for sample in family.samples if sample.name == name)


def test_a_student_of_two_classes_answers_without_ties(tmp_path: Path) -> None:
    judge = Judge.from_pretrained(untrained_student(tmp_path / "two", ties=False))
    with serving(judge) as url:
        answer = post(f"{url}/v1/compare", BATTLE).json()
        np.testing.assert_allclose(rows([answer]), offline(judge, BATTLE), atol=1e-6)
        assert answer["tie"] == 0
        data = post(f"{url}/classify", {"input": [5, 6, 7]}).json()["data"]
        assert data[0]["num_classes"] == len(data[0]["probs"]) == 2
