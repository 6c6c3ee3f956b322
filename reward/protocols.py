"""How plug-ins are called: ours, which is TRL's, and those of functions written for verl and OpenRLHF.

Which one a function is written for shows in the names of its parameters. Every protocol takes the function, its
signature, the batch, the arguments set in the config, and the log, and returns what the function said: scores in the
order of the completions, not checked yet.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deltarl.reward.background import resolve
from deltarl.reward.batch import GOLD_NAMES, Batch
from deltarl.reward.log import RewardLog
from deltarl.reward.signature import Signature

RewardFunction = Callable[..., Any]
Arguments = Mapping[str, Any]
Protocol = Callable[[RewardFunction, Signature, Batch, Arguments, RewardLog], Any]


class BadCallError(Exception):
    """The function cannot be called with what there is, or its result cannot be understood."""


def protocol_of(signature: Signature) -> Protocol:
    """How to call a function with these parameters."""
    names = {*signature.positional_only, *signature.named}
    if {"solution_str", "ground_truth"} <= names:
        return call_verl
    if {"solution_strs", "ground_truths"} <= names:
        return call_verl_batch
    if {"queries", "prompts", "labels"} <= names:
        return call_openrlhf
    return call_by_column


def call_by_column(fn: RewardFunction, signature: Signature, batch: Batch, arguments: Arguments, log: RewardLog) -> Any:
    """``fn(prompts=, completions=, **columns)`` as in TRL's GRPOTrainer, with all of what it asks for."""
    context: dict[str, Any] = {"trainer_state": batch.state, "log_metric": log.metric, "log_extra": log.extra}
    if batch.verdicts is not None:
        context["verdicts"] = batch.verdicts
    golds = batch.golds()
    if golds is not None:
        context |= {name: golds for name in GOLD_NAMES if name not in batch.columns}
    values: dict[str, Any] = {**batch.columns, "prompts": batch.prompts, "completions": batch.completions}
    if signature.wants_messages:
        values["prompts"] = [_message("user", prompt) for prompt in batch.prompts]
        values["completions"] = [_message("assistant", completion) for completion in batch.completions]
    values |= {name: value for name, value in context.items() if signature.asks_for(name)}
    return _call(fn, signature, [values], arguments)[0]


def call_verl(fn: RewardFunction, signature: Signature, batch: Batch, arguments: Arguments, log: RewardLog) -> Any:
    """``compute_score(data_source=, solution_str=, ground_truth=, extra_info=)``, called for each sample as in verl."""
    return _scores(_call(fn, signature, _verl_samples(batch), arguments), log)


def call_verl_batch(
    fn: RewardFunction, signature: Signature, batch: Batch, arguments: Arguments, log: RewardLog
) -> Any:
    """``compute_score(data_sources=, solution_strs=, ground_truths=, extra_infos=)``, verl's batch form."""
    samples = _verl_samples(batch)
    plural = {"data_source": "data_sources", "solution_str": "solution_strs", "ground_truth": "ground_truths"}
    plural["extra_info"] = "extra_infos"
    values = {many: [sample[one] for sample in samples] for one, many in plural.items()}
    results = _call(fn, signature, [values], arguments)[0]
    return _scores(results, log) if isinstance(results, Sequence) and not isinstance(results, str) else results


def call_openrlhf(fn: RewardFunction, signature: Signature, batch: Batch, arguments: Arguments, log: RewardLog) -> Any:
    """``reward_func(queries, prompts, labels)`` with lists of one sample each, as in OpenRLHF."""
    results = resolve(
        [
            fn([f"{prompt}{completion}"], [prompt], [gold], **arguments)
            for prompt, completion, gold in zip(batch.prompts, batch.completions, _golds(batch), strict=True)
        ]
    )
    samples = []
    for index, result in enumerate(results):
        if not isinstance(result, Mapping):
            samples.append({"score": _only(result, index)})
            continue
        if "rewards" not in result and "scores" not in result:
            raise BadCallError(
                f"returned a dict without 'rewards' for sample {index}; it has {', '.join(map(repr, result))}"
            )
        entries = {name: result[name] for name in ("scores",) if name in result} | dict(result.get("extra_logs") or {})
        rewards = result["rewards"] if "rewards" in result else result["scores"]
        samples.append({**entries, "score": _only(rewards, index)})
    return _scores(samples, log)


def _call(fn: RewardFunction, signature: Signature, calls: Sequence[dict[str, Any]], arguments: Arguments) -> list[Any]:
    """The function's results; each call gets by keyword what the function accepts."""
    passed = []
    for values in calls:
        values = {**values, **arguments}
        missing = [name for name in signature.required if name not in values]
        if missing:
            raise BadCallError(_missing(missing, values))
        passed.append(
            values if signature.takes_any else {name: values[name] for name in signature.named if name in values}
        )
    return resolve([fn(**values) for values in passed])


def _missing(names: Sequence[str], values: Mapping[str, Any]) -> str:
    remedy = ""
    if "verdicts" in names:
        remedy = (
            "; verdicts come with the built-in verifier: add {name: math, function: math}, with weight 0 if need be"
        )
    return (
        f"needs {', '.join(map(repr, names))}, which is no dataset column and not among its args; "
        f"available: {', '.join(sorted(values))}{remedy}"
    )


def _verl_samples(batch: Batch) -> list[dict[str, Any]]:
    golds = _golds(batch)
    samples = []
    for index, (completion, gold) in enumerate(zip(batch.completions, golds, strict=True)):
        row = {name: values[index] for name, values in batch.columns.items()}
        info = row.pop("extra_info", None)
        samples.append(
            {
                "data_source": row.pop("data_source", "deltarl"),
                "solution_str": completion,
                "ground_truth": gold,
                "extra_info": row | dict(info or {}),
            }
        )
    return samples


def _golds(batch: Batch) -> Sequence[Any]:
    golds = batch.golds()
    if golds is None:
        raise BadCallError(
            f"needs a reference answer, a column called {', '.join(GOLD_NAMES)}; "
            f"the data has {', '.join(sorted(batch.columns)) or 'no columns'}"
        )
    return golds


def _scores(results: Sequence[Any], log: RewardLog) -> list[Any]:
    """Numbers as they are; of dicts the entry "score", while the others are logged."""
    scores: list[Any] = []
    entries: list[dict[str, Any]] = []
    for index, result in enumerate(results):
        if not isinstance(result, Mapping):
            scores.append(result)
            entries.append({})
            continue
        if "score" not in result:
            found = ", ".join(map(repr, result)) or "nothing"
            raise BadCallError(f"returned a dict without 'score' for sample {index}; it has {found}")
        scores.append(result["score"])
        entries.append({str(name): value for name, value in result.items() if name != "score"})
    # A wrong number of results is for the caller to report, with the sample that lacks one.
    if len(entries) == log.count:
        log.entries(entries)
    return scores


def _only(value: Any, index: int) -> Any:
    """The one score in a tensor, list or number."""
    value = value.tolist() if hasattr(value, "tolist") else value
    while isinstance(value, list | tuple):
        if len(value) != 1:
            raise BadCallError(f"returned {len(value)} scores for 1 completion, sample {index}")
        value = value[0]
    return value


def _message(role: str, text: Any) -> Any:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
