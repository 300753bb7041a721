"""Key of an HTTP service: where it comes from, and keys that no header carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble.serving.api_key import KEY, read_key
from oof.common.errors import UserError


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    assert read_key(None) == ""
    monkeypatch.setenv(KEY, "one")
    assert read_key(None) == "one"
    (tmp_path / "key").write_text("two\n")
    assert read_key(str(tmp_path / "key")) == "two"


@pytest.mark.parametrize("key", ["", " \n", "schlüssel", "two\nlines"])
def test_a_key_that_no_header_carries_is_refused(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, key)
    (tmp_path / "key").write_text(key, encoding="utf-8")
    for path, place in ((None, KEY), (str(tmp_path / "key"), "key")):
        with pytest.raises(UserError, match=f"{place}: a key is one line of printable ASCII"):
            read_key(path)


def test_a_file_of_bytes_that_are_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"s3cret\x8c\xff")
    with pytest.raises(UserError, match="key: a key is one line of printable ASCII"):
        read_key(str(tmp_path / "key"))
