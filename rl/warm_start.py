"""The model a run starts from: a checkpoint or a new small model, supervised on worked solutions if asked for."""

import logging
import math
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    KimiLinearConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from deltarl.model.checkpoint import round_weights
from deltarl.model.config import hybrid_config, layer_kinds
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.policy import is_hybrid, load_trainable
from deltarl.model.routing import routing_shape
from deltarl.model.tokenizer import byte_tokenizer
from deltarl.rl.config import ModelConfig, RunConfig
from deltarl.rl.problem_set import Demonstration
from deltarl.rl.ranks import rank_state
from deltarl.rl.supervise import CHECKPOINTS, supervise
from deltarl.rl.tensorboard_run import require_tensorboard

log = logging.getLogger(__name__)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, or the byte-level one of a model made here."""
    if config.path is None:
        return byte_tokenizer(config.tokenizer_extra_tokens)
    tokenizer = AutoTokenizer.from_pretrained(config.path)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer in {config.path} has no end-of-sequence token to stop an answer at")
    return tokenizer


def check_context(config: RunConfig) -> None:
    """Refuses what the checkpoint does not take: prompts and answers that are too long together, or the backend; and
    what is not installed.

    Raises:
        ValueError: what is wrong.
    """
    if config.logging.tensorboard:
        require_tensorboard()
    if config.learner.lora is not None and find_spec("peft") is None:
        raise ValueError("learner.lora needs peft, which is not installed: pip install 'deltarl[lora]'")
    hybrid = config.model.path is None or is_hybrid(config.model.path)
    if config.learner.router_replay and hybrid and not _has_experts(config.model):
        raise ValueError(
            "learner.router_replay is for mixtures of experts, and "
            f"{config.model.path or 'the model of model.num_experts = 0'} has no experts: leave it out"
        )
    if config.learner.baseline == "critic" and not hybrid:
        raise ValueError(
            f"learner.baseline = 'critic' puts a value head on our hybrid, and {config.model.path} is another model: "
            "choose another baseline (algorithm=grpo, for instance)"
        )
    if config.rollout.backend == ("transformers" if hybrid else "native"):
        what, instead = ("a hybrid", "native") if hybrid else ("no hybrid", "transformers")
        raise ValueError(
            f"rollout.backend = {config.rollout.backend!r} does not sample this model, which is {what}: "
            f"set rollout.backend={instead}, or vllm"
        )
    if config.model.path is None:
        return  # RunConfig has checked it
    # Models without one take any length.
    limit = getattr(AutoConfig.from_pretrained(config.model.path), "max_position_embeddings", math.inf)
    asked = config.data.max_prompt_tokens + config.rollout.max_tokens
    if asked > limit:
        raise ValueError(
            f"data.max_prompt_tokens + rollout.max_tokens = {asked} exceeds the context of {config.model.path}, {limit}"
        )


def _has_experts(config: ModelConfig) -> bool:
    if config.path is None:
        return config.num_experts > 0
    return any(routing_shape(KimiLinearConfig.from_pretrained(config.path)))


def new_model(config: ModelConfig, vocab_size: int, seed: int) -> HybridForCausalLM:
    """A randomly initialised model of the configured size."""
    set_seed(seed)
    model = HybridForCausalLM(hybrid_config(vocab_size=vocab_size, **config.sizes))
    return round_weights(model, getattr(torch, config.dtype))


def starting_point(
    folder: Path,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
) -> Path:
    """Makes the checkpoint a run starts from, once: a folder that is there already is complete and taken as it is.

    Args:
        demonstrations: for the warm start, which runs in this process and, if torch.distributed's environment variables
            are set, in step with the other ranks.

    Returns:
        `folder`, or `config.model.path` itself if there is no warm start.
    """
    if config.sft is None and config.model.path is not None:
        return Path(config.model.path)
    sft_folder = folder.parent / "sft"
    if folder.is_dir():
        shutil.rmtree(sft_folder / CHECKPOINTS, ignore_errors=True)  # a kill may have left them
        return folder
    source = config.model.path
    model = load_trainable(source) if source else new_model(config.model, len(tokenizer), config.seed)
    log.info("model: %s parameters, %s", f"{model.num_parameters():,}", _kind(model))
    partial = folder.with_name(f".partial_{folder.name}")
    if config.sft is not None:
        supervise(model, tokenizer, demonstrations, config.sft, sft_folder, config.seed)
    if rank_state().is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
        shutil.rmtree(sft_folder / CHECKPOINTS, ignore_errors=True)
    return folder


class WarmStart:
    """One rank of the processes that make the starting point together."""

    def __init__(self, config: RunConfig):
        self._config = config

    def make(self, folder: Path, demonstrations: Sequence[Demonstration]) -> None:
        """See `starting_point`."""
        starting_point(folder, self._config, load_tokenizer(self._config.model), demonstrations)


def _kind(model: PreTrainedModel) -> str:
    if not isinstance(model, HybridForCausalLM):
        return type(model).__name__
    return "layers " + "".join("K" if kind == "linear_attention" else "A" for kind in layer_kinds(model.config))
