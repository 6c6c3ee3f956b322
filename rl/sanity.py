"""A look at what the model really sees, before the first step: one problem through every stage of the run."""

import math
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from deltarl.reward.batch import TrainerState
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import RunConfig
from deltarl.rl.data import EncodedPrompt
from deltarl.rl.episodes import Episodes, rollout_params, sample, score
from deltarl.rl.stages import Ranks, RewardStage, Sampler
from deltarl.rollout.rng import derive_seed

SANITY_STREAM = -4  # keeps the answer's random numbers apart from all others, as evaluate.EVAL_STREAM does
MAX_TOKENS_SHOWN = 60


def sanity_report(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompt: EncodedPrompt,
    sampler: Sampler,
    scorer: RewardStage,
    learner: Ranks,
) -> list[str]:
    """Lines for the log; those that begin with "WARNING" ask for an answer.

    What a reward function or the engine raises is raised here, before anything was learned.
    """
    params = rollout_params(config, tokenizer, 1, derive_seed(config.seed, SANITY_STREAM))
    groups = sample([prompt], [params], sampler)
    if groups[0] is None:
        return [f"WARNING: training problem {prompt.row} has no answer to look at: sampling one killed workers"]
    episodes = score([prompt], groups, tokenizer, scorer, TrainerState(0, config.steps))
    return [
        f"what the model sees, for training problem {prompt.row}:",
        *_prompt_lines(tokenizer, prompt, config),
        *_answer_lines(tokenizer, episodes),
        *_learner_lines(episodes, config, learner),
    ]


def _prompt_lines(tokenizer: PreTrainedTokenizerBase, prompt: EncodedPrompt, config: RunConfig) -> list[str]:
    if config.data.prompt_template is not None:
        made = "data.prompt_template"
    else:
        made = "the tokenizer's chat template" if tokenizer.chat_template else "no template: the problem as it is"
    lines = [f"  prompt ({len(prompt.token_ids)} tokens, by {made}): {prompt.text!r}"]
    lines.append(f"  as tokens: {_pieces(tokenizer, prompt.token_ids)}")
    back = tokenizer.decode(prompt.token_ids)
    if back != prompt.text:
        lines.append(f"WARNING the prompt does not survive the tokenizer; decoded it is {back!r}")
    special = set(tokenizer.all_special_ids)
    doubled = [a for a, b in zip(prompt.token_ids, prompt.token_ids[1:], strict=False) if a == b and a in special]
    if doubled:
        lines.append(f"WARNING the special token {tokenizer.decode(doubled[:1])!r} stands twice in a row in the prompt")
    if prompt.token_ids and prompt.token_ids[-1] == tokenizer.eos_token_id:
        lines.append("WARNING the prompt ends with the end-of-sequence token; the model has nothing to continue")
    return lines


def _answer_lines(tokenizer: PreTrainedTokenizerBase, episodes: Episodes) -> list[str]:
    answer = episodes.groups[0].outputs[0]
    ended = "at the token limit" if answer.finish_reason == "length" else f"by {answer.finish_reason}"
    lines = [
        f"  answer ({len(answer.token_ids)} tokens, ended {ended}): {episodes.completions[0]!r}",
        f"  as tokens: {_pieces(tokenizer, answer.token_ids)}",
    ]
    if episodes.report.verdicts:
        verdict = episodes.report.verdicts[0]
        gold = episodes.prompts[0].example.answer
        lines.append(f"  verdict: {verdict.kind}; read {verdict.extracted!r}, the reference answer is {gold!r}")
    parts = ", ".join(f"{name} {values[0]}" for name, values in episodes.report.components.items())
    lines.append(f"  score: {episodes.report.scores[0]} ({parts})")
    if episodes.report.scores[0] is None:
        lines.append("WARNING no reward function gave the answer a score: such answers teach nothing")
    return lines


def _learner_lines(episodes: Episodes, config: RunConfig, learner: Ranks) -> list[str]:
    answer, group = episodes.groups[0].outputs[0], episodes.groups[0]
    one = TrainSample.whole(group.prompt_token_ids, answer.token_ids, answer.logprobs, 1.0, answer.routed_experts)
    found = learner.scatter("logprobs", [([one],)] * config.learner.num_ranks)[0][0]
    if not found:
        return ["WARNING the answer is empty: there is nothing to learn from"]
    differences = [abs(a - b) for a, b in zip(found, answer.logprobs, strict=True)]
    lines = [
        f"  mean log-prob of its tokens: learner {sum(found) / len(found):.4f}, sampler "
        f"{sum(answer.logprobs) / len(found):.4f}; largest difference {max(differences):.2g}"
    ]
    if sum(differences) / len(found) > 0.1:  # more than any precision explains
        lines.append(
            "WARNING sampler and learner disagree about the answer: other weights, another temperature, a wrong kernel?"
        )
    zeros = [0.0] * len(found)
    one, ranks = replace(one, values=zeros, returns=zeros), config.learner.num_ranks
    shares = split_batch([one] * ranks, ranks, 1)
    loss, norm = learner.scatter("loss", [(share[0],) for share in shares])[0]
    lines.append(f"  as if it were better than expected by 1: loss {loss:.4f}, gradient norm {norm:.4g}")
    if not (math.isfinite(loss) and 0 < norm < math.inf):
        lines.append("WARNING the loss of the answer has no gradient that the policy could follow")
    return lines


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    shown = " ".join(repr(tokenizer.decode([i])) for i in ids[:MAX_TOKENS_SHOWN])
    return shown + (f" ... and {len(ids) - MAX_TOKENS_SHOWN} more" if len(ids) > MAX_TOKENS_SHOWN else "")
