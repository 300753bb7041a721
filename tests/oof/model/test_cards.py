"""Rates and names of cards."""

from __future__ import annotations

import pytest

from oof.model.cards import BANDWIDTH_EFFICIENCY, CARDS, MATRIX_EFFICIENCY, card_named


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", None),
        ("", None),
    ],
)
def test_a_card_is_found_by_its_driver_s_name(gpu: str, name: str | None) -> None:
    assert card_named(gpu) == name


def test_the_slower_of_arithmetic_and_memory_decides() -> None:
    card = CARDS["H100"]
    product, copy = 989e12 * MATRIX_EFFICIENCY, 3350e9 * BANDWIDTH_EFFICIENCY
    assert card.seconds("bfloat16", product, 0.5 * copy) == pytest.approx(1.0)
    assert card.seconds("bfloat16", 0.5 * product, copy) == pytest.approx(1.0)


def test_each_dtype_has_its_own_rate_and_a_t4_has_no_bfloat16() -> None:
    for name, card in CARDS.items():
        assert card.rates["float16"] > 2 * card.rates["float32"] or name == "RTX 4090"
        assert card.dtype("float32") == "float32"
        assert card.dtype("bfloat16") == ("float16" if name == "T4" else "bfloat16")
    assert CARDS["T4"].seconds("float32", 1e12, 0) == pytest.approx(65 / 8.1 * CARDS["T4"].seconds("float16", 1e12, 0))
