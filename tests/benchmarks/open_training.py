"""A LoRA training step on an open checkpoint, beside a plain accelerate loop on the same model and cache, in one run.

Notable choices:
- The plain loop is what diffusers' training scripts do: PEFT adapters, a `DataLoader` over the cached files, autocast
  and clipping by accelerate, the loss read every step. Both train the same weights with the same optimizer and numbers.
- Both loops run in turns, several times, and the median of the quickest third of each one's steps is taken: what else
  the machine does only makes steps slower.
- The checkpoint is of random weights, small enough for a CPU; its depth and width are such that a step is products of
  matrices and not Python.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Row

TURNS, STEPS, WARM = 5, 12, 3
DIM, LAYERS, BATCH = 256, 4, 2


def open_training() -> list[Row]:
    """The ratio of our step's time to the plain loop's, and the figures behind it."""
    with tempfile.TemporaryDirectory() as place:
        ours, plain = measure(Path(place))
    ratio = ours / plain
    figure = f"{ratio:.2f} x ({ours * 1000:.0f} against {plain * 1000:.0f} ms)"
    return [(f"LoRA training step against a plain accelerate loop ({LAYERS} blocks of {DIM})", figure, "<= 1.0 x")]


def measure(place: Path) -> tuple[float, float]:
    """Seconds of a step where nothing disturbs it: ours, and the plain loop's."""
    import torch

    torch.set_num_threads(1)
    model, cache = _material(place)
    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(TURNS):
        for name, steps in (("ours", _ours), ("plain", _plain)) if turn % 2 else (("plain", _plain), ("ours", _ours)):
            taken[name] += steps(model, cache, place / f"{name}-{turn}")
    ours, plain = (statistics.median(sorted(taken[name])[: len(taken[name]) // 3]) for name in ("ours", "plain"))
    return ours, plain


def _material(place: Path) -> tuple[Path, Path]:
    """A checkpoint of random weights and a cache of random latents for it."""
    import numpy as np
    import torch

    from seedance.training import train
    from shots.video import VideoWriter
    from tests.seedance.engines.tiny_checkpoints import wan

    model, clips, cache = wan(place / "model"), place / "clips", place / "cache"
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=DIM // 64, attention_head_dim=64, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=256, ffn_dim=4 * DIM, num_layers=LAYERS, rope_max_seq_len=64,
    ).save_pretrained(model / "transformer")  # fmt: skip
    clips.mkdir()
    for number in range(4):
        frames = np.random.default_rng(number).integers(0, 256, (18, 96, 160, 3), dtype=np.uint8)
        with VideoWriter(clips / f"{number}.mp4", fps=8.0, height=96, width=160) as writer:
            writer.write(frames)
        (clips / f"{number}.txt").write_text(f"clip number {number}")
    bucket = "{x: {height: 96, width: 160, frames: 17, fps: 8}}"
    train("wan-1b3-lora-latents", [f"out={cache}", f"model={model}", f"folder={clips}", f"buckets={bucket}",
                                   "device=cpu", "threads=1"])  # fmt: skip
    return model, cache


def _timed(steps: Callable[[], Iterator[None]]) -> list[float]:
    times, begun = [], time.perf_counter()
    for _ in steps():
        times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    return times[WARM:]


def _ours(model: Path, cache: Path, out: Path) -> list[float]:
    """Seconds of each step of `seedance train wan-1b3-lora`, from its log: a line a step."""
    from seedance.training import train

    train("wan-1b3-lora", [
        f"model={model}", f"cache={cache}", f"out={out}", f"batch={BATCH}", "checkpointing=false", "sample_minutes=0",
        "loop.time_budget=null", f"loop.steps={STEPS}", "loop.accumulate=1", "loop.device=cpu", "loop.threads=1",
        "loop.ema=0", "loop.log_every=1", "loop.checkpoint_seconds=1000000", "steps=1", "guidance_scale=1",
    ])  # fmt: skip
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    times = [row["seconds"] for row in rows if "loss" in row]
    return [b - a for a, b in zip(times[WARM - 1 : -1], times[WARM:], strict=True)]


def _plain(model: Path, cache: Path, out: Path) -> list[float]:
    """Seconds of each step of a plain loop, written as diffusers' training scripts are."""
    import torch
    from accelerate import Accelerator
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig
    from torch.utils.data import DataLoader, Dataset

    from seedance.training.open import TARGETS
    from seedance.training.open_latents import OpenStore
    from shots.runtime.device import pick_dtype

    kind, _ = pick_dtype(torch.device("cpu"))
    bf16 = kind == torch.bfloat16
    store = OpenStore(cache)

    class Clips(Dataset[Any]):
        def __len__(self) -> int:
            return STEPS * BATCH

        def __getitem__(self, number: int) -> tuple[Any, Any]:
            row = store.buckets["x"][number % len(store)]
            return store.latents(row).float(), store.text(row["caption"])

    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no")
    transformer = WanTransformer3DModel.from_pretrained(model, subfolder="transformer", torch_dtype=kind)
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=32, lora_alpha=32, target_modules=list(TARGETS)))
    adapters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in adapters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(adapters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    transformer, optimizer, loader = accelerator.prepare(transformer, optimizer, DataLoader(Clips(), BATCH))
    transformer.train()

    def steps() -> Iterator[None]:
        for latents, text in loader:
            noise = torch.randn_like(latents)
            u = torch.randn(len(latents)).sigmoid()
            sigma = (3 * u / (1 + 2 * u)).view(-1, 1, 1, 1, 1)
            noisy = (1 - sigma) * latents + sigma * noise
            with accelerator.autocast():
                predicted = transformer(
                    hidden_states=noisy.to(kind), timestep=1000 * sigma.flatten(), encoder_hidden_states=text.to(kind),
                    return_dict=False,
                )[0]  # fmt: skip
            loss = torch.nn.functional.mse_loss(predicted.float(), noise - latents)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(adapters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            yield

    return _timed(steps)
