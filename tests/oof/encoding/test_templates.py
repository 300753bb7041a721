"""Chat template: exact text, BOS and padding in every family; it is saved with the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from oof.common.errors import UserError
from oof.encoding.templates import family_of, length_hint, prepare_tokenizer
from tests.fixtures.chat_template import chat_text
from tests.fixtures.tokenizer_files import DEMO, OTHERS, REAL, TINY, prepared_tokenizer, tiny

EXPECTED = {
    "gemma": (
        "<bos><start_of_turn>Prompt\nWhy?<end_of_turn>\n<start_of_turn>Response A\nA1<end_of_turn>\n"
        "<start_of_turn>Response B\nB1<end_of_turn>\n<start_of_turn>Verdict\n"
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>Prompt<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>Response A<|end_header_id|>\n\nA1<|eot_id|>"
        "<|start_header_id|>Response B<|end_header_id|>\n\nB1<|eot_id|>"
        "<|start_header_id|>Verdict<|end_header_id|>\n\n"
    ),
    "chatml": (
        "<|im_start|>Prompt\nWhy?<|im_end|>\n<|im_start|>Response A\nA1<|im_end|>\n"
        "<|im_start|>Response B\nB1<|im_end|>\n<|im_start|>Verdict\n"
    ),
    "plain": "<s>### Prompt\nWhy?\n\n### Response A\nA1\n\n### Response B\nB1\n\n### Verdict\n",
}
FAMILY = {
    **{name: name for name in TINY},
    **{"gemma2": "gemma", "gemma3": "gemma", "tiny-gemma2": "gemma"},
    **{"llama3.1": "llama3", "tiny-llama": "llama3", "smollm2": "chatml"},
}
EVERY = [*TINY, *REAL, *OTHERS, *DEMO]


@pytest.mark.parametrize("name", EVERY)
def test_template_text_of_each_family(name: str) -> None:
    tokenizer = prepared_tokenizer(name)
    assert family_of(tokenizer).name == FAMILY[name]
    assert chat_text(["Why?"], ["A1"], ["B1"], tokenizer, "rounds") == EXPECTED[FAMILY[name]]


def test_layouts_order_the_turns() -> None:
    tokenizer = prepared_tokenizer("plain")
    turns = (["p1", "p2"], ["a1", "a2"], ["b1", "b2"])

    def order(layout: str) -> list[str]:
        return [line for line in chat_text(*turns, tokenizer, layout).split("\n") if line[:1] in "pab" and line]

    assert order("responses") == ["p1", "p2", "a1", "a2", "b1", "b2"]
    assert order("rounds") == ["p1", "a1", "b1", "p2", "a2", "b2"]


@pytest.mark.parametrize("name", EVERY)
def test_pad_can_never_be_the_last_token_of_a_text(name: str) -> None:
    tokenizer = prepared_tokenizer(name)
    family = family_of(tokenizer)
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token not in {tokenizer.eos_token, tokenizer.bos_token, family.after_text.strip()}
    rendered = tokenizer.encode(chat_text(["Why?"], ["A1"], ["B1"], tokenizer, "rounds"), add_special_tokens=False)
    assert tokenizer.pad_token_id not in rendered
    assert tokenizer.padding_side == "right"


def test_llama_pads_with_its_own_pad_token() -> None:
    assert prepared_tokenizer("llama3").pad_token == "<|finetune_right_pad_id|>"


@pytest.mark.parametrize("name", TINY)
def test_preparing_twice_changes_nothing(name: str) -> None:
    once, twice = tiny(name), tiny(name)
    for tokenizer in (once, twice, twice):
        prepare_tokenizer(tokenizer)
    assert (once.chat_template, once.pad_token) == (twice.chat_template, twice.pad_token)


@pytest.mark.parametrize("name", TINY)
def test_the_template_is_saved_with_the_tokenizer(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = prepared_tokenizer(name, "lengths")
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.pad_token == tokenizer.pad_token
    turns = (["Why?", "So?"], ["A1", "A2"], ["B1", ""])
    assert chat_text(*turns, loaded, "rounds") == chat_text(*turns, tokenizer, "rounds")


def test_texts_are_never_rendered_as_a_template() -> None:
    hostile = "{{ 7 * 7 }}{% for i in range(9) %}x{% endfor %}{# no #} \\n ' \" </s>"
    assert hostile in chat_text([hostile], ["A1"], ["B1"], prepared_tokenizer("plain"), "rounds")


def test_outer_whitespace_is_stripped_and_inner_whitespace_is_kept() -> None:
    text = chat_text(["\n \tWhy\n\n so?\u3000\x1f"], [" "], ["B1"], prepared_tokenizer("chatml"), "rounds")
    assert "Prompt\nWhy\n\n so?<|im_end|>" in text
    assert "Response A\n<|im_end|>" in text


def test_unknown_role_is_refused() -> None:
    with pytest.raises(TemplateError, match="roles are"):
        prepared_tokenizer("gemma").apply_chat_template([{"role": "assistant", "content": "x"}], tokenize=False)


def test_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="fast tokenizer"):
        prepare_tokenizer(Slow())


def test_tokenizer_without_a_free_token_is_refused() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    made: Any = PreTrainedTokenizerFast
    bare = made(tokenizer_object=Tokenizer(BPE(vocab={"a": 0, "<e>": 1}, merges=[])))
    bare.add_special_tokens({"eos_token": "<e>"})
    with pytest.raises(UserError, match="<pad>"):
        prepare_tokenizer(bare)


@given(st.lists(st.integers(0, 10**12), min_size=1))
def test_length_hint_keeps_two_digits(lengths: list[int]) -> None:
    expected = [int(str(n)[:2] + "0" * (len(str(n)) - 2)) for n in lengths]
    assert length_hint(np.array(lengths)).tolist() == expected


def test_hints_put_lengths_into_the_headers() -> None:
    text = chat_text(["x" * 1234], ["y" * 99], [" "], prepared_tokenizer("plain", "lengths"), "rounds")
    assert [line for line in text.split("\n") if "###" in line] == [
        "<s>### Prompt, 1200 characters",
        "### Response A, 99 characters",
        "### Response B, 0 characters",
        "### Verdict",
    ]


def test_a_tokenizer_that_reads_texts_otherwise_inside_the_template_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tokenizers import pre_tokenizers

    from oof.encoding.templates import TemplatePieces

    tokenizer = tiny("chatml")
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)])
    TemplatePieces(tokenizer, "none", np.zeros(1, dtype=np.int64))
    assert "apply_chat_template" in caplog.text
