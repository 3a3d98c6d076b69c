"""The renderer draws what the film says, alike in either precision and at any frame rate, and its labels match its
pixels."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from shots.stage import render
from shots.stage.clips import LABELS, cell_labels, clip, sample
from shots.stage.motion import actor_tracks
from shots.stage.observe import observe
from shots.stage.render import Rendered, joined, render_film, render_parts
from shots.stage.scene import (
    ACTIONS,
    SHAPES,
    STAGE_VERSION,
    STYLES,
    Action,
    Actor,
    Camera,
    Film,
    Placement,
    Set,
    ShotSpec,
)
from shots.stage.writer import film_is_heldout, write_film

GOLDEN = {  # frozen with STAGE_VERSION 1: (seed, shots) -> first 12 hex digits of SHA-256 over strongly rounded frames
    (1, 1): "214b8d7766f3",
    (2, 3): "74581a809927",
    (9, 1): "8c72926fe128",
    (17, 2): "37691d30357e",
}


def film(
    kind: str = "still", shape: str = "cube", other: bool = False, move: str = "static", **changes: object
) -> Film:
    actors = [Actor("a", shape, "red"), Actor("b", "cube", "blue", "large")][: 2 if other else 1]
    places = [Placement("a", -0.9, 0.0), Placement("b", 0.9, -0.3)][: len(actors)]
    amounts = {
        "move_left": 0.6,
        "move_right": 1.2,
        "jump": 0.8,
        "grow": 1.6,
        "shrink": 0.6,
        "stretch": 1.7,
        "squash": 0.55,
        "fall": 1.2,
    }
    action = Action("a", kind, 0.3, 2.5, amounts.get(kind, 1.0), 1, "b" if other else None, "green")
    shot = ShotSpec(3.0, Camera(move, amount=20.0), tuple(places), (action,))
    place = replace(Set(), **changes)  # type: ignore[arg-type]
    return Film(place, tuple(actors), (shot,))


def centre(rendered: Rendered, frame: int, cast: int = 0) -> tuple[float, float]:
    ys, xs = (rendered.instance[frame] == cast + 1).nonzero(as_tuple=True)
    return float(xs.float().mean()), float(ys.float().mean())


def test_moving_right_moves_the_actors_pixels_right_and_left_left() -> None:
    right, left = render_film(film("move_right"), 64, 64), render_film(film("move_left"), 64, 64)
    assert centre(right, 30)[0] > centre(right, 0)[0] + 8
    assert centre(left, 30)[0] < centre(left, 0)[0] - 4


def test_a_pan_to_the_right_moves_a_still_actor_left() -> None:
    rendered = render_film(film(move="pan_right"), 64, 64)
    assert centre(rendered, 35)[0] < centre(rendered, 0)[0] - 8


def test_a_jump_rises_and_comes_back() -> None:
    ys = [centre(render_film(film("jump"), 64, 64), k)[1] for k in range(36)]
    assert min(ys) < ys[0] - 8
    assert abs(ys[-1] - ys[0]) < 0.5


def test_a_changed_colour_ends_in_the_new_one() -> None:
    rendered = render_film(film("change_colour", sky="studio"), 64, 64)
    inside = rendered.frames[-1][rendered.instance[-1] == 1].float().mean(0)
    assert inside.argmax() == 1  # green
    assert rendered.frames[0][rendered.instance[0] == 1].float().mean(0).argmax() == 0  # red


def test_hiding_behind_makes_the_actor_invisible_but_keeps_its_full_share() -> None:
    made = film("hide_behind", shape="sphere", other=True)
    rendered = render_film(made, 64, 64)
    assert rendered.visible[-1, 0] < 0.4 * rendered.full[-1, 0]
    assert rendered.visible[0, 0] > 0.8 * rendered.full[0, 0]


def test_a_pushed_actor_moves_only_once_it_is_touched() -> None:
    made = film("push", other=True)
    made = replace(
        made, shots=(replace(made.shots[0], placements=(Placement("a", -0.9, 0.0), Placement("b", 0.5, 0.0))),)
    )
    times = torch.linspace(0, 3, 61, dtype=torch.float64)
    tracks = actor_tracks(made, made.shots[0], times)
    gap = tracks["b"].base[:, 0] - tracks["a"].base[:, 0]
    moved = tracks["b"].base[:, 0] - 0.5
    assert (moved[gap > gap.min() + 1e-6] < 1e-9).all()
    assert moved[-1] > 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_lies_inside_its_projected_box_and_fills_most_of_it(shape: str) -> None:
    rendered = render_film(film(shape=shape), 128, 128, 1.0)
    ys, xs = (rendered.instance[0] == 1).nonzero(as_tuple=True)
    x0, y0, x1, y1 = (rendered.box[0, 0] * 128).tolist()
    assert x0 - 1.5 <= float(xs.min()) and float(xs.max()) <= x1 + 1.5
    assert y0 - 1.5 <= float(ys.min()) and float(ys.max()) <= y1 + 1.5
    assert len(xs) > 0.3 * (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize("style", STYLES)
def test_single_precision_agrees_with_double(style: str) -> None:
    made = film("circle", shape="torus", other=True, style=style)
    made = replace(
        made, shots=(replace(made.shots[0], placements=(Placement("a", -0.9, 0.6), Placement("b", 0.0, 0.0))),)
    )
    single = render_film(made, 48, 48, 4.0)
    double = render_film(made, 48, 48, 4.0, dtype=torch.float64)
    error = (single.frames.float() - double.frames.float()).square().mean()
    assert 10 * torch.log10(255**2 / error.clamp_min(1e-9)) > 45


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_film_of_the_cpu() -> None:
    made = write_film(2, shots=2, actors=2)
    frames = [render_film(made, 64, 64, 4.0, device=device).frames.cpu().float() for device in ("cpu", "cuda")]
    error = (frames[0] - frames[1]).square().mean()
    assert 10 * torch.log10(255**2 / error.clamp_min(1e-9)) > 45


def test_any_frame_rate_sees_the_same_film() -> None:
    made = write_film(5, actors=2)
    slow, fast = render_film(made, 32, 32, 6.0), render_film(made, 32, 32, 12.0)
    assert torch.equal(slow.frames, fast.frames[::2])


def test_a_dissolve_blends_and_a_fade_passes_through_black() -> None:
    made = write_film(11, shots=2)
    for kind in ("dissolve", "fade"):
        second = replace(made.shots[1], transition=kind, transition_seconds=0.7)
        rendered = render_film(replace(made, shots=(made.shots[0], second)), 32, 32)
        plain = render_film(made, 32, 32)
        first = rendered.boundaries[0]
        assert not torch.equal(rendered.frames[first], plain.frames[first])
        assert torch.equal(rendered.frames[first + 9], plain.frames[first + 9])
        if kind == "fade":
            assert rendered.frames[first].float().mean() < 0.2 * plain.frames[first].float().mean()


@pytest.mark.parametrize("kind", ["cut", "dissolve", "fade"])
def test_a_film_drawn_in_parts_is_the_film_drawn_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_PART_PIXELS", 1)  # parts as short as a transition allows
    made = write_film(11, shots=3)
    made = replace(made, shots=tuple(replace(shot, transition=kind, transition_seconds=0.7) for shot in made.shots))
    parts = list(render_parts(made, 32, 32))
    assert [len(part.frames) for part in parts] == [9] * 12
    whole, film = render_film(made, 32, 32), joined(made, parts, 12.0)
    assert (whole.frames.int() - film.frames.int()).abs().max() <= 1
    assert film.boundaries == whole.boundaries
    for name in ("times", "shot_index", "visible", "full"):
        assert torch.allclose(getattr(film, name), getattr(whole, name), atol=1e-3)
    bare = joined(made, [part.without_pictures() for part in parts], 12.0)
    assert len(bare.frames) == 0 and bare.boundaries == whole.boundaries and len(bare.box) == len(whole.frames)
    assert parts[0].without_pictures().frames.untyped_storage().nbytes() == 0


def test_a_spinning_matte_sphere_cannot_be_told_but_a_striped_one_can() -> None:
    for surface, told in (("matte", False), ("striped", True)):
        made = film("spin", shape="sphere")
        made = replace(made, cast=(replace(made.cast[0], surface=surface),))
        assert observe(made, render_film(made, 64, 64)).sees_action(0, 0) is told


def test_of_a_single_frame_nobody_can_tell_that_it_stands_still() -> None:
    made = film()
    still = observe(made, render_film(made, 64, 64, times=[torch.tensor([0.5])]))
    moving = observe(made, render_film(made, 64, 64, 4.0))
    for seen, told in ((still, False), (moving, True)):
        assert seen.sees_actor(0, "a")
        assert seen.sees_still(0, "a") is told and seen.sees_camera(0) is told and seen.sees_action(0, 0) is told


def test_an_actor_out_of_frame_is_not_seen() -> None:
    made = film()
    made = replace(made, shots=(replace(made.shots[0], placements=(Placement("a", 6.0, 0.0),)),))
    assert not observe(made, render_film(made, 64, 64)).sees_actor(0, "a")


def test_cell_labels_name_the_actor_where_it_is_and_nobody_elsewhere() -> None:
    made = sample(3, height=64, width=64, frames=17, fps=16 / 3, actors=1)
    labels = cell_labels(made.film, made.rendered)
    assert set(labels) == set(LABELS)
    assert labels["shape"].shape == (5, 4, 4)
    named = labels["shape"][labels["shape"] > 0]
    assert len(named) and (named == SHAPES.index(made.film.cast[0].shape) + 1).all()
    assert (labels["action"] > 0).eq(labels["shape"] > 0).all()
    assert labels["action"].max() <= len(ACTIONS)


def test_a_clip_is_the_same_for_the_same_seed_and_holds_whole_shots() -> None:
    one, two = (clip(7, 32, 32, 9, 4.0, shots=3) for _ in range(2))
    assert one.frames is not None and two.frames is not None
    assert torch.equal(one.frames, two.frames)
    assert [s.caption for s in one.shots] == [s.caption for s in two.shots]
    assert [(s.start, s.end) for s in one.shots] == [(0, 9), (9, 18), (18, 27)]


def test_training_films_never_show_a_held_out_combination_and_held_out_ones_always_do() -> None:
    assert not any(film_is_heldout(write_film(seed, shots=1 + seed % 3)) for seed in range(120))
    assert all(film_is_heldout(write_film(seed, split="heldout")) for seed in range(40))


def test_the_stage_still_draws_what_its_version_drew() -> None:
    """Golden hashes of strongly rounded frames: a change of look needs a new STAGE_VERSION and new weights."""
    assert STAGE_VERSION == 1
    for (seed, shots), expected in GOLDEN.items():
        assert fingerprint(seed, shots) == expected


def fingerprint(seed: int, shots: int) -> str:
    rendered = render_film(write_film(seed, shots=shots), 64, 64, 4.0, dtype=torch.float64)
    small = torch.nn.functional.avg_pool2d(rendered.frames.permute(0, 3, 1, 2).double(), 8)
    return hashlib.sha256((small / 8).round().to(torch.uint8).numpy().tobytes()).hexdigest()[:12]
