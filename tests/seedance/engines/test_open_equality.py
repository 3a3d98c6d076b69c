"""The film of a seed is the film that the stock pipeline of diffusers makes of it, for every family and task."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from seedance.engines.folder import diffusers
from seedance.pipeline import Seedance

Opened = Callable[[str], Seedance]
WORDS, AGAINST = "a red cube jumps on the floor", "bad"


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)


def stock(pipe: Any, cls: str, **said: Any) -> np.ndarray:
    """What diffusers' own class makes of the checkpoint's folder, loaded by diffusers alone; uint8 (T, H, W, 3)."""
    kind = getattr(diffusers(), cls)
    made = kind.from_pretrained(pipe.checkpoint.folder, **({"vae": pipe.parts["vae"]} if "Wan" in cls else {}))
    made.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "output_type": "np", **said}
    if "guider" in made.components:  # sizes come from the picture, guidance from the guider
        made.guider = made.guider.new(guidance_scale=call.pop("guidance_scale"))
        if "image" in call:
            call = {key: value for key, value in call.items() if key not in ("height", "width")}
    seed = torch.Generator("cpu").manual_seed(7)
    frames = made(prompt=WORDS, negative_prompt=AGAINST, generator=seed, **call).frames[0]
    return np.round(np.asarray(frames) * 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wan's stock pipeline from pictures asks for a package that it does not need for plain words."""
    diffusers()
    module = importlib.import_module("diffusers.pipelines.wan.pipeline_wan_i2v")
    monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)


CASES = [
    ("wan-t2v", "WanPipeline", ()),
    ("wan-t2v-a14b", "WanPipeline", ()),
    ("wan-ti2v", "WanPipeline", ()),
    ("wan-ti2v", "WanImageToVideoPipeline", ("image",)),
    ("wan-i2v", "WanImageToVideoPipeline", ("image",)),
    ("wan-i2v-a14b", "WanImageToVideoPipeline", ("image",)),
    ("wan-i2v-a14b", "WanImageToVideoPipeline", ("image", "last_image")),
    ("wan-flf2v", "WanImageToVideoPipeline", ("image", "last_image")),
    ("ltx", "LTXPipeline", ()),
    ("ltx", "LTXImageToVideoPipeline", ("image",)),
    ("ltx-condition", "LTXConditionPipeline", ()),
    ("ltx-condition", "LTXConditionPipeline", ("image", "last_image")),
    ("cogvideox-t2v", "CogVideoXPipeline", ()),
    ("cogvideox-1.5", "CogVideoXPipeline", ()),
    ("cogvideox-i2v", "CogVideoXImageToVideoPipeline", ("image",)),
    ("hunyuan", "HunyuanVideo15Pipeline", ()),
    ("hunyuan-i2v", "HunyuanVideo15ImageToVideoPipeline", ("image",)),
]


@pytest.mark.parametrize(("name", "cls", "given"), CASES, ids=[f"{n}-{'+'.join(g) or 'text'}" for n, _, g in CASES])
def test_a_seed_is_the_stock_film(opened: Opened, name: str, cls: str, given: tuple[str, ...]) -> None:
    pipe = opened(name)
    pictures = {key: picture(k) for k, key in enumerate(given)}
    ours = pipe(WORDS, seed=7, negative_prompt=AGAINST, guidance_scale=4.0, **pictures).frames  # type: ignore[arg-type]
    said: dict[str, Any] = {key: Image.fromarray(pixels) for key, pixels in pictures.items()}
    if cls == "LTXConditionPipeline" and given:
        said = {"image": list(said.values()), "frame_index": [0, 4], "video": [None, None]}
    if "LTX" in cls:
        said["frame_rate"] = 8.0
    if name == "wan-t2v-a14b":
        said["guidance_scale_2"] = 3.0
    if "CogVideoX" in cls:
        said["num_frames"] = 9  # the next number that its VAE decodes in order; we trim
    theirs = stock(pipe, cls, guidance_scale=4.0, **said, **(pipe.defaults.call if name == "ltx-condition" else {}))
    theirs = theirs[:5]
    assert ours.shape == theirs.shape == (5, 32, 32, 3) and ours.std() > 3
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # a value half-way between two is rounded either way
