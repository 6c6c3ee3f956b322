"""Finds answers that go round in circles while they are sampled (`RepetitionDetection`), for a whole batch at once.

An answer t ends with a pattern of p tokens c times in a row exactly if its last p (c - 1) tokens each equal the one p
before. So the length of that run,

    run_p(n) = run_p(n - 1) + 1 if t[n] == t[n - p] else 0,

kept for every p up to the largest that a row asks for, answers the question at every length: a step compares one token
with the `max_pattern_size` before it, whatever `min_count` is, and nothing is computed while no row asks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deltarl.rollout.params import RepetitionDetection


class RepetitionRows:
    """The runs of every row of the running batch; rows live as in `SamplingRows`."""

    def __init__(self, num_rows: int, device: torch.device | str = "cpu"):
        self._device = torch.device(device)
        self._widest = np.zeros(num_rows, np.int64)  # on the host: max_pattern_size, 0 for rows that do not ask
        self._largest = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._smallest, self._count = torch.zeros_like(self._largest), torch.zeros_like(self._largest)
        self._run = torch.zeros(num_rows, 0, dtype=torch.int32, device=device)  # [rows, pattern size - 1]

    def start(
        self, rows: Tensor, detections: Sequence[RepetitionDetection | None], answers: Sequence[Sequence[int]]
    ) -> None:
        """Gives rows `[n]` int64 to new or resumed samples; `answers` are their tokens sampled so far."""
        index = rows.cpu().numpy()
        self._widest[index] = sizes = [0 if d is None else d.max_pattern_size for d in detections]
        width = max(sizes, default=0)
        if width > self._run.shape[1]:
            self._run = torch.nn.functional.pad(self._run, (0, width - self._run.shape[1]))
        rows = rows.to(self._device)
        for tensor, values in (
            (self._largest, sizes),
            (self._smallest, [0 if d is None else d.min_pattern_size for d in detections]),
            (self._count, [0 if d is None else d.min_count for d in detections]),
        ):
            tensor[rows] = torch.tensor(values, dtype=torch.int64, device=self._device)
        runs = np.zeros((len(sizes), self._run.shape[1]), np.int32)
        for run, size, answer in zip(runs, sizes, answers, strict=True):
            run[:size] = [_run_length(answer, p) for p in range(1, size + 1)]
        self._run[rows] = torch.from_numpy(runs).to(self._device)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies rows `source` `[n]` int64 over rows `target` `[n]`: CPU tensors, else this waits for the device."""
        self._widest[target.cpu().numpy()] = self._widest[source.cpu().numpy()]
        source, target = source.to(self._device), target.to(self._device)
        for tensor in (self._largest, self._smallest, self._count, self._run):
            tensor[target] = tensor[source]

    def asked(self, active: int) -> bool:
        """Whether one of rows `0..active-1` asks."""
        return bool(self._widest[:active].any())

    def repeats(self, active: int, tokens: Tensor, length: Tensor) -> Tensor | None:
        """Whether the answers of rows `0..active-1` now end in a repetition; to be called once after every draw.

        Costs O(active x largest `max_pattern_size`). The result depends on a row's own answer alone.

        Args:
            tokens: `[at least active, L]` int64, the answers, each from column 0; what is beyond a length is not read.
            length: `[active]` int64, at least 1; the token just drawn is the last.

        Returns:
            `[active]` bool, or None if no row asks.
        """
        self._widest[active:] = 0
        width = int(self._widest.max(initial=0))
        if not width:
            self._run = self._run[:, :0].clone()
            return None
        size = torch.arange(1, width + 1, device=self._device)
        last = (length - 1).unsqueeze(-1)
        before = last - size
        tokens = tokens[:active]
        same = (tokens.gather(1, last) == tokens.gather(1, before.clamp_min(0))) & (before >= 0)
        run = self._run[:active, :width]
        run.add_(1).mul_(same)
        asked = (size >= self._smallest[:active, None]) & (size <= self._largest[:active, None])
        return (asked & (run >= size * (self._count[:active, None] - 1))).any(-1)


def _run_length(answer: Sequence[int], size: int) -> int:
    """How many of the last tokens equal the one `size` before them, one after the other."""
    for run, i in enumerate(range(len(answer) - 1, size - 1, -1)):
        if answer[i] != answer[i - size]:
            return run
    return max(0, len(answer) - size)
