"""The training loop every task shares.

Notable choices:
- A task is an objective, an `nn.Module` whose forward takes a batch and a generator and returns the loss and figures to
  log, and a function from a batch's number to the batch. Random numbers come from a generator seeded by (seed, step,
  micro-batch, process), so there is no hidden state: a resumed run that is counted in steps ends with the same bits.
- Masters are fp32; the objective runs under bf16 autocast where the device is good at it, and the reason is logged.
- The clock counts over resumes. SIGTERM and SIGINT write a checkpoint and end the run cleanly.
- Steps with a gradient that is not finite are skipped and counted; many in a row end the run with an error.
- With several processes each holds the whole module and gradients are averaged (DDP), or with `fsdp` each holds a part
  (`shots.runtime.shard`); checkpoints are the same files either way.
- MFU is measured against a large matrix product timed on the same device when the run starts.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shots.errors import ShotsError
from shots.runtime.budget import TimeBudget
from shots.runtime.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from shots.runtime.device import pick_device, pick_dtype
from shots.runtime.optim import (
    OPTIMIZERS,
    MovingAverage,
    Optimizer,
    parameter_groups,
    set_learning_rate,
    warmup_stable_decay,
)
from shots.runtime.runlog import RunLog
from shots.runtime.shard import gathered, load_whole, shard, spread
from shots.runtime.speed import peak_flops

MAX_SKIPPED_IN_A_ROW = 50
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


@dataclass(frozen=True)
class LoopConfig:
    """How long and how a run trains. At least one of `steps` and `time_budget` (seconds) must be set.

    optimizer: "adamw", or "muon" for the tasks that name their hidden matrices. decay: share of the run over which the
    learning rate falls to `floor` times its height. threads: None leaves torch's choice. device, dtype: None chooses.
    fsdp: with several processes spread the weights over them, for modules too large to be held by each.
    log_every, checkpoint_every: steps; checkpoint_seconds: a checkpoint at least that often by the clock.
    """

    steps: int | None = None
    time_budget: float | None = None
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay: float = 0.25
    floor: float = 0.02
    clip: float = 1.0
    accumulate: int = 1
    ema: float = 0.999
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    fsdp: bool = False
    log_every: int = 50
    checkpoint_every: int = 1000
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.steps is None and self.time_budget is None:
            raise ShotsError("loop: set steps, time_budget (seconds), or both")
        for name in ("steps", "time_budget"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ShotsError(f"loop.{name}: {value} must be above zero")
        if self.optimizer not in OPTIMIZERS:
            raise ShotsError(f"loop.optimizer: {self.optimizer!r} is unknown; known are {', '.join(OPTIMIZERS)}")
        if self.accumulate < 1:
            raise ShotsError(f"loop.accumulate: {self.accumulate} must be 1 or more")


@dataclass
class Progress:
    """Where a run stands. `finished` is False when a signal ended it early."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    skipped: int = 0
    finished: bool = False


@dataclass
class Processes:
    """This process among those that `accelerate launch` or `torchrun` started; one alone otherwise."""

    rank: int = 0
    count: int = 1
    accelerator: Any = None

    @classmethod
    def current(cls, device: str | None) -> Processes:
        """Reads WORLD_SIZE; only with several processes is accelerate imported."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        # Some steps leave parameters without a gradient: the label heads once their weight is zero, a frozen encoder.
        spare = DistributedDataParallelKwargs(find_unused_parameters=True)
        accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[spare])
        return cls(accelerator.process_index, accelerator.num_processes, accelerator)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module that averages gradients over processes."""
        return module if self.accelerator is None else self.accelerator.prepare_model(module)

    def agree(self, value: bool, device: torch.device) -> bool:
        """True on every process when it is true on any."""
        if self.accelerator is None:
            return value
        return bool(self.accelerator.reduce(torch.tensor(float(value), device=device), reduction="sum").item() > 0)


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of giving it back: activations are large, and on a CPU the page faults of
    taking it anew each step cost about a third of the time. Other C libraries are left as they are."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; the old handlers come back afterwards."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Prefetch:
    """Makes batch n + 1 in a thread while batch n is trained on."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._number: int | None = None
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def _run(self, number: int) -> None:
        try:
            self._result = self._make(number)
        except BaseException as error:  # handed to the thread that asks for the batch
            self._error = error

    def get(self, number: int, following: int) -> Any:
        """Batch `number`; starts making batch `following`."""
        if self._number != number:
            self.close()
            self._start(number)
        assert self._thread is not None
        self._thread.join()
        if self._error is not None:
            raise self._error
        result = self._result
        self._start(following)
        return result

    def _start(self, number: int) -> None:
        self._number, self._result = number, None
        self._thread = threading.Thread(target=self._run, args=(number,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the batch in the making."""
        if self._thread is not None:
            self._thread.join()
        self._thread, self._number = None, None


def run_loop(
    config: LoopConfig,
    objective: nn.Module,
    averaged: nn.Module,
    batches: Callable[[int], Any],
    out: Path,
    *,
    groups: list[dict[str, Any]] | None = None,
    units: Sequence[nn.Module] = (),
    count: Callable[[Any], tuple[int, float]] = lambda batch: (len(batch), 0.0),
    to_device: Callable[[Any, torch.device], Any] = lambda batch, device: batch.to(device),
    every_log: Callable[[Progress, MovingAverage], dict[str, Any]] | None = None,
    log: RunLog | None = None,
) -> tuple[Progress, MovingAverage]:
    """Train `objective` in `out` (checkpoints, log.jsonl), resuming from its latest checkpoint.

    objective(batch, generator) -> (loss, {name: figure}). averaged: the module inside whose EMA is kept. batches: batch
    number -> batch, the same for the same number. groups: of parameters; all of the objective's by default. units:
    parts of the objective that `config.fsdp` gathers one at a time, its blocks.
    count: batch -> (samples, floating-point operations of a training step on it). every_log: extra figures to log, such
    as sample films written. Returns where the run ended and the moving average.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    processes = Processes.current(config.device)
    device = processes.accelerator.device if processes.accelerator is not None else pick_device(config.device)
    dtype, reason = pick_dtype(device, config.dtype)
    log = log or RunLog(out / "log.jsonl" if processes.rank == 0 else None, quiet=processes.rank > 0)
    if device.type == "cpu":
        _keep_freed_memory()
    objective.to(device).train()
    sharded = config.fsdp and processes.count > 1
    if sharded:
        if groups is not None or config.optimizer != "adamw":
            raise ShotsError(
                "loop.fsdp: this task names its own groups of parameters, or its optimizer is not adamw; leave fsdp out"
            )
        shard(objective, units, device)
    made = OPTIMIZERS[config.optimizer]
    optimizer = made(groups or parameter_groups(objective, config.weight_decay), config.learning_rate)
    average = MovingAverage(averaged, config.ema)
    progress = Progress()
    found = latest_checkpoint(out)
    if found is not None:
        state = load_checkpoint(found)
        load_whole(objective, state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        if sharded:
            spread(optimizer)
        average.load_state_dict(state["ema"])
        progress = Progress(**state["progress"])
        progress.finished = False
        torch.set_rng_state(state["rng"])
        log.write(event="resumed", step=progress.step, checkpoint=str(found))
    peak = peak_flops(device, dtype) if count is not None else 0.0
    log.write(
        event="start",
        step=progress.step,
        device=str(device),
        dtype=str(dtype),
        reason=reason,
        threads=torch.get_num_threads(),
        processes=processes.count,
        fsdp=sharded,
        peak_gflops=peak / 1e9,
        parameters=sum(parameter.numel() for parameter in objective.parameters()),
    )
    wrapped = objective if sharded else processes.wrap(objective)
    budget = TimeBudget(None if config.time_budget is None else config.time_budget - progress.seconds)
    before, last_save = progress.seconds, time.monotonic()
    window: dict[str, Any] = {"begin": time.monotonic(), "samples": 0, "flops": 0.0, "figures": []}
    skipped_in_a_row = 0

    def done() -> float:
        """Share of the run that is behind us."""
        shares = [0.0]
        if config.steps is not None:
            shares.append(progress.step / config.steps)
        if config.time_budget is not None:
            shares.append((before + budget.elapsed) / config.time_budget)
        return min(1.0, max(shares))

    def save() -> None:
        nonlocal last_save
        last_save = time.monotonic()
        if processes.rank == 0 or sharded:  # each process has a part of what is spread
            parts = {
                "objective": objective.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": average.state_dict(),
            }
            state = {**(gathered(parts) if sharded else parts), "progress": vars(progress)}
            if processes.rank == 0:
                save_checkpoint(out, progress.step, {**state, "rng": torch.get_rng_state()})

    prefetch = Prefetch(batches)
    with _stop_signals() as stop:
        while not processes.agree(stop.is_set() or done() >= 1.0, device):
            share = done()
            set_learning_rate(
                optimizer,
                config.learning_rate
                * warmup_stable_decay(progress.step, share, config.warmup_steps, config.decay, config.floor),
            )
            for micro in range(config.accumulate):
                number = (progress.step * config.accumulate + micro) * processes.count + processes.rank
                batch = prefetch.get(number, number + processes.count)
                generator = torch.Generator().manual_seed((config.seed * 1_000_003 + number) % 2**63)
                samples, flops = count(batch)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss, figures = wrapped(to_device(batch, device), generator)
                (loss / config.accumulate).backward()
                window["samples"] += samples * processes.count
                window["flops"] += flops
                progress.samples += samples * processes.count
                window["figures"].append({"loss": loss.detach(), **figures})
            norm = gathered(torch.nn.utils.clip_grad_norm_(objective.parameters(), config.clip))
            if torch.isfinite(norm):
                optimizer.step()
                average.update(averaged, progress.step)
                skipped_in_a_row = 0
            else:
                progress.skipped += 1
                skipped_in_a_row += 1
                if skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                    raise ShotsError(
                        f"loop: {skipped_in_a_row} steps in a row had gradients that are not finite; "
                        "lower loop.learning_rate or use loop.dtype=fp32"
                    )
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            progress.seconds = before + budget.elapsed
            if progress.step % config.log_every == 0:
                extra = every_log(progress, average) if every_log is not None and processes.rank == 0 else {}
                _write_window(log, window, progress, norm, optimizer, peak, extra)
                window = {"begin": time.monotonic(), "samples": 0, "flops": 0.0, "figures": []}
            due = progress.step % config.checkpoint_every == 0
            late = time.monotonic() - last_save > config.checkpoint_seconds
            if due or (processes.agree(late, device) if sharded else late):  # all save together, or wait forever
                save()
    prefetch.close()
    progress.finished = done() >= 1.0
    save()
    log.write(event="end", step=progress.step, finished=progress.finished, seconds=progress.seconds)
    return progress, average


def _write_window(
    log: RunLog,
    window: dict[str, Any],
    progress: Progress,
    norm: Tensor,
    optimizer: Optimizer,
    peak: float,
    extra: dict[str, Any],
) -> None:
    """One log line: the mean of every figure since the last one, rates, FLOPs and MFU."""
    seconds = max(1e-9, time.monotonic() - window["begin"])
    names = dict.fromkeys(name for figures in window["figures"] for name in figures)
    means = {}
    for name in names:
        values = [
            torch.as_tensor(figures[name], dtype=torch.float32).cpu()
            for figures in window["figures"]
            if name in figures
        ]
        means[name] = torch.stack(values).mean().item()
    log.write(
        step=progress.step,
        **means,
        grad_norm=norm.item(),
        lr=optimizer.param_groups[0]["lr"],
        samples=progress.samples,
        samples_per_second=window["samples"] / seconds,
        gflops=window["flops"] / seconds / 1e9,
        mfu=window["flops"] / seconds / peak,
        skipped=progress.skipped,
        seconds=progress.seconds,
        **extra,
    )
