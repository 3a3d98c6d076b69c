"""What a checkpoint's folder must hold, and the traps by which one loads cleanly and draws noise."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cli
from seedance.engines import engine, sanity
from seedance.engines.families import family_of
from seedance.engines.folder import diffusers, load_part, open_checkpoint
from seedance.engines.names import original
from seedance.engines.single_file import empty, load_single_file, open_single_file
from seedance.errors import SeedanceError
from seedance.pipeline import Seedance
from seedance.preview import preview_frames

Make = Callable[[str], Path]
Opened = Callable[[str], Any]
SHARD = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested has to be found before a part is loaded."""
    monkeypatch.setattr(engine, "load_part", lambda *said: pytest.fail(f"{said[1]} was loaded"))


def index_of(folder: Path, **changed: Any) -> None:
    said = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**said, **changed}))


def sharded(folder: Path) -> Path:
    """The transformer's weights in three shards with their index."""
    place = folder / "transformer"
    state = load_file(place / SHARD)
    (place / SHARD).unlink()
    names = sorted(state)
    where = {}
    for k in range(3):
        shard = f"diffusion_pytorch_model-{k + 1:05d}-of-00003.safetensors"
        save_file({name: state[name] for name in names[k::3]}, place / shard)
        where |= dict.fromkeys(names[k::3], shard)
    (place / f"{SHARD}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return place


# ---------------------------------------------------------------------- what must be there


def _no_part(folder: Path) -> None:
    for file in (folder / "vae").iterdir():
        file.unlink()
    (folder / "vae").rmdir()


def _no_weights(folder: Path) -> None:
    (folder / "transformer" / SHARD).unlink()


def _cut(folder: Path) -> None:
    file = folder / "transformer" / SHARD
    file.write_bytes(file.read_bytes()[:-100])


def _shard_lost(folder: Path) -> None:
    next(iter(sorted(sharded(folder).glob("*-00002-of*")))).unlink()


def _shard_cut(folder: Path) -> None:
    file = next(iter(sorted(sharded(folder).glob("*-00003-of*"))))
    file.write_bytes(file.read_bytes()[:-10])


def _no_shard_index(folder: Path) -> None:
    (sharded(folder) / f"{SHARD}.index.json").unlink()


def _half(folder: Path) -> None:
    (folder / "text_encoder" / "blob.incomplete").write_bytes(b"x")


def _dangling(folder: Path) -> None:
    file = folder / "transformer" / SHARD
    file.unlink()
    file.symlink_to(folder / "blobs" / "gone")


def _pickle(folder: Path) -> None:
    file = folder / "vae" / SHARD
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def _other_family(folder: Path) -> None:
    index_of(folder, transformer=["diffusers", "LTXVideoTransformer3DModel"])


def _other_config(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "_class_name": "LTXVideoTransformer3DModel"}))


def _no_engine(folder: Path) -> None:
    index_of(folder, _class_name="StableDiffusionPipeline")


def _statistics(folder: Path) -> None:
    path = folder / "vae" / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "latents_mean": [0.0]}))


def _control(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "in_channels": 52}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_part, r"lacks its vae .*vae is missing"),
        (_no_weights, r"transformer holds no weights"),
        (_cut, rf"{SHARD} has \d+ bytes, its header tells of"),
        (_shard_lost, r"00002-of-00003.safetensors is missing"),
        (_shard_cut, r"00003-of-00003.safetensors has \d+ bytes"),
        (_no_shard_index, r"holds shards and no index"),
        (_half, r"blob\.incomplete is half a download"),
        (_dangling, r"points to nothing: a download stopped half-way"),
        (_pickle, r"weights of the vae are a pickle .*--pickle vae/d.*pickles=\('vae/"),
        (_other_family, r"the transformer in .* is a LTXVideoTransformer3DModel, Wan has a WanTransformer3DModel"),
        (_other_config, r"is a LTXVideoTransformer3DModel, Wan has"),
        (_no_engine, r"no engine for a StableDiffusionPipeline; there are Seedance and"),
        (_statistics, r"latents_mean has 1 values for 16"),
        (_control, r"52 channels for latents of 16"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_folder_is_named_before_anything_is_loaded(
    copied: Make, nothing_loads: None, damage: Callable[[Path], None], said: str
) -> None:
    folder = copied("wan-t2v")
    damage(folder)
    with pytest.raises(SeedanceError, match=said) as found:
        Seedance.from_pretrained(folder, dtype="fp32", device="cpu")
    assert "\n" not in str(found.value)


def test_a_part_that_lacks_tensors_is_an_error_where_the_library_draws_random_ones(copied: Make) -> None:
    file = copied("wan-t2v") / "transformer" / SHARD
    state = load_file(file)
    state.pop("proj_out.weight")
    save_file(state, file)
    with pytest.raises(SeedanceError, match=r"transformer in .* lacks proj_out\.weight"):
        load_part(open_checkpoint(file.parents[1]), "transformer")


def test_a_part_of_a_library_not_known_is_not_run(copied: Make) -> None:
    folder = copied("wan-t2v")
    index_of(folder, scheduler=["os", "system"])
    with pytest.raises(SeedanceError, match="library 'os', whose code would run unseen"):
        load_part(open_checkpoint(folder), "scheduler")


def test_shards_and_one_file_are_the_same_transformer(copied: Make, opened: Opened) -> None:
    folder = copied("wan-t2v")
    sharded(folder)
    found = load_part(open_checkpoint(folder), "transformer", torch.float32).state_dict()
    wanted = opened("wan-t2v").parts["transformer"].state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_pickle_is_read_if_it_is_named(copied: Make, opened: Opened) -> None:
    folder = copied("wan-t2v")
    _pickle(folder)
    found = load_part(open_checkpoint(folder, ("vae/diffusion_pytorch_model.bin",)), "vae", torch.float32).state_dict()
    wanted = opened("wan-t2v").parts["vae"].state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(SeedanceError, match="pickles: .* does not exist"):
        open_checkpoint(folder, ("vae/other.bin",))


def test_the_shell_names_a_pickle_and_a_revision(
    copied: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = copied("wan-t2v"), tmp_path / "a.mp4"
    _pickle(folder)
    monkeypatch.setenv("SEEDANCE_CACHE", str(tmp_path))
    said = ["render", "a red cube", "-o", str(out), "--device", "cpu", "--dtype", "fp32", "--model"]
    assert cli.main([*said, str(folder)]) == 2
    [named] = re.findall(r"--pickle (\S+),", capsys.readouterr().err)
    assert cli.main([*said, str(folder), "--pickle", named]) == 0 and out.is_file()
    assert cli.main([*said, "seedance-nano", "--pickle", named, "--dry-run"]) == 2
    assert "pickles: seedance-nano has none" in capsys.readouterr().err
    asked: list[Any] = []

    def look(name: str, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", look)
    assert cli.main([*said, "owner/wan", "--revision", "v1", "--pickle", named, "--dry-run"]) == 0
    # The later ones ask for the commit that the first one found, whose snapshot is named after it.
    assert asked[0] == ("owner/wan", "v1") and set(asked[1:]) == {("owner/wan", folder.name)}


def test_without_diffusers_the_command_that_brings_it_is_said(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SeedanceError, match=r"needs diffusers .*pip install 'seedance\[open\]'"):
        Seedance.from_pretrained(checkpoint("wan-t2v"), dtype="fp32", device="cpu")


def test_a_hub_id_that_is_not_in_the_cache_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SeedanceError, match=r"'nobody/wan' is not in the cache .*hf download nobody/wan"):
        Seedance.from_pretrained("nobody/wan")


def test_a_gated_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*said: Any, **options: Any) -> None:
        error = GatedRepoError.__new__(GatedRepoError)
        Exception.__init__(error, "403 Forbidden")
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(SeedanceError, match=r"'owner/ltx' is gated; accept its terms"):
        Seedance.from_pretrained("owner/ltx")


def test_our_own_model_takes_no_adapters(tiny_model: Path) -> None:
    for option in ({"lora": ["a.safetensors"]}, {"transformer": "a.safetensors"}, {"pickles": ["a.bin"]}):
        with pytest.raises(SeedanceError, match=next(iter(option))):
            Seedance.from_pretrained(tiny_model, device="cpu", **option)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- one file


def in_original_names(pipe: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    state = pipe.parts["transformer"].state_dict()
    return {prefix + original("Wan", name): tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("name", ["wan-t2v", "wan-flf2v"])
def test_our_names_of_wan_are_those_that_diffusers_converts(opened: Opened, name: str) -> None:
    diffusers()
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    pipe = opened(name)
    theirs = convert_wan_transformer_to_diffusers(in_original_names(pipe))
    if "img_emb.emb_pos" in theirs:  # left out there; their script for whole checkpoints has it
        theirs["condition_embedder.image_embedder.pos_embed"] = theirs.pop("img_emb.emb_pos")
    ours = pipe.parts["transformer"].state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert original("Wan", "blocks.1.norm2.weight") == "blocks.1.norm3.weight"  # the two that change places
    assert original("Wan", "blocks.1.norm3.weight") == "blocks.1.norm2.weight"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_fine_tune_in_one_file_takes_the_place_of_the_transformer(
    opened: Opened, tmp_path: Path, prefix: str
) -> None:
    pipe = opened("wan-t2v")
    state = in_original_names(pipe, prefix)
    state[f"{prefix}head.head.bias"] += 1
    save_file(state, tmp_path / "tuned.safetensors")
    checkpoint = pipe.checkpoint
    found = load_single_file(open_single_file(tmp_path / "tuned.safetensors", checkpoint), checkpoint, torch.float32)
    wanted = pipe.parts["transformer"].state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, wanted[name] + 1 if name == "proj_out.bias" else wanted[name])
    x = torch.randn(1, 16, 2, 4, 4)
    said = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.randn(1, 512, 32), "return_dict": False}
    assert torch.isfinite(found(x, **said)[0]).all()  # its tables of positions are there too


def test_what_keeps_float32_keeps_it_from_one_file(opened: Opened, tmp_path: Path) -> None:
    pipe = opened("wan-t2v")
    save_file(in_original_names(pipe), tmp_path / "t.safetensors")
    checkpoint = pipe.checkpoint
    ours = load_single_file(open_single_file(tmp_path / "t.safetensors", checkpoint), checkpoint, torch.bfloat16)
    theirs = load_part(checkpoint, "transformer", torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in ours.state_dict().items()} == kinds


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_positions_and_modulation_keep_their_digits_in_bf16(opened: Opened, tmp_path: Path, kind: str) -> None:
    """Rotations of 44/42/42 of 128 numbers by theta 10,000 from float64, and tables of modulation in float32."""
    pipe = opened("wan-t2v")
    if kind == "folder":
        model = load_part(pipe.checkpoint, "transformer", torch.bfloat16)
    else:
        save_file(in_original_names(pipe), tmp_path / "t.safetensors")
        file = open_single_file(tmp_path / "t.safetensors", pipe.checkpoint)
        model = load_single_file(file, pipe.checkpoint, torch.bfloat16)
    dim = model.config.attention_head_dim
    sides = (dim - 4 * (dim // 6), 2 * (dim // 6), 2 * (dim // 6))
    assert [128 - 4 * (128 // 6), 2 * (128 // 6), 2 * (128 // 6)] == [44, 42, 42]
    places = torch.arange(model.config.rope_max_seq_len, dtype=torch.float64)
    angles = [
        torch.outer(places, 10_000.0 ** (-torch.arange(0, side, 2, dtype=torch.float64) / side)) for side in sides
    ]
    angles = torch.cat([angle.repeat_interleave(2, dim=1) for angle in angles], dim=1)
    torch.testing.assert_close(model.rope.freqs_cos.double(), angles.cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.rope.freqs_sin.double(), angles.sin(), atol=1e-6, rtol=0)
    kept = {name: p.dtype for name, p in model.named_parameters() if "scale_shift_table" in name or ".norm2." in name}
    assert set(kept.values()) == {torch.float32} and len(kept) > 2
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16


def test_a_file_of_another_model_is_refused(opened: Opened, tmp_path: Path, nothing_loads: None) -> None:
    pipe = opened("wan-t2v")
    state = in_original_names(pipe)
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    save_file({k: v for k, v in state.items() if k != "head.head.bias"}, tmp_path / "lacking.safetensors")
    save_file({**state, "head.head.bias": torch.zeros(3)}, tmp_path / "wide.safetensors")
    save_file({**state, "scale_weight": torch.zeros(1)}, tmp_path / "scaled.safetensors")
    (tmp_path / "a.pth").write_bytes(b"x")
    for name, said in (
        ("other", "is no Wan transformer"), ("lacking", r"lacks head\.head\.bias"), ("wide", "of another size"),
        ("scaled", "also holds scale_weight"),
    ):  # fmt: skip
        with pytest.raises(SeedanceError, match=said):
            Seedance.from_pretrained(pipe.checkpoint.folder, transformer=tmp_path / f"{name}.safetensors", device="cpu")
    with pytest.raises(SeedanceError, match="is a pickle"):
        open_single_file(tmp_path / "a.pth", pipe.checkpoint)
    with pytest.raises(SeedanceError, match="one file, which holds one part"):
        Seedance.from_pretrained(tmp_path / "other.safetensors")


# ---------------------------------------------------------------------- words


def test_a_word_table_left_at_zero_is_tied_again(copied: Make, opened: Opened) -> None:
    file = copied("wan-t2v") / "text_encoder" / "model.safetensors"
    state = load_file(file)
    state["encoder.embed_tokens.weight"] = torch.zeros_like(state["shared.weight"])
    save_file(state, file, metadata={"format": "pt"})
    encoder = load_part(open_checkpoint(file.parents[1]), "text_encoder", torch.float32)
    wanted = opened("wan-t2v").parts["text_encoder"]
    assert float(encoder.encoder.embed_tokens.weight.abs().sum()) > 0
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(encoder(ids).last_hidden_state, wanted(ids).last_hidden_state)


def test_a_word_table_of_zeros_is_refused(copied: Make) -> None:
    file = copied("wan-t2v") / "text_encoder" / "model.safetensors"
    state = load_file(file)
    save_file({**state, "shared.weight": torch.zeros_like(state["shared.weight"])}, file, metadata={"format": "pt"})
    with pytest.raises(SeedanceError, match="word embeddings that are zeros"):
        load_part(open_checkpoint(file.parents[1]), "text_encoder")


def test_wan_s_words_are_512_states_and_zero_past_the_prompt(opened: Opened) -> None:
    pipe = opened("wan-t2v")
    states = family_of("WanPipeline").words(pipe.pipe("words"), "a red cube", "", 5.0)["prompt_embeds"]
    ids = pipe.parts["tokenizer"]("a red cube", return_tensors="pt").input_ids
    alone = pipe.parts["text_encoder"](ids).last_hidden_state
    assert states.shape == (1, 512, 32)
    torch.testing.assert_close(states[:, : ids.shape[1]], alone)
    assert not states[:, ids.shape[1] :].any()


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", ["wan-t2v", "ltx", "cogvideox-t2v", "hunyuan"])
def test_normalised_latents_are_those_that_the_sampler_ends_with(opened: Opened, name: str) -> None:
    pipe = opened(name)
    seen: list[torch.Tensor] = []
    film = pipe.sample([pipe.plan("a red cube", num_frames=9)], callback=lambda step, steps, x0: seen.append(x0))[0]
    torch.testing.assert_close(  # the last step is heading for what it gives
        sanity.normalised(film.latents[None], pipe.parts["vae"]), seen[-1], atol=1e-4, rtol=1e-4
    )


def test_a_tiny_autoencoder_is_given_normalised_latents_and_the_full_one_is_not(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, seen = opened("wan-t2v"), {}

    class Tiny:
        def pictures(self, latents: torch.Tensor) -> np.ndarray:
            seen["tiny"] = latents.clone()
            return np.zeros((latents.shape[1], 8, 8, 3), np.uint8)

    monkeypatch.setattr(pipe, "tiny", Tiny())
    film = pipe.sample([pipe.plan("a red cube", num_frames=9)], callback=lambda *said: seen.update(last=said[2]))[0]
    preview_frames(pipe, seen["last"], most=film.latents.shape[1])
    full = film.latents[None]
    torch.testing.assert_close(seen["tiny"][None], sanity.normalised(full, pipe.parts["vae"]), atol=1e-4, rtol=1e-4)
    assert (seen["tiny"][None] - full).abs().max() > 0.05  # Wan's means and deviations lie between the two


def test_a_shot_has_the_next_1_4n_frames_and_the_checkpoint_s_own_shift(opened: Opened) -> None:
    pipe = opened("wan-t2v")
    film = pipe.sample([pipe.plan("a red cube", num_frames=7)])[0]
    assert film.latents.shape[1] == 3 and pipe.video(film).frames.shape[0] == 7  # 9 are made
    assert film.record["shift"] == pipe.checkpoint.config("scheduler")["flow_shift"] == 3.0


def test_silent_noise_is_an_error(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = opened("wan-t2v")
    bias, weight = (getattr(pipe.parts["transformer"].proj_out, side) for side in ("bias", "weight"))
    kept, whole = bias.clone(), weight.clone()
    try:
        bias.fill_(float("nan"))
        with pytest.raises(SeedanceError, match=r"first step of .* are not numbers; .*--dtype bf16"):
            pipe("a red cube", seed=1)
        bias.fill_(1e6)
        with pytest.raises(SeedanceError, match="first step of .* lie around 1e"):
            pipe("a red cube", seed=1)
        weight.zero_()
        bias.zero_()  # the noise would stay as it is, of the spread that latents have
        with pytest.raises(SeedanceError, match="first step of .* with a spread of 0,"):
            pipe("a red cube", seed=1)
    finally:
        bias.copy_(kept)
        weight.copy_(whole)
    monkeypatch.setattr(engine, "_cpu", lambda latents: pytest.fail("latents off their range were taken"))
    for off in (100.0, 1e-5):
        taken = torch.randn(1, 16, 2, 4, 4) * off
        monkeypatch.setattr(type(pipe.parts["scheduler"]), "step", lambda *_, taken=taken, **__: (taken,))
        with pytest.raises(SeedanceError, match="latents of .* lie around .* with a spread of"):
            pipe("a red cube", seed=1)
    monkeypatch.undo()
    encoder = pipe.parts["text_encoder"].encoder.final_layer_norm
    kept = encoder.weight.clone()
    try:
        encoder.weight.zero_()
        with pytest.raises(SeedanceError, match="text states of .* are all zero"):
            pipe("a red cube", seed=1)
    finally:
        encoder.weight.copy_(kept)
    assert pipe("a red cube", seed=1).frames.std() > 3


def test_a_transformer_of_a_checkpoint_can_be_had_without_its_numbers(opened: Opened) -> None:
    hollow = empty(opened("wan-t2v").checkpoint)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    assert sum(p.numel() for p in hollow.parameters()) == opened("wan-t2v").checkpoint.numbers("transformer")
