"""Scripts on models of one shot: actors carried over, one plan of seeds, re-takes that leave the rest alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seedance.api import RenderRequest, render
from seedance.engines import engine
from seedance.engines.engine import SEED_STEP, shot_prompt, shot_seed
from seedance.engines.families import LTX, CogVideoX, Hunyuan, Wan
from seedance.engines.folder import diffusers, open_checkpoint
from seedance.errors import SeedanceError
from seedance.pipeline import LatentFilm
from shots.script import Script, Shot

Opened = Callable[[str], Any]
TWO = Script(
    (Shot("a red cube jumps", 0.5), Shot("it spins.", 0.75, camera="the camera pans left")),
    caption="a street at night", style="slowly",
)  # fmt: skip
THREE = Script((Shot("a red cube", 0.25), Shot("a blue sphere", 0.25), Shot("a cube spins", 0.25)))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)


def test_every_shot_has_its_own_frames_words_and_seed(opened: Opened) -> None:
    video = opened("wan-t2v")(TWO, seed=4)
    assert video.frames.shape == (4 + 6, 32, 32, 3) and video.cuts == (0.5,)
    first, second = video.record["shots"]
    assert first["prompt"] == "a red cube jumps. a street at night. slowly."
    assert second["prompt"] == "it spins. the camera pans left. a street at night. slowly."
    assert first["seed"] == second["seed"] == 4  # only words carry the actors, so the noise is kept as well
    assert shot_prompt(Script((Shot("just this"),)), 1) == "just this"
    assert [shot_seed(4, k, True) for k in (1, 2, 3)] == [4, 4 + SEED_STEP, 4 + 2 * SEED_STEP]
    json.dumps(video.record)


@pytest.mark.parametrize("carry", ["last", "key", "none"])
def test_a_shot_begins_from_the_frame_that_carry_says(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, carry: str
) -> None:
    pipe = opened("wan-ti2v")
    monkeypatch.setattr(pipe, "carry", carry)
    film = pipe.sample([pipe.plan(TWO, seed=4)])[0]
    frames = pipe.video(film).frames
    alone = pipe.plan({**TWO.to_dict(), "shots": TWO.to_dict()["shots"][1:]}, seed=shot_seed(4, 2, carry != "none"))
    begins = {"last": {"image": frames[3]}, "key": {"image": frames[0]}, "none": {}}[carry]
    wanted = pipe.sample([alone], **begins)[0]
    assert torch.equal(film.shots()[1], wanted.latents)
    assert film.record["shots"][1]["from"] == (["image"] if begins else ["text"]) and film.record["carry"] == carry


def test_a_re_take_keeps_the_other_shots_bit_for_bit(opened: Opened) -> None:
    pipe = opened("wan-ti2v")
    film = pipe.sample([pipe.plan(THREE, seed=2)])[0]
    taken = pipe.retake(film, [2])
    before, after = film.shots(), taken.shots()
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])
    frames, again = pipe.video(film).frames, pipe.video(taken).frames
    assert np.array_equal(frames[:2], again[:2]) and np.array_equal(frames[4:], again[4:])
    seeds = [shot["seed"] for shot in taken.record["shots"]]
    assert seeds == [2, 3 + SEED_STEP, 2 + 2 * SEED_STEP] and taken.record["task"] == "re-take of shots 2"
    with pytest.raises(SeedanceError, match="shots 1 to 3"):
        pipe.retake(film, [4])
    with pytest.raises(SeedanceError, match="one caption per shot"):
        pipe.retake(film, [1], script="only one")


def test_a_re_taken_shot_ends_where_the_next_begins_if_the_model_can(opened: Opened) -> None:
    pipe = opened("wan-i2v-a14b")
    film = pipe.sample([pipe.plan(THREE, seed=2)], image=picture())[0]
    assert [shot["from"] for shot in pipe.retake(film, [2]).record["shots"]] == [
        ["image"],
        ["image", "last"],
        ["image"],
    ]


def test_further_shots_follow_and_what_was_there_stays(opened: Opened) -> None:
    pipe = opened("wan-ti2v")
    film = pipe.sample([pipe.plan("a red cube", num_frames=3)])[0]
    longer = pipe.extend(film, script="a blue sphere spins")
    assert torch.equal(longer.shots()[0], film.latents) and len(longer.plan.frames) == 2
    assert longer.record["task"] == "extension" and longer.record["shots"][1]["from"] == ["image"]
    with pytest.raises(SeedanceError, match="cannot lengthen one; give script"):
        pipe.extend(film, seconds=1.0)


def test_a_state_survives_the_disk_with_its_ratio(opened: Opened, tmp_path: Path) -> None:
    pipe = opened("ltx-condition")
    film = pipe.sample([pipe.plan(TWO, seed=2)])[0]
    found = LatentFilm.load(film.save(tmp_path / "film.safetensors"))
    assert found.plan == film.plan and torch.equal(found.latents, film.latents)
    assert found.record["decode_timestep"] == pytest.approx(0.05, abs=1e-3)
    assert np.array_equal(pipe.video(found).frames, pipe.video(film).frames)


def test_a_real_video_becomes_a_state_that_can_be_re_taken(opened: Opened) -> None:
    pipe = opened("wan-ti2v")
    video = pipe(TWO, seed=1)
    film = pipe.encode(video, TWO)
    assert film.plan.frames == (4, 6) and film.latents.shape[1:] == film.plan.latent_shape
    assert torch.equal(pipe.retake(film, [2]).shots()[0], film.shots()[0])


def test_the_callback_sees_every_step_and_stops_the_render(opened: Opened) -> None:
    pipe = opened("wan-t2v")
    seen: list[tuple[int, int, tuple[int, ...]]] = []
    pipe(TWO, steps=3, callback=lambda step, steps, x0: seen.append((step, steps, tuple(x0.shape))))
    assert seen == [(k, 6, (1, 16, 2 if k < 4 else 3, 4, 4)) for k in range(1, 7)]

    def stop(step: int, steps: int, preview: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(TWO, callback=stop)
    assert "step" not in vars(pipe.parts["scheduler"]) and "decode" not in vars(pipe.parts["vae"])


def test_sizes_are_rounded_to_the_family_s_and_said(opened: Opened) -> None:
    plan = opened("wan-ti2v").plan("a red cube", height=60, width=32, num_frames=200)
    assert (plan.height, plan.width) == (64, 32)
    assert "height 60 is not a multiple of 32; 64 is used" in plan.notes
    assert any("longer than the 121 frames" in note for note in plan.notes)
    assert opened("hunyuan-i2v").plan("a red cube", height=96, width=16).height == 64  # one of a set of shapes


def test_hunyuan_s_sizes_from_pictures_are_its_pipeline_s(opened: Opened) -> None:
    pipe = opened("hunyuan-i2v")
    processor = pipe.pipe("image").video_processor
    for height in (16, 20, 32, 48, 90):
        for width in (16, 32, 50):
            found = pipe.defaults.fit_size(height, width)
            assert found == processor.calculate_default_height_width(*found, 32)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("wan-t2v", {"image": picture()}, "image: .* from words alone"),
        ("wan-i2v", {}, "image: .* needs one; give the first frame"),
        ("wan-i2v", {"image": picture(), "last_image": picture()}, "last_image: .* takes no last frame"),
        ("wan-flf2v", {"image": picture()}, "give both"),
        ("wan-t2v", {"sampler": "euler"}, "sampler: .*own scheduler"),
        ("wan-t2v", {"steps": 0}, "steps"),
        ("wan-t2v", {"guidance_scale": float("nan")}, "guidance_scale"),
    ],
)
def test_what_a_checkpoint_cannot_be_given_is_said(
    opened: Opened, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(SeedanceError, match=said):
        opened(name)("a red cube", **options)


def test_the_shell_s_request_renders_writes_and_records(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    from shots.video import read_record

    request = RenderRequest(
        script=TWO, output=tmp_path / "film.mp4", model=str(checkpoint("wan-ti2v")), seed=3, dtype="fp32", device="cpu",
        carry="key", state=True,
    )  # fmt: skip
    film = render(request).films[0]
    assert film.path is not None and film.path.is_file()
    record = read_record(film.path)
    assert record is not None and record["carry"] == "key" and record["engine"]["family"] == "Wan"
    assert LatentFilm.load(tmp_path / "film.state.safetensors").plan.frames == (4, 6)


def test_a_dry_run_and_bad_requests_load_no_weights(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "load_part", lambda *said: pytest.fail(f"{said[1]} was loaded"))
    said = {"output": tmp_path / "film.mp4", "seed": 3, "device": "cpu", "dtype": "fp32"}
    plan = render(
        RenderRequest(prompts=("a red cube",), model=str(checkpoint("wan-t2v")), dry_run=True, **said)  # type: ignore[arg-type]
    ).films[0].record["plan"]  # fmt: skip
    assert plan["frames"] == [5] and plan["tokens"] == 8 and plan["flops"] > 0 and plan["memory_bytes"] > 100_000
    for more, named in (
        ({"model": str(checkpoint("wan-i2v"))}, "image"),
        ({"model": str(checkpoint("wan-t2v")), "carry": "last"}, "carry"),
        ({"model": str(checkpoint("wan-t2v")), "lora": ("none.safetensors",)}, "lora"),
        ({"carry": "last"}, "carry"),
        ({"lora": ("none.safetensors",)}, "lora"),
    ):
        with pytest.raises(SeedanceError, match=f"^{named}"):
            render(RenderRequest(prompts=("a red cube",), **{**said, **more}))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["wan", "ltx", "cogvideox"])
def test_operations_are_those_that_torch_counts(kind: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    library = diffusers()
    text, width = 64, 128
    with torch.device("meta"):
        if kind == "wan":
            family: Any = Wan()
            model = library.WanTransformer3DModel(
                num_attention_heads=4, attention_head_dim=width // 4, text_dim=width, ffn_dim=512, num_layers=6,
                freq_dim=32,
            )  # fmt: skip
            said = {"hidden_states": torch.randn(1, 16, 5, 32, 32), "timestep": torch.ones(1)}
            tokens = 5 * 16 * 16
        elif kind == "ltx":
            family = LTX()
            model = library.LTXVideoTransformer3DModel(
                in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=width // 4,
                cross_attention_dim=width, num_layers=6, caption_channels=width,
            )  # fmt: skip
            tokens = 5 * 16 * 16
            said = {"hidden_states": torch.randn(1, tokens, 8), "timestep": torch.ones(1), "num_frames": 5,
                    "height": 16, "width": 16, "encoder_attention_mask": torch.ones(1, text)}  # fmt: skip
        else:
            family = CogVideoX()
            model = library.CogVideoXTransformer3DModel(
                num_attention_heads=4, attention_head_dim=width // 4, in_channels=4, out_channels=4,
                text_embed_dim=width,
                num_layers=6, sample_width=32, sample_height=32, sample_frames=17, time_embed_dim=width,
                max_text_seq_length=text, use_rotary_positional_embeddings=True,
            )  # fmt: skip
            said = {"hidden_states": torch.randn(1, 5, 4, 32, 32), "timestep": torch.ones(1)}
            tokens = 5 * 16 * 16
        counter = FlopCounterMode(display=False)
        with counter:
            model(**said, encoder_hidden_states=torch.randn(1, text, width), return_dict=False)
    assert family.flops(model.config, tokens, text) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_operations_of_hunyuanvideo_are_those_that_torch_counts() -> None:
    """Apart, since what it does with its texts' masks cannot be done without numbers."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counts, (words, glyphs, pictures) = [], (40, 12, 12)
    for layers, grid in ((2, (5, 8, 8)), (6, (5, 8, 8)), (6, (5, 16, 16))):
        model = diffusers().HunyuanVideo15Transformer3DModel(
            in_channels=9, out_channels=4, num_attention_heads=4, attention_head_dim=32, num_layers=layers,
            num_refiner_layers=1, text_embed_dim=32, text_embed_2_dim=32, image_embed_dim=16, rope_axes_dim=(8, 12, 12),
        )  # fmt: skip
        said = {
            "hidden_states": torch.randn(1, 9, *grid), "timestep": torch.ones(1),
            "image_embeds": torch.randn(1, pictures, 16),
            "encoder_hidden_states": torch.randn(1, words, 32), "encoder_attention_mask": torch.ones(1, words),
            "encoder_hidden_states_2": torch.randn(1, glyphs, 32), "encoder_attention_mask_2": torch.ones(1, glyphs),
        }  # fmt: skip
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the CPU's own kernel is not counted
            model(**said, return_dict=False)
        formula = Hunyuan().flops(model.config, math.prod(grid), words + glyphs + pictures)
        counts.append((formula, counter.get_total_flops()))
    # The embedders of its texts, which the formula leaves out, are 2048 wide whatever the model's size.
    (few, few_counted), (many, many_counted), _ = counts
    assert many - few == pytest.approx(many_counted - few_counted, rel=0.02)
    formula, counted = counts[2]
    assert formula == pytest.approx(counted, rel=0.05)
    assert Hunyuan.joint and not Wan.joint


def test_defaults_come_from_the_folder_s_own_file(copied: Callable[[str], Path]) -> None:
    folder = copied("wan-t2v")
    (folder / "seedance.json").unlink()
    start = engine.defaults_of(open_checkpoint(folder))
    assert (start.height, start.width, start.fps, start.steps, start.guidance_scale) == (480, 832, 16.0, 50, 5.0)
    assert start.negative_prompt.startswith("色调艳丽") and round(start.seconds * start.fps) == 81
    (folder / "seedance.json").write_text(json.dumps({"defaults": {"steps": 8}}))
    assert engine.defaults_of(open_checkpoint(folder)).steps == 8
    (folder / "seedance.json").write_text(json.dumps({"defaults": {"stepps": 8}}))
    with pytest.raises(SeedanceError, match=r"seedance\.json: defaults: .*stepps"):
        engine.defaults_of(open_checkpoint(folder))
