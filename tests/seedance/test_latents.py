"""The latent cache: drawn once, encoded once, gathered by index."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seedance.errors import SeedanceError
from seedance.pipeline import load_vae
from seedance.text import TextEncoder
from seedance.training.latents import (
    Bucket,
    LatentsRecipe,
    Store,
    build_cache,
    build_frames,
    check_fingerprint,
    encode_frames,
    encode_words,
    fingerprint,
    read_buckets,
    read_words,
    stamp,
)
from shots.folder import pack_clips
from shots.stage import clip
from shots.video import VideoWriter

CLIPS = Bucket("clips", height=32, width=32, frames=5, fps=4, clips=5, seed=100)
SHOTS = Bucket("shots", height=32, width=32, frames=5, fps=4, shots=2, clips=2, seed=200)


@pytest.fixture(scope="module")
def cache(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    buckets = {
        b.name: {k: getattr(b, k) for k in ("height", "width", "frames", "fps", "shots", "clips", "seed")}
        for b in (CLIPS, SHOTS)
    }
    return build_cache(
        LatentsRecipe("latents", folder, buckets, vae=tiny_model, workers=1, shard_clips=3, device="cpu")
    )


def test_a_batch_holds_the_latents_of_its_clips(cache: Path, tiny_model: Path) -> None:
    store = Store.open(cache, CLIPS)
    assert store is not None and len(store) == 5
    vae = load_vae(tiny_model).eval()
    batch = store.batch(torch.tensor([4, 0]), torch.tensor([0, 0]))
    for row, seed in enumerate((104, 100)):
        frames = clip(seed, 32, 32, 5, 4).frames
        assert frames is not None
        with torch.no_grad():
            wanted = vae.normalize(vae.encode(frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1))[0]
        torch.testing.assert_close(batch.latents[row], wanted, atol=0.06, rtol=0.06)
    assert batch.cond.mask.sum() == 0 and batch.labels["colour"].shape == (2, 2, 2, 2)


def test_shots_are_encoded_apart_and_numbered(cache: Path, tiny_model: Path) -> None:
    store = Store.open(cache, SHOTS)
    assert store is not None
    batch = store.batch(torch.tensor([0]), torch.tensor([0]))
    frames = clip(200, 32, 32, 5, 4, shots=2).frames
    assert frames is not None
    vae = load_vae(tiny_model).eval()
    with torch.no_grad():
        second = vae.normalize(vae.encode(frames[5:].permute(3, 0, 1, 2)[None].float() / 127.5 - 1))[0]
    torch.testing.assert_close(batch.latents[0, :, 2:], second, atol=0.06, rtol=0.06)
    assert batch.cond.shot.tolist() == [[1, 1, 2, 2]]
    assert batch.cond.seconds.tolist() == [[0.0, 1.0, 1.25, 2.25]]
    assert {1, 2} <= set(batch.cond.text_shot[0].tolist())


def test_token_states_are_those_of_the_captions(cache: Path) -> None:
    store = Store.open(cache, CLIPS)
    assert store is not None
    wordings = list(read_words(cache, "clips"))[4]
    assert len(wordings) == CLIPS.wordings
    for number, said in enumerate(wordings):
        batch = store.batch(torch.tensor([4]), torch.tensor([number]))
        wanted = TextEncoder.from_pretrained().encode_list(said["shots"])[0].float()
        mine = batch.cond.text[0][batch.cond.text_shot[0] == 1]
        assert float((mine - wanted).abs().max()) < 0.1 < float(wanted.std())  # computed in bf16, in other batches


def test_only_the_first_latent_frames_make_a_picture(cache: Path) -> None:
    store = Store.open(cache, CLIPS)
    assert store is not None
    picture = store.batch(torch.tensor([1]), torch.tensor([0]), frames=1)
    assert (
        picture.latents.shape == (1, 48, 1, 2, 2)
        and picture.cond.shot.shape == (1, 1)
        and picture.labels["shape"].shape == (1, 1, 2, 2)
    )


def test_shards_that_arrive_later_are_appended_and_clips_keep_their_numbers(cache: Path, tmp_path: Path) -> None:
    place = tmp_path / "clips"
    place.mkdir()
    names = sorted(p.name for p in (cache / "clips").glob("latents-*"))
    assert len(names) == 2
    (place / names[0]).symlink_to(cache / "clips" / names[0])
    early = Store.open(tmp_path, CLIPS)
    assert early is not None and len(early) == 3
    before = early.batch(torch.tensor([2]), torch.tensor([1]))
    assert Store.open(tmp_path, CLIPS, early) is early
    (place / names[1]).symlink_to(cache / "clips" / names[1])
    later = Store.open(tmp_path, CLIPS, early)
    assert later is not None and len(later) == 5
    after = later.batch(torch.tensor([2]), torch.tensor([1]))
    assert torch.equal(before.latents, after.latents) and torch.equal(before.cond.text, after.cond.text)
    whole = Store.open(cache, CLIPS)
    assert whole is not None and torch.equal(whole.latents, later.latents)


def test_a_finished_cache_is_left_alone(cache: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("latents-*")}
    assert build_frames(cache, [CLIPS, SHOTS], shard_clips=3) == 0
    vae = load_vae  # no model is needed where nothing is missing
    assert encode_frames(cache, [], vae, None) == 0  # type: ignore[arg-type]
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("latents-*")} == before


def test_a_cache_of_another_encoder_is_refused_but_another_decoder_is_welcome(cache: Path, tiny_model: Path) -> None:
    vae = load_vae(tiny_model)
    with torch.no_grad():
        vae.decoder.stem.weight.add_(1.0)
        check_fingerprint(cache, fingerprint(vae, None))
        vae.encoder.stem.weight.add_(1.0)
    for refuse in (check_fingerprint, stamp):
        with pytest.raises(SeedanceError, match="vae_encoder"):
            refuse(cache, fingerprint(vae, None))


def test_equal_captions_share_their_states() -> None:
    words = [[{"caption": "On grass.", "shots": ["A red cube."]}], [{"caption": "", "shots": ["A red cube."]}]]
    made = encode_words(words, TextEncoder.from_pretrained())
    index, shot = made["text_index"], made["text_shot"]
    assert torch.equal(index[0, 0][shot[0, 0] == 1], index[1, 0][shot[1, 0] == 1])
    assert len(made["text"]) == int(index.max()) + 1
    assert (shot[1, 0] == 0).sum() == 0 and (shot[0, 0] == 0).sum() > 0


def test_bucket_sizes_are_checked_by_name() -> None:
    for key, value in (("frames", 6), ("height", 40), ("shots", 0), ("colour", 1)):
        with pytest.raises(SeedanceError, match="small.*" + (key if key == "colour" else "")):
            Bucket.from_dict("small", {"height": 32, "width": 32, "frames": 5, "fps": 4, key: value})


def test_the_cache_knows_its_buckets(cache: Path, tmp_path: Path) -> None:
    assert read_buckets(cache) == {"clips": CLIPS, "shots": replace(SHOTS)}
    with pytest.raises(SeedanceError, match="latents recipe"):
        read_buckets(tmp_path)


def test_folders_and_packs_of_captioned_clips_fill_buckets_of_one_and_of_several_shots(
    tmp_path: Path, tiny_model: Path
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    made = [clip(300 + k, 32, 32, 7, 4, shots=2) for k in range(2)]
    pack_clips(made, tmp_path / "films.safetensors")
    for number, one in enumerate(made):
        assert one.frames is not None
        with VideoWriter(films / f"{number}.mp4", fps=4, height=32, width=32) as writer:
            writer.write(one.frames.numpy())
        script = {"caption": "A set.", "shots": [{"caption": shot.caption, "seconds": 7 / 4} for shot in one.shots]}
        (films / f"{number}.json").write_text(json.dumps(script))
    size = {"height": 32, "width": 32, "frames": 5, "fps": 4, "clips": 50}
    buckets = {
        "alone": {**size, "folder": str(films), "frames": 5},
        "pairs": {**size, "folder": str(films), "shots": 2},
        "packed": {**size, "folder": str(tmp_path / "films.safetensors"), "shots": 2},
    }
    cache = build_cache(LatentsRecipe("latents", tmp_path / "cache", buckets, vae=tiny_model, workers=1, device="cpu"))
    stores = {name: Store.open(cache, Bucket.from_dict(name, said)) for name, said in buckets.items()}
    assert {name: len(store) for name, store in stores.items() if store is not None} == {
        "alone": 2,
        "pairs": 2,
        "packed": 2,
    }
    said = next(read_words(cache, "pairs"))[0]
    assert said == {"caption": "A set.", "shots": [shot.caption for shot in made[0].shots]}
    assert next(read_words(cache, "alone"))[0]["caption"] == ""


def test_a_folder_without_a_clip_long_enough_is_named(tmp_path: Path) -> None:
    write = clip(300, 32, 32, 5, 4)
    pack_clips([write], tmp_path / "short.safetensors")
    bucket = Bucket("long", 32, 32, frames=9, fps=4, folder=str(tmp_path / "short.safetensors"))
    with pytest.raises(SeedanceError, match="long.*holds no clip"):
        build_frames(tmp_path, [bucket])
