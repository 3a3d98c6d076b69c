"""Previews show what the decoder will show, quickly."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from seedance import SeedanceError
from seedance.evaluation import psnr
from seedance.pipeline import Seedance
from seedance.preview import _clips, latent_map, preview_frames


@pytest.fixture(scope="module")
def nano() -> Seedance:
    return Seedance.from_pretrained("seedance-nano", device="cpu")


def test_a_preview_is_within_25_dB_of_the_decoded_frames(nano: Seedance) -> None:
    from shots import stage

    clip = stage.clip(7, 128, 128, 21, 12.0, split="heldout")
    z = nano._encode_frames(clip.frames.numpy())  # (48, 6, 8, 8)
    pixels = nano.vae.decode(nano.vae.denormalize(z[None]))[0].float()  # (3, 21, 128, 128)
    decoded = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    shown = torch.from_numpy(preview_frames(nano, z, most=6))  # the frames 0, 4, 8, ...
    assert shown.shape == (6, 128, 128, 3)
    assert min(psnr(a, b) for a, b in zip(shown, decoded[::4], strict=True)) > 25
    assert psnr(shown[0], decoded[20]) < 25  # another moment is further away than that


def test_each_shot_shows_its_first_frame_and_other_counts_spread_over_the_film(nano: Seedance) -> None:
    torch.manual_seed(0)
    z = torch.randn(48, 9, 8, 8)
    by_shot = preview_frames(nano, z, most=3, lengths=(2, 3, 4))
    for index, start in enumerate((0, 2, 5)):
        alone = preview_frames(nano, z[:, start : start + 1], most=1)
        np.testing.assert_array_equal(by_shot[index], alone[0])
    assert preview_frames(nano, z, most=4).shape[0] == 4
    assert preview_frames(nano, z[:, :2], most=4).shape[0] == 2
    assert preview_frames(nano, z[None], most=2, lengths=(1,) * 9).shape[0] == 2


def test_what_is_no_film_is_refused(nano: Seedance) -> None:
    with pytest.raises(SeedanceError, match="latents"):
        preview_frames(nano, torch.zeros(2, 48, 3, 8, 8))
    with pytest.raises(SeedanceError, match="lengths"):
        preview_frames(nano, torch.zeros(48, 3, 8, 8), lengths=(1, 1))


def test_four_pictures_take_less_than_20_ms(nano: Seedance) -> None:
    z = torch.randn(48, 10, 8, 8)
    latent_map(nano)
    spent = []
    for _ in range(9):
        began = time.perf_counter()
        preview_frames(nano, z)
        spent.append(time.perf_counter() - began)
    assert min(spent) < 0.02


def test_the_clips_of_the_fit_are_the_same_every_time_and_span_the_colours() -> None:
    clips = _clips(48, 5)
    assert clips.shape == (6, 3, 5, 48, 48)
    assert torch.equal(clips, _clips(48, 5))
    assert clips.min() < -0.9 and clips.max() > 0.9
    assert not torch.equal(clips[:, :, 0], clips[:, :, 4])


def test_nothing_is_drawn_differently_for_being_watched(tiny_model: Path) -> None:
    pipe = Seedance.from_pretrained(tiny_model, device="cpu")
    plan = pipe.plan("A red cube jumps.", seed=3)
    watched: list[np.ndarray] = []
    film = pipe.sample([plan], callback=lambda step, steps, z: watched.append(preview_frames(pipe, z)))[0]
    assert len(watched) == 2 and watched[0].dtype == np.uint8
    assert torch.equal(film.latents, pipe.sample([plan])[0].latents)
