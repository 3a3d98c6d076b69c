"""Open checkpoints through our engine beside the stock pipelines: `make bench ONLY=open_weights`.

Tiny checkpoints of random weights, CPU, float32. Equality: the largest difference of any frame's value, of 255, over
every family. Overhead: a render's time less that of the bare calls of the models inside it (text encoder, transformer,
VAE), measured around those calls in the same run, as a share of them; median of several renders. Its transformer is
wide enough (about 20 M parameters) that a call takes longer than the timers and launches around it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedance.engines.folder import diffusers
from seedance.pipeline import Seedance
from tests.seedance.engines import tiny_checkpoints

Row = tuple[str, str, str]
WORDS, AGAINST = "a red cube jumps on the floor", "bad"
TEXT = ("wan-t2v", "wan-t2v-a14b", "wan-ti2v", "ltx", "ltx-condition", "cogvideox-t2v", "cogvideox-1.5", "hunyuan")


def equality() -> Row:
    """The largest difference from the stock film, over the families that are drawn from words."""
    worst = 0
    for name in TEXT:
        with tempfile.TemporaryDirectory() as folder:
            place = tiny_checkpoints.make(name, Path(folder))
            pipe: Any = Seedance.from_pretrained(place, dtype="fp32", device="cpu")
            plan = pipe.plan(WORDS, seed=7)
            frames = pipe.defaults.ratio.fit_frames(plan.frames[0])
            ours = pipe(WORDS, seed=7, negative_prompt=AGAINST, guidance_scale=4.0).frames
            stock = getattr(diffusers(), pipe.checkpoint.index["_class_name"]).from_pretrained(place)
            stock.set_progress_bar_config(disable=True)
            call = {"height": 32, "width": 32, "num_frames": frames, "num_inference_steps": 2, **pipe.defaults.call}
            if "guider" in stock.components:
                stock.guider = stock.guider.new(guidance_scale=4.0)
            else:
                call["guidance_scale"] = 4.0
            if "ltx" in name:
                call["frame_rate"] = plan.fps
            seed = torch.Generator("cpu").manual_seed(7)
            theirs = stock(prompt=WORDS, negative_prompt=AGAINST, generator=seed, output_type="np", **call).frames[0]
            pixels = np.round(np.asarray(theirs) * 255)[: len(ours)]
            worst = max(worst, int(np.abs(ours - pixels).max()))
    what = f"open checkpoints against stock diffusers, {len(TEXT)} kinds, same seed: largest difference"
    return what, f"{worst} of 255", "1 (rounding)"


def overhead(renders: int = 7) -> Row:
    """The share of a render that is not spent inside the models."""
    with tempfile.TemporaryDirectory() as folder:
        place = tiny_checkpoints.wan(Path(folder))
        pipe: Any = Seedance.from_pretrained(place, dtype="fp32", device="cpu")
    torch.manual_seed(0)
    wide = tiny_checkpoints.wan_transformer(dim=768)
    pipe.parts["transformer"] = wide.requires_grad_(False)
    inside = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*said: Any, **more: Any) -> Any:
            nonlocal inside
            began = time.perf_counter()
            try:
                return call(*said, **more)
            finally:
                inside += time.perf_counter() - began

        return run

    wide.forward = timed(wide.forward)
    pipe.parts["text_encoder"].forward = timed(pipe.parts["text_encoder"].forward)
    pipe.parts["vae"]._decode = timed(pipe.parts["vae"]._decode)
    shares = []
    for turn in range(renders + 1):
        inside = 0.0
        wall = time.perf_counter()
        pipe(WORDS, seed=turn, steps=8, height=64, width=64)
        spent = time.perf_counter() - wall
        if turn:  # the first one warms up
            shares.append((spent - inside) / inside)
    figure = statistics.median(shares)
    return "render on an open checkpoint, CPU: time outside its models", f"{figure:.1%} of that inside", "<= 5 %"


def open_weights() -> list[Row]:
    """Both rows."""
    return [equality(), overhead()]


if __name__ == "__main__":
    for row in open_weights():
        print(row, flush=True)
