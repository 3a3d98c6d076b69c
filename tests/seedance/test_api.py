"""Requests for films: what is checked before any work, and where films land."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from seedance.api import RenderRequest, prompts_in, render
from seedance.errors import SeedanceError
from seedance.pipeline import LatentFilm, Seedance
from shots.errors import ShotsError
from shots.video import read_record, read_video


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Seedance:
    return Seedance.from_pretrained(tiny_model, dtype="fp32", device="cpu")


def test_a_request_becomes_a_file_with_its_record(pipe: Seedance, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    request = RenderRequest(
        prompts=("A red cube jumps. [cut] A blue sphere spins.",), output=tmp_path / "film.mp4", seed=3, num_frames=6
    )
    result = render(request, progress=lambda *state: seen.append(state), pipeline=pipe)
    video = read_video(tmp_path / "film.mp4")
    assert video.frames.shape == (12, 32, 32, 3)
    record = read_record(tmp_path / "film.mp4")
    assert record is not None and record["seed"] == 3 and len(record["script"]["shots"]) == 2
    assert seen == [(1, 2, "rendering"), (2, 2, "rendering")]
    assert json.loads(json.dumps(result.to_dict()))["films"][0]["path"] == str(tmp_path / "film.mp4")
    assert "seed 3" in str(result)


def test_several_prompts_and_samples_are_numbered_and_seeds_count_up(pipe: Seedance, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# two\nA red cube.\n\nA blue sphere. [cut] A red cube.\n")
    request = RenderRequest(
        from_file=tmp_path / "prompts.txt", output=tmp_path / "f.mp4", seed=10, num_samples=2, num_frames=2, steps=1
    )
    result = render(request, pipeline=pipe)
    assert [film.path.name for film in result.films if film.path] == ["f-1.mp4", "f-2.mp4", "f-3.mp4", "f-4.mp4"]
    assert [film.seed for film in result.films] == [10, 11, 10, 11]
    assert [len(film.record["frames"]) for film in result.films] == [1, 1, 2, 2]


def test_a_seed_is_drawn_and_told_where_none_is_given(pipe: Seedance, tmp_path: Path) -> None:
    request = RenderRequest(prompts=("A red cube.",), output=tmp_path / "film.mp4", num_frames=1, steps=1)
    seeds = {render(request, pipeline=pipe).films[0].seed for _ in range(3)}
    assert len(seeds) == 3


def test_a_dry_run_writes_nothing_and_says_what_would_be_made(tiny_model: Path, tmp_path: Path) -> None:
    request = RenderRequest(
        prompts=("A red cube.",), output=tmp_path / "film.mp4", model=str(tiny_model), dry_run=True, num_frames=9
    )
    plan = render(request).films[0].record["plan"]
    assert plan["tokens"] == 3 * 2 * 2 and plan["frames"] == [9]
    assert plan["flops"] > 0 and plan["memory_bytes"] > 0 and plan["seconds"] >= 0
    assert not list(tmp_path.iterdir())


def test_the_state_can_be_kept_beside_the_film(pipe: Seedance, tmp_path: Path) -> None:
    request = RenderRequest(prompts=("A red cube.",), output=tmp_path / "film.mp4", num_frames=5, seed=1, state=True)
    render(request, pipeline=pipe)
    film = LatentFilm.load(tmp_path / "film.state.safetensors")
    assert pipe.video(film).frames.shape == (5, 32, 32, 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"output": "nowhere/film.mp4"}, "nowhere"),
        ({"output": "film.txt"}, "film.txt"),
        ({"num_samples": 0}, "num_samples"),
        ({"prompts": ()}, "give one of"),
        ({"script": {"shots": [{"caption": "A."}]}}, "prompts and script"),
        ({"height": 0}, "height"),
        ({"seed": -3}, "seed"),
        ({"image": Path("none.png")}, "none.png"),
        ({"prompts": ("",)}, "prompt"),
    ],
)
def test_what_cannot_be_used_is_named_before_any_work(
    tmp_path: Path, changes: dict[str, object], named: str, pipe: Seedance
) -> None:
    values = {"prompts": ("A red cube.",), "output": "film.mp4", **changes}
    request = RenderRequest(**{**values, "output": tmp_path / str(values["output"])})  # type: ignore[arg-type]
    with pytest.raises((SeedanceError, ShotsError), match=named):
        render(request, pipeline=pipe)
    assert not list(tmp_path.iterdir())


def test_a_request_from_json_names_unknown_keys() -> None:
    request = RenderRequest.from_dict({"prompt": "A red cube.", "seed": 1, "output": "a.mp4"})
    assert request.prompts == ("A red cube.",) and request.output == Path("a.mp4")
    with pytest.raises(SeedanceError, match="colour"):
        RenderRequest.from_dict({"prompt": "A red cube.", "colour": "red"})


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(128, 256)))
    for name in ("empty.txt", "binary.txt", "missing.txt"):
        with pytest.raises(SeedanceError, match=name):
            prompts_in(tmp_path / name)


def test_a_picture_is_the_first_frame_of_every_sample(pipe: Seedance, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "first.png")
    request = RenderRequest(
        prompts=("A red cube.",),
        output=tmp_path / "f.mp4",
        image=tmp_path / "first.png",
        num_samples=2,
        seed=1,
        num_frames=5,
        steps=1,
    )
    result = render(request, pipeline=pipe)
    assert all(film.record["task"] == "first frame" for film in result.films)
