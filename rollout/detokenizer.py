"""The text of an answer while it is sampled.

A token is not a piece of text: it can be part of a character, and its text can depend on the tokens before it. So the
text of new tokens is what `decode` adds when they follow the last tokens whose text cannot change any more ("settled");
nothing before those is decoded again.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of half a character
# sentencepiece's single bytes: a decoder takes a run of them for characters, or each for none, as a whole.
_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")
# Tokens that may be unsettled before a settled point is looked for among them, and how many must follow it: more than
# the bytes of a character.
_PENDING, _AHEAD = 16, 8


class Detokenizer:
    """Turns the tokens of one answer into text as they come.

    `text` equals `tokenizer.decode` of the whole answer (special tokens left out, spaces not cleaned up) after every
    call, for byte-level, sentencepiece, WordPiece and end-of-word tokenizers: a decoder may let a token's text depend
    on the one before. The cost of a token is that of decoding the few since the last settled one; only a long run of
    byte pieces of a sentencepiece tokenizer, which has no settled point, is decoded from its start.

    Attributes:
        fed: tokens taken so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.fed = 0
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # without those that have no text
        self._settled, self._pending = "", ""  # the text
        self._context, self._end = 0, 0  # ids[context:end] are the last settled ones
        self._context_text = ""

    @property
    def text(self) -> str:
        """The text so far. Ends with U+FFFD within a character."""
        return self._settled + self._pending

    @property
    def settled(self) -> int:
        """Characters of `text` that later tokens do not change."""
        return len(self._settled)

    def feed(self, token_ids: Sequence[int]) -> None:
        """Takes the next tokens of the answer; many at once cost less."""
        self.fed += len(token_ids)
        special = _special_ids(self._tokenizer)
        pieces = [(t, self._tokenizer.convert_ids_to_tokens(t)) for t in token_ids if t not in special]
        pieces = [(token, piece) for token, piece in pieces if piece is not None]
        if not pieces:
            return
        self._ids += [token for token, _ in pieces]
        text = self._text(self._context, len(self._ids))
        if not text.startswith(self._context_text):  # a decoder that changed what was settled: from the start, then
            self._settled, self._context, self._end, self._context_text = "", 0, 0, ""
            text = self._text(0, len(self._ids))
        self._pending = text[len(self._context_text) :]
        if _BYTE_PIECE.fullmatch(str(pieces[-1][1])):
            return
        if self._pending and not self._pending.endswith(REPLACEMENT):
            self._settle(len(self._ids), text)
        elif len(self._ids) - self._end > _PENDING:
            end = len(self._ids) - _AHEAD
            before = self._text(self._context, end)
            if text.startswith(before):
                self._settle(end, before)

    def _settle(self, end: int, text: str) -> None:
        """The text of ids[context:end], known to be `text`, is settled."""
        added = text[len(self._context_text) :]
        self._settled += added
        self._pending = self._pending[len(added) :]
        first = self._context == self._end
        self._context, self._end = self._end, end
        self._context_text = text if first else self._text(self._context, end)

    def _text(self, begin: int, end: int) -> str:
        ids = self._ids[begin:end]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=8)
def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that `decode` leaves out."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return frozenset(special | set(tokenizer.all_special_ids))
