"""Training of the video DiT on cached latents: task ``dit``.

Notable choices:

- Stages by share of the run (steps or clock): pictures first, then pictures and clips, then several shots, each stage a
  mix of buckets with shares and batch sizes of its own (Seedance 1.0, training stages; shares as in Seaweed-7B, 3.3).
- Every task of the model is in every stage's mix: text, first frame (20-40 %), first and last, extension, shot re-take.
  One draw per sample picks the mode; the masks come from :func:`seedance.conditioning.given_mask`, as at inference.
- A batch is gathered from memory by index (:class:`seedance.training.latents.Store`): no work per clip in the loop.
- The auxiliary head predicts the stage's labels per latent cell (in REPA's manner); its weight falls linearly to zero.
- Times are shifted towards noise by the bucket's own number of tokens, as the pipeline shifts by the film's.
- Everything random in a step comes from the step's number, so a resumed run counted in steps ends with the same bits.
- Sample films use the EMA weights and the cached words of held-out clips, drawn above the clips themselves, in a PNG
  written with zlib: the training machine needs neither a video library nor the text encoder.
"""

from __future__ import annotations

import copy
import json
import math
import re
import struct
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedance import flow, mup, samplers
from seedance.conditioning import Mode, given_mask
from seedance.dit import DiTConfig, VideoDiT
from seedance.errors import SeedanceError
from seedance.pipeline import Defaults, decode_latents, load_transformer, load_vae, save_model
from seedance.training.latents import Batch, Bucket, Store, check_fingerprint, fingerprint, read_buckets, read_words
from seedance.vae import VideoVAE
from shots.runtime.budget import TimeBudget
from shots.runtime.cards import portable
from shots.runtime.checkpoint import latest_checkpoint, load_checkpoint
from shots.runtime.device import pick_device, pick_dtype
from shots.runtime.loop import LoopConfig, Processes, Progress, run_loop
from shots.runtime.optim import MovingAverage
from shots.runtime.runlog import RunLog

EVAL_TIMES = (0.2, 0.5, 0.8)
MODES: tuple[Mode, ...] = ("text", "first", "first_last", "extend", "retake")


@dataclass(frozen=True)
class Share:
    """A bucket's part in a stage. frames: only the first latent frames of each clip (1: pictures)."""

    bucket: str
    batch: int
    weight: float = 1.0
    frames: int | None = None


@dataclass(frozen=True)
class Stage:
    """A stretch of the run that ends at share ``until`` (0 to 1). modes: name -> weight, over the recipe's."""

    until: float
    mix: tuple[Share, ...]
    modes: dict[str, float] | None = None


@dataclass(frozen=True)
class DiTRecipe:
    """What ``task: dit`` reads.

    Attributes:
        out: run folder: checkpoints, log.jsonl, samples/, model/.
        cache: folder, or several, that ``task: latents`` fills; a bucket's name stands in one of them.
        vae: model folder with the VAE the latents come from.
        loop: length, rate, device.
        stages: in order; the last ends at 1.
        model: of :class:`DiTConfig`; ``init_from`` names a model folder to start from instead.
        modes: share of each conditioning mode; modes a clip cannot have (re-take of a single shot) become text.
        text_drop: share of samples trained without words, for guidance.
        caption_drop: share of samples whose global caption is hidden, so that shot captions suffice.
        aux_weight: of the label loss at the start of the run.
        aux_background: weight of cells without an actor beside 1 for those with.
        shift: at ``shift_tokens`` latent cells; see :func:`seedance.flow.shift_for`.
        eval_clips: clips of each bucket's first shard that are never trained on.
        sample_minutes: between sample films, evaluation and export; 0 only at the end.
        samples: films drawn each time. sample_bucket: their bucket, by default the last stage's first.
        refresh_minutes: between looks for new shards in the cache; 0 never (a run that must repeat to the bit).
        films: also write the samples as mp4, which needs PyAV.
        checkpointing: trade a second forward pass per layer for memory, for large models.
        text_encoder: name stored in the exported model; None is the shipped one.
        defaults: of the exported model, see :class:`seedance.pipeline.Defaults`.
    """

    task: str
    out: Path
    cache: str | list[str]
    vae: Path
    loop: LoopConfig
    stages: tuple[Stage, ...]
    model: dict[str, Any] = field(default_factory=dict)
    init_from: Path | None = None
    modes: dict[str, float] = field(
        default_factory=lambda: {"text": 0.6, "first": 0.22, "first_last": 0.05, "extend": 0.08, "retake": 0.05}
    )
    text_drop: float = 0.1
    caption_drop: float = 0.3
    aux_weight: float = 0.5
    aux_background: float = 0.1
    shift: float = 1.0
    shift_tokens: int = 80
    eval_clips: int = 32
    sample_minutes: float = 10.0
    samples: int = 6
    sample_bucket: str | None = None
    refresh_minutes: float = 2.0
    films: bool = False
    checkpointing: bool = False
    text_encoder: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = [stage.until for stage in self.stages]
        if not ends or ends != sorted(ends) or ends[-1] != 1.0:
            raise SeedanceError(f"stages: until must rise to 1.0, got {ends}")
        for said in (self.modes, *(stage.modes for stage in self.stages if stage.modes)):
            unknown = sorted(set(said) - set(MODES))
            if unknown or min(said.values()) < 0 or sum(said.values()) <= 0:
                raise SeedanceError(f"modes: {said}; give {', '.join(MODES)} weights of 0 or more")


# ---------------------------------------------------------------------- objective


@dataclass
class Task:
    """A batch with what the step needs to know beside it."""

    batch: Batch
    bucket: str
    share: float  # of the run that is behind us
    modes: dict[str, float]

    def __len__(self) -> int:
        return len(self.batch.latents)

    def to(self, device: torch.device) -> Task:
        """On another device."""
        return Task(self.batch.to(device), self.bucket, self.share, self.modes)


class Objective(nn.Module):
    """Flow matching under a random conditioning mode, and the auxiliary label loss."""

    def __init__(self, transformer: VideoDiT, recipe: DiTRecipe) -> None:
        super().__init__()
        self.transformer, self.recipe = transformer, recipe

    def forward(self, task: Task, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        recipe, x0, cond = self.recipe, task.batch.latents, task.batch.cond  # x0 (B, C, t, h, w)
        b, _, t, h, w = x0.shape
        device = x0.device
        cond = cond.given(x0, draw_mask(cond.shot, task.modes, generator))
        cond = cond.drop_text(torch.rand(b, generator=generator) < recipe.text_drop)
        hide = (torch.rand(b, generator=generator) < recipe.caption_drop).to(device)[:, None] & (cond.text_shot == 0)
        hide = hide & (cond.text_shot > 0).any(1, keepdim=True)
        cond.text_mask.logical_and_(~hide)
        shift_by = flow.shift_for(t * h * w, base_tokens=recipe.shift_tokens, base_shift=recipe.shift)
        times = flow.sample_times(b, t, generator=generator, shift_by=shift_by).to(device)  # (B, t)
        eps = normal_like(x0, generator)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else x0.dtype
        with torch.autocast(device.type, enabled=False):
            noisy = flow.interpolate(x0, eps, times).to(dtype)
            aux_weight = recipe.aux_weight * max(0.0, 1 - task.share)
            wanted = {
                name: task.batch.labels[name]
                for name in self.transformer.config.aux_labels
                if name in task.batch.labels
            }
            if wanted and aux_weight > 0:
                v, logits = self.transformer(noisy, times, cond, labels_out=True)
            else:
                v, logits = self.transformer(noisy, times, cond), {}
        loss = flow.flow_loss(v, x0, eps, cond.mask)
        figures = {"flow": loss.detach(), f"flow_{task.bucket}": loss.detach()}
        if logits:
            aux = label_loss(logits, wanted, recipe.aux_background)
            figures["aux"] = aux.detach()
            loss = loss + aux_weight * aux
        return loss, figures


def draw_mask(shot: Tensor, modes: dict[str, float], generator: torch.Generator) -> Tensor:
    """Given frames (B, t) of a batch of clips with shot ids ``shot`` (B, t), a mode drawn for each."""
    b, t = shot.shape
    device = shot.device
    if t == 1:
        return torch.zeros(b, t, device=device)
    weights = torch.tensor([float(modes.get(mode, 0.0)) for mode in MODES])
    chosen = torch.multinomial(weights, b, replacement=True, generator=generator)  # (B,)
    leading = torch.randint(1, t, (b,), generator=generator)
    # A proper, non-empty subset of the shots is made anew: one is always kept, another always made.
    shots = int(shot.max())
    order = torch.rand(b, shots, generator=generator).argsort(1)
    anew = torch.rand(b, shots, generator=generator) < 0.5
    anew = anew.scatter(1, order[:, :1], False)
    if shots > 1:
        anew = anew.scatter(1, order[:, 1:2], True)
    retake = anew.gather(1, shot.cpu() - 1).to(device)  # (B, t)
    masks = torch.stack(
        [
            given_mask("text", shot), given_mask("first", shot), given_mask("first_last", shot),
            given_mask("extend", shot, leading=leading.to(device)),
            given_mask("retake", shot, shots=retake) if shots > 1 else given_mask("text", shot),
        ]
    )  # (5, B, t)  # fmt: skip
    return masks[chosen.to(device), torch.arange(b, device=device)]


def label_loss(logits: dict[str, Tensor], labels: dict[str, Tensor], background: float) -> Tensor:
    """Mean cross entropy over label names, cells with an actor weighted 1 and those without ``background``."""
    losses = []
    for name, wanted in labels.items():
        target = wanted.reshape(-1).long()  # (B t h w,)
        each = F.cross_entropy(logits[name].float().reshape(len(target), -1), target, reduction="none")
        weight = torch.where(target > 0, 1.0, background)
        losses.append((each * weight).sum() / weight.sum())
    return torch.stack(losses).mean()


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the shape of ``x``, drawn where ``x`` lies from the generator's next number."""
    if x.device.type == "cpu":
        return torch.randn(x.shape, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.randn(x.shape, device=x.device, generator=torch.Generator(x.device).manual_seed(seed))


# ---------------------------------------------------------------------- data


class Feeder:
    """Batch number -> batch, by the stage the run is in. made_by: fingerprint of the latents.

    resumed: seconds that earlier runs took.
    """

    def __init__(
        self,
        recipe: DiTRecipe,
        made_by: dict[str, str],
        device: torch.device,
        processes: int = 1,
        resumed: float = 0.0,
    ) -> None:
        self.recipe, self.device, self.processes = recipe, device, processes
        self.resumed = resumed
        self.buckets: dict[str, Bucket] = {}
        self.folders: dict[str, Path] = {}
        for folder in [recipe.cache] if isinstance(recipe.cache, str) else recipe.cache:
            found = read_buckets(folder)
            check_fingerprint(folder, made_by)
            self.buckets |= found
            self.folders |= dict.fromkeys(found, Path(folder))
        self.clock = TimeBudget(None)
        self.stores: dict[str, Store] = {}
        named = {share.bucket for stage in recipe.stages for share in stage.mix}
        missing = sorted(named - set(self.buckets))
        if missing:
            raise SeedanceError(
                f"stages: the cache has no bucket {', '.join(missing)}; it has {', '.join(self.buckets)}"
            )
        self.named = sorted(named)
        self.refresh()

    def refresh(self) -> int:
        """Takes up shards that arrived since. Returns the clips there are."""
        for name in self.named:
            store = Store.open(self.folders[name], self.buckets[name], self.stores.get(name))
            if store is not None and store is not self.stores.get(name):
                self.stores[name] = store.to(self.device)
        self.refreshed = self.clock.elapsed
        return sum(map(len, self.stores.values()))

    def share(self, number: int) -> float:
        """Share of the run behind batch ``number``."""
        loop = self.recipe.loop
        by_steps = 0.0 if loop.steps is None else number / (loop.steps * loop.accumulate * self.processes)
        by_clock = 0.0 if loop.time_budget is None else (self.resumed + self.clock.elapsed) / loop.time_budget
        return min(1.0, max(by_steps, by_clock))

    def stage(self, share: float) -> Stage:
        """The stage a run is in; the earlier one at the border."""
        return next(stage for stage in self.recipe.stages if share <= stage.until)

    def __call__(self, number: int) -> Task:
        recipe = self.recipe
        if recipe.refresh_minutes and self.clock.elapsed - self.refreshed > 60 * recipe.refresh_minutes:
            self.refresh()
        share = self.share(number)
        stage = self.stage(share)
        mix = [part for part in stage.mix if len(self.stores.get(part.bucket, ())) > recipe.eval_clips]
        if not mix:
            raise SeedanceError(
                f"cache: there are no clips to train on in {', '.join(p.bucket for p in stage.mix)} yet "
                f"(the first {recipe.eval_clips} of each are kept for evaluation); run the latents recipe first"
            )
        generator = torch.Generator().manual_seed((recipe.loop.seed * 7_368_787 + 15_485_863 + number) % 2**63)
        weights = torch.tensor([part.weight for part in mix])
        part = mix[int(torch.multinomial(weights, 1, generator=generator))]
        store = self.stores[part.bucket]
        index = torch.randint(recipe.eval_clips, len(store), (part.batch,), generator=generator)
        wording = torch.randint(1 << 20, (part.batch,), generator=generator)
        return Task(store.batch(index, wording, part.frames), part.bucket, share, stage.modes or recipe.modes)


# ---------------------------------------------------------------------- the run


def train_dit(recipe: DiTRecipe) -> Path:
    """Trains, resuming what an earlier run in ``out`` left, and exports the EMA weights. Returns the model folder."""
    out = recipe.out
    out.mkdir(parents=True, exist_ok=True)
    processes = Processes.current(recipe.loop.device)
    log = RunLog(out / "log.jsonl" if processes.rank == 0 else None, quiet=processes.rank > 0)
    device = processes.accelerator.device if processes.accelerator is not None else pick_device(recipe.loop.device)
    vae = load_vae(recipe.vae)
    found = latest_checkpoint(out)
    resumed = 0.0 if found is None else float(load_checkpoint(found)["progress"]["seconds"])
    feeder = Feeder(recipe, fingerprint(vae, recipe.text_encoder), device, processes.count, resumed)
    torch.manual_seed(recipe.loop.seed)
    if recipe.init_from is not None:
        transformer = load_transformer(recipe.init_from)
    else:
        transformer = VideoDiT(DiTConfig.from_dict(recipe.model))
    if transformer.aux is not None and recipe.aux_weight == 0:
        transformer.aux.requires_grad_(False)  # several processes wait for the gradient of every trained weight
    transformer.checkpointing = recipe.checkpointing
    objective = Objective(transformer, recipe)
    loop = recipe.loop
    groups = mup.param_groups(transformer, 1.0, weight_decay=loop.weight_decay, optimizer=loop.optimizer)
    watcher = Watcher(recipe, feeder, vae.to(device), transformer, log)

    def count(task: Task) -> tuple[int, float]:
        shape = tuple(task.batch.latents.shape[2:])
        tokens = task.batch.cond.text.shape[1]
        return len(task), 3.0 * len(task) * transformer.flops((shape[0], shape[1], shape[2]), tokens)

    progress, average = run_loop(
        recipe.loop, objective, transformer, feeder, out,
        groups=[{**group, "lr_scale": group.pop("lr")} for group in groups], count=count, every_log=watcher, log=log,
    )  # fmt: skip
    if processes.rank == 0:
        watcher.look(progress, average, evaluated=progress.finished)  # who stops a run does not want to wait
    return out / "model"


class Watcher:
    """What happens beside the steps: evaluation, sample films, export."""

    def __init__(self, recipe: DiTRecipe, feeder: Feeder, vae: VideoVAE, transformer: VideoDiT, log: RunLog) -> None:
        self.recipe, self.feeder, self.vae, self.live, self.log = recipe, feeder, vae, transformer, log
        self.copy: VideoDiT | None = None
        self.looked = time.monotonic()

    def __call__(self, progress: Progress, average: MovingAverage) -> dict[str, Any]:
        extra: dict[str, Any] = {"clips": sum(map(len, self.feeder.stores.values()))}
        if self.recipe.sample_minutes and time.monotonic() - self.looked > 60 * self.recipe.sample_minutes:
            extra |= self.look(progress, average)
        return extra

    def look(self, progress: Progress, average: MovingAverage, evaluated: bool = True) -> dict[str, Any]:
        """Exports the averaged weights, and where ``evaluated`` measures them and draws films with them."""
        started = time.monotonic()
        if self.copy is None:
            self.copy = copy.deepcopy(self.live).eval().requires_grad_(False)
        average.copy_to(self.copy)
        losses: dict[str, float] = {}
        if evaluated:
            losses = {f"eval_{n}": evaluate(self.copy, store, self.recipe) for n, store in self.feeder.stores.items()}
            name = self.recipe.sample_bucket or self.recipe.stages[-1].mix[0].bucket
            target = self.recipe.out / "samples" / f"step-{progress.step:07d}"
            if name in self.feeder.stores:
                draw_samples(self.copy, self.vae, self.feeder.stores[name], self.recipe, target)
        export(self.recipe, self.copy, self.vae, self.feeder, progress, losses)
        self.looked = time.monotonic()
        self.log.write(event="look", step=progress.step, **losses, look_seconds=self.looked - started)
        return losses


@torch.no_grad()
def evaluate(transformer: VideoDiT, store: Store, recipe: DiTRecipe) -> float:
    """Flow loss on the bucket's held-out clips, every clip at fixed times with fixed noise, from words alone."""
    index = torch.arange(min(recipe.eval_clips, len(store)))
    if not len(index):
        return math.nan
    total, weight = 0.0, 0
    dtype, _ = pick_dtype(store.latents.device, recipe.loop.dtype)
    for part in index.split(16):
        batch = store.batch(part, torch.zeros(len(part), dtype=torch.long))
        x0 = batch.latents
        eps = flow.noise(part.tolist(), x0.shape[1:]).to(x0)
        for t in EVAL_TIMES:
            times = torch.full((len(part), x0.shape[2]), t, device=x0.device)
            v = transformer(flow.interpolate(x0, eps, times).to(dtype), times, batch.cond)
            total += float(flow.flow_loss(v, x0, eps)) * len(part)
            weight += len(part)
    return total / weight


@torch.no_grad()
def draw_samples(transformer: VideoDiT, vae: VideoVAE, store: Store, recipe: DiTRecipe, target: Path) -> None:
    """Films under the words of held-out clips, each above the clip itself: a PNG, and an mp4 where ``films`` is set."""
    index = torch.arange(min(recipe.samples, recipe.eval_clips, len(store)))
    batch = store.batch(index, torch.zeros(len(index), dtype=torch.long))
    defaults = Defaults(**recipe.defaults)
    shape = batch.latents.shape
    dtype, _ = pick_dtype(store.latents.device, recipe.loop.dtype)
    shift = flow.shift_for(math.prod(shape[2:]), base_tokens=recipe.shift_tokens, base_shift=recipe.shift)
    noise = flow.noise(index.tolist(), shape[1:]).to(batch.latents)
    model = samplers.guided(transformer, batch.cond, scale=defaults.guidance_scale, dtype=dtype)
    made = samplers.multistep(model, noise, samplers.times(defaults.steps, shift=shift))
    lengths = [int(n) for n in torch.bincount(store.shot.cpu())[1:]]
    rows = []
    for drawn, real in zip(made.float(), batch.latents.float(), strict=True):
        for latents in (drawn, real):
            rows.append(np.concatenate(list(decode_latents(vae, latents.split(lengths, dim=1)))))  # (T, H, W, 3)
    frames = np.stack(rows)  # (R, T, H, W, 3)
    columns = np.linspace(0, frames.shape[1] - 1, min(10, frames.shape[1])).round().astype(int)
    picture = np.concatenate([np.concatenate(list(row[columns]), axis=1) for row in frames])  # (R H, columns W, 3)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_png(target.with_suffix(".png"), picture)
    if recipe.films:
        from shots.video import VideoWriter

        sheet = np.concatenate(
            [np.concatenate(list(frames[i : i + 2]), axis=1) for i in range(0, len(frames), 2)], axis=2
        )
        with VideoWriter(
            target.with_suffix(".mp4"), fps=store.fps, height=sheet.shape[1], width=sheet.shape[2]
        ) as writer:
            writer.write(sheet)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """An RGB picture, uint8 (H, W, 3), with nothing but zlib."""
    height, width, _ = pixels.shape
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1
    )  # filter 0 before every row

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + chunk(b"IEND", b"")
    )


def vocabulary(folders: dict[str, Path]) -> list[str]:
    """Every word of the captions of the buckets (name -> cache), sorted."""
    words: set[str] = set()
    for name, folder in folders.items():
        for clips in read_words(folder, name):
            said = " ".join(caption for w in clips for caption in (w["caption"], *w["shots"]))
            words.update(re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", said.lower()))
    return sorted(words)


def device_name(device: torch.device) -> str:
    """What a model card calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def export(
    recipe: DiTRecipe,
    transformer: VideoDiT,
    vae: VideoVAE,
    feeder: Feeder,
    progress: Progress,
    losses: dict[str, float],
) -> Path:
    """The model folder of a run, with the facts for its card in ``training.json``."""
    facts = {
        "recipe": portable(json.loads(json.dumps(asdict(recipe), default=str))),
        "buckets": portable({name: asdict(bucket) for name, bucket in feeder.buckets.items()}),
        "steps": progress.step, "clips_seen": progress.samples, "seconds": round(progress.seconds), "losses": losses,
        "device": device_name(next(transformer.parameters()).device),
        "parameters": sum(p.numel() for p in transformer.parameters()),
    }  # fmt: skip
    defaults = Defaults(**{"shift": recipe.shift, "shift_tokens": recipe.shift_tokens, **recipe.defaults})
    return save_model(
        recipe.out / "model", vae, transformer, defaults=defaults, vocabulary=vocabulary(feeder.folders),
        text_encoder=recipe.text_encoder, dtype=torch.bfloat16,
        extra={"training.json": json.dumps(facts, indent=1) + "\n"},
    )  # fmt: skip
