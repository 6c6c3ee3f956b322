"""The sides of `learner.py`, each run in a process of its own: python learner_sides.py SIDE FOLDER.

FOLDER holds model, tokenizer and `answers.json`; what was measured is written to `FOLDER/measured.json`.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vs_trl_chunk16
from learner_workload import Answers, Measured
from vs_trl_workload import TRL_SETTINGS

from deltarl.rl.advantages import group_advantages
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.learner import Learner


class Clock:
    """Time and memory of steps, the first of which is not counted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._cpu = 0.0
        self._held = self._memory()
        self.begin()

    def begin(self) -> None:
        """Starts the clock of a step; without it that runs on from the end of the one before."""
        self._start, self._cpu_start = self._now(), time.process_time()

    def end(self) -> None:
        """Ends a step."""
        self.seconds.append(self._now() - self._start)
        self._cpu += time.process_time() - self._cpu_start if len(self.seconds) > 1 else 0.0
        self.begin()

    def measured(self, grad_norm: float) -> Measured:
        return Measured(self.seconds[1:], self._cpu, self._memory(peak=True) - self._held, grad_norm)

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    @staticmethod
    def _memory(peak: bool = False) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        if peak:
            return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def run_deltarl(folder: Path, work: Answers) -> Measured:
    """`Learner.update` on the answers, packed into micro-batches."""
    clipping = {"epsilon": 0.2, "epsilon_high": 0.2, "max_tokens_per_micro_batch": work.micro_batch}
    config = LearnerConfig(learning_rate=work.learning_rate, warmup_steps=0, adam_beta2=0.999, **clipping)
    learner = Learner(config, str(folder), total_updates=work.steps + 1, temperature=1.0)
    rows = work.rows()
    rewards = np.array([reward for _, _, reward in rows]).reshape(-1, work.generations)
    clock, norms = Clock(), []
    samples = [TrainSample.whole(prompt, answer, [0.0] * len(answer), 0.0) for prompt, answer, _ in rows]
    for _ in range(work.steps + 1):
        # What a sampler would have recorded; TRL takes its own log-probabilities, without gradient, for the old ones.
        sampled = learner.logprobs(samples)
        clock.begin()
        advantages = group_advantages(rewards, "group").ravel()
        batch = [
            TrainSample.whole(prompt, answer, logprobs, float(a))
            for (prompt, answer, _), logprobs, a in zip(rows, sampled, advantages, strict=True)
        ]
        minibatches = split_batch(batch, num_ranks=1, num_minibatches=1)[0]
        norms.append(learner.update(minibatches)["optim/grad_norm"])
        clock.end()
    return clock.measured(norms[0])


def run_trl(folder: Path, work: Answers) -> Measured:
    """TRL's GRPOTrainer, whose answers come from a `rollout_func` that has them ready: a step is its update.

    As installed, with every setting that saves time; on a GPU with bf16 autocast over fp32 weights.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer, KimiLinearForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rows, batch, on_gpu = work.rows(), work.prompts * work.generations, work.device == "cuda"
    norms: list[float] = []

    class Steps(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.clock = Clock()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.clock.end()

        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            norms.append(logs.get("grad_norm", 0.0))

    args = GRPOConfig(
        output_dir=str(folder / "trl"),
        max_steps=work.steps + 1,
        per_device_train_batch_size=work.micro_batch,
        gradient_accumulation_steps=batch // work.micro_batch,
        generation_batch_size=batch,
        num_generations=work.generations,
        max_completion_length=work.max_tokens,
        learning_rate=work.learning_rate,
        max_grad_norm=1.0,
        epsilon=0.2,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        logging_steps=1,
        **TRL_SETTINGS,
    )
    steps = Steps()
    GRPOTrainer(
        model=KimiLinearForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=lambda completions, **unused: [reward for _, _, reward in rows],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(work.prompts * (work.steps + 1))]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        rollout_func=lambda prompts, trainer: {
            "prompt_ids": [prompt for prompt, _, _ in rows],
            "completion_ids": [answer for _, answer, _ in rows],
            "logprobs": None,
        },
        callbacks=[steps],
    ).train()
    return steps.clock.measured(norms[0])


def run_trl_chunk16(folder: Path, work: Answers) -> Measured:
    """The same, with the chunkwise KDA of transformers replaced by a fast one."""
    vs_trl_chunk16.install()
    return run_trl(folder, work)


SIDES: dict[str, Callable[[Path, Answers], Measured]] = {
    "trl": run_trl,
    "trl-chunk16": run_trl_chunk16,
    "deltarl": run_deltarl,
}


def main() -> None:
    side, folder = sys.argv[1], Path(sys.argv[2])
    measured = SIDES[side](folder, Answers.load(folder))
    (folder / "measured.json").write_text(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
