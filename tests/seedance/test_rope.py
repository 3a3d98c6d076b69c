"""Positions of multi-shot MM-RoPE against layouts worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from seedance import rope
from seedance.errors import SeedanceError

# A global caption of 2 tokens, shot 1 with 3 tokens and 2 latent frames, shot 2 with 1 token and 3 latent frames, one
# padded token.
TEXT_SHOT = torch.tensor([[0, 0, 1, 1, 1, 2, -1]])
SHOT = torch.tensor([[1, 1, 2, 2, 2]])
SECONDS = torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0]])


def places(layout: str, **options: object) -> rope.Positions:
    options = {"rate": 2.0, "reference": None, **options}
    return rope.positions(layout, SHOT, SECONDS, TEXT_SHOT, (2, 2), **options)  # type: ignore[arg-type]


def test_diagonal_layout_puts_text_then_video_of_each_shot_along_the_diagonal() -> None:
    made = places("seedance")
    # global text 0 1 | dummy picture of max(1, 2, 2) = 2 | shot 1 text 4 5 6 | video from 7, span max(2, 2, 2) | shot
    # 2 text 9 | video from 10
    assert made.text[0, :6, 0].tolist() == [0, 1, 4, 5, 6, 9]
    assert torch.equal(made.text[..., 0], made.text[..., 1]) and torch.equal(made.text[..., 0], made.text[..., 2])
    assert made.visual[0, :, 0, 0].tolist() == [7, 8, 10, 11, 12]
    assert made.visual[0, 1].tolist() == [[8, 7, 7], [8, 7, 8], [8, 8, 7], [8, 8, 8]]
    assert made.visual[0, 2, :, 1].tolist() == [10, 10, 11, 11]


def test_diagonal_layout_without_a_global_caption_has_no_dummy_picture() -> None:
    made = rope.positions(
        "seedance", SHOT[:, :2], SECONDS[:, :2], torch.tensor([[1, 1, 1]]), (2, 2), rate=2.0, reference=None
    )
    assert made.text[0, :, 0].tolist() == [0, 1, 2]
    assert made.visual[0, :, 0, 0].tolist() == [3, 4]


def test_a_long_shot_strides_by_its_length() -> None:
    shot, seconds = torch.tensor([[1, 1, 1, 1, 2]]), torch.arange(5)[None] * 1.0
    made = rope.positions("seedance", shot, seconds, torch.tensor([[1, 2]]), (2, 2), rate=1.0, reference=None)
    assert made.visual[0, :, 0, 0].tolist() == [1, 2, 3, 4, 6]  # text 0, video 1-4 (span 4 > 2), text 5, video 6


@pytest.mark.parametrize(("layout", "phase"), [("echoshot", 4.0), ("narrative", 0.5)])
def test_phase_layouts_add_a_phase_per_shot_to_film_time(layout: str, phase: float) -> None:
    made = places(layout)
    assert made.visual[0, :, 0, 0].tolist() == [0, 1, 2 + phase, 3 + phase, 4 + phase]
    assert made.visual[0, 3, :, 1:].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]  # the grid does not move
    # Captions end where their shot begins: the global one and shot 1's at 0, shot 2's at 2 + phase.
    assert made.text[0, :6, 0].tolist() == [-2, -1, -3, -2, -1, 2 + phase - 1]
    assert made.text[0, :6, 1].tolist() == [-2, -1, -3, -2, -1, -1]


def test_grids_of_the_same_picture_share_coordinates() -> None:
    coarse = rope.grid_coordinates(4, 4, 8).reshape(4, 4, 2)
    fine = rope.grid_coordinates(8, 8, 8).reshape(8, 8, 2)
    assert torch.equal(coarse, fine.reshape(4, 2, 4, 2, 2).mean((1, 3)))
    assert coarse[:, 0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    wide = rope.grid_coordinates(4, 8, 8)  # the longer side spans the reference, cells stay square
    assert wide.reshape(4, 8, 2)[:, 0, 0].tolist() == [0, 1, 2, 3]


def test_frame_rate_changes_how_densely_a_second_is_sampled_not_where_it_lies() -> None:
    text = torch.tensor([[1]])
    slow = rope.positions(
        "seedance", torch.ones(1, 3, dtype=torch.long), torch.tensor([[0.0, 2 / 3, 4 / 3]]), text, (2, 2)
    )
    fast = rope.positions("seedance", torch.ones(1, 5, dtype=torch.long), torch.arange(5)[None] / 3, text, (2, 2))
    torch.testing.assert_close(slow.visual, fast.visual[:, ::2])


def test_padding_moves_nothing() -> None:
    padded = rope.positions("seedance", SHOT, SECONDS, TEXT_SHOT, (2, 2))
    bare = rope.positions("seedance", SHOT, SECONDS, TEXT_SHOT[:, :6], (2, 2))
    assert torch.equal(padded.visual, bare.visual) and torch.equal(padded.text[:, :6], bare.text)


def test_rotation_turns_each_pair_by_its_axis_position() -> None:
    place = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    cos, sin = rope.rotation(place, 16, theta=100.0, dtype=torch.float64)
    assert rope.axis_pairs(16) == (2, 3, 3) and rope.axis_pairs(64) == (8, 12, 12)
    angles = [
        1.0,
        100 ** (-1 / 2),
        2.0,
        2 * 100 ** (-1 / 3),
        2 * 100 ** (-2 / 3),
        3.0,
        3 * 100 ** (-1 / 3),
        3 * 100 ** (-2 / 3),
    ]
    for pair, angle in enumerate(angles):
        x = torch.zeros(1, 16, dtype=torch.float64)
        x[0, pair] = 1.0
        turned = rope.rotate(x, cos, sin)[0]
        assert turned[pair].item() == pytest.approx(math.cos(angle))
        assert turned[pair + 8].item() == pytest.approx(math.sin(angle))


def test_attention_scores_depend_on_relative_positions_only() -> None:
    q, k = torch.randn(2, 5, 64, dtype=torch.float64)
    place, moved = torch.randn(5, 3).double(), torch.tensor([7.0, -3.0, 2.0]).double()

    def scores(offset: torch.Tensor) -> torch.Tensor:
        tables = rope.rotation(place + offset, 64, 256.0, torch.float64)
        return rope.rotate(q, *tables) @ rope.rotate(k, *tables).T

    torch.testing.assert_close(scores(torch.zeros(3).double()), scores(moved))


def test_an_unknown_layout_is_named_with_the_ones_there_are() -> None:
    with pytest.raises(SeedanceError, match="layout 'spiral' is not one of seedance, echoshot, narrative"):
        places("spiral")
