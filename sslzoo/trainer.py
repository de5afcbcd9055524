"""transformers' Trainer, set up for `finetune`. Importing it takes seconds, so that only a run that starts does it."""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

SAVE_SECONDS = 120.0  # between checkpoints within an epoch: more is never lost


class FinetuneTrainer(Trainer):  # type: ignore[misc]
    """Trainer that leaves the rest of an epoch out of training, not of validation, and prints nothing itself.

    Validation is the model's own `validate`. Of epochs with the same best metric, which few validation images often
    give, it keeps that of the lowest loss.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Trainer's own, of all images: its `dataloader_drop_last` is for either loader."""
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's own, of one model: that of the first process, which is saved.

        DDP hands out batch norm's statistics before a step; since the last one each process has its own.
        """
        for buffer in self.model.buffers():
            broadcast(buffer)
        figures: dict[str, float] = super().evaluate(*args, **kwargs)
        return figures

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """What the model says of a batch of validation images, and what it should say."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            said: tuple[Tensor | None, Tensor, Tensor] = self.accelerator.unwrap_model(model).validate(**inputs)
        return said

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        best, step = self.state.best_metric, self.state.best_global_step
        if super()._determine_best_metric(metrics, trial):
            return True
        if metrics.get(f"eval_{self.args.metric_for_best_model}") != best:
            return False
        losses = {entry["step"]: entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry}
        if metrics.get("eval_loss", float("inf")) >= losses.get(step, float("inf")):
            return False
        self.state.best_global_step = self.state.global_step
        return True


class Counting:
    """Trainer's `compute_metrics`, batch by batch: a model's meter, a new one for each pass over the images."""

    def __init__(self, new_meter: Callable[[], Any]) -> None:
        self.new_meter = new_meter
        self.meter: Any = None

    def __call__(self, prediction: Any, compute_result: bool) -> dict[str, float]:
        """Count a batch; returns the figures after the last one."""
        if self.meter is None:
            self.meter = self.new_meter()
        self.meter.update(prediction.predictions, prediction.label_ids)
        if not compute_result:
            return {}
        figures: dict[str, float] = self.meter.compute()
        self.meter = None
        return figures


def arguments(
    folder: str, *, epochs: int, steps: int | None, warmup_steps: int, batch_size: int, lr: float, seed: int,
    metric: str | None, bf16: bool, device: str | None, num_workers: int, report_to: str | list[str], world: int,
) -> TrainingArguments:  # fmt: skip
    """Trainer's settings.

    Args:
        folder: Where checkpoints and event files go.
        epochs: Passes over the images, unless `steps` says how long to train.
        steps: See `epochs`.
        warmup_steps: Of the learning rate, which then falls as a cosine.
        batch_size: Images a step of each process.
        lr: At its peak.
        seed: Of the order of images, and of dropout.
        metric: What tells the best epoch, which is kept; None without validation images.
        bf16: Autocast.
        device: "cpu"; anything else is the accelerator, if there is one.
        num_workers: Processes that read images.
        report_to: Loggers, as Trainer knows them.
        world: Processes that train.
    """
    made = TrainingArguments(
        output_dir=folder, num_train_epochs=epochs, max_steps=steps or -1,
        per_device_train_batch_size=batch_size, per_device_eval_batch_size=batch_size, dataloader_drop_last=True,
        batch_eval_metrics=True,  # predictions of all validation images need not fit into memory
        learning_rate=lr, lr_scheduler_type="cosine", warmup_steps=warmup_steps, max_grad_norm=1.0,
        bf16=bf16, use_cpu=device == "cpu", seed=seed, data_seed=seed,
        eval_strategy="epoch" if metric else "no", logging_strategy="epoch", report_to=report_to, disable_tqdm=True,
        # processes have to save together, so that a clock of one will not do there
        save_strategy="epoch" if metric or world > 1 else "no", save_total_limit=1,
        load_best_model_at_end=metric is not None, metric_for_best_model=metric, greater_is_better=True,
        remove_unused_columns=False, dataloader_num_workers=num_workers,
        ddp_find_unused_parameters=False, log_level="error",  # its warnings are about clocks of file systems
    )  # fmt: skip
    made._n_gpu = min(made.n_gpu, 1)  # one process uses one GPU; Trainer would split batches among all that it sees
    made.dataloader_pin_memory = made.device.type == "cuda"
    return made


class Epochs(TrainerCallback):  # type: ignore[misc]
    """Tells the data set which epoch begins: accelerate's loaders do so only sometimes."""

    def __init__(self, samples: Dataset[Any]) -> None:
        self.samples: Any = samples

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The state counts epochs in fractions; a run may go on in the middle of one."""
        self.samples.set_epoch(int(state.epoch + 1e-6))


class Saving(TrainerCallback):  # type: ignore[misc]
    """Saves within long epochs too, by the clock."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint if the last one is old."""
        if args.world_size == 1 and time.monotonic() - self.saved >= SAVE_SECONDS:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock anew."""
        self.saved = time.monotonic()


class Bar(TrainerCallback):  # type: ignore[misc]
    """One progress bar over all steps, with the latest figures behind it."""

    def __init__(self, metric: str | None) -> None:
        self.metric = metric
        self.figures: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar, where an earlier run ended."""
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, unit="step", file=sys.stderr,
            disable=not state.is_world_process_zero,
        )  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move it on."""
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss of an epoch, and how it did on the validation images."""
        if "loss" in logs:
            self.figures |= {"epoch": f"{state.epoch:.0f}", "loss": f"{logs['loss']:.3f}"}
        if f"eval_{self.metric}" in logs:
            self.figures[f"val {self.metric}"] = f"{logs[f'eval_{self.metric}']:.1%}"
        self.bar.set_postfix(self.figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave it on the screen."""
        self.bar.close()
