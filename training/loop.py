"""The loop: recipe -> encoder, method, views, steps, checkpoints, finished run. It names no method.

Everything random in step s is drawn from generators seeded by (seed, s), for the whole global batch: a run needs no
random state to resume from, and two processes draw what one would.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import timm.optim
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from torch import Tensor, nn

from sslzoo.data import ImageSet
from sslzoo.encoder import create
from sslzoo.provenance import run_facts

from . import checkpoint
from .allocation import freed_memory_kept
from .blocks import sync_batchnorm
from .checkpoint import CheckpointError
from .method import Method, find_method
from .publish import write_run
from .recipe import Plan, RecipeError, Settings, make_plan
from .seeding import ORDER, generator_of, seed_of
from .single_image import open_crops
from .small_maps import speed_up_small_maps
from .source import Batch, Source, open_source
from .sweep import Sweeps, own_view
from .watch import Watch


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `pretrain` ended.

    Attributes:
        folder: The run.
        finished: True when all steps are done and the encoder is written.
        step: Steps done so far.
        total: Steps of the whole run.
        signal: The signal that stopped it, or None.
    """

    folder: Path
    finished: bool
    step: int
    total: int
    signal: int | None = None


def pretrain(
    method: str,
    data: str | Path,
    out: str | Path,
    *,
    recipe: str | Path = "imagenet",
    resume: bool = False,
    time_limit: float | None = None,
    monitor: str | Path | None = None,
    device: str | None = None,
    tensorboard: bool = False,
    progress: bool = True,
    **overrides: Any,
) -> Outcome:
    """Pretrain an encoder on unlabelled images.

    Args:
        method: Name of a method: a file of `methods/`.
        data: Folder of images (flat or nested), `.npy` / `.npz` array, or a saved Hugging Face data set; with
            `single_image=True`, one photograph.
        out: Folder of the run: checkpoint and log and, once finished, config.json, model.safetensors and README.md.
        recipe: Name of a recipe of the package, or a TOML file.
        resume: Go on from the run's checkpoint, if there is one.
        time_limit: Seconds after which to save and stop.
        monitor: Labelled folder (one sub-folder a class), never trained on, for kNN while training.
        device: "cpu" or "cuda"; by default what there is.
        tensorboard: Also write RUN/tensorboard.
        progress: Show a bar and messages.
        **overrides: Any setting of the run or the method; see `recipe.Settings`.

    Raises:
        RecipeError: A setting is unknown or out of range.
        CheckpointError: `out` holds a run and `resume` is False, or a run with other settings or data.
        NonFiniteLossError: The loss became infinite or NaN.
    """
    started = time.monotonic()
    run = Run(
        make_plan(method, recipe, overrides), Path(data), Path(out), resume=resume, device=device, progress=progress
    )
    watch = Watch(run.folder, run.source, monitor, run.accelerator.device, main=run.main, tensorboard=tensorboard)
    on_cpu = run.accelerator.device.type == "cpu"
    with _signals() as received, freed_memory_kept() if on_cpu else nullcontext():
        deadline = math.inf if time_limit is None else started + time_limit
        run.train(watch, lambda: bool(received) or time.monotonic() > deadline, progress=progress)
        run.list_skipped()
    finished = run.step == run.total
    if finished:
        run.finish()
    return Outcome(run.folder, finished, run.step, run.total, received[0] if received else None)


class Run:
    """One pretraining run: everything between a plan and its finished folder."""

    def __init__(
        self, plan: Plan, data: Path, folder: Path, *, resume: bool, device: str | None = None, progress: bool = True
    ) -> None:
        self.plan, self.folder, self.data = plan, folder, data
        settings = plan.settings
        # bf16 needs no loss scaling, so autocast is ours and the accelerator can be made again with another precision
        # buffers need no broadcast: synchronised batch norm, and labels, are computed alike in all processes
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
        self.accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[ddp])
        self.main = self.accelerator.is_main_process
        self.share = self._share(settings)
        state = self._previous(resume)
        store_size = settings.store_size or round(1.5 * settings.image_size)
        images: Path | ImageSet = data
        if settings.single_image:
            images = open_crops(data, settings.crops, size=store_size, seed=settings.seed)
        self.source: Source = open_source(images, store_size=store_size, device=self.accelerator.device)
        self.steps_per_epoch = max(1, len(self.source) // settings.batch_size)
        self.total = settings.epochs * self.steps_per_epoch
        self.step, self.seconds = 0, 0.0
        self._build()
        if state is not None:
            self._restore(state)
        if self.main:
            folder.mkdir(parents=True, exist_ok=True)
            self.source.write_skipped(folder, add=state is not None)
        if progress and self.main:
            print(self.describe(), file=sys.stderr)

    def describe(self) -> str:
        """One paragraph on what is about to happen."""
        s, n = self.plan.settings, len(self.source)
        skipped = f", {len(self.source.skipped)} skipped (see skipped.csv)" if self.source.skipped else ""
        start = f", going on at step {self.step}" if self.step else ""
        kind = "crops" if s.single_image else "images"
        early = f" (until step {math.ceil(s.early_part * self.total)}: {s.early_size} px)" if s.early_size else ""
        return (
            f"{self.plan.method}: {s.arch} at {s.image_size} px{early} on {n} {kind} of {self.data}{skipped}; "
            f"{s.epochs} epochs of {self.steps_per_epoch} steps of {s.batch_size} images, "
            f"{self.accelerator.num_processes} x {self.accelerator.device.type}, {s.precision}, seed {s.seed}{start} "
            f"-> {self.folder}"
        )

    def _share(self, settings: Settings) -> int:
        """Images that one process takes in one part of a batch."""
        parts = settings.accumulate * self.accelerator.num_processes
        if settings.batch_size % parts:
            raise RecipeError(
                f"batch_size = {settings.batch_size} cannot be shared by {self.accelerator.num_processes} processes x "
                f"accumulate = {settings.accumulate}. Use a multiple of {parts}."
            )
        return settings.batch_size // parts

    def _previous(self, resume: bool) -> dict[str, Any] | None:
        """The checkpoint to go on from, or None to start."""
        state = checkpoint.load(self.folder)
        if state is None:
            return None
        if not resume:
            raise CheckpointError(f"{self.folder} already holds a run. Go on with --resume, or choose another folder.")
        mine, theirs = self.plan.to_dict(), state["plan"]
        changed = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
        if changed:
            what = "; ".join(f"{key} was {theirs.get(key)!r}, now {mine.get(key)!r}" for key in sorted(changed))
            raise CheckpointError(f"{self.folder} was started with other settings: {what}. Resume with the same ones.")
        return state

    def _build(self) -> None:
        settings = self.plan.settings
        scale = settings.early_size / settings.image_size
        self.early_views = [replace(v, size=round(v.size * scale)) for v in self.plan.views if settings.early_size]
        torch.manual_seed(settings.seed)
        kind = find_method(self.plan.method)
        encoder = create(settings.arch, seed=settings.seed, image_size=settings.image_size, lightness=kind.LIGHTNESS)
        self.config = encoder.config
        if not kind.LIGHTNESS:  # users' images are to be as those trained on
            normalisation = {"mean": list(self.plan.views[0].mean), "std": list(self.plan.views[0].std)}
            self.config["pretrained_cfg"].update(normalisation)
        self.method = kind(encoder.model.train(), **self.plan.method_settings)
        self.method.begin(len(self.source))
        if self.accelerator.num_processes > 1:
            sync_batchnorm(self.method, self.accelerator.device)
        if self.accelerator.device.type == "cpu":
            speed_up_small_maps(self.method)
        self.method.to(self.accelerator.device).to(memory_format=torch.channels_last)
        self.model, self.optimizer = self.accelerator.prepare(self.method, make_optimizer(self.method, settings))
        self.sweeps = Sweeps(
            self.source, self.plan.views[0], settings, self.folder, self.accelerator.num_processes,
            self.accelerator.process_index, self.accelerator.device, self.steps_per_epoch, self.total,
        )  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        if state["images"] != len(self.source):
            raise CheckpointError(
                f"{self.folder} was trained on {state['images']} images, {self.data} now has {len(self.source)}. "
                "Resume on the same data, or start a new run."
            )
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint; all processes must call it at the same step."""
        if self.main:
            state = {
                "plan": self.plan.to_dict(),
                "images": len(self.source),
                "step": self.step,
                "seconds": self.seconds,
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            checkpoint.save(self.folder, state)
        self.accelerator.wait_for_everyone()

    def train(self, watch: Watch, stop: Callable[[], bool], *, progress: bool) -> None:
        """Steps until the end or until `stop()`; then saves."""
        settings = self.plan.settings
        every = settings.checkpoint_every or self.steps_per_epoch
        watch.start(self.step, self.total, self.steps_per_epoch, settings.batch_size, progress=progress and self.main)
        self.model.train()
        while self.step < self.total:
            for out in self._epoch():
                epoch_ends = self.step % self.steps_per_epoch == 0
                if self.step % settings.log_every == 0 or epoch_ends:
                    self._check(out["loss"])
                    watch.log(self.step, self._reduced(out), out["embedding"], self._lr(self.step - 1))
                if epoch_ends and (self.step // self.steps_per_epoch) % settings.monitor_every == 0 and self.main:
                    watch.look(self.step, self.method.encoder_to_publish(), self.config)
                stopping = self._agree(stop())
                if stopping or self.step % every == 0 or self.step == self.total:
                    self._check(out["loss"])
                    self.seconds += watch.lap()
                    self.save()
                if stopping:
                    return watch.close()
        return watch.close()

    def _epoch(self) -> Iterator[dict[str, Tensor]]:
        """The rest of the current epoch, a step at a time."""
        epoch, first = divmod(self.step, self.steps_per_epoch)
        batches = self._batches(epoch, first)
        for _ in range(first, self.steps_per_epoch):
            yield self._step(batches)

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Batch]]:
        """Positions and images of this process for the parts of an epoch's batches, from step `first` on.

        A generator: the method chooses the order when the first batch is asked for, after its `prepare`.
        """
        settings = self.plan.settings
        generator = generator_of(settings.seed, epoch, ORDER)
        order = self.method.order(self.steps_per_epoch * settings.batch_size, generator)
        if order is None:
            order = epoch_order(len(self.source), settings.batch_size, settings.seed, epoch)
        # (steps, parts of a batch, processes, images): each process takes its column of every part
        mine = order.view(self.steps_per_epoch, settings.accumulate, self.accelerator.num_processes, self.share)
        mine = mine[:, :, self.accelerator.process_index].reshape(-1)
        yield from self.source.loader(mine, self.share, start=first * settings.accumulate * self.share)

    def _step(self, batches: Iterator[tuple[Tensor, Batch]]) -> dict[str, Tensor]:
        """One optimizer step. Returns what the method said of the last part of the batch."""
        settings = self.plan.settings
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(self.step, constant=group["constant_lr"])
        torch.manual_seed(seed_of(settings.seed, self.step, self.accelerator.process_index))  # dropout and the like
        self._prepare()
        for part in range(settings.accumulate):
            index, batch = next(batches)
            views = self._views(batch, part)
            last = part == settings.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                    out: dict[str, Tensor] = self.model(views, index.to(self.accelerator.device))
                self.accelerator.backward(out["loss"] / settings.accumulate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(self.step / self.total)
        self.step += 1
        return out

    def _prepare(self) -> None:
        """Let the method label the data set, where it is due."""
        self.method.prepare(self.step, self.sweeps)

    def _views(self, batch: Batch, part: int) -> list[Tensor]:
        """The views of this process's images, with parameters drawn for the images of all processes."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        settings, views = self.plan.settings, []
        early = self.step / self.total < settings.early_part
        for number, view in enumerate(self.early_views if early else self.plan.views):
            generator = generator_of(settings.seed, self.step, part, number)
            views.append(own_view(view, batch, generator, processes, rank, self.method.part(number)))
        generator = generator_of(settings.seed, self.step, part, len(views))
        if (draws := self.method.draw(self.share * processes, generator)) is not None:
            views.append(draws[rank * self.share : (rank + 1) * self.share].to(batch.images.device))
        return views

    def _lr(self, step: int, *, constant: bool = False) -> float:
        settings = self.plan.settings
        peak = settings.peak_lr
        return peak if constant else peak * lr_factor(step, self.total, settings.warmup_epochs * self.steps_per_epoch)

    def _reduced(self, out: dict[str, Tensor]) -> dict[str, float]:
        scalars = {k: v.detach().float() for k, v in out.items() if v.ndim == 0}
        return {k: float(v) for k, v in self.accelerator.reduce(scalars, "mean").items()}

    def _check(self, loss: Tensor) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the loss is {value} at step {self.step} of {self.total}, lr {self._lr(self.step - 1):.4g}. "
                f"Try a smaller lr, a longer warmup_epochs, or precision=no; "
                f"{self.folder} keeps its last good checkpoint."
            )

    def _agree(self, stop: bool) -> bool:
        """True on all processes as soon as one of them wants to stop."""
        if self.accelerator.num_processes == 1:
            return stop
        return bool(self.accelerator.reduce(torch.tensor(float(stop), device=self.accelerator.device), "sum") > 0)

    def list_skipped(self) -> None:
        """Add to skipped.csv the images whose damage showed when they were decoded, by whichever process."""
        found = gather_object(self.source.skipped)
        if self.main:
            self.source.write_skipped(self.folder, found, add=True)

    def finish(self) -> None:
        """Write the encoder, in the zoo's layout, beside the log."""
        if self.main:
            facts = {
                "images": len(self.source),
                "steps": self.total,
                "seconds": round(self.seconds),
                **run_facts(self.accelerator.device, self.accelerator.num_processes),
            }
            write_run(self.folder, self.method.encoder_to_publish(), self.config, self.plan.to_dict(), self.data, facts)
        self.accelerator.wait_for_everyone()


def make_optimizer(method: Method, settings: Settings) -> torch.optim.Optimizer:
    """SGD, LARS or Adam in groups: weight decay (not norms, biases) x scheduled or constant rate x momentum or not."""
    constant = {id(p) for module in method.constant_lr() for p in module.parameters()}
    without = {id(p) for module in method.without_momentum() for p in module.parameters()}
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for p in method.parameters():
        if p.requires_grad:
            groups.setdefault((p.ndim > 1, id(p) in constant, id(p) in without), []).append(p)
    none = {"betas": (0.0, settings.beta2)} if settings.optimizer == "adam" else {"momentum": 0.0}
    tables = [
        {"params": params, "weight_decay": settings.weight_decay if decay else 0.0, "constant_lr": fixed}
        | (none if still else {})
        for (decay, fixed, still), params in groups.items()
    ]
    lr = settings.peak_lr
    if settings.optimizer == "sgd":
        return torch.optim.SGD(tables, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov)
    if settings.optimizer == "adam":
        return torch.optim.Adam(tables, lr=lr, betas=(settings.momentum, settings.beta2))
    # timm's LARS leaves groups without weight decay unadapted: norms and biases take plain SGD steps, as the papers say
    return timm.optim.Lars(
        tables,
        lr=lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        trust_coeff=settings.trust_coefficient,
        trust_clip=settings.trust_clip,
    )


def lr_factor(step: int, total: int, warmup: float) -> float:
    """Learning rate of a step as a part of its peak: linear warm-up, then half a cosine down to 0.

    Args:
        step: 0 for the first one.
        total: Steps of the run.
        warmup: Steps of warm-up.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def epoch_order(images: int, batch_size: int, seed: int, epoch: int) -> Tensor:
    """One epoch's image positions: whole batches of a permutation, of several where there is less than a batch."""
    steps = max(1, images // batch_size)
    generator = generator_of(seed, epoch, ORDER)
    rounds = -(-steps * batch_size // images)
    return torch.cat([torch.randperm(images, generator=generator) for _ in range(rounds)])[: steps * batch_size]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one kills at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for s, handler in previous.items():
            signal.signal(s, handler)

    try:
        previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals go elsewhere
        yield received
        return
    try:
        yield received
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
