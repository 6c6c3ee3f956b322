"""The sides of `vs_trl.py`, each run in a process of its own: python vs_trl_sides.py SIDE FOLDER.

FOLDER holds model, tokenizer and `workload.json`; the times are written to `FOLDER/times.json`.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vs_trl_chunk16
from datasets import Dataset
from transformers import AutoTokenizer, KimiLinearForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from vs_trl_workload import TRL_SETTINGS, StepTime, Workload, digit_share

from deltarl.model.checkpoint import load_model
from deltarl.rl.advantages import group_advantages
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.learner import Learner
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.rng import derive_seed


def run_deltarl(folder: Path, work: Workload) -> list[StepTime]:
    """deltarl's engine and learner, one after the other in this process; each has its own copy of the weights."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LearnerConfig(
        learning_rate=work.learning_rate,
        warmup_steps=0,
        adam_beta2=0.999,
        max_grad_norm=work.max_grad_norm,
        epsilon=work.epsilon,
        epsilon_high=work.epsilon,
    )
    learner = Learner(config, str(folder), total_updates=work.steps + 1, temperature=1.0)
    engine = Engine(load_model(folder))
    problems = work.problems(tokenizer)
    times = []
    for step in range(work.steps + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        prompts = [p.token_ids for p in problems[step * work.prompts : (step + 1) * work.prompts]]
        params = [
            SamplingParams(n=work.generations, max_tokens=work.max_tokens, seed=derive_seed(work.seed, step, i))
            for i in range(work.prompts)
        ]
        before = time.perf_counter()
        groups = engine.generate(prompts, params)
        sampling = time.perf_counter() - before
        answers = [(group.prompt_token_ids, t) for group in groups for t in group.outputs]
        scores = np.array(digit_share(tokenizer.batch_decode([t.token_ids for _, t in answers])))
        advantages = group_advantages(scores.reshape(work.prompts, work.generations), "group").ravel()
        samples = [
            TrainSample.whole(prompt, t.token_ids, t.logprobs, float(a))
            for (prompt, t), a in zip(answers, advantages, strict=True)
        ]
        learner.update(split_batch(samples, num_ranks=1, num_minibatches=1)[0])
        engine.load_weights(learner.weights())
        tokens = sum(len(t.token_ids) for _, t in answers)
        times.append(StepTime(time.perf_counter() - start, time.process_time() - cpu_start, sampling, tokens))
    return times


class TimedKimiLinear(KimiLinearForCausalLM):
    """transformers' model, adding up the time it samples and the tokens that come out."""

    sampling, tokens = 0.0, 0

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = super().generate(*args, **kwargs)  # type: ignore[misc]  # its own mix-in's self type does not fit
        self.sampling += time.perf_counter() - start
        self.tokens += out[:, kwargs["input_ids"].shape[1] :].numel()
        return out


class StepClock(TrainerCallback):
    """Takes the time from the end of one optimizer step to the end of the next."""

    def __init__(self) -> None:
        self.times: list[StepTime] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.last, self.cpu_last = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        model, now, cpu_now = kwargs["model"], time.perf_counter(), time.process_time()
        self.times.append(StepTime(now - self.last, cpu_now - self.cpu_last, model.sampling, model.tokens))
        self.last, self.cpu_last = now, cpu_now
        model.sampling, model.tokens = 0.0, 0


def digit_share_reward(completions: list[str], **unused: Any) -> list[float | None]:
    """`digit_share` as TRL calls it."""
    return [*digit_share(completions)]


def run_trl(folder: Path, work: Workload, micro_batch: int = 16) -> list[StepTime]:
    """TRL's GRPOTrainer with transformers' model and generation, set up to lose no time that a setting can save.

    Args:
        micro_batch: answers per forward and backward pass, the gradient being accumulated over the whole batch; 16 was
            the fastest of 8, 16, 32 and 64 (its KDA keeps hundreds of MB of pairwise decays per layer beyond that).
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = TimedKimiLinear.from_pretrained(folder, dtype=torch.float32)
    batch = work.prompts * work.generations
    micro_batch = math.gcd(micro_batch, batch)
    args = GRPOConfig(
        output_dir=str(folder / "trl"),
        max_steps=work.steps + 1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=batch // micro_batch,
        generation_batch_size=batch,
        num_generations=work.generations,
        max_completion_length=work.max_tokens,
        # Answers that all run to the end, as on the other side, where no token stops them.
        generation_kwargs={"suppress_tokens": [tokenizer.eos_token_id]},
        learning_rate=work.learning_rate,
        max_grad_norm=work.max_grad_norm,
        epsilon=work.epsilon,
        seed=work.seed,
        use_cpu=True,
        bf16=False,
        logging_strategy="no",
        **TRL_SETTINGS,
    )
    clock = StepClock()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=digit_share_reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": p.text} for p in work.problems(tokenizer)]),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    return clock.times


def run_trl_chunk16(folder: Path, work: Workload) -> list[StepTime]:
    """The same, with the chunkwise KDA replaced by a fast one, for which 64 and 128 were the fastest micro-batches."""
    vs_trl_chunk16.install()
    return run_trl(folder, work, micro_batch=64)


SIDES: dict[str, Callable[[Path, Workload], list[StepTime]]] = {
    "trl": run_trl,
    "trl-chunk16": run_trl_chunk16,
    "deltarl": run_deltarl,
}


def main() -> None:
    side, folder = sys.argv[1], Path(sys.argv[2])
    work = Workload.load(folder)
    times = SIDES[side](folder, work)[1:]
    expected = work.prompts * work.generations * work.max_tokens
    assert all(t.tokens == expected for t in times), f"{side} did not sample {expected} tokens in every step: {times}"
    (folder / "times.json").write_text(json.dumps([asdict(t) for t in times]))


if __name__ == "__main__":
    main()
