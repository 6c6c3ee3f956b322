"""The running batch: one row per sample being decoded, active rows always first.

All bookkeeping of a step is tensor arithmetic over the rows; Python touches a sample when it starts and when it ends.
"""

import numpy as np
import torch

from deltarl.rollout.cuda_graphs import CudaGraphs, row_bucket
from deltarl.rollout.repetition import RepetitionRows
from deltarl.rollout.sampler import Draw
from deltarl.rollout.sampling_rows import Plain, SamplingRows
from deltarl.rollout.sequence import Sample

STOPPED, BROKEN, REPEATS = 1, 2, 4  # what the device finds out about a row


class Rows:
    """Rows `0..active-1` are live. Tensors have a row per sample.

    Attributes:
        samples: those of the live rows.
        last_token: `[S]` token to feed next.
        logits: `[S, vocab]` fp32 that the next token is drawn from.
        generated, limit: `[S]` on the host, tokens sampled and most tokens to sample.
    """

    def __init__(
        self, num_rows: int, max_tokens: int, vocab_size: int, device: torch.device, graphs: CudaGraphs | None = None
    ):
        self.samples: list[Sample] = []
        self.last_token = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.logits = torch.zeros(num_rows, vocab_size, device=device)
        self.generated = np.zeros(num_rows, np.int64)
        self.limit = np.zeros(num_rows, np.int64)
        self._generated = torch.zeros_like(self.last_token)
        self._sampling = SamplingRows(num_rows, vocab_size, device)
        self._repetition = RepetitionRows(num_rows, device)
        self._tokens = torch.zeros(num_rows, max_tokens, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(2, num_rows, max_tokens, device=device)
        self._versions = torch.zeros(num_rows, max_tokens, dtype=torch.int32, device=device)
        self._weight_version = torch.zeros((), dtype=torch.int32, device=device)
        self._flags = torch.zeros_like(self.last_token)
        self._graphs = graphs

    @property
    def active(self) -> int:
        return len(self.samples)

    @property
    def free(self) -> int:
        return len(self.last_token) - self.active

    def start(self, samples: list[Sample], limits: list[int]) -> None:
        """Appends rows; a sample that has an answer already goes on with its last token."""
        if not samples:
            return
        begin, end = self.active, self.active + len(samples)
        device = self.last_token.device
        rows = torch.arange(begin, end, device=device)
        answers = [s.answer for s in samples]
        self._sampling.start(
            rows,
            [s.request.params for s in samples],
            [s.seed for s in samples],
            [s.request.prompt for s in samples],
            [a.token_ids for a in answers],
        )
        self._repetition.start(
            rows, [s.request.params.repetition_detection for s in samples], [a.token_ids for a in answers]
        )
        counts = [len(a.token_ids) for a in answers]
        self.generated[begin:end], self.limit[begin:end] = counts, limits
        self._generated[rows] = torch.tensor(counts, device=device)
        for row, a in enumerate(answers, begin):
            if n := len(a.token_ids):
                self._tokens[row, :n] = torch.tensor(a.token_ids, device=device)
                self._logprobs[:, row, :n] = torch.tensor([a.logprobs, a.sampling_logprobs], device=device)
                self._versions[row, :n] = torch.tensor(a.weight_versions, dtype=torch.int32, device=device)
                self.last_token[row] = a.token_ids[-1]
        self.samples += samples

    def draw(self, weight_version: int) -> list[int]:
        """Draws the next token of every live row from its `logits`.

        Returns:
            The rows whose sample is complete with it, in order; the samples say why.
        """
        active, top = self.active, None
        self._weight_version.fill_(weight_version)
        plain = self._sampling.plain(active) if self._graphs and not self._repetition.asked(active) else None
        if self._graphs and plain is not None:
            rows = row_bucket(active, len(self.last_token))
            self._graphs.run(("draw", rows, *plain), lambda: self._draw_plain(rows, plain))
        else:
            draw, top = self._sampling.draw(active, self.logits[:active], self._generated[:active])
            self._take_down(draw)
            repeats = self._repetition.repeats(active, self._tokens, self._generated[:active])
            if repeats is not None:
                self._flags[:active] += REPEATS * repeats
        self.generated[:active] += 1
        if top is not None:
            ids, logprobs = (x.tolist() for x in top)
            for i, sample in enumerate(self.samples):
                if (n := sample.request.params.logprobs) is not None:
                    sample.answer.top_logprobs.append(dict(zip(ids[i][:n], logprobs[i][:n], strict=True)))
        return self._ended(self._flags[:active].cpu().numpy())

    def _draw_plain(self, rows: int, plain: Plain) -> None:
        self._take_down(self._sampling.draw_plain(plain, self.logits[:rows], self._generated[:rows]))

    def _take_down(self, draw: Draw) -> None:
        """Notes the tokens of the first rows, and what the device knows of what becomes of them."""
        rows = len(draw.token)
        index = torch.arange(rows, device=draw.token.device)
        at = self._generated[:rows].clamp_max(self._tokens.shape[1] - 1)  # rows that are not live run past the end
        self.last_token[:rows] = draw.token
        self._tokens[index, at] = draw.token
        self._logprobs[0, index, at], self._logprobs[1, index, at] = draw.logprob, draw.sampling_logprob
        self._versions[index, at] = self._weight_version
        self._generated[:rows] += 1
        flags = STOPPED * self._sampling.stopped(rows, draw.token)
        self._flags[:rows] = flags + BROKEN * ~torch.isfinite(self.logits[:rows]).all(-1)

    def _ended(self, flags: np.ndarray) -> list[int]:
        """Finds the rows that are complete; `flags` `[active]` are what the device found out about each."""
        watched = [i for i, s in enumerate(self.samples) if s.stop is not None]
        found: dict[int, str] = {}
        for row, token in zip(watched, self._last_tokens(watched), strict=True):
            stop = self.samples[row].stop
            if stop is not None and (text := stop.feed([token])) is not None:
                found[row] = text
        over = self.generated[: self.active] >= self.limit[: self.active]
        done = sorted({*np.flatnonzero(over | (flags > 0)).tolist(), *found})
        for row, token in zip(done, self._last_tokens(done), strict=True):
            sample, flag = self.samples[row], int(flags[row])
            if flag & BROKEN:
                sample.finish_reason, sample.stop_reason = "error", "the model's logits are not finite"
            elif flag & STOPPED:
                sample.finish_reason, sample.stop_reason = "stop", token
            elif row in found:
                sample.finish_reason, sample.stop_reason = "stop", found[row]
            elif flag & REPEATS:
                sample.finish_reason = "repetition"
            else:
                sample.finish_reason = "length"
        return done

    def _last_tokens(self, rows: list[int]) -> list[int]:
        return self.last_token[torch.tensor(rows, device=self.last_token.device)].tolist() if rows else []

    def fetch(self, rows: list[int]) -> None:
        """Brings the answers of some rows' samples up to date; only what is new comes from the device."""
        if not rows:
            return
        answers = [self.samples[row].answer for row in rows]
        known, used = [len(a.token_ids) for a in answers], self.generated[rows].tolist()
        index, new = torch.tensor(rows, device=self.last_token.device), slice(min(known), max(used))
        tokens, versions = self._tokens[index, new].tolist(), self._versions[index, new].tolist()
        logprobs, sampling = self._logprobs[:, index, new].tolist()
        for i, answer in enumerate(answers):
            mine = slice(known[i] - new.start, used[i] - new.start)
            answer.token_ids += tokens[i][mine]
            answer.logprobs += logprobs[i][mine]
            answer.sampling_logprobs += sampling[i][mine]
            answer.weight_versions += versions[i][mine]

    def remove(self, rows: list[int]) -> list[tuple[int, int]]:
        """Takes rows out and closes the gaps with rows from the end.

        Returns:
            Which row moved where.
        """
        remaining = self.active - len(rows)
        gone = set(rows)
        holes = [row for row in rows if row < remaining]
        movers = [row for row in range(remaining, self.active) if row not in gone]
        if holes:
            device = self.last_token.device
            source, target = torch.tensor(movers, device=device), torch.tensor(holes, device=device)
            self._sampling.move(source, target)
            self._repetition.move(source, target)
            used = slice(int(self.generated[movers].max()))
            for x in (self.last_token, self._generated):
                x[target] = x[source]
            for x in (self._tokens, self._versions, *self._logprobs):
                x[target, used] = x[source, used]
            for count in (self.generated, self.limit):
                count[holes] = count[movers]
            for mover, hole in zip(movers, holes, strict=True):
                self.samples[hole] = self.samples[mover]
        del self.samples[remaining:]
        return list(zip(movers, holes, strict=True))
