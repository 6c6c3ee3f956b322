"""A run's problems, loaded, checked and encoded before anything starts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from deltarl.reward.rewards import MATH
from deltarl.reward.verifier import Verifier
from deltarl.rl.batch import TrainSample
from deltarl.rl.config import RunConfig, SFTConfig, SourceConfig
from deltarl.rl.data import Draw, EncodedPrompt, encode_prompts, from_problems, load_file, token_counter
from deltarl.rl.problems import Split, generate

log = logging.getLogger(__name__)

BOXED = "\\boxed{%s}"
MAIN = ""
"""Name of the set in data.test; the others are data.more_tests."""
Prompts = list[EncodedPrompt]


class Demonstration(NamedTuple):
    """What the warm start imitates."""

    prompt_ids: list[int]
    """As samplers get the prompt."""
    completion: str


class DataError(ValueError):
    """Problems that cannot be used."""


@dataclass(frozen=True)
class ProblemSet:
    train: Prompts
    test: Prompts
    train_sources: list[int]
    """For each training problem, 0 if it is of data.train, else its place in data.more_train counted from 1."""
    more_tests: dict[str, Prompts] = field(default_factory=dict)
    """Held-out problems beside `test`, by the name of their set."""
    solutions: list[TrainSample] = field(default_factory=list)
    """Worked solutions of training problems, if the learner imitates some (learner.ptx_weight)."""

    @property
    def tests(self) -> dict[str, Prompts]:
        """All held-out problems by the name of their set, "" for `test`."""
        return {MAIN: self.test, **self.more_tests}

    def draw(self, config: RunConfig, success: np.ndarray | None) -> Draw:
        """The order in which training problems come.

        Args:
            success: `[N]` how often the starting model solves each, if that was measured.
        """
        data = config.data
        weights = [source.weight for source in (data.train, *data.more_train.values())]
        try:
            draw = Draw(self.train_sources, weights, config.rollout.prompts_per_step, data.sampling, success)
        except ValueError as error:
            raise DataError(str(error)) from error
        if draw.kept < len(self.train):
            log.info("%d of %d training problems are neither too hard nor too easy", draw.kept, len(self.train))
        return draw

    @classmethod
    def load(cls, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> "ProblemSet":
        """Loads all splits.

        Raises:
            DataError: no answer the verifier can read, fewer problems or worked solutions than are used at once, a
                prompt too long.
            FileNotFoundError, ValueError: what `load_file` and `generate` refuse.
        """
        trains = [_encode(config, config.data.train, "train", tokenizer)]
        trains += [_encode(config, s, "train", tokenizer, name) for name, s in config.data.more_train.items()]
        train = [p for found in trains for p in found]
        _check_enough("train", train, config.rollout.prompts_per_step)
        tests = _tests(config, tokenizer)
        test, more = tests[MAIN], {name: found for name, found in tests.items() if name != MAIN}
        if any(f.function == MATH for f in config.reward.functions):
            _check_golds([*train, *(p for found in tests.values() for p in found)], config)
        held_out = "".join(f", {len(found)} of {name}" for name, found in more.items())
        log.info("problems: %d to train on, %d held out%s", len(train), len(test), held_out)
        sources = [i for i, found in enumerate(trains) for _ in found]
        return cls(
            train, test, sources, more, _solutions(train, tokenizer, config) if config.learner.ptx_weight else []
        )


def load_tests(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Prompts]:
    """The held-out problems alone, by the name of their set, `MAIN` for data.test.

    Raises:
        As `ProblemSet.load`.
    """
    tests = _tests(config, tokenizer)
    if any(f.function == MATH for f in config.reward.functions):
        _check_golds([p for found in tests.values() for p in found], config)
    return tests


def demonstrations(prompts: Sequence[EncodedPrompt], config: SFTConfig) -> list[Demonstration]:
    """For the warm start, from the problems that come with a worked solution.

    Raises:
        DataError: none of them does.
    """
    rows = []
    for i, p in enumerate(prompts):
        if p.example.solution is None:
            continue
        # Steps of the golden ratio spread the direct ones evenly, without a random number.
        direct = i * 0.6180339887498949 % 1 < config.direct_fraction
        rows.append(Demonstration(p.token_ids, BOXED % p.example.answer if direct else p.example.solution))
    if not rows:
        raise DataError("the warm start (sft) needs worked solutions: set data.train.solution_column, or leave sft out")
    return rows


def _tests(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Prompts]:
    count = config.eval.num_problems
    test = _encode(config, config.data.test, "test", tokenizer)
    _check_enough("test", test, count)
    more = {n: _encode(config, source, "test", tokenizer, n) for n, source in config.data.more_tests.items()}
    return {name: found[:count] for name, found in {MAIN: test, **more}.items()}


def _check_enough(name: str, prompts: Prompts, need: int) -> None:
    if len(prompts) < need:
        raise DataError(f"data.{name} has {len(prompts)} problems and {need} are used at once")


def _solutions(prompts: Prompts, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> list[TrainSample]:
    """The worked solutions that are no longer than an answer may be, ending as an answer does."""
    found = []
    for p in prompts:
        if p.example.solution is not None:
            ids = [*tokenizer.encode(p.example.solution, add_special_tokens=False), int(tokenizer.eos_token_id)]
            if len(ids) <= config.rollout.max_tokens:
                found.append(TrainSample.solution(p.token_ids, ids))
    need = config.learner.ptx_batch_size * config.learner.num_minibatches
    if len(found) < need:
        raise DataError(
            f"learner.ptx_weight = {config.learner.ptx_weight} imitates {need} worked solutions a step, and data.train "
            f"has {len(found)} of at most rollout.max_tokens = {config.rollout.max_tokens} tokens: set "
            "data.train.solution_column, lower learner.ptx_batch_size, or set ptx_weight to 0"
        )
    return found


def _encode(
    config: RunConfig, source: SourceConfig, split: Split, tokenizer: PreTrainedTokenizerBase, name: str | None = None
) -> Prompts:
    if source.problems is not None:
        measure = token_counter(tokenizer)
        examples = from_problems(generate(source.problems, split, source.num_problems, config.seed, measure))
    else:
        assert source.path is not None  # SourceConfig sees to it
        columns = {"problems", "num_problems", "path", "weight"}
        examples = load_file(source.path, **source.model_dump(exclude=columns))
    try:
        return encode_prompts(
            examples,
            tokenizer,
            template=config.data.prompt_template,
            system_prompt=config.data.system_prompt,
            max_prompt_tokens=config.data.max_prompt_tokens,
            on_long=config.data.on_long_prompt,
        )
    except ValueError as error:
        where = split if name is None else f"more_{split}{'s' if split == 'test' else ''}.{name}"
        raise DataError(f"data.{where}: {error}") from error


def _check_golds(prompts: Prompts, config: RunConfig) -> None:
    """Reports answers the verifier cannot read: their samples get no score, which is better than a wrong one."""
    verifier = Verifier(config.reward.timeout, 1, config.reward.marker)
    bad = [(p, problem) for p in prompts if (problem := verifier.check_gold(p.example.answer))]
    verifier.close()
    if not bad:
        return
    first, problem = bad[0]
    message = (
        f"the verifier cannot read {len(bad)} of {len(prompts)} answers; the first is {first.example.answer!r} "
        f"(row {first.row}): {problem}"
    )
    if len(bad) == len(prompts):
        raise DataError(f"{message}. Is data.*.answer_column, or answer_pattern, the right one?")
    log.warning("%s. Their samples are skipped", message)
