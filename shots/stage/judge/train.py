"""Trains the judge on the stage, from nothing, on one CPU core or one GPU.

Notable choices:

- A worker process draws shots into a pool on disk while training runs on what is there; each shot is used many times,
  each time damaged otherwise (`augment`).
- What supervises most is dense: which colour of actor covers how much of each cell of each frame.
- Warm-up, stable, decay; the clock triggers the decay when there is a time budget.
- Every step's batch and damage follow from (seed, step), so a run resumed over a full pool ends as one never stopped.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from shots.errors import ShotsError
from shots.runtime.device import pick_dtype
from shots.runtime.loop import LoopConfig, Progress, run_loop
from shots.runtime.optim import MovingAverage
from shots.runtime.runlog import RunLog
from shots.runtime.weights import load_into, load_tensors, save_tensors, sha256_file

from ..render import render_film
from ..writer import write_film
from .augment import Batch, augment, mild, plain
from .cuts import cut_features, fit_cuts
from .model import FRAME_FACTS, SHOT_FACTS, SLOT_FACTS, JudgeConfig, JudgeNet
from .pool import CHECK_SEEDS, SHARD, Pool, fill, make_shard


@dataclass(frozen=True)
class JudgeRecipe:
    """What ``task: judge`` reads.

    out: run folder. pool: where rendered shots are kept; pool_size: how many are drawn, by `render_workers` processes
    (0 draws them before training begins), training starts at start_size. extra_pools: folders of more shards (round
    trips through a VAE: ``task: judge-pool``), extra_share of each batch. broken: share of a batch that is spoilt.
    cut_films: films that the cut head is fitted on (0: it stays as it is in `start`). check_size: held-out shots that
    are read every check_every steps. model: sizes that differ from JudgeConfig's. start: folder of a judge to go on
    from.
    """

    task: str
    out: Path
    pool: Path
    loop: LoopConfig
    batch: int = 32
    pool_size: int = 16384
    extra_pools: tuple[Path, ...] = ()
    extra_share: float = 0.3
    broken: float = 0.1
    render_workers: int = 1
    start_size: int = 512
    cut_films: int = 400
    check_size: int = 512
    check_every: int = 500
    model: dict[str, int] = field(default_factory=dict)
    start: Path | None = None


def losses(out: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Each part of the training loss; unknown labels (-1) count nowhere."""
    shares = batch.map  # (B, T, 11, g, g)
    weight = (1.0 + 5.0 * (1.0 - shares[:, :, 0])) * batch.mapped[:, None, None, None]  # (B, T, g, g)
    dense = -(shares * out["map"].log_softmax(2)).sum(2)  # (B, T, g, g)
    parts = {"map": (dense * weight).sum() / weight.sum().clamp_min(1.0)}

    shape = batch.slot[:, list(SLOT_FACTS).index("shape")]  # (B, 10)
    mass = shares[:, :, 1:].sum((-2, -1))  # (B, T, 10) cells
    target = torch.where(mass > 0.5, shape[:, None], torch.where(mass > 0, -1, torch.zeros_like(shape)[:, None]))
    target = torch.where(batch.mapped[:, None, None], target, -1)  # (B, T, 10)
    parts["frame_shape"] = _cross_entropy(out["frame/shape"], target, none_weight=0.2)
    for name in (n for n in FRAME_FACTS[1:] if f"frame/{n}" in out):  # where there is enough of an actor
        known = torch.where(target > 0, batch.slot[:, list(SLOT_FACTS).index(name), None], -1)  # (B, T, 10)
        parts[f"frame_{name}"] = _cross_entropy(out[f"frame/{name}"], known)

    for row, name in enumerate(SLOT_FACTS):
        parts[name] = _cross_entropy(out[f"slot/{name}"], batch.slot[:, row], 0.3 if name == "shape" else 1.0)
    for row, name in enumerate(SHOT_FACTS):
        parts[name] = _cross_entropy(out[f"shot/{name}"], batch.shot[:, row])
    known = batch.sound >= 0
    parts["sound"] = F.binary_cross_entropy_with_logits(out["sound"][known], batch.sound[known])
    return parts


LOSS_WEIGHT = {
    "frame_shape": 0.5, "frame_size": 0.3, "frame_surface": 0.3, "shape": 1.5, "action": 2.0, "camera": 1.5,
    "other": 0.5, "new_colour": 0.5,
}  # fmt: skip


def _cross_entropy(logits: Tensor, target: Tensor, none_weight: float = 1.0) -> Tensor:
    """Mean over what is known (target >= 0); index 0 weighs `none_weight`."""
    logits, target = logits.flatten(0, -2), target.flatten()
    weight = torch.where(target == 0, none_weight, 1.0) * (target >= 0)
    each = F.cross_entropy(logits, target.clamp_min(0), reduction="none")
    return (each * weight).sum() / weight.sum().clamp_min(1.0)


@torch.no_grad()
def count_right(model: JudgeNet, batch: Batch, dtype: torch.dtype) -> dict[str, tuple[int, int]]:
    """(Right, of) for each kind of known fact in a batch. `present` and `absent` are the colours found among those
    there and not there; `shape` and what else only an actor has is counted where an actor is."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        out = {k: v.cpu() for k, v in model(batch.frames.to(device), batch.seconds.to(device)).items()}
    found: dict[str, tuple[int, int]] = {"sound": (int((out["sound"] > 0).sum()), len(batch.sound))}
    for group, names, labels in (("slot", SLOT_FACTS, batch.slot), ("shot", SHOT_FACTS, batch.shot)):
        for row, name in enumerate(names):
            truth, said = labels[:, row], out[f"{group}/{name}"].argmax(-1)
            known = truth > 0 if name == "shape" else truth >= 0
            found[name] = (int((said == truth)[known].sum()), int(known.sum()))
            if name == "shape":
                found["present"] = (int((said > 0)[known].sum()), int(known.sum()))
                found["absent"] = (int((said == 0)[truth == 0].sum()), int((truth == 0).sum()))
    return found


def check(model: JudgeNet, pool: Pool, indices: NDArray[np.int64], chunk: int = 32) -> dict[str, float]:
    """Share of known facts read right, by kind (`count_right`), over the pool's shots as they are."""
    model.eval()
    dtype, _ = pick_dtype(next(model.parameters()).device)
    right: dict[str, NDArray[np.int64]] = {}
    for start in range(0, len(indices), chunk):
        for name, counted in count_right(model, plain(pool.batch(indices[start : start + chunk])), dtype).items():
            right[name] = right.get(name, np.zeros(2, np.int64)) + np.array(counted)
    model.train()
    return {name: float(hits / of) for name, (hits, of) in right.items() if of}


def cut_pairs(films: int, first_seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (P, 12) of all neighbouring frames of `films` films of three short shots, and which are cuts (P,). Half
    of the films are blurred and grained."""
    features, labels = [], []
    for seed in range(first_seed, first_seed + films):
        film = write_film(seed, shots=3, seconds=1.0 + 0.5 * (seed % 3), split="any")
        drawn = render_film(film, 64, 64, 12.0)
        frames = drawn.frames
        if seed % 2:
            rng = np.random.default_rng([seed, 5])
            x = frames.permute(0, 3, 1, 2).float() / 255.0
            frames = (mild(x, rng, cells=0.0) * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1)
        label = torch.zeros(len(frames) - 1, dtype=torch.bool)
        label[[b - 1 for b in drawn.boundaries]] = True
        features.append(cut_features(frames))
        labels.append(label)
    return torch.cat(features), torch.cat(labels)


def train_cuts(model: JudgeNet, films: int) -> dict[str, float]:
    """Fits the cut head on the stage; returns shares of held-out cuts found and of other pairs taken for cuts."""
    head = model.cuts.cpu()
    fit_cuts(head, *cut_pairs(films))
    features, is_cut = cut_pairs(max(1, films // 4), CHECK_SEEDS)
    with torch.no_grad():
        said = head(features) > 0
    head.to(model.stem.weight.device)
    return {"cuts_found": float(said[is_cut].float().mean()), "false_cuts": float(said[~is_cut].float().mean())}


def groups(model: JudgeNet, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for the optimizer: inner matrices and kernels marked ``"hidden"`` (first layers, heads and what tells
    places and slots apart are not), vectors undecayed. The cut head is fitted apart."""
    outer = ("stem", "colour", "slot_name", "seconds", "frame_", "slot_heads", "shot_heads", "sound", "place_")
    hidden, plain_, rest = [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith("cuts."):
            continue
        if parameter.ndim < 2:
            rest.append(parameter)
        elif name.startswith(outer) or name in ("glimpse.stem.weight", "glimpse.gather.weight"):
            plain_.append(parameter)
        else:
            hidden.append(parameter)
    return [
        {"params": hidden, "weight_decay": weight_decay, "hidden": True},
        {"params": plain_, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


class JudgeObjective(nn.Module):
    """The judge in training: a batch in, the weighed sum of its losses and each of them out."""

    def __init__(self, model: JudgeNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """All randomness is in the batch."""
        parts = losses(self.model(batch.frames, batch.seconds), batch)
        loss = torch.stack([LOSS_WEIGHT.get(name, 1.0) * part for name, part in parts.items()]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}


def train(recipe: JudgeRecipe) -> Path:
    """Runs the recipe, or the rest of it after a stop; returns the folder of `model.safetensors` and `config.json`,
    which are written when the run is through."""
    config = JudgeConfig(**recipe.model)
    torch.manual_seed(recipe.loop.seed)
    model = JudgeNet(config)
    if recipe.start is not None:
        load_into(model, {n: t.float() for n, t in load_tensors(recipe.start).items()}, f"judge at {recipe.start}")
    log = RunLog(recipe.out / "log.jsonl")
    log.write(event="recipe", recipe=json.loads(json.dumps(asdict(recipe), default=str)), flops_per_shot=model.flops())
    if recipe.loop.threads is not None:
        torch.set_num_threads(recipe.loop.threads)
    workers = _start_workers(recipe, config)
    try:
        pool, extras = Pool(recipe.pool), [Pool(folder) for folder in recipe.extra_pools]
        while pool.refresh() < min(recipe.start_size, recipe.pool_size):
            if not any(worker.is_alive() for worker in workers):
                raise ShotsError(f"pool: {recipe.pool} holds {len(pool)} shots, and nobody draws more; begin anew")
            time.sleep(1.0)
        held_out = _held_out(recipe, config)
        progress, average = run_loop(
            recipe.loop, JudgeObjective(model), model, _batches(recipe, pool, extras), recipe.out,
            groups=groups(model, recipe.loop.weight_decay), to_device=_to_device, log=log,
            count=lambda batch: (len(batch.frames), 3.0 * model.flops(len(batch.frames))),
            every_log=None if held_out is None else _looker(recipe, model, held_out),
        )  # fmt: skip
    finally:
        for worker in workers:
            worker.terminate()
    if not progress.finished:  # stopped by a signal: the rest is for the end
        return recipe.out
    average.copy_to(model)
    model.cpu()
    if recipe.cut_films:
        log.write(event="cuts", **train_cuts(model, recipe.cut_films))
    figures = check(model, held_out, np.arange(len(held_out))) if held_out is not None else {}
    log.write(event="done", step=progress.step, **figures)
    told = {"steps": progress.step, "seconds": round(progress.seconds), "held_out": figures}
    return save_judge(model, recipe.out, told)


def _start_workers(recipe: JudgeRecipe, config: JudgeConfig) -> list[Any]:
    """The process that fills the pool; without one, the missing shards are made here and now."""
    if recipe.render_workers == 0:
        fill(recipe.pool, recipe.pool_size, config)
        return []
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=fill, args=(recipe.pool, recipe.pool_size, config), daemon=True)
    worker.start()
    return [worker]


def _batches(recipe: JudgeRecipe, pool: Pool, extras: list[Pool]) -> Callable[[int], Batch]:
    """Batch by number: shots, damage and all follow from (seed, number) and the pools' sizes."""

    def draw(number: int) -> Batch:
        rng = np.random.default_rng([recipe.loop.seed, number])
        if number % 20 == 0:
            pool.refresh()
            for extra in extras:
                extra.refresh()
        filled = [extra for extra in extras if len(extra)]
        count = round(recipe.batch * recipe.extra_share / len(filled)) if filled else 0
        rows = [pool.batch(rng.integers(len(pool), size=recipe.batch - count * len(filled)))]
        rows += [extra.batch(rng.integers(len(extra), size=count)) for extra in filled if count]
        raw = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return augment(plain(raw), rng, broken=recipe.broken)

    return draw


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return replace(batch, **{name: value.to(device) for name, value in vars(batch).items()})


def _looker(
    recipe: JudgeRecipe, model: JudgeNet, held_out: Pool
) -> Callable[[Progress, MovingAverage], dict[str, Any]]:
    """Reads some held-out shots with the averaged weights, at most once every `check_every` steps."""
    last = 0

    def look(progress: Progress, average: MovingAverage) -> dict[str, Any]:
        nonlocal last
        if progress.step - last < recipe.check_every:
            return {}
        last = progress.step
        averaged = copy.deepcopy(model)
        average.copy_to(averaged)
        return {f"held_{k}": v for k, v in check(averaged, held_out, np.arange(min(192, len(held_out)))).items()}

    return look


def _held_out(recipe: JudgeRecipe, config: JudgeConfig) -> Pool | None:
    """The pool of held-out shots, drawn once."""
    if recipe.check_size <= 0:
        return None
    folder = recipe.pool / "heldout"
    pool = Pool(folder)
    while pool.refresh() < recipe.check_size:
        make_shard(folder, len(pool) // SHARD, config, first_seed=CHECK_SEEDS)
    return pool


def save_judge(model: JudgeNet, folder: str | Path, training: dict[str, Any]) -> Path:
    """Writes `model.safetensors` (bf16) and `config.json` (sizes, hash, and `training` as it is) to `folder`."""
    folder = Path(folder)
    save_tensors({name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}, folder)
    card = {
        "_class_name": "Judge",
        **model.config.to_dict(),
        "sha256": {"model.safetensors": sha256_file(folder / "model.safetensors")},
        "training": training,
    }
    (folder / "config.json").write_text(json.dumps(card, indent=1) + "\n")
    return folder
