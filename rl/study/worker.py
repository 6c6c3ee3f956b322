"""One run of a study at a time, in a process of its own: warm start, RL, evaluation, speed of decoding."""

import json
import logging
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deltarl.model.checkpoint import load_model
from deltarl.rl.checkpoint import CheckpointStore
from deltarl.rl.config import RunConfig
from deltarl.rl.evaluate import eval_metrics
from deltarl.rl.jsonl import read_jsonl
from deltarl.rl.metrics import METRICS_FILE
from deltarl.rl.problem_set import MAIN, ProblemSet, demonstrations
from deltarl.rl.run_dir import log_to, open_run_dir
from deltarl.rl.run_eval import answers
from deltarl.rl.section import Section
from deltarl.rl.study.config import DecodeConfig, FinalConfig
from deltarl.rl.train import train
from deltarl.rl.warm_start import load_tokenizer, starting_point
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.worker import on_gpu

log = logging.getLogger(__name__)

INITIAL, SFT = "initial", "sft"
PREFILL_TOKENS = 4096  # at once
FINAL_FILE, DECODE_FILE = "final.json", "decode.json"


class StudyWorker:
    """Every call is one item of the study's work, and can be done again: what is done already is left as it is."""

    def warm_start(self, config: RunConfig) -> None:
        """Makes the checkpoint that all runs of this architecture and seed begin with, in `config.run_dir`."""
        run_dir = open_run_dir(config)
        _log_only_to(run_dir)
        tokenizer = load_tokenizer(config.model)
        shown = demonstrations(ProblemSet.load(config, tokenizer).train, config.sft) if config.sft else []
        starting_point(run_dir / INITIAL, config, tokenizer, shown)

    def run(self, config: RunConfig, warm: Path, final: FinalConfig | None) -> None:
        """Trains from the starting point in `warm` and, if asked for, evaluates what came out.

        Raises:
            ConfigError: there is a run in its folder already, with another configuration.
        """
        run_dir = open_run_dir(config)
        _log_only_to(run_dir)
        if not (run_dir / INITIAL).is_dir():
            if (warm / SFT).is_dir():
                shutil.copytree(warm / SFT, run_dir / SFT, dirs_exist_ok=True)
            partial = run_dir / f".partial_{INITIAL}"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(warm / INITIAL, partial)
            partial.rename(run_dir / INITIAL)
        if not _is_done(config):
            train(config)
        if final is not None and not measured(config, FINAL_FILE, final):
            _write(config, FINAL_FILE, final, final_evaluation(config, final))

    def trial(self, config: RunConfig, warm: Path) -> float | None:
        """A run of the sweep: the mean training reward of its last quarter, None if it diverged.

        Rewards of None, which no function gave, do not count.
        """
        try:
            self.run(config, warm, None)
        except FloatingPointError:
            log.exception("this trial diverged")
            return None
        rows = [row for row in read_jsonl(config.run_dir / METRICS_FILE) if row["step"] > config.steps * 3 // 4]
        rewards = [row["reward/mean"] for row in rows if row.get("reward/mean") is not None]
        return statistics.fmean(rewards) if rewards else None

    def decode(self, config: RunConfig, how: DecodeConfig) -> None:
        """Measures the trained model's decoding. The other processes should be idle."""
        if not measured(config, DECODE_FILE, how):
            _write(config, DECODE_FILE, how, decode_speed(config, how))

    def pid(self) -> int:
        return os.getpid()


def final_evaluation(config: RunConfig, final: FinalConfig) -> dict[str, Any]:
    """The newest checkpoint on `final.num_problems` held-out problems: the metrics of an evaluation, and as `right` the
    number of right ones among the answers to each problem, `[P]`."""
    test = config.data.test.model_copy(update={"num_problems": final.num_problems})
    data = config.data.model_copy(update={"test": test, "more_tests": {}})
    asked = config.eval.model_copy(update=final.model_dump())
    config = config.model_copy(update={"data": data, "eval": asked})
    episodes = answers(config, _checkpoint(config))
    metrics = eval_metrics(episodes, config.reward.timeout)
    return {"metrics": metrics, "right": episodes[MAIN].right.sum(1).tolist()}


def decode_speed(config: RunConfig, how: DecodeConfig) -> list[dict[str, float]]:
    """For each context: bytes of a sequence's state and latents, and tokens a second of all sequences together."""
    model = on_gpu(load_model(_checkpoint(config)))
    found = []
    for context in how.contexts:
        # Prompts come in piece by piece, while the first of them are already being answered.
        room = how.num_sequences + how.num_sequences * context // PREFILL_TOKENS + how.num_tokens + 2
        # Positions are not learned: a model decodes as fast beyond the lengths that it was trained on.
        model.config.max_position_embeddings = max(context + room, model.config.max_position_embeddings)
        engine = Engine(
            model, max_num_seqs=how.num_sequences, max_model_len=context + room, max_prefill_tokens=PREFILL_TOKENS
        )
        for i in range(how.num_sequences):
            prompt = torch.randint(3, model.config.vocab_size, (context,)).tolist()
            engine.add_request(str(i), prompt, SamplingParams(max_tokens=room, min_tokens=room, seed=i))
        while engine.stats().waiting:
            engine.step()
        seconds = [_seconds_of(engine.step) for _ in range(how.num_tokens)]
        size = model.new_cache(1, context).bytes_per_sequence(context)
        rate = how.num_sequences / statistics.median(seconds)
        found.append({"context": context, "bytes": size, "tokens_per_s": rate})
    return found


def _seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _checkpoint(config: RunConfig) -> Path:
    path = CheckpointStore(config.run_dir, config.checkpoint.keep).latest()
    assert path is not None  # the run is done
    return path


def _is_done(config: RunConfig) -> bool:
    store = CheckpointStore(config.run_dir, config.checkpoint.keep)
    newest = store.latest()
    return newest is not None and store.state(newest)["step"] >= config.steps


def _log_only_to(run_dir: Path) -> None:
    """Ends the log of the run before, which this process did too."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    log_to(run_dir)


def measured(config: RunConfig, name: str, settings: Section) -> bool:
    """Whether the file was written for the last step of the run, and with these settings."""
    file = config.run_dir / name
    if not file.exists():
        return False
    found = json.loads(file.read_text())
    return (found["step"], found["settings"]) == (config.steps, settings.model_dump())


def _write(config: RunConfig, name: str, settings: Section, found: Any) -> None:
    temporary = config.run_dir / f"{name}.tmp"
    temporary.write_text(json.dumps({"step": config.steps, "settings": settings.model_dump(), "found": found}))
    temporary.replace(config.run_dir / name)
