"""States of prompt beginnings that more than one prompt had: system prompts, earlier turns of a conversation."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from deltarl.kernels.chunk import CHUNK_SIZE
from deltarl.model.cache import PAGE_SIZE, RowState

BLOCK = PAGE_SIZE  # beginnings are compared, and states kept, at multiples of this many tokens
assert BLOCK % CHUNK_SIZE == 0  # a piece of a prompt can start there
SEEN = 65_536  # beginnings whose keys are remembered


class PrefixCache:
    """Least recently used states go first once they take more than `max_bytes`.

    A beginning is kept when it is met for the second time: its first prompt is not cut for it.
    All states are of one version of the weights; `clear` when they change.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = 0
        self._states: OrderedDict[bytes, RowState] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def find(self, tokens: Sequence[int]) -> tuple[RowState | None, int]:
        """The longest known beginning of a prompt, and where else its prefill should stop to keep one (0: nowhere).

        A state never covers the whole prompt: its last token is left, for the logits.
        """
        if not self.max_bytes:
            return None, 0
        keys = _keys(tokens)
        known = next((i for i in reversed(range(len(keys))) if keys[i] in self._states), -1)
        met = next((i for i in reversed(range(len(keys))) if keys[i] in self._seen), -1)
        for key in keys:
            self._seen[key] = None
            self._seen.move_to_end(key)
        while len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        cut = (met + 1) * BLOCK if met > known else 0
        if known < 0:
            return None, cut
        self.hits += 1
        self._states.move_to_end(keys[known])
        return self._states[keys[known]], cut

    def keep(self, tokens: Sequence[int], state: RowState) -> None:
        """Remembers the state after `tokens`, a multiple of `BLOCK`."""
        key = _keys([*tokens, 0])[-1]
        if key in self._states or state.nbytes > self.max_bytes:
            return
        self._states[key] = state
        self.nbytes += state.nbytes
        while self.nbytes > self.max_bytes:
            self.nbytes -= self._states.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forgets all states."""
        self._states.clear()
        self.nbytes = 0


def _keys(tokens: Sequence[int]) -> list[bytes]:
    """One per whole block before the last token: of all tokens up to its end."""
    data = np.asarray(tokens, dtype=np.int64).tobytes()
    digest, keys = hashlib.blake2b(digest_size=16), []
    for end in range(BLOCK, len(tokens), BLOCK):
        digest.update(data[(end - BLOCK) * 8 : end * 8])
        keys.append(digest.digest())
    return keys
