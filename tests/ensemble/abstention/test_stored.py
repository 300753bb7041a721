"""abstention.json: what is written is read, damage is told, levels are shares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ensemble.abstention.stored import ABSTENTION, Abstention
from ensemble.abstention.thresholds import LEVELS
from oof.common.atomic_files import sealed
from oof.common.errors import UserError
from tests.fixtures.abstaining import some_abstention


def test_what_is_written_is_read(tmp_path: Path) -> None:
    abstention = some_abstention()
    abstention.write(tmp_path)
    again = Abstention.read(tmp_path)
    levels = [*LEVELS, 0.123]
    assert [again.thresholds.at(level) for level in levels] == [abstention.thresholds.at(level) for level in levels]
    assert again.ranges == abstention.ranges
    stored = json.loads((tmp_path / ABSTENTION).read_text())["thresholds"]
    assert stored["0.2"] == abstention.thresholds.at(0.2)


def test_a_battle_is_answered_where_its_largest_probability_reaches_the_threshold() -> None:
    abstention = some_abstention()
    threshold = abstention.thresholds.at(0.2)
    assert threshold is not None
    probs = np.array([[threshold, 1 - threshold, 0.0], [0.0, threshold - 1e-6, 1.000001 - threshold], [1.0, 0.0, 0.0]])
    assert abstention.answered(probs, 0.2).tolist() == [True, False, True]
    assert not abstention.answered(probs[:2], 1e-4).any()


def test_a_missing_or_damaged_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.*make distill"):
        Abstention.read(tmp_path)
    some_abstention().write(tmp_path)
    path = tmp_path / ABSTENTION
    content = json.loads(path.read_text())
    content["wrong"][-1] -= 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="checksum"):
        Abstention.read(tmp_path)
    content["thresholds"]["0.2"] = 0.4
    path.write_text(json.dumps(sealed(content)))
    with pytest.raises(UserError, match="thresholds are not those of its counts"):
        Abstention.read(tmp_path)
    del content["wrong"]
    path.write_text(json.dumps(sealed(content)))
    with pytest.raises(UserError, match="not as this version writes it"):
        Abstention.read(tmp_path)


@pytest.mark.parametrize("level", [0, 1, 20, -0.1, float("nan"), True, "0.2"])
def test_a_level_that_is_no_share_is_refused(level: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        some_abstention().answered(np.ones((1, 3)) / 3, level)
