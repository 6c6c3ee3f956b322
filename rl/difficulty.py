"""How often the starting model solves each training problem."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from deltarl.reward.batch import TrainerState
from deltarl.rl.config import RunConfig
from deltarl.rl.data import EncodedPrompt
from deltarl.rl.episodes import rollout_params, sample, score
from deltarl.rl.stages import RewardStage, Sampler
from deltarl.rollout.rng import derive_seed

log = logging.getLogger(__name__)

FILE = "difficulty.json"
DIFFICULTY_STREAM = -5  # keeps its random numbers apart from all others, as evaluate.EVAL_STREAM does
PROMPTS_AT_ONCE = 256


def measured_success(
    config: RunConfig,
    run_dir: Path,
    problems: Sequence[EncodedPrompt],
    tokenizer: PreTrainedTokenizerBase,
    sampler: Sampler,
    scorer: RewardStage,
) -> np.ndarray | None:
    """`[N]` share of `data.sampling.measure_samples` answers that are right; None if none are asked for.

    Measured once, before the first step, and kept in the run's folder for a resume, when the model is another.
    """
    samples, file = config.data.sampling.measure_samples, run_dir / FILE
    if not samples:
        return None
    if not file.exists():
        log.info("measuring what the starting model solves: %d answers to each of %d problems", samples, len(problems))
        rates: list[float] = []
        for first in tqdm(range(0, len(problems), PROMPTS_AT_ONCE), desc="difficulty", disable=None):
            part = problems[first : first + PROMPTS_AT_ONCE]
            params = [
                rollout_params(config, tokenizer, samples, derive_seed(config.seed, DIFFICULTY_STREAM, first + i))
                for i in range(len(part))
            ]
            groups = sample(part, params, sampler)
            right = score(part, groups, tokenizer, scorer, TrainerState(0, config.steps)).right.mean(1).tolist()
            # A prompt set aside has no answer: never solved, for all that can be told.
            rates += [0.0 if group is None else right.pop(0) for group in groups]
        temporary = file.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(rates))
        temporary.replace(file)
    found = np.array(json.loads(file.read_text()))
    log.info(
        "the starting model solves %.0f%% of the training problems' answers; %.0f%% never, %.0f%% always",
        *(100 * found.mean(), 100 * (found == 0).mean(), 100 * (found == 1).mean()),
    )
    return found
