"""The engine's side that touches the device: rows and pages of one cache, and the model that reads and writes them."""

from dataclasses import dataclass

import numpy as np
import torch

from deltarl.kernels.precision import MIN_ROWS
from deltarl.model.cache import PAGE_SIZE
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.packing import Packing
from deltarl.rollout.cuda_graphs import CudaGraphs, page_bucket, row_bucket
from deltarl.rollout.outputs import RoutedExperts
from deltarl.rollout.pages import Pages, pages_of
from deltarl.rollout.prefix_cache import PrefixCache
from deltarl.rollout.rows import Rows
from deltarl.rollout.sequence import Prompt, Request, Sample

IDLE = -1  # length of a row that is nobody's: the Triton kernels leave it alone
PROMPT_ROWS = 32  # prompts that can be prefilled before all of their samples have found a row


@dataclass(frozen=True)
class Fork:
    """A sample that is to start from a copy of its prompt's state.

    Attributes:
        source, target: rows of the prompt and of the sample.
        page: the prompt's last page and the sample's own copy of it; None if all pages are full, and shared.
    """

    sample: Sample
    source: int
    target: int
    page: tuple[int, int] | None


class ModelRunner:
    """Does what it is told and decides nothing: whoever calls has seen to it that there are rows and pages enough.

    The cache's first rows are those of the samples being decoded, then come the rows of prompts.

    Attributes:
        rows: the samples being decoded.
        pages: of all rows.
        cache: of all rows.
        prefixes: states of beginnings that prompts share.
        prompt_tokens: prefilled since the beginning.
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        max_num_seqs: int,
        max_model_len: int,
        num_pages: int | None,
        prefix_cache_bytes: int,
        record_routing: bool,
    ):
        """Args are as for `Engine`."""
        self.model = model
        self.max_model_len = max_model_len
        decoded, prompts = max(MIN_ROWS, max_num_seqs), min(PROMPT_ROWS, max_num_seqs)
        rows = decoded + prompts + 1  # the last stands for a prompt that nobody asked for, see `prefill`
        if num_pages is None:
            num_pages = (rows - 1) * int(pages_of(max_model_len))
        if num_pages < 1:
            raise ValueError(f"num_pages must be at least 1, got {num_pages}")
        self.cache = model.new_cache(rows, max_model_len, num_pages + 1, record_routing)
        self.pages = Pages(self.cache.block_table, num_pages + 1)
        self.prefixes = PrefixCache(prefix_cache_bytes)
        self.prompt_tokens = 0
        vocab = model.config.vocab_size
        self._device = self.cache.length.device
        self._first_prompt_row = decoded
        self._prompt_rows = list(range(decoded, decoded + prompts))  # the free ones
        self._prompt_logits = torch.zeros(prompts, vocab, device=self._device)
        self._graphs = CudaGraphs() if model.decodes_without_waiting else None
        self.rows = Rows(decoded, max_model_len, vocab, self._device, self._graphs)

    # -------------------------------------------------------------------------------------------------- prompts

    @property
    def has_prompt_row(self) -> bool:
        """Whether one more prompt can be placed, as far as rows go."""
        return bool(self._prompt_rows)

    def place(self, prompt: Prompt) -> None:
        """Gives a prompt a row, its pages, and what is known of its beginning."""
        row = prompt.row = self._prompt_rows.pop()
        self.pages.grow_row(row, len(prompt.tokens))
        self.pages.push()
        state, prompt.cut = self.prefixes.find(prompt.tokens)
        if state is not None:
            self.cache.import_row(row, state)
            prompt.done = self.pages.length[row] = state.length

    def release(self, prompt: Prompt) -> None:
        """The prompt gives its row and pages back, and is to be prefilled from the beginning."""
        if prompt.row is not None:
            self._release_row(prompt.row)
        prompt.row, prompt.done, prompt.cut = None, 0, 0

    def prefill(self, batch: list[tuple[Prompt, int]]) -> None:
        """Computes placed prompts, packed: of each the tokens from where it is `done` up to an end."""
        pieces = [prompt.tokens[prompt.done : end] for prompt, end in batch]
        starts, rows = [prompt.done for prompt, _ in batch], [prompt.row for prompt, _ in batch]
        if sum(map(len, pieces)) < MIN_ROWS:
            # One that nobody asked for, so that the others do not notice being few.
            pieces, starts, rows = [*pieces, [0] * MIN_ROWS], [*starts, 0], [*rows, len(self.cache.length) - 1]
        ids = torch.tensor([token for piece in pieces for token in piece], device=self._device)
        packing = Packing.from_lengths([len(p) for p in pieces], self._device, starts if any(starts) else None)
        logits = self.model.prefill(ids, packing, self.cache, torch.tensor(rows, device=self._device))
        for i, (prompt, end) in enumerate(batch):
            assert prompt.row is not None
            self.prompt_tokens += end - prompt.done
            prompt.done = self.pages.length[prompt.row] = end
            if end == prompt.cut:
                self.prefixes.keep(prompt.tokens[:end], self.cache.export_row(prompt.row, end))
            if prompt.ready:
                self._prompt_logits[prompt.row - self._first_prompt_row] = logits[i]

    # -------------------------------------------------------------------------------------------------- samples

    def fork(self, prompt: Prompt, target: int) -> Fork:
        """Gives the prompt's next sample a row and pages; `start` copies what is in them.

        With its last sample the prompt loses its row: `start` has to come before anyone else can get it.
        """
        assert prompt.row is not None
        fork = Fork(prompt.samples.pop(0), prompt.row, target, self.pages.fork(prompt.row, target))
        if not prompt.samples:
            self._release_row(prompt.row)
            prompt.row = None
        return fork

    def start(self, forks: list[Fork]) -> None:
        """The forks' samples become the next rows, with the logits of their first tokens."""
        source = torch.tensor([fork.source for fork in forks], device=self._device)
        self.cache.copy_rows(source, torch.tensor([fork.target for fork in forks], device=self._device))
        if copies := [fork.page for fork in forks if fork.page is not None]:
            pages = torch.tensor(copies, device=self._device)
            self.cache.copy_pages(pages[:, 0], pages[:, 1])
        begin = self.rows.active
        self._append([fork.sample for fork in forks])
        self.rows.logits[begin : self.rows.active] = self._prompt_logits[source - self._first_prompt_row]

    def go_on(self, sample: Sample) -> None:
        """A sample that was taken out with its state becomes the next row."""
        assert sample.state is not None
        row, length = self.rows.active, sample.state.length
        self.pages.grow_row(row, length + 1)
        self.pages.length[row] = length
        self.pages.push()
        self.cache.import_row(row, sample.state)
        sample.state = None
        self._append([sample])

    def decode(self) -> None:
        """Feeds the last token of every running sample; leaves the next logits with the rows."""
        active = self.rows.active
        if not active:
            return
        lengths = self.pages.length[:active]
        longest = int(lengths.max())
        self.pages.grow(slice(active), lengths + 1)
        self.pages.push()
        lengths += 1
        if self._graphs is None:
            rows = max(active, MIN_ROWS)
            if rows > active:  # idle rows start over every step, lest they run past the end
                self.cache.view(rows).clear_rows(slice(active, rows))
            self._decode(rows, longest)
            return
        rows = row_bucket(active, len(self.rows.last_token))
        pages = page_bucket(longest // PAGE_SIZE + 1, self.cache.block_table.shape[1])
        self.cache.length[active:rows] = IDLE
        self._graphs.run(("decode", rows, pages), lambda: self._decode(rows, pages * PAGE_SIZE - 1))

    def _decode(self, rows: int, longest: int) -> None:
        self.rows.logits[:rows] = self.model.decode(self.rows.last_token[:rows], self.cache.view(rows), longest)

    def weights_changed(self) -> None:
        """Nothing that old weights computed may be used for other sequences, nor copies of them."""
        self.prefixes.clear()
        self.model.join_weights()

    def leave(self, rows: list[int], keep_state: bool) -> None:
        """Takes samples out of their rows, with their answers and, if wanted, the state to go on from."""
        if not rows:
            return
        self.pages.push()
        self.rows.fetch(rows)
        for row in rows:
            sample = self.rows.samples[row]
            if keep_state:
                sample.state = self.cache.export_row(row, int(self.pages.length[row]))
            if sample.finish_reason is not None:
                sample.routed_experts = self._routed_experts(row)
            self.pages.release(row)
        moved = self.rows.remove(rows)
        if moved:
            source, target = torch.tensor(moved, device=self._device).T
            self.cache.copy_rows(source, target)
            for mover, hole in moved:
                self.pages.move(mover, hole)

    def _routed_experts(self, row: int) -> RoutedExperts | None:
        experts = self.cache.experts_of(row, int(self.pages.length[row]))
        if experts is None:
            return None
        request = self.rows.samples[row].request
        prompt, completion = np.split(experts.cpu().numpy(), [len(request.prompt)])
        for other in request.samples:
            if other.routed_experts is not None and np.array_equal(other.routed_experts.prompt, prompt):
                return RoutedExperts(other.routed_experts.prompt, completion.copy())  # without the prompt's memory
        return RoutedExperts(prompt, completion)

    def _append(self, samples: list[Sample]) -> None:
        self.rows.start(samples, [self._limit(s.request) for s in samples])

    def _limit(self, request: Request) -> int:
        return min(request.params.max_tokens, self.max_model_len - len(request.prompt))

    def _release_row(self, row: int) -> None:
        self.pages.release(row)
        self._prompt_rows.append(row)
