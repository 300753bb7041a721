"""Values as users write them: each works, or is refused in one sentence about the user's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from oof.common.errors import UserError
from oof.config import load
from oof.config.user_values import join_words, split_paths


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("folds.k=three", "folds.k=three; it must be a whole number"),
        ("learning_rate=1e-4", "did you mean members.NAME.train.lr?"),
        ("n_folds=3", "did you mean folds.k?"),
        ("seed==\n3", "override 'seed== 3': expected key.sub=value"),
        ("data.columns=3", "data.columns=3; it must be a mapping such as {prompt: question}"),
        ("prompts.max_tokens=[1]", "it must be a whole number"),
        ("stack.trials=", "it must be a whole number"),
        ("RUN=runs/mine", "override RUN=runs/mine: RUN is a variable of make; here it is run=runs/mine"),
        ("REDO=1", "here it is --redo"),
        ("stack.logits=a.csv", "stack.logits=a.csv; it must be a mapping such as {gemma: gemma.csv}"),
        ("data.columns={prompt", "its value is not valid YAML"),
    ],
)
def test_a_wrong_value_is_one_sentence_without_internals(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(None, [override])
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    for word in ("full_key", "object_type", "reference_type", "OmegaConf", "NoneType"):
        assert word not in text


def test_the_word_that_the_user_typed_is_blamed_and_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "été 2.yaml"
    path.write_text("folds: {k: 3}\nmembers: {a.b: {checkpoint: x, train: {epochs: -1}}}\n", "utf-8")
    with pytest.raises(UserError, match=r"^overrides: folds.k=1; it must lie between 2 and 100$"):
        load(path, ["folds.k=1"])
    with pytest.raises(UserError, match=f"^{path}: members.a.b.train.epochs=-1"):
        load(path, ["folds.k=4"])


def test_pairs_of_name_and_file_are_a_mapping_and_keep_their_spaces() -> None:
    config = load(None, ["stack.logits=a=/l'été 2/a.csv  b-1=b=c.csv c.d=my file.csv"])
    assert config.stack.logits == {"a": "/l'été 2/a.csv", "b-1": "b=c.csv", "c.d": "my file.csv"}
    assert load(None, ["data.columns=prompt=my question"]).data.columns == {"prompt": "my question"}
    assert load(None, ["data.columns={prompt: a b=c}"]).data.columns == {"prompt": "a b=c"}


def test_one_path_is_a_list_of_it_and_a_split_mapping_is_joined() -> None:
    config = load(None, ["data.train=/x.csv", "data.columns={prompt:", "question,", "label:", "my", "vote}", "seed=4"])
    assert config.data.train == ["/x.csv"]
    assert config.data.columns == {"prompt": "question", "label": "my vote"}
    assert config.seed == 4
    assert load(None, ["data.verdicts={1: a, 2: b}"]).data.verdicts == {"1": "a", "2": "b"}
    assert join_words(["a=[1,", "2]", "b=3"]) == ["a=[1, 2]", "b=3"]


def test_paths_with_spaces_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my dätä.csv", "more.csv"):
        (tmp_path / name).write_text("")
    assert split_paths("my dätä.csv") == ["my dätä.csv"]
    assert split_paths("more.csv my dätä.csv") == ["more.csv", "my dätä.csv"]
    assert split_paths("'my dätä.csv' other.csv *.parquet") == ["my dätä.csv", "other.csv", "*.parquet"]
