"""Files to columns of cells: globs, compressed files and archives, and the recognition of the format.

The formats are parsed by :mod:`oof.data.formats`. Every fault of a file as a whole becomes one UserError here.
"""

from __future__ import annotations

import glob
import gzip
import io
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, cast

from oof.common.errors import UserError
from oof.data.formats import Opener, read_csv, read_json, read_parquet
from oof.data.hub_datasets import PREFIX, hub_file
from oof.data.raw_table import RawTable

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
PACKED = (".gz", ".zst", ".zip")


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the files of paths, globs and names of hub datasets: each once, those of a glob in sorted order.

    Raises:
        UserError: a path does not exist, is a folder, a glob matches nothing, or a hub dataset cannot be fetched.
    """
    paths: list[str] = []
    for pattern in patterns:
        if "\0" in pattern:
            raise UserError(f"{pattern!r}: a file name cannot contain a NUL character; remove it")
        if pattern.startswith(PREFIX):
            files = [hub_file(pattern)]
        elif Path(pattern).exists():
            files = [pattern]
        else:
            files = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []
            files = [path for path in files if Path(path).is_file()]
        if not files:
            raise UserError(f"{pattern}: no such file; check the path and the working folder")
        if Path(files[0]).is_dir():
            raise UserError(f"{pattern}: is a folder; name the files in it, for example {pattern}/*.parquet")
        paths += files
    return list(dict.fromkeys(paths))


def read_raw(path: str | Path, wanted: Collection[str]) -> list[RawTable]:
    """Return the cells of the ``wanted`` columns of a file: one table, or one per member of a .zip archive.

    Raises:
        UserError: the file cannot be read, unpacked or parsed as a whole.
    """
    path = str(path)
    try:
        if Path(path).suffix.lower() == ".zip":
            return _read_archive(path, wanted)
        return [_read_one(path, lambda: _open(path), wanted)]
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise UserError(f"{path}: damaged gzip file ({error}); fetch it again") from error
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged compressed file ({error}); fetch it again") from error
    except MemoryError as error:
        raise UserError(f"{path}: does not fit into memory; split it into smaller files") from error


def _open(path: str) -> IO[bytes]:
    suffix = Path(path).suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if suffix == ".zst":
        return _open_zstd(path)
    return Path(path).open("rb")


def _open_zstd(path: str) -> IO[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f"{path}: .zst needs 'pip install zstandard', or unpack the file first: unzstd {path}"
        ) from error
    with Path(path).open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as s:
        try:
            return io.BytesIO(s.read())
        except zstandard.ZstdError as error:
            raise UserError(f"{path}: damaged .zst file ({error}); fetch it again") from error


def _read_archive(path: str, wanted: Collection[str]) -> list[RawTable]:
    with zipfile.ZipFile(path) as archive:
        members = [m for m in sorted(archive.namelist()) if not m.endswith("/") and not m.startswith("__MACOSX")]
        if not members:
            raise UserError(f"{path}: the archive contains no file")
        try:
            return [_read_one(f"{path}/{m}", lambda m=m: archive.open(m), wanted) for m in members]  # type: ignore[misc]
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
            raise UserError(f"{path}: cannot be unpacked ({error}); unpack it by hand") from error


def _read_one(name: str, opener: Opener, wanted: Collection[str]) -> RawTable:
    name = name.encode("utf-8", "replace").decode()  # names that are not UTF-8 cannot be stored
    with opener() as stream:
        head = stream.read(4096)
    plain = name[: -len(Path(name).suffix)] if name.lower().endswith(PACKED) else name
    kind = FORMATS.get(Path(plain).suffix.lower()) or _sniff(head)
    if not head.strip():
        raise UserError(f"{name}: the file is empty")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{name}: is UTF-16 or UTF-32 text; save it as UTF-8 (iconv -f utf-16 -t utf-8)")
    if kind != (content := _sniff(head)) and "parquet" in (kind, content):
        raise UserError(f"{name}: the name says {kind}, but the content is not; give the file its real ending")
    if kind == "parquet":
        return read_parquet(name, opener, wanted)
    if kind == "json":
        return read_json(name, opener, wanted, array=head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[")
    try:
        return read_csv(name, opener, wanted, errors="strict")
    except UnicodeDecodeError:  # read again with these bytes marked, to name their rows
        return read_csv(name, opener, wanted, errors="surrogateescape")


def _sniff(head: bytes) -> str:
    if head[:4] == b"PAR1":
        return "parquet"
    return "json" if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") else "csv"
