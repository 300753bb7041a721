"""Prompt template: one turn per text, delimited by the model family's own turn tokens.

    Prompt | text, Response A | text, Response B | text, Verdict |

The same template is stored in the tokenizer as a Jinja chat template, so ``tokenizer.apply_chat_template`` gives the
same ids in any program. Texts are stripped of outer whitespace: a special token or a newline is then next to each end,
and no merge of the tokenizer crosses into the template. A tokenizer without turn tokens gets plain "### Prompt" lines,
where a merge may differ by a token.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oof.common.errors import UserError
from oof.encoding.tokenization import TokenPool, encode_all

logger = logging.getLogger(__name__)

HEADERS = {"user": "Prompt", "response_a": "Response A", "response_b": "Response B"}
CLOSING = "Verdict"
SHARES = tuple(range(0, 100, 10))  # percentages shown that a hint can name; 0 = whole text, no percentage


@dataclass(frozen=True)
class Family:
    """Turn delimiters of a tokenizer family: ``before_header`` header ``after_header`` text ``after_text``."""

    name: str
    before_header: str
    after_header: str
    after_text: str

    def header(self, title: str) -> str:
        return f"{self.before_header}{title}{self.after_header}"


FAMILIES = (
    Family("gemma", "<start_of_turn>", "\n", "<end_of_turn>\n"),
    Family("llama3", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
    Family("chatml", "<|im_start|>", "\n", "<|im_end|>\n"),
)
PLAIN = Family("plain", "### ", "\n", "\n\n")  # for tokenizers without turn tokens
PAD_CANDIDATES = (
    "<pad>",
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "[PAD]",
    "<|reserved_special_token_0|>",
    "<|endoftext|>",
    "<unk>",
)


def family_of(tokenizer: Any) -> Family:
    """Return the family whose turn tokens are single tokens of the tokenizer, else the plain family."""
    added = tokenizer.get_added_vocab()
    for family in FAMILIES:
        if family.before_header in added and family.after_text.strip() in added:
            return family
    return PLAIN


def bos_of(tokenizer: Any, family: Family) -> str:
    """Return the BOS token, or "" where it is the turn's own first token, as in ChatML tokenizers."""
    bos = tokenizer.bos_token
    return "" if bos is None or bos == family.before_header else str(bos)


def chat_template(family: Family, bos: str, hints: str = "none") -> str:
    """Return the Jinja template for messages with the roles user, response_a and response_b."""
    pieces = [_literal(bos)] if bos else []
    pieces.append("{% for message in messages %}{% set text = message['content'] | trim %}")
    hint = ""
    if hints == "lengths":  # as length_hint: two leading digits, then zeros
        pieces.append("{% set n = text | length | string %}")
        hint = "{{ ', ' ~ n[:2] ~ '0' * (n | length - 2) ~ ' characters' }}"
    for i, (role, title) in enumerate(HEADERS.items()):
        header = _literal(family.before_header + title) + hint + _literal(family.after_header)
        pieces.append(f"{{% {'elif' if i else 'if'} message['role'] == '{role}' %}}{header}")
    pieces.append("{% else %}{{ raise_exception('roles are user, response_a and response_b') }}{% endif %}")
    pieces.append(f"{{{{ text }}}}{_literal(family.after_text)}{{% endfor %}}")
    pieces.append(_literal(family.header(CLOSING)))
    return "".join(pieces)


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"{{{{ '{escaped}' }}}}"


def prepare_tokenizer(tokenizer: Any, hints: str = "none") -> None:
    """Set our chat template and a pad token that can never end a sequence on a tokenizer, in place.

    Raises:
        UserError: it is not a fast tokenizer, or has no token to pad with.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("the checkpoint has no fast tokenizer (tokenizer.json); convert it first")
    family = family_of(tokenizer)
    tokenizer.chat_template = chat_template(family, bos_of(tokenizer, family), hints)
    tokenizer.padding_side = "right"
    # Pooling takes the rightmost token that is not the pad id, so the pad token must not occur in our sequences.
    used = {tokenizer.eos_token, tokenizer.bos_token, family.before_header, family.after_text.strip()}
    if tokenizer.pad_token is None or tokenizer.pad_token in used:
        vocabulary = tokenizer.get_vocab()
        free = [token for token in PAD_CANDIDATES if token in vocabulary and token not in used]
        specials = [token for token in tokenizer.all_special_tokens if token not in used]
        if not free and not specials:
            raise UserError("the tokenizer has no token to pad with; add one named <pad> to it")
        tokenizer.pad_token = (free or specials)[0]


def length_hint(characters: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return lengths rounded down to two significant digits, so that hints take few values, which are easy to learn."""
    powers = 10 ** np.arange(18, dtype=np.int64)
    digits = np.searchsorted(powers, characters, side="right")
    step = powers[np.maximum(digits - 2, 0)]
    return np.asarray(characters // step * step, dtype=np.int64)


def _warn_if_joined_differ(lead: str, text: str, closing: str, backend: Any) -> None:
    """Warn if the ids of template and text together are not those of template and text encoded separately."""
    pool = encode_all([lead, text, closing, lead + text + closing], backend)
    separate, joined = pool.ids[: pool.offsets[3]].tolist(), pool.ids[pool.offsets[3] :].tolist()
    if separate != joined:  # for example a SentencePiece tokenizer that puts a space before every text
        logger.warning(
            "this tokenizer reads a text inside the template otherwise than alone; training and prediction agree, "
            "but tokenizer.apply_chat_template in other programs gives slightly different ids (%s, here %s)",
            backend.decode(joined, skip_special_tokens=False),
            backend.decode(separate, skip_special_tokens=False),
        )


class TemplatePieces:
    """Token ids of the template.

    A *lead* is the template before a text: the end of the previous turn and the text's header (with its hint).

    Attributes:
        pool: ids of all pieces.
        lead: (4, v, s) piece numbers: slot (first prompt with BOS, later prompt, A, B) x hint value x share.
        closing: piece number.
        values: (v,) sorted hint values.
    """

    def __init__(self, tokenizer: Any, hints: str, values: NDArray[np.integer]) -> None:
        family = family_of(tokenizer)
        self.values = values if hints == "lengths" else np.zeros(1, dtype=np.int64)
        shares = SHARES if hints == "lengths" else SHARES[:1]
        starts = (bos_of(tokenizer, family), *[family.after_text] * 3)
        texts = []
        for start, title in zip(starts, ("Prompt", *HEADERS.values()), strict=True):
            for value in self.values:
                hint = f", {value} characters" if hints == "lengths" else ""
                whole = start + family.header(title + hint)
                trimmed = [start + family.header(f"{title}{hint}, {share}% shown") for share in shares[1:]]
                texts += [whole, *trimmed]
        self.lead = np.arange(len(texts)).reshape(4, len(self.values), len(shares))
        self.closing = len(texts)
        closing = family.after_text + family.header(CLOSING)
        backend = tokenizer.backend_tokenizer
        self.pool: TokenPool = encode_all([*texts, closing], backend)
        if texts and family is not PLAIN:
            _warn_if_joined_differ(texts[0], "probe", closing, backend)

    def code(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the position of hint values in ``values``; without hints always 0."""
        if len(self.values) == 1:
            return np.zeros(values.shape, dtype=np.int64)
        return np.searchsorted(self.values, values).astype(np.int64)

    @property
    def n_closing(self) -> int:
        return int(self.pool.lengths[self.closing])
