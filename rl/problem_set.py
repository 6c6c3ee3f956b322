"""A run's problems, loaded, checked and encoded before anything starts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from deltarl.reward.rewards import MATH
from deltarl.reward.verifier import Verifier
from deltarl.rl.config import RunConfig, SFTConfig, SourceConfig
from deltarl.rl.data import EncodedPrompt, encode_prompts, from_problems, load_file
from deltarl.rl.problems import Split, generate

log = logging.getLogger(__name__)

BOXED = "\\boxed{%s}"
Prompts = list[EncodedPrompt]


class DataError(ValueError):
    """Problems that cannot be used."""


@dataclass(frozen=True)
class ProblemSet:
    train: Prompts
    test: Prompts

    @classmethod
    def load(cls, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> "ProblemSet":
        """Loads both splits.

        Raises:
            DataError: no answer the verifier can read, fewer problems than are used at once, a prompt too long.
            FileNotFoundError, ValueError: what `load_file` and `generate` refuse.
        """
        train = _encode(config, config.data.train, "train", tokenizer)
        test = _encode(config, config.data.test, "test", tokenizer)
        for name, prompts, need in (
            ("train", train, config.rollout.prompts_per_step),
            ("test", test, config.eval.num_problems),
        ):
            if len(prompts) < need:
                raise DataError(f"data.{name} has {len(prompts)} problems and {need} are used at once")
        test = test[: config.eval.num_problems]
        if any(f.function == MATH for f in config.reward.functions):
            _check_golds(train + test, config)
        log.info("problems: %d to train on, %d held out", len(train), len(test))
        return cls(train, test)


def demonstrations(prompts: Sequence[EncodedPrompt], config: SFTConfig) -> list[dict[str, str]]:
    """{prompt, completion} texts for the warm start, from the problems that come with a worked solution.

    Raises:
        DataError: none of them does.
    """
    rows = []
    for i, p in enumerate(prompts):
        if p.example.solution is None:
            continue
        # Steps of the golden ratio spread the direct ones evenly, without a random number.
        direct = i * 0.6180339887498949 % 1 < config.direct_fraction
        rows.append({"prompt": p.text, "completion": BOXED % p.example.answer if direct else p.example.solution})
    if not rows:
        raise DataError("the warm start (sft) needs worked solutions: set data.train.solution_column, or leave sft out")
    return rows


def _encode(config: RunConfig, source: SourceConfig, split: Split, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    if source.problems is not None:
        examples = from_problems(generate(source.problems, split, source.num_problems, config.seed))
    else:
        assert source.path is not None  # SourceConfig sees to it
        columns = {"problems", "num_problems", "path"}
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
        raise DataError(f"data.{split}: {error}") from error


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
