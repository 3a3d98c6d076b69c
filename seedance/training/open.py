"""Training of an open checkpoint's transformer, whole or by LoRA, on cached latents: task ``open``.

    seedance train wan-1b3-lora model=Wan-AI/Wan2.1-T2V-1.3B-Diffusers
    accelerate launch -m seedance.training wan-1b3-full loop.fsdp=true

Notable choices:

- Flow matching as Wan was trained and is sampled: x_t = (1 - s) x0 + s eps, the model is shown 1000 s and predicts
  eps - x0; s is logit-normal, moved towards noise by the shift of the checkpoint's own scheduler. Checkpoints with a
  time per token (TI2V) may be given the first frame: clean, at time 0, and out of the loss.
- LoRA through PEFT, saved by diffusers' own writer: ``out/lora/pytorch_lora_weights.safetensors`` loads wherever
  diffusers' files do. ``comfyui_lora.safetensors`` beside it has the original names and says alpha: ComfyUI
  (`comfy/lora.py`) looks a module up as ``diffusion_model.`` and its own name, and knows none of diffusers' for Wan.
- Whole training: ``out/model`` is a checkpoint like the one it came from, whose other parts are links, and
  ``out/model/single_file.safetensors`` the same transformer in one file under the family's own names, as ComfyUI's
  ``diffusion_models``, diffusers' ``from_single_file`` and ``--transformer`` of `seedance render` take it.
- What is exported is in bf16; what the transformer's class keeps in float32 (tables of modulation, norms, the embedding
  of time) stays so: it is small, and steps of 1e-5 would be rounded away in it.
- With LoRA the base is frozen in the compute dtype and no part of what the loop saves and shares: checkpoints and the
  moving average are the adapters alone. Whole training keeps float32 masters, spread over processes by ``loop.fsdp``.
- The embedding of time runs in float32 under autocast, as the checkpoints want it.
- Captions are dropped for the empty prompt's token states, and stay padded to 512 tokens: padding is attended to.
- Samples are drawn by the stock pipeline with cached token states, so no text encoder is loaded while training.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seedance import flow
from seedance.engines.folder import Checkpoint, diffusers, load_part
from seedance.engines.names import original
from seedance.engines.single_file import empty, save_single_file
from seedance.errors import SeedanceError
from seedance.training.dit import device_name, normal_like, write_png
from seedance.training.open_latents import OpenBatch, OpenStore, check_cache, find_checkpoint
from shots.runtime.cards import portable
from shots.runtime.device import pick_device, pick_dtype
from shots.runtime.loop import LoopConfig, Processes, Progress, run_loop
from shots.runtime.optim import MovingAverage
from shots.runtime.runlog import RunLog

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")  # every linear map of a block
_STEPS_OF_TIME = 1000.0  # what the model is shown for s = 1


@dataclass(frozen=True)
class OpenLoRA:
    """Rank, scale (alpha / r) and dropout of the adapters, and the endings of the modules that get one."""

    r: int = 32
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: list(TARGETS))

    def __post_init__(self) -> None:
        if self.r < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1 or not self.targets:
            raise SeedanceError(
                f"lora: r {self.r}, alpha {self.alpha:g}, dropout {self.dropout:g}, targets {self.targets}; r of at "
                "least 1, alpha above 0, 0 <= dropout < 1 and at least one target are needed"
            )


@dataclass(frozen=True)
class OpenRecipe:
    """What ``task: open`` reads.

    Attributes:
        out: run folder: checkpoints, log.jsonl, samples/, and lora/ or model/.
        model: folder or hub id of the checkpoint that the cache was made with. revision: of the hub id.
        cache: folder that ``task: open-latents`` fills.
        loop: length, rate, device. ``loop.ema`` is of what is trained, 0 for none; ``loop.fsdp`` is for whole training.
        lora: None trains the whole transformer.
        batch: clips in a step of one process.
        shift: of the times towards noise; None is the checkpoint's own.
        text_drop: share of clips trained without words, for guidance.
        first: share of clips whose first frame is given (checkpoints with a time per token alone).
        checkpointing: a block is computed again in the backward pass, which saves most of the memory.
        sample_minutes: between samples and exports; 0 only at the end.
        steps, guidance_scale: of samples. sample_size: height, width, frames of them; None is the first bucket's.
        seed: of samples. films: also write samples as mp4, which needs PyAV.
        single_file: whole training also writes its transformer as one file, as large as the checkpoint's own again.
    """

    task: str
    out: Path
    model: str
    cache: Path
    loop: LoopConfig
    lora: OpenLoRA | None = field(default_factory=OpenLoRA)
    batch: int = 1
    shift: float | None = None
    text_drop: float = 0.1
    first: float = 0.0
    checkpointing: bool = True
    sample_minutes: float = 20.0
    steps: int = 30
    guidance_scale: float = 5.0
    sample_size: list[int] | None = None
    seed: int = 0
    films: bool = False
    single_file: bool = True
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise SeedanceError(f"batch: {self.batch}; at least 1 is needed")
        for name in ("text_drop", "first"):
            if not 0 <= getattr(self, name) <= 1:
                raise SeedanceError(f"{name}: {getattr(self, name):g}; a share from 0 to 1 is needed")
        if self.shift is not None and not self.shift > 0:
            raise SeedanceError(f"shift: {self.shift:g}; a number above 0 is needed")
        if self.lora is not None and self.loop.fsdp:
            raise SeedanceError(
                "loop.fsdp: spreads whole training; with lora every process holds the frozen base, so leave it out or "
                "set lora=null"
            )


# ---------------------------------------------------------------------- objective


class OpenObjective(nn.Module):
    """Flow matching on cached latents. ``trained`` is all that it registers: the adapters, or the whole transformer."""

    def __init__(
        self, transformer: Any, trained: nn.Module, *, shift: float, per_token: bool, text_drop: float, first: float
    ) -> None:
        super().__init__()
        self.trained = trained
        self._transformer = [transformer]  # in a list, so that a frozen base is not registered
        self.shift, self.per_token, self.text_drop, self.first = shift, per_token, text_drop, first

    def forward(self, batch: OpenBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        transformer, x0 = self._transformer[0], batch.latents  # (B, C, t, h, w)
        b, _, t, h, w = x0.shape
        device = x0.device
        dropped = torch.rand(b, generator=generator) < self.text_drop
        given = (torch.rand(b, generator=generator) < self.first) & torch.tensor(self.per_token and t > 1)
        times = flow.sample_times(b, t, generator=generator, shift_by=self.shift)  # (B, t), one time a film
        mask = torch.zeros(b, t)
        mask[:, 0] = given.float()
        times, mask = (times * (1 - mask)).to(device), mask.to(device)
        eps = normal_like(x0, generator)
        text = torch.where(dropped.to(device)[:, None, None], batch.empty, batch.text)  # (B, 512, D)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else transformer.dtype
        with torch.autocast(device.type, enabled=False):
            noisy = flow.interpolate(x0, eps, times).to(dtype)
        v = transformer(
            hidden_states=noisy,
            timestep=self._shown(times, h, w, transformer.config.patch_size),
            encoder_hidden_states=text.to(dtype),
            return_dict=False,
        )[0]  # (B, C, t, h, w)
        loss = flow.flow_loss(v, x0, eps, mask)
        return loss, {f"flow_{batch.bucket}": loss.detach()}

    def _shown(self, times: Tensor, height: int, width: int, patch: tuple[int, int, int]) -> Tensor:
        """What the model is shown of times (B, t): one number a film (B,), or one a token (B, t * h * w)."""
        shown = times * _STEPS_OF_TIME
        if not self.per_token:
            return shown[:, -1]
        return shown.repeat_interleave((height // patch[1]) * (width // patch[2]), dim=1)


def exact_times(transformer: Any) -> None:
    """Has the embedding of time computed in its own float32 where autocast would take fewer bits, in place."""
    embedder = transformer.condition_embedder.time_embedder
    plain = embedder.forward

    def forward(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(sample.device.type, enabled=False):
            return plain(sample.to(self.linear_1.weight.dtype), *args, **kwargs)

    embedder.forward = MethodType(forward, embedder)


def shift_of(checkpoint: Checkpoint) -> float:
    """The shift of times that the checkpoint's own scheduler is set to."""
    config = checkpoint.config("scheduler")
    return float(config.get("flow_shift") or config.get("shift") or 1.0)


def flops(checkpoint: Checkpoint, shape: tuple[int, ...], text: int, whole: bool, again: bool) -> float:
    """Floating-point operations of a training step on one clip of latents (C, t, h, w) and ``text`` tokens of words.

    Forward once; backward once for what goes into each product and, where the ``whole`` transformer is trained, once
    more for its weight; ``again``: forward once more, where blocks are computed again.
    """
    config = checkpoint.config("transformer")
    _, ph, pw = config.get("patch_size", (1, 2, 2))
    tokens = shape[1] * (shape[2] // ph) * (shape[3] // pw)
    return checkpoint.family.flops(config, tokens, text) * ((3.0 if whole else 2.0) + float(again))


# ---------------------------------------------------------------------- the run


def load_transformer(recipe: OpenRecipe, checkpoint: Checkpoint, device: torch.device) -> tuple[Any, nn.Module]:
    """The transformer, ready to be trained, and what of it is: its adapters' weights, or itself."""
    kind, _ = pick_dtype(device, recipe.loop.dtype)
    transformer = load_part(checkpoint, "transformer", kind if recipe.lora is not None else torch.float32, device)
    exact_times(transformer)
    if recipe.checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()
    if recipe.lora is None:
        return transformer, transformer.requires_grad_(True)
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise SeedanceError(f"lora: needs peft ({error}); pip install 'seedance[open]'") from error
    torch.manual_seed(recipe.loop.seed)
    config = LoraConfig(
        r=recipe.lora.r, lora_alpha=recipe.lora.alpha, lora_dropout=recipe.lora.dropout,
        target_modules=list(recipe.lora.targets), init_lora_weights=True,
    )  # fmt: skip
    try:
        transformer.add_adapter(config)
    except ValueError as error:
        raise SeedanceError(f"lora.targets: {recipe.lora.targets} ({error})") from error
    adapters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in adapters:
        parameter.data = parameter.data.float()
    return transformer, nn.ParameterList(adapters)


def train_open(recipe: OpenRecipe) -> Path:
    """Trains, resuming what an earlier run in ``out`` left. Returns the folder of the adapter or of the checkpoint."""
    out = recipe.out
    out.mkdir(parents=True, exist_ok=True)
    if recipe.loop.threads is not None:
        torch.set_num_threads(recipe.loop.threads)
    processes = Processes.current(recipe.loop.device)
    log = RunLog(out / "log.jsonl" if processes.rank == 0 else None, quiet=processes.rank > 0)
    device = processes.accelerator.device if processes.accelerator is not None else pick_device(recipe.loop.device)
    checkpoint = find_checkpoint(recipe.model, recipe.revision)
    per_token = bool(checkpoint.index.get("expand_timesteps"))
    if recipe.first and not per_token:
        raise SeedanceError("first: this checkpoint has one time for the whole film and takes no first frame; set 0")
    check_cache(recipe.cache, checkpoint)
    store = OpenStore(recipe.cache)
    transformer, trained = load_transformer(recipe, checkpoint, device)
    shift = shift_of(checkpoint) if recipe.shift is None else recipe.shift
    log.write(
        event="open", clips=len(store), buckets={name: len(rows) for name, rows in store.buckets.items()}, shift=shift,
        trained=sum(p.numel() for p in trained.parameters()), of=sum(p.numel() for p in transformer.parameters()),
    )  # fmt: skip
    objective = OpenObjective(
        transformer, trained, shift=shift, per_token=per_token, text_drop=recipe.text_drop, first=recipe.first
    )  # fmt: skip
    sharded = recipe.loop.fsdp and processes.count > 1
    watcher = OpenWatcher(recipe, checkpoint, store, transformer, trained, device, log)

    def count(batch: OpenBatch) -> tuple[int, float]:
        shape, length = tuple(batch.latents.shape[1:]), batch.text.shape[1]
        return len(batch), len(batch) * flops(checkpoint, shape, length, recipe.lora is None, recipe.checkpointing)

    progress, average = run_loop(
        recipe.loop, objective, trained if recipe.loop.ema > 0 else nn.Module(),
        partial(store.batch, size=recipe.batch, seed=recipe.loop.seed), out,
        units=list(transformer.blocks) if sharded else (), count=count,
        every_log=None if sharded else watcher, log=log,
    )  # fmt: skip
    if not progress.step:
        raise SeedanceError("loop: the run was stopped before its first step; there is nothing to save")
    if processes.rank == 0 or sharded:
        watcher.look(progress, average, write=processes.rank == 0, drawn=progress.finished and not sharded)
    return out / ("model" if recipe.lora is None else "lora")


class OpenWatcher:
    """What happens beside the steps: samples and exports, with the averaged weights where an average is kept."""

    def __init__(
        self, recipe: OpenRecipe, checkpoint: Checkpoint, store: OpenStore, transformer: Any, trained: nn.Module,
        device: torch.device, log: RunLog,
    ) -> None:  # fmt: skip
        self.recipe, self.checkpoint, self.store, self.device, self.log = recipe, checkpoint, store, device, log
        self.transformer, self.trained = transformer, trained
        self.looked = time.monotonic()

    def __call__(self, progress: Progress, average: MovingAverage) -> dict[str, Any]:
        if self.recipe.sample_minutes and time.monotonic() - self.looked > 60 * self.recipe.sample_minutes:
            self.look(progress, average)
        return {}

    def look(self, progress: Progress, average: MovingAverage, write: bool = True, drawn: bool = True) -> None:
        """Exports, and where ``drawn`` draws samples. The weights are as before afterwards."""
        started = time.monotonic()
        live = [parameter.detach().clone() for parameter in self.trained.parameters()] if average.shadow else []
        if live:
            average.copy_to(self.trained)
        self.transformer.eval()
        try:
            folder = self.export(progress, write)
            if drawn and self.store.about["prompts"]:
                self.draw(progress)
        finally:
            with torch.no_grad():
                for parameter, before in zip(self.trained.parameters(), live, strict=bool(live)):
                    parameter.copy_(before)
            self.transformer.train()
        self.looked = time.monotonic()
        self.log.write(event="look", step=progress.step, folder=str(folder), look_seconds=self.looked - started)

    def export(self, progress: Progress, write: bool = True) -> Path:
        """Writes the adapter or the checkpoint as other tools read it, with the facts of the run beside it."""
        recipe = self.recipe
        folder = recipe.out / ("model" if recipe.lora is None else "lora")
        facts = {
            "recipe": portable(json.loads(json.dumps(asdict(recipe), default=str))), "clips": len(self.store),
            "buckets": self.store.about["buckets"], "steps": progress.step, "clips_seen": progress.samples,
            "seconds": round(progress.seconds), "device": device_name(self.device),
        }  # fmt: skip
        if recipe.lora is None:
            save_whole(self.transformer, self.checkpoint, folder, write, single_file=recipe.single_file)
        elif write:
            save_lora(self.transformer, folder)
        if write:
            (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return folder

    @torch.no_grad()
    def draw(self, progress: Progress) -> Path:
        """Films of the cache's prompts by the stock pipeline, as rows of one PNG, and as mp4 where ``films`` is set."""
        recipe, about = self.recipe, self.store.about
        height, width, frames = recipe.sample_size or _first_size(about["buckets"])
        kind, _ = pick_dtype(self.device, recipe.loop.dtype)
        vae = load_part(self.checkpoint, "vae", torch.float32, self.device)
        pipe = diffusers().WanPipeline(
            tokenizer=None, text_encoder=None, vae=vae, scheduler=load_part(self.checkpoint, "scheduler"),
            transformer=self.transformer, expand_timesteps=bool(self.checkpoint.index.get("expand_timesteps")),
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        negative = self.store.text(about["negative_prompt"])[None].to(self.device)
        rows = []
        for prompt in about["prompts"]:
            with torch.autocast(self.device.type, kind, enabled=kind != torch.float32):
                made = pipe(
                    prompt_embeds=self.store.text(prompt)[None].to(self.device), negative_prompt_embeds=negative,
                    height=height, width=width, num_frames=frames, num_inference_steps=recipe.steps,
                    guidance_scale=recipe.guidance_scale, output_type="np",
                    generator=torch.Generator().manual_seed(recipe.seed),
                ).frames[0]  # fmt: skip
            rows.append((np.clip(made, 0, 1) * 255).round().astype(np.uint8))  # (T, H, W, 3)
        columns = np.linspace(0, frames - 1, min(8, frames)).round().astype(int)
        picture = np.concatenate([np.concatenate(list(row[columns]), axis=1) for row in rows])
        target = recipe.out / "samples" / f"step-{progress.step:07d}"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_png(target.with_suffix(".png"), picture)
        if recipe.films:
            from shots.video import VideoWriter

            fps = float(next(iter(about["buckets"].values()))["fps"])
            for number, row in enumerate(rows):
                path = target.with_name(f"{target.name}-{number}.mp4")
                with VideoWriter(path, fps=fps, height=height, width=width) as writer:
                    writer.write(row)
        return target.with_suffix(".png")


def _first_size(buckets: dict[str, Any]) -> tuple[int, int, int]:
    bucket = next(iter(buckets.values()))
    return bucket["height"], bucket["width"], bucket["frames"]


def save_lora(transformer: Any, folder: Path) -> Path:
    """The adapters in bf16: as ``pytorch_lora_weights.safetensors`` with their configuration in its header, and under
    the family's own names as ``comfyui_lora.safetensors``."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    pipeline = diffusers().WanPipeline
    layers = {name: tensor.to(torch.bfloat16).cpu() for name, tensor in get_peft_model_state_dict(transformer).items()}
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.save_lora_weights(
        folder, transformer_lora_layers=layers,
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )  # fmt: skip
    theirs = {}
    for name, tensor in layers.items():
        module, _, side = name.rpartition(".lora_")
        key = f"diffusion_model.{original('Wan', module)}"
        theirs[f"{key}.lora_{side}"] = tensor.contiguous()
        theirs[f"{key}.alpha"] = torch.tensor(float(transformer.peft_config["default"].lora_alpha))
    save_file(theirs, folder / "comfyui_lora.safetensors", metadata={"format": "pt"})
    return folder


def save_whole(
    transformer: Any, checkpoint: Checkpoint, folder: Path, write: bool = True, *, single_file: bool = True
) -> Path:
    """A checkpoint with this transformer in bf16; its other parts are links to those it came from, or copies where the
    file system has no links. ``single_file``: also the transformer alone as ``single_file.safetensors``. With spread
    weights every process must call, and one of them ``write``."""
    from shots.runtime.shard import gathered

    state = gathered(dict(transformer.state_dict()))
    if not write:
        return folder
    kept = set(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    state = {n: t.to(torch.float32 if kept & set(n.split(".")) else torch.bfloat16) for n, t in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    plain = empty(checkpoint)
    plain.load_state_dict(state, assign=True)
    plain.save_pretrained(folder / "transformer", safe_serialization=True)
    if single_file:
        save_single_file(state, checkpoint.family.name, folder / "single_file.safetensors")
    for part in checkpoint.parts:
        target, source = folder / part, (checkpoint.folder / part).resolve()
        if part == "transformer" or target.exists():
            continue
        try:
            os.symlink(source, target, target_is_directory=True)
        except OSError:
            shutil.copytree(source, target)
    for file in ("model_index.json", "seedance.json"):
        if (checkpoint.folder / file).is_file():
            shutil.copyfile(checkpoint.folder / file, folder / file)
    return folder
