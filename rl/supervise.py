"""Supervised training on worked solutions, with TRL's SFTTrainer; cut short, it goes on from its last checkpoint."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, disable_progress_bars
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig as TRLSFTConfig
from trl import SFTTrainer

from deltarl.kernels.precision import without_sampler
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.rl.config import SFTConfig
from deltarl.rl.jsonl import truncate_after
from deltarl.rl.master_weights import MASTERS, hold_masters, masters
from deltarl.rl.metrics import METRICS_FILE, MetricsWriter
from deltarl.rl.problem_set import Demonstration
from deltarl.rl.ranks import on_cpu, rank_state

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # of the training under way, in its folder
NOT_LEARNED = -100  # the label of a prompt's token


def supervise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    config: SFTConfig,
    folder: Path,
    seed: int,
) -> None:
    """Trains `model` in place on the completions of the demonstrations, each with an end of sequence after it.

    It learns in fp32, and its `state_dict` has the dtypes it came in afterwards; a hybrid computes in these too.
    Metrics go to `folder/metrics.jsonl`, and a checkpoint to `folder/checkpoints` every `config.checkpoint_interval`
    steps. If there is one, of the same arguments, training goes on from it, bit for bit as if never cut short.
    """
    state = rank_state()
    # One rank looks for all: another may see the folder a moment later.
    (resumed,) = broadcast_object_list([newest_checkpoint(folder) if state.is_main_process else None])
    if state.is_main_process:
        if resumed is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            log.info("the warm start goes on from step %d", _step(resumed))
            truncate_after(folder / METRICS_FILE, _step(resumed))
    stored = {name: x.dtype for name, x in model.state_dict().items()}
    if isinstance(model, HybridForCausalLM):
        hold_masters(model, keep_rounded=True)
    else:
        model.float()
    disable_progress_bars()
    needed = config.steps * config.batch_size
    writer = MetricsWriter(folder, {}, "disabled", "", "sft") if state.is_main_process else None
    args = TRLSFTConfig(
        output_dir=str(folder / CHECKPOINTS),
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
        save_steps=config.checkpoint_interval,
        save_total_limit=2,  # the newest may be half written
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
        trainer = _Trainer(
            model=model,
            args=args,
            train_dataset=_encoded(demonstrations[:needed], tokenizer),
            processing_class=tokenizer,
            callbacks=[_LogToJsonl(writer)] if writer else [],
        )
        trainer.remove_callback(PrinterCallback)  # its lines are ours, in another format
        with without_sampler():
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        if not isinstance(model, HybridForCausalLM):
            for name, x in model.state_dict(keep_vars=True).items():
                x.data = x.data.to(stored[name])
    finally:
        if writer:
            writer.close()


def _encoded(demonstrations: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Tokens and labels. A completion is tokenized by itself, as it is sampled after the prompt's tokens."""

    def encode(batch: Mapping[str, Sequence[Any]]) -> dict[str, list[list[int]]]:
        completions = tokenizer(batch["completion"], add_special_tokens=False)["input_ids"]
        pairs = [(p, [*c, tokenizer.eos_token_id]) for p, c in zip(batch["prompt_ids"], completions, strict=True)]
        return {
            "input_ids": [p + c for p, c in pairs],
            "labels": [[NOT_LEARNED] * len(p) + c for p, c in pairs],
        }

    rows = Dataset.from_list([d._asdict() for d in demonstrations])
    return rows.map(encode, batched=True, remove_columns=rows.column_names)


def newest_checkpoint(folder: Path) -> Path | None:
    """The last one, written to its end, of the training under way in `folder`."""
    return max((path.parent for path in folder.glob(f"{CHECKPOINTS}/*/{MASTERS}")), key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class _Trainer(SFTTrainer):
    """Its checkpoints end with the fp32 weights, which the model in them has rounded."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        if step == self.state.max_steps:
            return  # the trainer would do one more step from there
        checkpoint = Path(self._get_output_dir(trial)) / f"checkpoint-{step}"
        failed = self._failure_of(partial(super()._save_checkpoint, model, trial))
        failed = failed or self._failure_of(partial(self._complete, checkpoint))
        if failed and self.args.should_save:
            log.warning("the warm start goes on without a checkpoint of step %d: %s", step, failed)
            shutil.rmtree(checkpoint, ignore_errors=True)  # room, and not one of those that are kept

    @staticmethod
    def _failure_of(write: Callable[[], None]) -> str | None:
        """What kept one of the ranks from writing, if anything did; the same to all of them."""
        error = None
        try:
            write()
        except (torch.AcceleratorError, torch.OutOfMemoryError, distributed.DistError):
            raise
        except (OSError, RuntimeError, SafetensorError) as found:  # torch's writer has RuntimeErrors for a full disk
            error = str(found)
        return next((said for said in gather_object([error]) if said), None)

    def _complete(self, checkpoint: Path) -> None:
        if not self.args.should_save:  # the main rank does
            return
        file = checkpoint / MASTERS
        temporary = file.with_suffix(".tmp")
        save_file(self._masters(), temporary)
        temporary.rename(file)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = load_file(Path(resume_from_checkpoint) / MASTERS)
        for name, master in self._masters().items():
            master.copy_(saved[name])

    def _masters(self) -> dict[str, Tensor]:
        assert isinstance(self.model, nn.Module)  # given to it
        return masters(self.model)


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
