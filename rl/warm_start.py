"""The model a run starts from: a checkpoint or a new small model, supervised on worked solutions if asked for."""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoConfig,
    AutoTokenizer,
    KimiLinearConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig as TRLSFTConfig
from trl import SFTTrainer

from deltarl.kernels.precision import without_sampler
from deltarl.model.checkpoint import round_weights
from deltarl.model.config import hybrid_config, layer_kinds
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.policy import is_hybrid, load_trainable
from deltarl.model.routing import routing_shape
from deltarl.model.tokenizer import byte_tokenizer
from deltarl.rl.config import ModelConfig, RunConfig, SFTConfig
from deltarl.rl.master_weights import hold_masters
from deltarl.rl.metrics import MetricsWriter
from deltarl.rl.ranks import on_cpu, rank_state
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
    demonstrations: Sequence[Mapping[str, str]],
) -> Path:
    """Makes the checkpoint a run starts from, once: a folder that is there already is complete and taken as it is.

    Args:
        demonstrations: {prompt, completion} texts for the warm start, which runs in this process and, if
            torch.distributed's environment variables are set, in step with the other ranks.

    Returns:
        `folder`, or `config.model.path` itself if there is no warm start.
    """
    if config.sft is None and config.model.path is not None:
        return Path(config.model.path)
    if folder.is_dir():
        return folder
    source = config.model.path
    model = load_trainable(source) if source else new_model(config.model, len(tokenizer), config.seed)
    log.info("model: %s parameters, %s", f"{model.num_parameters():,}", _kind(model))
    partial = folder.with_name(f".partial_{folder.name}")
    if config.sft is not None:
        supervise(model, tokenizer, demonstrations, config.sft, folder.parent / "sft", config.seed)
    if rank_state().is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    return folder


class WarmStart:
    """One rank of the processes that make the starting point together."""

    def __init__(self, config: RunConfig):
        self._config = config

    def make(self, folder: Path, demonstrations: Sequence[Mapping[str, str]]) -> None:
        """See `starting_point`."""
        starting_point(folder, self._config, load_tokenizer(self._config.model), demonstrations)


def supervise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Mapping[str, str]],
    config: SFTConfig,
    log_dir: Path,
    seed: int,
) -> None:
    """Trains `model` in place on the completions of the demonstrations, with TRL's SFTTrainer.

    It learns in fp32, and its `state_dict` has the dtypes it came in afterwards; a hybrid computes in these too.
    Metrics go to `log_dir/metrics.jsonl`.
    """
    state = rank_state()
    if state.is_main_process:
        shutil.rmtree(log_dir, ignore_errors=True)
    stored = {name: x.dtype for name, x in model.state_dict().items()}
    if isinstance(model, HybridForCausalLM):
        hold_masters(model, keep_rounded=True)
    else:
        model.float()
    disable_progress_bars()
    needed = config.steps * config.batch_size
    writer = MetricsWriter(log_dir, {}, "disabled", "", "sft") if state.is_main_process else None
    args = TRLSFTConfig(
        output_dir=str(log_dir),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size // state.num_processes,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam_beta2=0.95,
        max_length=None,
        logging_steps=10,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        use_cpu=on_cpu(),
        ddp_backend="gloo" if on_cpu() and state.num_processes > 1 else None,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    try:
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list([dict(d) for d in demonstrations[:needed]]),
            processing_class=tokenizer,
            callbacks=[_LogToJsonl(writer)] if writer else [],
        )
        trainer.remove_callback(PrinterCallback)  # its lines are ours, in another format
        with without_sampler():
            trainer.train()
        if not isinstance(model, HybridForCausalLM):
            for name, x in model.state_dict(keep_vars=True).items():
                x.data = x.data.to(stored[name])
    finally:
        if writer:
            writer.close()


class _LogToJsonl(TrainerCallback):
    """Passes the trainer's log lines on to our metrics file and log."""

    def __init__(self, writer: MetricsWriter):
        self._writer = writer

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **unused: Any,
    ) -> None:
        if logs and "loss" in logs:
            row = {"sft/loss": float(logs["loss"])}
            if "mean_token_accuracy" in logs:
                row["sft/token_accuracy"] = float(logs["mean_token_accuracy"])
            self._writer.log(state.global_step, row)


def _kind(model: PreTrainedModel) -> str:
    if not isinstance(model, HybridForCausalLM):
        return type(model).__name__
    return "layers " + "".join("K" if kind == "linear_attention" else "A" for kind in layer_kinds(model.config))
