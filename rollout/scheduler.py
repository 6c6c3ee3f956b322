"""What runs next: who gets a row and pages, how much of which prompt is prefilled, and who makes room for whom."""

from collections import deque
from collections.abc import Iterable

from deltarl.kernels.chunk import CHUNK_SIZE
from deltarl.rollout.model_runner import Fork, ModelRunner
from deltarl.rollout.pages import pages_of
from deltarl.rollout.sequence import Prompt, Request, Sample


class Scheduler:
    """The queues before the running batch, and the decisions of a step; a `ModelRunner` carries them out.

    A prompt waits, is placed in a row and prefilled, in pieces if it is long, is then ready, and leaves when the last
    of its samples has started. Samples that were taken out with their state are paused, and go on before others start.

    Attributes:
        preemptions: samples that had to make room for others, since the beginning.
    """

    def __init__(self, runner: ModelRunner, max_num_seqs: int, max_prefill_tokens: int):
        """Args are as for `Engine`."""
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, got {max_num_seqs}")
        if max_prefill_tokens < CHUNK_SIZE:
            raise ValueError(f"max_prefill_tokens must be at least {CHUNK_SIZE}, got {max_prefill_tokens}")
        self.preemptions = 0
        self._runner = runner
        self._rows, self._pages = runner.rows, runner.pages
        self._max_num_seqs, self._max_prefill_tokens = max_num_seqs, max_prefill_tokens
        self._waiting: deque[Prompt] = deque()  # not, or not wholly, prefilled; in the order of their requests
        self._ready: deque[Prompt] = deque()  # prefilled, with samples still to start
        self._paused: deque[Sample] = deque()  # with the state that they go on from

    @property
    def num_waiting(self) -> int:
        """Samples that are not running."""
        return sum(len(prompt.samples) for prompt in self._prompts()) + len(self._paused)

    def add(self, request: Request) -> None:
        """Queues the samples of a request: new ones, and such as go on from a state or from their tokens."""
        fresh = []
        for sample in request.samples:
            if sample.state is not None:
                self._paused.append(sample)
            elif sample.answer.token_ids:
                self._waiting.append(_replay(sample))
            else:
                fresh.append(sample)
        if fresh:
            self._waiting.append(Prompt(request, request.prompt, fresh))

    def remove(self, request: Request, keep_state: bool) -> None:
        """Takes a request out of rows and queues, with the answers so far and, if wanted, the states."""
        for prompt in self._prompts():
            if prompt.request is request:
                self._runner.release(prompt)
        self._waiting = deque(p for p in self._waiting if p.request is not request)
        self._ready = deque(p for p in self._ready if p.request is not request)
        self._runner.leave([i for i, s in enumerate(self._rows.samples) if s.request is request], keep_state)
        self._paused = deque(s for s in self._paused if s.request is not request)

    def forget_weights(self, replay: bool) -> None:
        """What old weights computed is to be computed again: of prompts and, with `replay`, of samples under way."""
        self._runner.weights_changed()
        for prompt in self._prompts():
            self._runner.release(prompt)
        self._requeue(list(self._ready))
        if replay:
            samples = [*self._rows.samples, *self._paused]
            self._runner.leave(list(range(self._rows.active)), keep_state=False)
            self._paused.clear()
            self._requeue([_replay(s) for s in samples])

    def advance(self) -> None:
        """Feeds every running sample its last token and lets others in; the rows then have the logits of all."""
        self._go_on_with_paused()
        self._make_room()
        self._runner.decode()
        self._start()

    # ------------------------------------------------------------------------------------------------ admission

    def _go_on_with_paused(self) -> None:
        while self._paused and self._rows.active < self._max_num_seqs:
            sample = self._paused[0]
            assert sample.state is not None
            while not self._fits(sample.state.length + 1):
                if self._rows.active or not self._displace():
                    return
            self._runner.go_on(self._paused.popleft())

    def _start(self) -> None:
        """Starts samples in free rows."""
        prefilled = False
        while self._rows.active < self._max_num_seqs and not self._paused:
            if self._ready:
                forks = self._fork()
                if forks:
                    self._runner.start(forks)
                elif self._rows.active or not self._displace(keep=self._ready[0]):
                    break
            elif self._waiting and not prefilled:
                prefilled = True  # once a step: those who decode do not wait for long prompts
                if not self._prefill() and (self._rows.active or not self._displace(keep=self._waiting[0])):
                    break
            else:
                break

    def _fork(self) -> list[Fork]:
        """Gives the samples of ready prompts rows, as far as rows and pages go."""
        forks: list[Fork] = []
        begin, room = self._rows.active, self._max_num_seqs - self._rows.active
        while self._ready and len(forks) < room and self._pages.free - self._headroom() >= 1:
            prompt = self._ready[0]
            forks.append(self._runner.fork(prompt, begin + len(forks)))
            if not prompt.samples:
                self._ready.popleft()
        return forks

    def _prefill(self) -> bool:
        """Prefills prompts, or pieces of them, within the token budget; False if there was no room for any."""
        batch: list[tuple[Prompt, int]] = []
        budget, samples = self._max_prefill_tokens, self._max_num_seqs - self._rows.active
        while self._waiting and budget >= CHUNK_SIZE and samples > 0:
            prompt = self._waiting[0]
            if prompt.row is None and not self._place(prompt):
                break
            end = _piece_end(prompt, budget)
            batch.append((prompt, end))
            budget -= end - prompt.done
            samples -= len(prompt.samples)
            if end < len(prompt.tokens):
                break  # the rest of it comes first in the next step
            self._waiting.popleft()
        if not batch:
            return False
        self._runner.prefill(batch)
        self._ready += [prompt for prompt, _ in batch if prompt.ready]
        return True

    def _place(self, prompt: Prompt) -> bool:
        """Has a prompt placed; False if there is no room."""
        if not self._runner.has_prompt_row or not self._fits(len(prompt.tokens)):
            return False
        self._runner.place(prompt)
        return True

    def _fits(self, length: int) -> bool:
        """Whether there are pages for one more row of so many tokens."""
        return int(pages_of(length)) <= self._pages.free - self._headroom()

    def _headroom(self) -> int:
        """Pages left to those who run, so that letting one more in does not put another out at once."""
        return -(-self._rows.active // 8)

    # ------------------------------------------------------------------------------------------------ pre-emption

    def _make_room(self) -> None:
        """Sees to it that each running sample has a page for its next token."""
        while True:
            rows = slice(self._rows.active)
            if self._pages.wanted(rows, self._pages.length[rows] + 1) <= self._pages.free:
                return
            if not self._displace():
                row = max(range(self._rows.active), key=lambda i: (self._rows.samples[i].request.order, i))
                sample = self._rows.samples[row]
                self._runner.leave([row], keep_state=True)
                self._paused.appendleft(sample)
                self.preemptions += 1

    def _displace(self, keep: Prompt | None = None) -> bool:
        """Takes the row and pages of the prompt that came last, which is to be prefilled again later.

        Returns:
            Whether there was one besides `keep`.
        """
        placed = [p for p in self._prompts() if p.row is not None and p is not keep]
        if not placed:
            return False
        last = max(placed, key=lambda p: p.request.order)
        self._runner.release(last)
        if last in self._ready:
            self._requeue([last])
        return True

    # --------------------------------------------------------------------------------------------------- queues

    def _prompts(self) -> list[Prompt]:
        return [*self._waiting, *self._ready]

    def _requeue(self, prompts: Iterable[Prompt]) -> None:
        self._ready = deque(p for p in self._ready if p not in prompts)
        self._waiting = deque(sorted([*self._waiting, *prompts], key=lambda p: p.request.order))


def _piece_end(prompt: Prompt, budget: int) -> int:
    """Up to where a prompt is prefilled with so many tokens to spend: a chunk's end, if not its own."""
    end = min(len(prompt.tokens), prompt.done + budget)
    if prompt.done < prompt.cut < end:
        end = prompt.cut
    if end < len(prompt.tokens):
        end -= end % CHUNK_SIZE
    return end


def _replay(sample: Sample) -> Prompt:
    """To compute a sample's tokens again, and go on from there."""
    sample.state, sample.prefilled = None, len(sample.answer.token_ids)
    return Prompt(sample.request, [*sample.request.prompt, *sample.answer.token_ids], [sample])
