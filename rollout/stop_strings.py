"""The text of an answer while it is sampled, and the search for strings that end it.

A token is not a piece of text: it can be part of a character, its text can depend on the tokens before it, and a stop
string can begin in one token and end in another. So the text of new tokens is what `decode` adds when they follow the
last tokens whose text cannot change any more ("settled"); nothing before those is decoded again.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of half a character
# sentencepiece's single bytes: a decoder takes a run of them for characters, or each for none, as a whole.
_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")
# Tokens that may be unsettled before a settled point is looked for among them, and how many must follow it: more than
# the bytes of a character.
_PENDING, _AHEAD = 16, 8


class StopStrings:
    """The text of one answer and the stop string that ends it.

    `text` equals `tokenizer.decode` of the whole answer (special tokens left out, spaces not cleaned up) after every
    token, for byte-level, sentencepiece, WordPiece and end-of-word tokenizers: a decoder may let a token's text depend
    on the one before. The cost of a token is that of decoding the few since the last settled one; only a long run of
    byte pieces of a sentencepiece tokenizer, which has no settled point, is decoded from its start.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], min_tokens: int = 0):
        """
        Args:
            stops: none of them empty. The answer ends with the first token after which its text has one of them.
            min_tokens: a stop string has to end beyond the text of so many tokens.
        """
        self._tokenizer, self._stops, self._min_tokens = tokenizer, tuple(stops), min_tokens
        self._longest = max(map(len, self._stops), default=0)
        self._fed = 0
        self._ids: list[int] = []  # without those that have no text
        self._settled, self._pending = "", ""  # the text
        self._context, self._end = 0, 0  # ids[context:end] are the last settled ones
        self._context_text = ""
        self._min_length = 0  # of the text that holds a stop string
        self._found: str | None = None

    @property
    def text(self) -> str:
        """The text so far; if a stop string was found, what is before it. Ends with U+FFFD within a character."""
        return self._settled + self._pending

    def feed(self, token_ids: Sequence[int]) -> str | None:
        """Takes the next tokens of the answer; returns the stop string, if there is one.

        Of several, the one that begins first. After one was found, more tokens change nothing.
        """
        for token in token_ids:
            if self._found is not None:
                break
            self._fed += 1
            settled = len(self._settled)
            self._decode(token)
            if self._fed <= self._min_tokens:
                self._min_length = settled + len(self.text[settled:].rstrip(_REPLACEMENT))
            else:
                self._search(settled)
        return self._found

    def _decode(self, token: int) -> None:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None or token in _special_ids(self._tokenizer):
            return
        self._ids.append(token)
        text = self._text(self._context, len(self._ids))
        if not text.startswith(self._context_text):  # a decoder that changed what was settled: from the start, then
            self._settled, self._context, self._end, self._context_text = "", 0, 0, ""
            text = self._text(0, len(self._ids))
        self._pending = text[len(self._context_text) :]
        if _BYTE_PIECE.fullmatch(str(piece)):
            return
        if self._pending and not self._pending.endswith(_REPLACEMENT):
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
        self._context, self._end = self._end, end
        self._context_text = self._text(self._context, end)

    def _search(self, settled: int) -> None:
        """Looks for stop strings in what is new since the text had `settled` settled characters."""
        begin = max(0, max(settled, self._min_length) - self._longest)
        text = self.text[begin:].rstrip(_REPLACEMENT)  # half a character is not text yet
        least = self._min_length - begin
        places = [(text.find(stop, max(0, least - len(stop) + 1)), stop) for stop in self._stops]
        found = [(at, stop) for at, stop in places if at >= 0]
        if found:
            at, self._found = min(found, key=lambda place: place[0])
            self._settled, self._pending = self.text[: begin + at], ""

    def _text(self, begin: int, end: int) -> str:
        ids = self._ids[begin:end]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=8)
def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that `decode` leaves out."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return frozenset(special | set(tokenizer.all_special_ids))
