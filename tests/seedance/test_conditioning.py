"""Each mode's mask, and what batching and dropping text leave alone."""

from __future__ import annotations

import pytest
import torch

from seedance.conditioning import Conditioning, collate, given_mask, join_text, shot_times
from seedance.errors import SeedanceError


def film(
    tokens: tuple[int, ...] = (3, 2), frames: tuple[int, ...] = (2, 3), caption: int | None = None
) -> Conditioning:
    states = [torch.randn(n, 6) for n in tokens]
    whole = None if caption is None else torch.randn(caption, 6)
    return Conditioning.text_to_video(states, frames, (2, 2), fps=12.0, channels=4, caption=whole)


def test_text_to_video_gives_nothing_and_names_the_shots() -> None:
    made = film(caption=4)
    assert made.mask.tolist() == [[0, 0, 0, 0, 0]] and not made.clean.any()
    assert made.text_shot.tolist() == [[0] * 4 + [1] * 3 + [2] * 2]
    assert made.shot.tolist() == [[1, 1, 2, 2, 2]]
    # Shot 1 holds 5 pixel frames, so shot 2 begins at frame 5; latents are four frames apart.
    torch.testing.assert_close(made.seconds * 12, torch.tensor([[0.0, 4, 5, 9, 13]]))


def test_text_to_image_is_a_film_of_one_latent_frame() -> None:
    made = Conditioning.text_to_image(torch.randn(3, 6), (2, 2), channels=4)
    assert made.clean.shape == (1, 4, 1, 2, 2) and made.mask.tolist() == [[0]]


def test_first_frame_is_given_and_nothing_else() -> None:
    latent = torch.randn(4, 2, 2)
    made = film().first_frame(latent)
    assert made.mask.tolist() == [[1, 0, 0, 0, 0]]
    assert torch.equal(made.clean[0, :, 0], latent) and not made.clean[:, :, 1:].any()


def test_first_and_last_frames_are_given() -> None:
    first, last = torch.randn(2, 4, 2, 2)
    made = film().first_and_last(first, last)
    assert made.mask.tolist() == [[1, 0, 0, 0, 1]]
    assert torch.equal(made.clean[0, :, 0], first) and torch.equal(made.clean[0, :, 4], last)


def test_extension_gives_the_leading_frames() -> None:
    leading = torch.randn(1, 4, 3, 2, 2)
    made = film().extend(leading)
    assert made.mask.tolist() == [[1, 1, 1, 0, 0]]
    assert torch.equal(made.clean[:, :, :3], leading)
    with pytest.raises(SeedanceError, match="a film of 5 can be extended from 1 to 4"):
        film().extend(torch.randn(1, 4, 5, 2, 2))


def test_retake_gives_all_shots_but_the_named() -> None:
    latents = torch.randn(1, 4, 5, 2, 2)
    made = film().retake(latents, [1])
    assert made.mask.tolist() == [[0, 0, 1, 1, 1]]
    assert torch.equal(made.clean[:, :, 2:], latents[:, :, 2:]) and not made.clean[:, :, :2].any()
    with pytest.raises(SeedanceError, match="the film has shots"):
        film().retake(latents, [3])


def test_masks_may_differ_from_film_to_film() -> None:
    shot = torch.tensor([[1, 1, 2, 2], [1, 1, 1, 2]])
    assert given_mask("extend", shot, leading=torch.tensor([1, 3])).tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert given_mask("retake", shot, shots=shot == 2).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    with pytest.raises(SeedanceError, match="mode 'middle' is not one of"):
        given_mask("middle", shot)  # type: ignore[arg-type]


def test_dropping_text_hides_it_and_keeps_its_places() -> None:
    batch = collate([film(), film()])
    dropped = batch.drop_text(torch.tensor([True, False]))
    assert not dropped.text_mask[0].any() and dropped.text_mask[1].all()
    assert torch.equal(dropped.text_shot, batch.text_shot)
    assert not batch.drop_text().text_mask.any()


def test_collation_pads_text_with_hidden_tokens() -> None:
    batch = collate([film((3, 2)), film((1, 1))])
    assert len(batch) == 2 and batch.text.shape == (2, 5, 6)
    assert batch.text_mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert batch.text_shot[1].tolist() == [1, 2, -1, -1, -1]
    assert torch.equal(batch[:1].text, batch.text[:1])
    with pytest.raises(SeedanceError, match="buckets of one size"):
        collate([film(), film(frames=(2, 2))])


def test_moving_changes_the_dtype_of_latents_and_text_only() -> None:
    made = film().to("cpu", torch.bfloat16)
    assert made.clean.dtype == made.text.dtype == torch.bfloat16
    assert made.mask.dtype == made.seconds.dtype == torch.float32 and made.text_mask.dtype == torch.bool


def test_shapes_that_do_not_fit_are_named() -> None:
    made = film()
    with pytest.raises(SeedanceError, match=r"Conditioning.mask has shape \(1, 4\)"):
        Conditioning(made.clean, made.mask[:, :4], made.text, made.text_mask, made.text_shot, made.shot, made.seconds)
    with pytest.raises(SeedanceError, match="encode it at the film's size"):
        made.first_frame(torch.randn(4, 3, 3))
    with pytest.raises(SeedanceError, match="one of each per shot"):
        Conditioning.text_to_video([torch.randn(2, 6)], [1, 2], (2, 2), fps=12.0)
    with pytest.raises(SeedanceError, match="every shot needs a latent frame"):
        shot_times([0], 12.0)


def test_joined_text_keeps_order_and_owners() -> None:
    a, b = torch.randn(2, 6), torch.randn(1, 6)
    text, owners = join_text([a, b], [0, 2])
    assert torch.equal(text, torch.cat([a, b])) and owners.tolist() == [0, 0, 2]
