"""The pipeline on a whole model of random weights, read through the real loaders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from seedance.errors import SeedanceError
from seedance.pipeline import LatentFilm, Seedance, latent_frames, load_transformer, save_model
from shots.runtime.weights import sha256_file
from shots.script import Script, Shot

TWO = Script(shots=(Shot("A red cube jumps.", seconds=0.4), Shot("A blue sphere spins.", seconds=0.75)))


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Seedance:
    pipe = Seedance.from_pretrained(tiny_model, dtype="fp32", device="cpu")
    torch.manual_seed(3)
    for parameter in pipe.transformer.parameters():  # zero-initialised paths would hide what conditions do
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return pipe


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def picture(height: int = 32, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * y % 256, 8 * x % 256, 128 + 0 * x], -1).astype(np.uint8)


def test_every_shot_has_exactly_its_seconds_in_frames_and_cuts_stand_between_them(pipe: Seedance) -> None:
    video = pipe(TWO, seed=1)
    assert video.frames.shape == (5 + 9, 32, 32, 3) and video.frames.dtype == np.uint8
    assert video.cuts == (5 / 12,)
    assert video.times.tolist() == pytest.approx([k / 12 for k in range(14)])


def test_a_shot_of_n_frames_needs_the_next_one_plus_four_k() -> None:
    assert [latent_frames(n) for n in (1, 2, 5, 6, 36, 37)] == [1, 2, 2, 3, 10, 10]


def test_num_frames_counts_for_shots_that_say_no_seconds(pipe: Seedance) -> None:
    script = Script(shots=(Shot("A red cube jumps.", seconds=0.5), Shot("A blue sphere spins.")))
    assert pipe.plan(script, num_frames=9).frames == (6, 9)


def test_the_same_seed_is_the_same_film_and_another_seed_is_not(pipe: Seedance) -> None:
    first, again, other = (pipe("A red cube jumps.", seed=s).frames for s in (4, 4, 5))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_film_in_a_batch_is_the_film_alone(pipe: Seedance) -> None:
    plans = [
        pipe.plan(words, seed=s)
        for s, words in enumerate(["A red cube jumps.", "A blue sphere spins a lot on a floor."])
    ]
    together = pipe.sample(plans)
    for plan, film in zip(plans, together, strict=True):
        torch.testing.assert_close(pipe.sample([plan])[0].latents, film.latents, atol=2e-4, rtol=1e-4)


def test_one_thread_and_two_give_the_same_film(pipe: Seedance) -> None:
    before, films = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            films.append(pipe(TWO, seed=4).frames.astype(np.float64))
    finally:
        torch.set_num_threads(before)
    error = np.square(films[0] - films[1]).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 45


def test_films_of_two_sizes_are_no_batch(pipe: Seedance) -> None:
    with pytest.raises(SeedanceError, match="one size"):
        pipe.sample([pipe.plan("A red cube.", num_frames=5), pipe.plan("A red cube.", num_frames=9)])


def test_streamed_frames_equal_the_whole_film(pipe: Seedance, tmp_path: Path) -> None:
    film = pipe.sample([pipe.plan(TWO, seed=2)])[0]
    chunks = list(pipe.decode(film))
    assert max(len(chunk) for chunk in chunks) <= 13
    assert np.array_equal(np.concatenate(chunks), pipe.video(film).frames)


def test_shots_are_decoded_apart(pipe: Seedance) -> None:
    film = pipe.sample([pipe.plan(TWO, seed=2)])[0]
    changed = LatentFilm(film.latents.clone(), film.plan)
    changed.latents[:, : film.plan.latent_frames[0]] += 1.0
    before, after = pipe.video(film).frames, pipe.video(changed).frames
    assert np.array_equal(before[5:], after[5:]) and not np.array_equal(before[:5], after[:5])


def test_the_first_frame_is_the_vae_s_own_reconstruction_of_the_picture(pipe: Seedance) -> None:
    video = pipe("A red cube jumps.", image=picture(), seed=1)
    x = torch.from_numpy(picture()).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    with torch.no_grad():
        wanted = ((pipe.vae.decode(pipe.vae.encode(x))[0].clamp(-1, 1) + 1) * 127.5).round()
    assert np.abs(video.frames[0].astype(float) - wanted[:, 0].permute(1, 2, 0).numpy()).max() <= 1


def test_first_and_last_pictures_hold_their_latents(pipe: Seedance) -> None:
    plan = pipe.plan("A red cube jumps.")
    free = pipe.sample([plan])[0].latents
    last = pipe.sample([plan], last_image=picture())[0].latents
    both = pipe.sample([plan], image=picture(64, 48), last_image=picture())[0].latents
    assert not torch.equal(free[:, -1], last[:, -1]) and torch.equal(last[:, -1], both[:, -1])
    assert not torch.equal(last[:, 0], both[:, 0])


def test_a_re_take_keeps_the_other_shots_bit_for_bit(pipe: Seedance) -> None:
    film = pipe.sample([pipe.plan(TWO, seed=2)])[0]
    n = film.plan.latent_frames[0]
    taken = pipe.retake(film, [2])
    assert torch.equal(taken.latents[:, :n], film.latents[:, :n])
    assert not torch.equal(taken.latents[:, n:], film.latents[:, n:])
    assert taken.record["task"] == "re-take of shots 2" and taken.plan.seed == 3
    with pytest.raises(SeedanceError, match="shots 1 to 2"):
        pipe.retake(film, [3])


def test_an_extension_keeps_what_was_there_and_adds_a_shot_or_seconds(pipe: Seedance) -> None:
    film = pipe.sample([pipe.plan("A red cube jumps.", num_frames=5)])[0]
    longer = pipe.extend(film, seconds=0.5)
    more = pipe.extend(film, script="A blue sphere spins.")
    assert longer.plan.frames == (11,) and more.plan.frames == (5, 6)
    for made in (longer, more):
        assert torch.equal(made.latents[:, :2], film.latents)
    with pytest.raises(SeedanceError, match="either script"):
        pipe.extend(film)


def test_a_film_state_survives_the_disk(pipe: Seedance, tmp_path: Path) -> None:
    film = pipe.sample([pipe.plan(TWO, seed=2)])[0]
    found = LatentFilm.load(film.save(tmp_path / "film.safetensors"))
    assert torch.equal(found.latents, film.latents) and found.plan == film.plan and found.record["seed"] == 2
    (tmp_path / "bad").write_text("no")
    with pytest.raises(SeedanceError, match="bad cannot be read"):
        LatentFilm.load(tmp_path / "bad")


def test_a_real_video_becomes_a_state_that_can_be_re_taken(pipe: Seedance) -> None:
    video = pipe(TWO, seed=1)
    film = pipe.encode(video, TWO)
    assert film.latents.shape[1] == 2 + 3 and film.plan.frames == (5, 9)
    assert pipe.retake(film, [1]).latents.shape == film.latents.shape


def test_words_outside_the_model_s_world_are_named(pipe: Seedance, caplog: pytest.LogCaptureFixture) -> None:
    video = pipe("A red elephant jumps.", num_frames=1)
    assert any("elephant" in line and "red" not in line for line in video.record["warnings"])
    assert "elephant" in caplog.text


def test_sizes_that_do_not_fit_are_rounded_and_said(pipe: Seedance) -> None:
    plan = pipe.plan("A red cube.", height=40, width=31)
    assert (plan.height, plan.width) == (32, 32)
    assert len(plan.notes) == 2 and "height 40" in plan.notes[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"height": -1}, "height"),
        ({"width": "wide"}, "width"),
        ({"fps": 0}, "fps"),
        ({"num_frames": 0}, "num_frames"),
        ({"seed": -1}, "seed"),
        ({"sampler": "magic"}, "sampler"),
        ({"image": "none.png"}, "image"),
        ({"image": np.zeros((4, 4))}, "image"),
    ],
)
def test_a_bad_argument_is_named(pipe: Seedance, options: dict[str, object], named: str) -> None:
    with pytest.raises(SeedanceError, match=named):
        pipe("A red cube.", **options)  # type: ignore[arg-type]


def test_a_picture_that_is_none_is_named_once(pipe: Seedance) -> None:
    for name in ("image", "last_image"):
        with pytest.raises(SeedanceError, match=rf"^{name}: none\.png does not exist"):
            pipe("A red cube.", **{name: "none.png"})  # type: ignore[arg-type]


def test_an_empty_prompt_and_an_endless_film_are_refused(pipe: Seedance) -> None:
    for words in ("", "   ", {"shots": []}):
        with pytest.raises(SeedanceError):
            pipe(words)
    with pytest.raises(SeedanceError, match="several films"):
        pipe.plan({"shots": [{"caption": "A red cube.", "seconds": 3000}]})


def test_the_callback_sees_every_step_and_its_exception_stops_the_render(pipe: Seedance, tmp_path: Path) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []
    pipe("A red cube.", steps=3, callback=lambda step, steps, x0: seen.append((step, steps, tuple(x0.shape))))
    assert seen == [(k, 3, (1, 48, 3, 2, 2)) for k in (1, 2, 3)]

    def stop(step: int, steps: int, preview: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.render_to(tmp_path / "film.mp4", "A red cube.", callback=stop)
    assert not list(tmp_path.iterdir())


def test_decoding_tells_of_every_chunk_and_stops_at_the_next_one(pipe: Seedance, tmp_path: Path) -> None:
    film = pipe.take("A red cube. [cut] A blue sphere.", num_frames=25, steps=1)
    seen: list[tuple[int, int]] = []
    pipe.write(film, tmp_path / "film.mp4", callback=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 50) and seen[-1] == (50, 50) and len(seen) >= 5  # two chunks a shot
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})

    class Stop(Exception):
        pass

    decoded: list[int] = []

    def stop(done: int, total: int) -> None:
        decoded.append(done)
        if done:
            raise Stop

    for decode in (
        lambda: pipe.write(film, tmp_path / "other.mp4", callback=stop),
        lambda: pipe.video(film, callback=stop),
    ):
        decoded.clear()
        with pytest.raises(Stop):
            decode()
        assert len(decoded) == 2 and decoded[1] < 25  # after the first chunk of the first shot
    assert [path.name for path in tmp_path.iterdir() if "other" in path.name] == []


def test_a_negative_prompt_changes_the_film(pipe: Seedance) -> None:
    plain, led = (pipe("A red cube.", negative_prompt=words, seed=1).frames for words in ("", "a blue sphere"))
    assert not np.array_equal(plain, led)


def test_the_record_says_how_the_film_was_made(pipe: Seedance) -> None:
    record = pipe("A red cube jumps.", seed=7).record
    assert (
        record is not None
        and record["generated"] is True
        and record["seed"] == 7
        and record["prompt"] == "A red cube jumps."
    )
    assert record["model"]["files"]["transformer/model.safetensors"] == pipe.files["transformer/model.safetensors"]
    assert {"text", "sampling", "decoding", "total"} <= set(record["timings"])
    json.dumps(record)


# ---------------------------------------------------------------------- the model folder


def test_a_saved_model_renders_the_same_film(tiny_model: Path, tmp_path: Path) -> None:
    pipe = Seedance.from_pretrained(tiny_model, dtype="fp32", device="cpu")
    pipe.save_pretrained(tmp_path / "again")
    again = Seedance.from_pretrained(tmp_path / "again", dtype="fp32", device="cpu")
    assert again.defaults == pipe.defaults and again.vocabulary == pipe.vocabulary
    assert np.array_equal(pipe("A red cube jumps.").frames, again("A red cube jumps.").frames)


def test_the_index_hashes_every_file(tiny_model: Path) -> None:
    index = json.loads((tiny_model / "model_index.json").read_text())
    assert index["_class_name"] == "Seedance"
    on_disk = {p.relative_to(tiny_model).as_posix() for p in tiny_model.rglob("*") if p.is_file()} - {
        "model_index.json"
    }
    assert set(index["files"]) == on_disk
    assert all(sha256_file(tiny_model / name) == digest for name, digest in index["files"].items())


@pytest.mark.parametrize(
    "name", ["transformer/model.safetensors", "vae/model.safetensors", "vae/config.json", "vocabulary.txt"]
)
def test_a_corrupted_file_is_named(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[-2] ^= 1
    (copied / name).write_bytes(bytes(data))
    with pytest.raises(SeedanceError, match=f"{Path(name).name}.* corrupted"):
        Seedance.from_pretrained(copied)


def test_a_missing_file_and_a_foreign_folder_are_named(copied: Path, tmp_path: Path) -> None:
    (copied / "vae" / "model.safetensors").unlink()
    with pytest.raises(SeedanceError, match=r"model\.safetensors is missing"):
        Seedance.from_pretrained(copied)
    (copied / "model_index.json").write_text('{"_class_name": "UniTime"}')
    with pytest.raises(SeedanceError, match="UniTime"):
        Seedance.from_pretrained(copied)
    with pytest.raises(SeedanceError, match="model_index"):
        Seedance.from_pretrained(tmp_path)
    with pytest.raises(SeedanceError, match="no-such-model"):
        Seedance.from_pretrained("no-such-model")


def test_a_model_index_with_unknown_defaults_is_named(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "defaults": {"hieght": 64}}))
    with pytest.raises(SeedanceError, match=r"model_index\.json: defaults: .*hieght"):
        Seedance.from_pretrained(copied)


def test_tensors_that_do_not_fit_are_listed_and_nothing_is_loaded(copied: Path) -> None:
    (copied / "model_index.json").unlink()
    path = copied / "transformer" / "model.safetensors"
    state = load_file(path)
    state["readout.weight"] = state["readout.weight"][:5].contiguous()
    state.pop("readout.bias")
    save_file(state, path)
    with pytest.raises(SeedanceError, match=r"missing: readout\.bias.*readout\.weight is"):
        load_transformer(copied)


def test_weights_stored_in_bf16_keep_the_latent_statistics_in_float32(tiny_model: Path, tmp_path: Path) -> None:
    pipe = Seedance.from_pretrained(tiny_model, dtype="fp32", device="cpu")
    pipe.vae.latent_mean.fill_(0.123456789)
    save_model(tmp_path, pipe.vae, pipe.transformer, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "vae" / "model.safetensors")
    assert stored["latent_mean"].dtype == torch.float32 and stored["decoder.stem.weight"].dtype == torch.bfloat16
    assert Seedance.from_pretrained(tmp_path, dtype="bf16", device="cpu").vae.latent_mean.dtype == torch.float32
