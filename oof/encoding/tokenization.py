"""Tokenisation of distinct texts in batches, with a disk cache; names of special tokens inside user text stay text.

With a cache folder, ids are kept by content: ``CACHE/<tokenizer>/<shard>.npz`` holds the hashes of some texts and
their ids. A call encodes only texts that no shard has, and adds one shard. Any shard may be deleted at any time, and
several processes may share the folder: a shard is written once, atomically, and never changed.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oof.common.atomic_files import replacing
from oof.common.progress import progress

logger = logging.getLogger(__name__)

FEW = 64  # texts for which starting a thread takes longer than encoding them
CHUNK = 4096  # texts per call: enough for all cores, few enough for a moving progress bar and little memory
GATHER = 1 << 22  # tokens per gather, whose index arrays take tens of megabytes
HASH_BYTES = 16


@dataclass(frozen=True)
class TokenPool:
    """The ids of many texts in one array: text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.

    Attributes:
        ids: int32.
        offsets: (n + 1,) int64.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def take(self, rows: NDArray[np.integer]) -> TokenPool:
        """Return the texts at positions ``rows``, in that order."""
        if np.array_equal(rows, np.arange(len(self.offsets) - 1)):
            return self
        lengths = self.lengths[rows]
        return TokenPool(gather(self.ids, self.offsets[rows], lengths), offsets_of(lengths))


def offsets_of(lengths: NDArray[np.integer] | Sequence[int]) -> NDArray[np.int64]:
    """Return (n + 1,) int64 running sums that begin with 0."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def gather(pool: NDArray[np.int32], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the concatenation of ``pool[start : start + length]`` over all spans."""
    ends = np.cumsum(lengths)
    out = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.int32)
    index_type = np.int32 if len(pool) < 2**31 else np.int64  # half the memory traffic where 32 bits are enough
    first = 0
    while first < len(ends):
        begin = int(ends[first] - lengths[first])
        last = max(first + 1, int(np.searchsorted(ends, begin + GATHER, side="right")))
        end = int(ends[last - 1])
        # Added to a position in this part of the output, it gives the position in the pool.
        shift = starts[first:last] - (ends[first:last] - lengths[first:last] - begin)
        index = np.repeat(shift.astype(index_type), lengths[first:last])
        index += np.arange(end - begin, dtype=index_type)
        np.take(pool, index, out=out[begin:end], mode="clip")  # clip: without a second copy of the output
        first = last
    return out


@contextmanager
def plain_text(backend: Any) -> Iterator[None]:
    """Inside, a ``tokenizers.Tokenizer`` reads special tokens' names as ordinary text, and does not truncate or pad."""
    specials, truncation, padding = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        backend.encode_special_tokens = specials
        if truncation:
            backend.enable_truncation(**truncation)
        if padding:
            backend.enable_padding(**padding)


def encode_all(texts: Sequence[str], backend: Any, label: str | None = None) -> TokenPool:
    """Return the ids of ``texts`` from a ``tokenizers.Tokenizer`` as it is set up, without its own BOS and EOS."""
    if len(texts) <= FEW:
        few = _ids_of(backend.encode_batch_fast(list(texts), add_special_tokens=False))
        return TokenPool(np.concatenate([np.empty(0, dtype=np.int32), *few]), offsets_of([len(ids) for ids in few]))
    chunks: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    # The tokenizer releases the interpreter's lock: one chunk is encoded while the previous one is unpacked.
    with (
        progress(label or "tokenise", len(texts), "texts", bar=label is not None) as shown,
        ThreadPoolExecutor(1) as worker,
    ):
        pending: Future[list[Any]] | None = None
        for start in range(0, len(texts) + CHUNK, CHUNK):
            done: list[Any] = pending.result() if pending else []
            if start < len(texts):
                chunk = list(texts[start : start + CHUNK])
                pending = worker.submit(backend.encode_batch_fast, chunk, add_special_tokens=False)
            rows = _ids_of(done)
            lengths += [len(ids) for ids in rows]
            chunks += [np.concatenate(rows)] if rows else []
            shown.update(len(rows))
    return TokenPool(np.concatenate(chunks) if chunks else np.empty(0, dtype=np.int32), offsets_of(lengths))


def _ids_of(encodings: Sequence[Any]) -> list[NDArray[np.int32]]:
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def tokenize(texts: Sequence[str], tokenizer: Any, cache: Path | None = None, label: str = "tokenise") -> TokenPool:
    """Return the ids of ``texts`` without special tokens, in their order.

    Args:
        texts: distinct texts.
        tokenizer: a transformers fast tokenizer; it is left as it was.
        cache: folder that keeps ids between calls; None = encode everything.
        label: name of the progress bar.
    """
    backend = tokenizer.backend_tokenizer
    with plain_text(backend):
        if cache is None:
            return encode_all(texts, backend, label)
        return _through_cache(texts, backend, cache / fingerprint(backend), label)


def fingerprint(backend: Any) -> str:
    """Return a digest of everything that a tokenizer's ids depend on."""
    version = metadata.version("tokenizers")
    return hashlib.blake2b(f"{version}\0{backend.to_str()}".encode(), digest_size=HASH_BYTES).hexdigest()


def text_hashes(texts: Sequence[str]) -> NDArray[np.bytes_]:
    """Return (n,) digests, the cache's keys. numpy drops a trailing zero byte of each."""
    digests = [hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype=f"S{HASH_BYTES}")


def _through_cache(texts: Sequence[str], backend: Any, folder: Path, label: str) -> TokenPool:
    wanted = text_hashes(texts)
    pools: list[TokenPool] = []
    position = np.full(len(texts), -1, dtype=np.int64)  # of each text in the joined pools; -1 = missing
    n_joined = 0
    for path in sorted(folder.glob("*.npz")):
        missing = np.flatnonzero(position < 0)
        if len(missing) == 0:
            break
        shard = _read_shard(path, wanted[missing])
        if shard is not None:
            row, pool = shard
            hit = row >= 0
            position[missing[hit]] = n_joined + np.arange(hit.sum())
            pools.append(pool.take(row[hit]))  # the shard may have many more
            n_joined += int(hit.sum())
    missing = np.flatnonzero(position < 0)
    if len(missing):
        fresh = encode_all([texts[i] for i in missing.tolist()], backend, label)
        _write_shard(folder, wanted[missing], fresh)
        position[missing] = n_joined + np.arange(len(missing))
        pools.append(fresh)
    return _join(pools).take(position)


def _join(pools: list[TokenPool]) -> TokenPool:
    if len(pools) == 1:
        return pools[0]
    lengths = [pool.lengths for pool in pools] or [np.empty(0, dtype=np.int64)]
    ids = [pool.ids for pool in pools] or [np.empty(0, dtype=np.int32)]
    return TokenPool(np.concatenate(ids), offsets_of(np.concatenate(lengths)))


def _read_shard(path: Path, wanted: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], TokenPool] | None:
    """Return each wanted text's row in the shard (-1 = missing) and the shard's pool; None if it has none of them."""
    try:
        with np.load(path, allow_pickle=False) as shard:
            order = np.argsort(shard["hashes"])
            hashes = shard["hashes"][order]
            if len(hashes) == 0:
                return None
            nearest = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
            row = np.where(hashes[nearest] == wanted, order[nearest], -1)
            if (row < 0).all():
                return None
            pool = TokenPool(shard["ids"], shard["offsets"])  # a damaged file fails its checksum here
            if len(pool.offsets) != len(hashes) + 1 or pool.offsets[-1] != len(pool.ids):
                raise ValueError("lengths do not match")
            return row, pool
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s: damaged, not a whole token cache file (%s); its texts are tokenised again", path, error)
        with suppress(OSError):  # in a folder that this user may not write
            path.unlink(missing_ok=True)
        return None


def _write_shard(folder: Path, hashes: NDArray[np.bytes_], pool: TokenPool) -> None:
    name = hashlib.blake2b(hashes.tobytes(), digest_size=HASH_BYTES).hexdigest()
    try:
        with replacing(folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, hashes=hashes, ids=pool.ids, offsets=pool.offsets)
    except OSError as error:
        logger.warning("%s: cannot keep the token cache (%s); the run goes on without it", folder, error)
