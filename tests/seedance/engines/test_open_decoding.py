"""Causal VAEs of open checkpoints stream: the stock decoder's frames, from the first latent on, in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from seedance import SeedanceError
from seedance.acceleration import decoding
from seedance.acceleration.counting import TensorMemory, count_decoding
from seedance.acceleration.decoding import Tiling, decode, open_step, whole_step
from seedance.engines.engine import decode_shot
from seedance.pipeline import Seedance

STREAMS = ("wan-t2v", "wan-ti2v", "cogvideox-t2v", "hunyuan")
Opened = Callable[[str], Seedance]


@pytest.fixture
def vae(opened: Opened) -> Callable[[str], tuple[Any, int]]:
    """name -> the VAE of that checkpoint, and its channels."""

    def found(name: str) -> tuple[Any, int]:
        pipe: Any = opened(name)
        config = pipe.parts["vae"].config
        return pipe.parts["vae"], config.get("z_dim") or config.latent_channels

    return found


def noise(channels: int, frames: int, height: int = 4, width: int = 5) -> torch.Tensor:
    return torch.randn(1, channels, frames, height, width, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_streamed_shot_has_the_frames_of_the_stock_decoder(
    name: str, frames: int, vae: Callable[[str], tuple[Any, int]]
) -> None:
    model, channels = vae(name)
    z = noise(channels, frames)
    stock = model.decode(z, return_dict=False)[0]
    step, chunks = open_step(model, frames)
    pieces = list(decode(step, z, chunk=chunks, space=1))
    assert len(pieces) == (max(frames // 2, 1) if name.startswith("cog") else frames)
    assert all(piece.shape[2] <= (9 if name.startswith("cog") else 4) for piece in pieces)
    torch.testing.assert_close(torch.cat(pieces, 2), stock, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["wan-t2v", "wan-ti2v", "hunyuan"])
def test_chunks_of_any_length_give_the_same_frames(name: str, vae: Callable[[str], tuple[Any, int]]) -> None:
    model, channels = vae(name)
    z = noise(channels, 5)
    step, chunks = open_step(model, 5)
    one, some = (torch.cat(list(decode(step, z, chunk=c, space=1)), 2) for c in (chunks, (3, 2)))
    torch.testing.assert_close(some, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STREAMS)
def test_a_shot_is_streamed_in_tiles_as_it_is_decoded_at_once_in_tiles(
    name: str, opened: Opened, vae: Callable[[str], tuple[Any, int]]
) -> None:
    model, channels = vae(name)
    z, tiles = noise(channels, 2, 4, 6), Tiling(4, 2)
    space = opened(name).defaults.ratio.space
    step, chunks = open_step(model, 2)
    streamed = torch.cat(list(decode(step, z, chunk=chunks, space=space, tiling=tiles)), 2)
    (whole,) = decode(whole_step(model), z, chunk=None, space=space, tiling=tiles)
    assert streamed.shape[3:] == (4 * space, 6 * space)
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STREAMS)
def test_memory_does_not_grow_with_a_shot_that_streams(name: str, vae: Callable[[str], tuple[Any, int]]) -> None:
    model, channels = vae(name)
    peaks: dict[str, list[int]] = {"streamed": [], "stock": []}
    sizes = []
    for frames in (4, 12):
        z = noise(channels, frames, 4, 4)
        step, chunks = open_step(model, frames)
        with torch.no_grad(), TensorMemory() as memory:
            for _ in decode(step, z, chunk=chunks, space=1):
                pass
        peaks["streamed"].append(memory.peak)
        with torch.no_grad(), TensorMemory() as memory:
            sizes.append(model.decode(z, return_dict=False)[0].nbytes)
        peaks["stock"].append(memory.peak)
    more = sizes[1] - sizes[0]
    # Attention in HunyuanVideo's middle looks back, at the latents' own size: a little for every frame.
    assert peaks["streamed"][1] - peaks["streamed"][0] < 0.1 * more, peaks
    assert peaks["stock"][1] - peaks["stock"][0] > 0.9 * more, peaks
    assert peaks["streamed"][1] < peaks["stock"][1]


@pytest.mark.parametrize("name", STREAMS)
def test_one_tile_s_keepings_are_on_the_device_at_a_time(
    name: str, opened: Opened, vae: Callable[[str], tuple[Any, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card: what is parked is out of the account, and the frames are those of tiles that were never parked."""
    model, channels = vae(name)
    space, tiles, frames = opened(name).defaults.ratio.space, Tiling(4, 1), 5
    step, chunks = open_step(model, frames)

    def decoded(z: torch.Tensor) -> tuple[list[torch.Tensor], int]:
        pieces = []
        with torch.no_grad(), TensorMemory() as memory:
            for pixels in decode(step, z, chunk=chunks, space=space, tiling=tiles):
                with _disable_current_modes():
                    pieces.append(pixels.clone())
        return pieces, memory.peak

    def parked(held: torch.Tensor) -> torch.Tensor:
        with _disable_current_modes():
            return held.clone()

    z = noise(channels, frames, 7, 10)  # six tiles
    plain, at_once = decoded(z)  # on a CPU one tile after another
    monkeypatch.setattr(decoding, "parks", lambda device: True)
    unparked, beside = _unparked(monkeypatch, lambda: decoded(z))
    monkeypatch.setattr(decoding, "_park", parked)
    monkeypatch.setattr(decoding, "_fetch", lambda held, device: held.clone())
    ours, peak = decoded(z)
    torch.testing.assert_close(torch.cat(ours, 2), torch.cat(unparked, 2), rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(ours, 2), torch.cat(plain, 2), rtol=0, atol=0)
    for parks, measured in ((True, peak), (False, at_once)):
        told = count_decoding(
            type(model).__name__, model.config, z.shape[1:], space=space, dtype=z.dtype, tiling=tiles, parks=parks
        )
        assert 0.85 * measured < told.peak < 1.2 * measured, (told, measured)
        # All that tiles keep, less what one of them has there itself.
        assert not parks or told.parked == pytest.approx((beside - peak) * 6 / 5, rel=0.2)


def _unparked(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "_park", lambda held: held)
        patched.setattr(decoding, "_fetch", lambda held, device: held)
        return run()


def test_the_first_frame_is_there_before_the_second_latent_is_looked_at(
    vae: Callable[[str], tuple[Any, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, channels = vae("wan-t2v")
    looked = 0
    forward = model.decoder.forward

    def counted(*said: Any, **more: Any) -> Any:
        nonlocal looked
        looked += 1
        return forward(*said, **more)

    monkeypatch.setattr(model.decoder, "forward", counted)
    frames = decode_shot(model, noise(channels, 4)[0], space=8)
    assert next(frames).shape[2] == 1 and looked == 1
    assert next(frames).shape[2] == 4 and looked == 2
    frames.close()
    # A shot that nobody finished leaves nothing behind.
    z = noise(channels, 2)
    whole = model.decode(z, return_dict=False)[0]
    torch.testing.assert_close(torch.cat(list(decode_shot(model, z[0], space=8)), 2), whole)


@pytest.mark.parametrize("name", ["wan-t2v", "hunyuan", "ltx"])
def test_a_film_reaches_its_file_a_few_frames_at_a_time(name: str, opened: Opened, tmp_path: Path) -> None:
    pipe = opened(name)
    film = pipe.sample([pipe.plan("a red cube jumps", num_frames=13)], steps=1)[0]
    told: list[int] = []
    pipe.write(film, tmp_path / "film.mp4", callback=lambda done, total: told.append(done))
    frames = film.plan.frames[0]
    assert told == ([0, frames] if name == "ltx" else [0, *range(1, frames, 4), frames])  # LTX-Video's looks ahead


def test_a_shot_s_first_and_last_frame_are_those_of_the_film(opened: Opened) -> None:
    pipe: Any = opened("wan-t2v")
    film = pipe.sample([pipe.plan("a red cube [cut] a blue sphere", num_frames=9)], steps=1)[0]
    frames = pipe.video(film).frames
    assert np.array_equal(pipe._frame(film, 1, "first"), frames[0])
    assert np.array_equal(pipe._frame(film, 2, "last"), frames[17])


def test_pixels_that_are_no_numbers_are_an_error_at_the_first_of_them(vae: Callable[[str], tuple[Any, int]]) -> None:
    model, channels = vae("wan-t2v")
    z = noise(channels, 3)
    z[:, :, 2] = torch.nan
    frames = decode_shot(model, z[0], space=8)
    next(frames), next(frames)
    with pytest.raises(SeedanceError, match="pixels are not numbers"):
        next(frames)


def test_an_offloaded_vae_is_fetched_before_it_decodes(vae: Callable[[str], tuple[Any, int]]) -> None:
    model, channels = vae("wan-t2v")
    fetched: list[Any] = []

    class Hook:
        def pre_forward(self, module: Any) -> None:
            fetched.append(module)

    model._hf_hook = Hook()
    try:
        list(decode_shot(model, noise(channels, 1)[0], space=8))
    finally:
        del model._hf_hook
    assert fetched[0] is model
