"""The search for strings that end an answer, in its text as it grows.

A stop string can begin in one token and end in another, so it is looked for in what is new and a little before.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from deltarl.rollout.detokenizer import REPLACEMENT, Detokenizer


class StopStrings:
    """The text of one answer and the stop string that ends it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], min_tokens: int = 0):
        """
        Args:
            stops: none of them empty. The answer ends with the first token after which its text has one of them.
            min_tokens: a stop string has to end beyond the text of so many tokens.
        """
        self._answer = Detokenizer(tokenizer)
        self._stops, self._min_tokens = tuple(stops), min_tokens
        self._longest = max(map(len, self._stops), default=0)
        self._min_length = 0  # of the text that holds a stop string
        self._found: str | None = None
        self._before = ""  # the text before it

    @property
    def text(self) -> str:
        """The text so far, see `Detokenizer`; if a stop string was found, what is before it."""
        return self._answer.text if self._found is None else self._before

    def feed(self, token_ids: Sequence[int]) -> str | None:
        """Takes the next tokens of the answer; returns the stop string, if there is one.

        Of several, the one that begins first. After one was found, more tokens change nothing.
        """
        for token in token_ids:
            if self._found is not None:
                break
            settled = self._answer.settled
            self._answer.feed([token])
            if self._answer.fed <= self._min_tokens:
                self._min_length = settled + len(self.text[settled:].rstrip(REPLACEMENT))
            else:
                self._search(settled)
        return self._found

    def _search(self, settled: int) -> None:
        """Looks for stop strings in what is new since the text had `settled` settled characters."""
        begin = max(0, max(settled, self._min_length) - self._longest)
        whole = self._answer.text
        text = whole[begin:].rstrip(REPLACEMENT)  # half a character is not text yet
        least = self._min_length - begin
        places = [(text.find(stop, max(0, least - len(stop) + 1)), stop) for stop in self._stops]
        found = [(at, stop) for at, stop in places if at >= 0]
        if found:
            at, self._found = min(found, key=lambda place: place[0])
            self._before = whole[: begin + at]
