"""Trains the judge on the stage, from nothing, on one CPU core or one GPU.

Notable choices:

- A worker process draws shots into a pool on disk while training runs on what is there; each shot is used many times,
  each time damaged otherwise (`augment`).
- What supervises most is dense: which colour of actor covers how much of each cell of each frame.
- Warm-up, stable, decay; the clock triggers the decay when there is a time budget.
- Every step's batch and damage follow from (seed, step), so a run resumed over a full pool ends as one never stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shots.errors import ShotsError
from shots.runtime.budget import TimeBudget
from shots.runtime.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from shots.runtime.device import pick_device, pick_dtype
from shots.runtime.runlog import RunLog
from shots.runtime.weights import load_into, save_tensors, sha256_file

from ..render import render_film
from ..writer import write_film
from .augment import Batch, augment, mild, plain
from .cuts import cut_features, fit_cuts
from .model import SHOT_FACTS, SLOT_FACTS, JudgeConfig, JudgeNet
from .pool import CHECK_SEEDS, SHARD, Pool, fill, make_shard


@dataclass(frozen=True)
class JudgeRecipe:
    """One training run of the judge.

    Stops after `steps`, or after `time_budget` seconds (which also sets the decay), whichever is first; one of the two
    must be given. `pool` is where rendered shots are kept, `pool_size` how many are drawn; `extra_pools` are folders of
    more shards (round trips through an autoencoder, say), used for `extra_share` of each batch.
    """

    out: str
    pool: str
    pool_size: int = 16384
    extra_pools: tuple[str, ...] = ()
    extra_share: float = 0.3
    cut_films: int = 400
    check_size: int = 512
    batch: int = 32
    steps: int | None = None
    time_budget: float | None = None
    lr: float = 2e-3
    warmup: int = 100
    decay: float = 0.35
    weight_decay: float = 0.03
    broken: float = 0.1
    render_workers: int = 1
    start_size: int = 512
    seed: int = 0
    threads: int | None = None
    device: str | None = None
    dtype: str | None = None
    start_from: str | None = None
    log_every: int = 20
    check_every: int = 500
    save_every: int = 100
    model: tuple[tuple[str, int], ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> JudgeRecipe:
        """From a recipe file's keys; `task` is passed over. Raises ShotsError for unknown keys."""
        data = {key: value for key, value in data.items() if key != "task"}
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ShotsError(f"recipe: unknown keys {', '.join(unknown)}; the judge's are {', '.join(sorted(known))}")
        if isinstance(data.get("model"), dict):
            data["model"] = tuple(data["model"].items())
        data["extra_pools"] = tuple(data.get("extra_pools") or ())
        for name in ("lr", "decay", "weight_decay", "broken", "extra_share", "time_budget"):
            if data.get(name) is not None:
                data[name] = float(data[name])
        return cls(**data)


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
    parts["frame_shape"] = _cross_entropy(out["frame_shape"], target, none_weight=0.2)

    for row, name in enumerate(SLOT_FACTS):
        parts[name] = _cross_entropy(out[f"slot/{name}"], batch.slot[:, row], 0.3 if name == "shape" else 1.0)
    for row, name in enumerate(SHOT_FACTS):
        parts[name] = _cross_entropy(out[f"shot/{name}"], batch.shot[:, row])
    known = batch.sound >= 0
    parts["sound"] = F.binary_cross_entropy_with_logits(out["sound"][known], batch.sound[known])
    return parts


LOSS_WEIGHT = {"frame_shape": 0.5, "shape": 1.5, "action": 2.0, "camera": 1.5, "other": 0.5, "new_colour": 0.5}


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


def check(
    model: JudgeNet, pool: Pool, indices: NDArray[np.int64], dtype: torch.dtype, chunk: int = 32
) -> dict[str, float]:
    """Share of known facts read right, by kind (`count_right`), over the pool's shots as they are."""
    model.eval()
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
            frames = (mild(x, rng) * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1)
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


def learning_rate(recipe: JudgeRecipe, step: int, progress: float) -> float:
    """Warm-up over steps, then constant, then down to zero over the last `decay` of `progress` (0 to 1)."""
    down = min(1.0, max(0.0, (1.0 - progress) / recipe.decay)) if recipe.decay > 0 else 1.0
    return recipe.lr * min(1.0, (step + 1) / max(1, recipe.warmup)) * down


def _groups(model: JudgeNet, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay; the cut head is fitted apart."""
    own = [p for name, p in model.named_parameters() if not name.startswith("cuts.")]
    matrices = [p for p in own if p.ndim >= 2]
    rest = [p for p in own if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def train(recipe: JudgeRecipe) -> Path:
    """Runs the recipe, or the rest of it after a kill; returns the folder of `model.safetensors` and `config.json`."""
    if recipe.steps is None and recipe.time_budget is None:
        raise ShotsError("recipe: give steps or time_budget (seconds), or both")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    out = Path(recipe.out)
    log = RunLog(out / "log.jsonl")
    device = pick_device(recipe.device)
    dtype, reason = pick_dtype(device, recipe.dtype)
    torch.manual_seed(recipe.seed)
    config = JudgeConfig(**dict(recipe.model))
    model = JudgeNet(config).to(device)
    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.lr, betas=(0.9, 0.97))
    step, spent = 0, 0.0
    found = latest_checkpoint(out / "checkpoints")
    if found is not None:
        state = load_checkpoint(found)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = int(state["step"]), float(state["spent"])
    elif recipe.start_from is not None:
        from safetensors.torch import load_file

        load_into(model, load_file(Path(recipe.start_from) / "model.safetensors"), f"judge at {recipe.start_from}")
    log.write(
        event="start", recipe=asdict(recipe), parameters=sum(p.numel() for p in model.parameters()), step=step,
        device=str(device), dtype=str(dtype), reason=reason, flops_per_shot=model.flops(),
    )
    workers = _start_workers(recipe, config)
    try:
        return _run(recipe, config, model, optimizer, dtype, log, step, spent)
    finally:
        for worker in workers:
            worker.terminate()


def _start_workers(recipe: JudgeRecipe, config: JudgeConfig) -> list[Any]:
    """Processes that fill the pool; with none, the missing shards are made here and now."""
    folder = Path(recipe.pool)
    if recipe.render_workers == 0:
        fill(folder, recipe.pool_size, config)
        return []
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill, args=(folder, recipe.pool_size, config), daemon=True)]
    for worker in workers:
        worker.start()
    return workers


def _run(
    recipe: JudgeRecipe, config: JudgeConfig, model: JudgeNet, optimizer: torch.optim.Optimizer, dtype: torch.dtype,
    log: RunLog, step: int, spent: float,
) -> Path:
    out, device = Path(recipe.out), next(model.parameters()).device
    budget = TimeBudget(None if recipe.time_budget is None else max(0.0, recipe.time_budget - spent))
    pool, extras = Pool(recipe.pool), [Pool(folder) for folder in recipe.extra_pools]
    held_out = _held_out(recipe, config)
    while pool.refresh() < min(recipe.start_size, recipe.pool_size):
        if budget.expired:
            raise ShotsError(f"recipe: the time budget ran out before {recipe.start_size} shots were drawn")
        time.sleep(1.0)
    extras = [extra for extra in extras if extra.refresh()]
    model.train()
    sums: dict[str, float] = {}
    since, data_time = time.monotonic(), 0.0
    while True:
        elapsed = spent + budget.elapsed
        progress = max(
            step / recipe.steps if recipe.steps is not None else 0.0,
            elapsed / recipe.time_budget if recipe.time_budget is not None else 0.0,
        )
        if progress >= 1.0:
            break
        lr = learning_rate(recipe, step, progress)
        for group in optimizer.param_groups:
            group["lr"] = lr
        begun = time.monotonic()
        batch = _draw(recipe, step, pool, extras)
        data_time += time.monotonic() - begun
        frames, seconds = batch.frames.to(device), batch.seconds.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            result = model(frames, seconds)
        parts = losses({k: v.cpu() for k, v in result.items()} if device.type != "cpu" else result, batch)
        loss = torch.stack([LOSS_WEIGHT.get(name, 1.0) * part for name, part in parts.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        skipped = not bool(torch.isfinite(norm))
        if not skipped:
            optimizer.step()
        step += 1
        for name, part in {**parts, "loss": loss, "norm": norm}.items():
            sums[name] = sums.get(name, 0.0) + float(part.detach())
        sums["skipped"] = sums.get("skipped", 0.0) + float(skipped)
        if step % recipe.log_every == 0:
            wall = time.monotonic() - since
            rate = recipe.log_every * recipe.batch / wall
            log.write(
                event="train", step=step, elapsed=elapsed, progress=progress, lr=lr, pool=len(pool),
                shots_per_second=rate, data_share=data_time / wall, gflops=3 * model.flops() * rate / 1e9,
                **{name: value / recipe.log_every for name, value in sums.items()},
            )
            sums, since, data_time = {}, time.monotonic(), 0.0
            pool.refresh()
        if step % recipe.save_every == 0:
            _save_checkpoint(out, step, model, optimizer, spent + budget.elapsed)
        if step % recipe.check_every == 0 and held_out is not None:
            few = np.arange(min(192, len(held_out)))
            log.write(event="check", step=step, **check(model, held_out, few, dtype))
    if recipe.time_budget is not None and recipe.steps is None or step % recipe.save_every:
        _save_checkpoint(out, step, model, optimizer, spent + budget.elapsed)
    log.write(event="cuts", **train_cuts(model, recipe.cut_films))
    figures = check(model, held_out, np.arange(len(held_out)), dtype) if held_out is not None else {}
    log.write(event="done", step=step, elapsed=spent + budget.elapsed, **figures)
    return save_judge(model, out, {"steps": step, "seconds": round(spent + budget.elapsed), "held_out": figures})


def _held_out(recipe: JudgeRecipe, config: JudgeConfig) -> Pool | None:
    """The pool of held-out shots, drawn once."""
    if recipe.check_size <= 0:
        return None
    folder = Path(recipe.pool) / "heldout"
    pool = Pool(folder)
    while pool.refresh() < recipe.check_size:
        make_shard(folder, len(pool) // SHARD, config, first_seed=CHECK_SEEDS)
    return pool


def _draw(recipe: JudgeRecipe, step: int, pool: Pool, extras: list[Pool]) -> Batch:
    """The batch of a step: shots, damage and all follow from (seed, step) and the pools' sizes."""
    rng = np.random.default_rng([recipe.seed, step])
    count = round(recipe.batch * recipe.extra_share / len(extras)) if extras else 0
    rows = [pool.batch(rng.integers(len(pool), size=recipe.batch - count * len(extras)))]
    rows += [extra.batch(rng.integers(len(extra), size=count)) for extra in extras if count]
    raw = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return augment(plain(raw), rng, broken=recipe.broken)


def _save_checkpoint(out: Path, step: int, model: JudgeNet, optimizer: torch.optim.Optimizer, spent: float) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}
    save_checkpoint(out / "checkpoints", step, state)


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
