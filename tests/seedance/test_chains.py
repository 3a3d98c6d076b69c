"""Films taken up again: shots made anew and shots added, in latents, with what stays staying to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seedance.errors import SeedanceError
from seedance.pipeline import CONTEXT, LatentFilm, Seedance, seen_shots
from shots.script import Script, Shot

FILM = Script.parse(
    "A red cube jumps. [cut] A blue sphere spins. [cut] A red cube spins. [cut] A blue sphere jumps. "
    "[cut] A cone jumps."
)


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Seedance:
    pipe = Seedance.from_pretrained(tiny_model, dtype="fp32", device="cpu")
    torch.manual_seed(3)
    for parameter in pipe.transformer.parameters():  # zero-initialised paths would hide what conditions do
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return pipe


def picture() -> np.ndarray:
    y, x = np.mgrid[:32, :32]
    return np.stack([8 * y % 256, 8 * x % 256, 128 + 0 * x], -1).astype(np.uint8)


def frames_of(pipe: Seedance, film: LatentFilm) -> list[np.ndarray]:
    """The decoded frames of each shot."""
    return np.split(np.concatenate(list(pipe.decode(film))), np.cumsum(film.plan.frames)[:-1])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_frames_beside_a_re_taken_shot_are_equal_to_the_bit_up_to_the_joins(tiny_model: Path, dtype: str) -> None:
    pipe = Seedance.from_pretrained(tiny_model, dtype=dtype, device="cpu")
    film = pipe.take(Script(FILM.shots[:3]), seed=1, num_frames=7)
    before, after = frames_of(pipe, film), frames_of(pipe, pipe.retake(film, [2], seed=5))
    assert np.array_equal(before[0], after[0]) and np.array_equal(before[2], after[2])
    assert not np.array_equal(before[1], after[1])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_frames_stay_equal_when_the_last_shot_is_made_longer(tiny_model: Path, dtype: str) -> None:
    pipe = Seedance.from_pretrained(tiny_model, dtype=dtype, device="cpu")
    film = pipe.take("A red cube jumps. [cut] A blue sphere spins.", seed=1, num_frames=7)
    longer = pipe.extend(film, seconds=1.5)
    before, after = frames_of(pipe, film), frames_of(pipe, longer)
    assert len(after[1]) == 7 + 18
    assert np.array_equal(before[0], after[0]) and np.array_equal(before[1], after[1][:7])


def test_ten_shots_are_chained_and_neither_cost_nor_positions_grow(
    pipe: Seedance, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, float]] = []
    drawn = type(pipe)._draw

    def watched(self: Seedance, plans: list, cond: object, *rest: object, **how: object) -> list[LatentFilm]:
        seen.append((cond.frames, int(cond.shot.max()), float(cond.seconds.max())))  # type: ignore[attr-defined]
        return drawn(self, plans, cond, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(type(pipe), "_draw", watched)
    film = pipe.take("A red cube jumps.", seed=1, num_frames=5)
    first = film.latents
    for number in range(10):
        before = film
        film = pipe.extend(film, script=Script((Shot(f"A {('red cube', 'blue sphere')[number % 2]} spins.", 5 / 12),)))
        assert torch.equal(film.latents[:, : before.latents.shape[1]], before.latents)
    assert film.plan.frames == (5,) * 11 and torch.equal(film.latents[:, :2], first)
    assert [frames for frames, _, _ in seen[2:]] == [2 * (CONTEXT + 1)] * 9
    assert {shots for _, shots, _ in seen[2:]} == {CONTEXT + 1} and len({end for _, _, end in seen[2:]}) == 1
    assert film.record["seen_shots"] == [3, 10]  # where the blue sphere came in, and the last one
    assert len(film.record["history"]) == 10 and film.record["frames"] == [5] * 11
    assert len(film.record["script"]["shots"]) == 11 and film.record["seed"] == 11


def test_a_shot_is_made_seeing_where_its_actors_came_in_and_its_neighbours() -> None:
    assert seen_shots(FILM, [4]) == [2, 3]  # the blue sphere's first shot, and the one before
    assert seen_shots(FILM, [2]) == [1, 4]  # of the same sphere, later
    assert seen_shots(FILM, [5], most=3) == [1, 3, 4]  # nobody has seen the cone: the film's first shot
    assert seen_shots(FILM, [1, 2, 3, 4]) == [5] and seen_shots(FILM, [1, 2, 3, 4, 5]) == []
    assert seen_shots(Script.parse("Dawn. [cut] Noon. [cut] Dusk. [cut] Night."), [4]) == [1, 3]


def test_the_words_of_a_shot_that_is_not_seen_do_not_matter(pipe: Seedance) -> None:
    film = pipe.take(FILM, seed=1, num_frames=5)
    shots = list(FILM.shots)
    shots[4] = Shot("A red sphere jumps.")
    taken = [pipe.retake(film, [3], script=Script(tuple(said)), seed=4).latents for said in (FILM.shots, shots)]
    assert torch.equal(*taken)
    shots[1] = Shot("A red sphere jumps.")
    assert not torch.equal(taken[0], pipe.retake(film, [3], script=Script(tuple(shots)), seed=4).latents)


def test_a_picture_stays_the_first_frame_of_a_re_taken_shot(pipe: Seedance, tmp_path: Path) -> None:
    film = pipe.take("A red cube jumps. [cut] A blue sphere spins.", image=picture(), seed=1, num_frames=9)
    assert film.given == (0,)
    film.save(tmp_path / "film.state.safetensors")
    taken = pipe.retake(LatentFilm.load(tmp_path / "film.state.safetensors"), [1])
    assert torch.equal(taken.latents[:, 0], film.latents[:, 0])
    assert not torch.equal(taken.latents[:, 1], film.latents[:, 1])
    assert pipe.retake(taken, [1, 2], seed=9).given == (0,)


def test_shots_of_two_takes_are_put_together(pipe: Seedance) -> None:
    one, two = (pipe.take(Script(FILM.shots[:3]), seed=s, num_frames=5) for s in (1, 2))
    mixed = pipe.splice(one, two, [2])
    a, b, c = (frames_of(pipe, film) for film in (one, two, mixed))
    assert all(np.array_equal(x, y) for x, y in zip(c, (a[0], b[1], a[2]), strict=True))
    with pytest.raises(SeedanceError, match="only takes of one film"):
        pipe.splice(one, pipe.take("A red cube.", num_frames=5), [1])


def test_a_state_whose_latents_are_not_its_film_s_is_refused(pipe: Seedance, tmp_path: Path) -> None:
    film = pipe.take("A red cube jumps.", num_frames=5)
    replace(film, latents=film.latents[:, :1]).save(tmp_path / "film.state.safetensors")
    with pytest.raises(SeedanceError, match="film state"):
        LatentFilm.load(tmp_path / "film.state.safetensors")
