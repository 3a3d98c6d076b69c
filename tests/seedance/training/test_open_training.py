"""Training of open checkpoints on a folder of clips: the cache, the loss, and files that other tools load."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seedance.engines.folder import diffusers, load_part
from seedance.engines.lora import matched as fitted
from seedance.engines.lora import read_lora
from seedance.engines.names import original
from seedance.engines.single_file import load_single_file, open_single_file
from seedance.errors import SeedanceError
from seedance.training import train
from seedance.training.open import OpenObjective, exact_times, flops, shift_of
from seedance.training.open_latents import OpenBatch, OpenBucket, OpenStore, choose_bucket, encode, find_checkpoint
from shots.video import VideoWriter, read_video
from tests.seedance.engines.tiny_checkpoints import wan, wan_transformer

pytestmark = pytest.mark.skipif(
    not (find_spec("diffusers") and find_spec("peft")), reason="diffusers or peft is not installed"
)
SHAPES = "{wide: {height: 32, width: 48, frames: 5, fps: 8}, tall: {height: 48, width: 32, frames: 5, fps: 8}}"
BUCKETS = [f"buckets={SHAPES}"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.1 T2V checkpoint."""
    return wan(tmp_path_factory.mktemp("wan") / "t2v")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, a landscape and a portrait, each with its caption."""
    folder = tmp_path_factory.mktemp("clips")
    for name, (height, width), words in [("a", (64, 96), "a red cube jumps"), ("b", (96, 64), "a blue sphere spins")]:
        frames = np.random.default_rng(len(words)).integers(0, 256, (1, height // 16, width // 16, 3))
        frames = np.kron(frames, np.ones((1, 16, 16, 1))).astype(np.uint8).repeat(6, axis=0)
        with VideoWriter(folder / f"{name}.mp4", fps=8.0, height=height, width=width) as writer:
            writer.write(frames)
        (folder / f"{name}.txt").write_text(words)
    return folder


@pytest.fixture(scope="module")
def cache(model: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips' latents and words for the tiny checkpoint."""
    out = tmp_path_factory.mktemp("cache")
    train("wan-1b3-lora-latents", [f"out={out}", f"model={model}", f"folder={clips}", *BUCKETS, "device=cpu",
                                   "prompts=[a red cube jumps]", "threads=1"])  # fmt: skip
    return out


def recipe(model: Path, cache: Path, out: Path, *more: str, name: str = "wan-1b3-lora") -> list[Any]:
    """Arguments of a short run on the tiny checkpoint."""
    return [name, [f"model={model}", f"cache={cache}", f"out={out}", "loop.time_budget=null", "loop.steps=2",
                   "loop.accumulate=1", "loop.device=cpu", "loop.dtype=fp32", "loop.threads=1", "loop.log_every=1",
                   "loop.warmup_steps=1", "steps=1", "sample_size=[32, 32, 5]", "guidance_scale=1", *more]]  # fmt: skip


# ---------------------------------------------------------------------- the cache


def test_clips_go_to_the_bucket_of_their_shape_and_are_kept_with_their_words(cache: Path, model: Path) -> None:
    store = OpenStore(cache)
    assert {name: [row["caption"] for row in rows] for name, rows in store.buckets.items()} == {
        "wide": ["a red cube jumps"], "tall": ["a blue sphere spins"],
    }  # fmt: skip
    assert store.latents(store.buckets["wide"][0]).shape == (16, 2, 4, 6)
    checkpoint = find_checkpoint(str(model))
    pipe = diffusers().WanPipeline(
        tokenizer=load_part(checkpoint, "tokenizer"), text_encoder=load_part(checkpoint, "text_encoder"), vae=None,
        scheduler=None, transformer=None,
    )  # fmt: skip
    theirs, _ = pipe.encode_prompt("a red cube jumps", None, False, max_sequence_length=512, device="cpu")
    torch.testing.assert_close(store.text("a red cube jumps").float(), theirs[0].float(), atol=2e-2, rtol=2e-2)
    with pytest.raises(SeedanceError, match="no token states of 'a dog'"):
        store.text("a dog")


def test_latents_decode_back_to_the_clip_through_the_pipelines_own_scaling(model: Path) -> None:
    checkpoint = find_checkpoint(str(model))
    vae = load_part(checkpoint, "vae")
    frames = torch.randint(0, 256, (1, 5, 32, 32, 3), dtype=torch.uint8)
    found = encode(vae, frames).float()
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    scale = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    raw = found / scale + mean  # what the pipeline gives its VAE
    wanted = vae.encode(frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist.mode()
    torch.testing.assert_close(raw, wanted, atol=2e-2, rtol=2e-2)


def test_a_video_takes_the_nearest_shape_it_is_long_enough_for() -> None:
    buckets = {
        "wide": OpenBucket(480, 832, 81), "short": OpenBucket(480, 832, 17), "tall": OpenBucket(832, 480, 49),
        "still": OpenBucket(480, 832, 1),
    }  # fmt: skip
    assert choose_bucket(1080, 1920, 10.0, buckets) == "wide"
    assert choose_bucket(1080, 1920, 3.2, buckets) == "short"  # not the portrait it would be long enough for
    assert choose_bucket(1920, 1080, 10.0, buckets) == "tall"
    assert choose_bucket(1080, 1920, None, buckets) == "still"
    assert choose_bucket(1080, 1920, 0.5, buckets) is None


def test_a_second_run_makes_only_what_changed_and_follows_new_words(
    cache: Path, model: Path, clips: Path, tmp_path: Path
) -> None:
    own, copied = tmp_path / "cache", tmp_path / "clips"
    shutil.copytree(clips, copied)
    words = [f"out={own}", f"model={model}", f"folder={copied}", *BUCKETS, "device=cpu", "threads=1"]
    train("wan-1b3-lora-latents", words)
    times = {file: file.stat().st_mtime_ns for file in (own / "clips").glob("*.safetensors")}
    (copied / "a.txt").write_text("a red cube spins")
    train("wan-1b3-lora-latents", words)
    assert {file: file.stat().st_mtime_ns for file in (own / "clips").glob("*.safetensors")} == times
    assert OpenStore(own).buckets["wide"][0]["caption"] == "a red cube spins"
    assert OpenStore(own).text("a red cube spins").any()


def test_a_cache_of_another_checkpoint_is_refused_by_what_differs(cache: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    shutil.rmtree(other / "vae")
    shutil.copytree(wan(tmp_path / "fresh", seed=1) / "vae", other / "vae")
    with pytest.raises(SeedanceError, match="was made with another vae; delete it, or name another"):
        train(*recipe(other, cache, tmp_path / "run"))
    with pytest.raises(SeedanceError, match="another vae and text encoder;"):
        train(*recipe(tmp_path / "fresh", cache, tmp_path / "run"))
    stale = tmp_path / "stale"
    shutil.copytree(cache, stale)
    said = json.loads((stale / "cache.json").read_text())
    said["preprocessing"]["version"] = 0
    (stale / "cache.json").write_text(json.dumps(said))
    with pytest.raises(SeedanceError, match="another preprocessing"):
        train(*recipe(model, stale, tmp_path / "run"))
    with pytest.raises(SeedanceError, match="run its latents recipe first"):
        train(*recipe(model, tmp_path / "none", tmp_path / "run"))


def test_checkpoints_that_cannot_be_trained_and_sizes_that_do_not_fit_are_named(
    model: Path, clips: Path, tmp_path: Path
) -> None:
    with pytest.raises(SeedanceError, match="takes 36 channels, its VAE has 16: it also wants a picture"):
        find_checkpoint(str(wan(tmp_path / "i2v", "i2v")))
    with pytest.raises(SeedanceError, match="has two experts"):
        find_checkpoint(str(wan(tmp_path / "a14b", "t2v-a14b")))
    start = [f"out={tmp_path / 'c'}", f"model={model}", f"folder={clips}", "device=cpu"]
    with pytest.raises(SeedanceError, match=r"buckets.x: 30 x 48; this checkpoint wants multiples of 16"):
        train("wan-1b3-lora-latents", [*start, "buckets={x: {height: 30, width: 48, frames: 5}}"])
    with pytest.raises(SeedanceError, match=r"buckets.x: 6 frames at 16; 1 \+ 4n above 0"):
        train("wan-1b3-lora-latents", [*start, "buckets={x: {height: 32, width: 48, frames: 6}}"])
    with pytest.raises(SeedanceError, match="fits a bucket"):
        train("wan-1b3-lora-latents", [*start, "buckets={x: {height: 32, width: 48, frames: 81}}"])


# ---------------------------------------------------------------------- the objective


def batch(channels: int = 16, seed: int = 0) -> OpenBatch:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, channels, 2, 4, 6, generator=generator)
    return OpenBatch(latents, torch.randn(2, 512, 32, generator=generator), torch.zeros(512, 32), "x")


def test_the_loss_is_that_of_velocity_at_the_time_shown_and_its_time_is_shifted(model: Path) -> None:
    checkpoint = find_checkpoint(str(model))
    transformer = load_part(checkpoint, "transformer")
    shown: dict[str, Any] = {}

    class Spy:
        config, dtype = transformer.config, torch.float32

        def __call__(self, hidden_states: Any, timestep: Any, **_: Any) -> tuple[Any]:
            shown.update(x=hidden_states, t=timestep)
            return (torch.zeros_like(hidden_states),)

    def loss(shift: float) -> float:
        objective = OpenObjective(Spy(), torch.nn.Module(), shift=shift, per_token=False, text_drop=0.0, first=0.0)
        return float(objective(batch(), torch.Generator().manual_seed(3))[0])

    x0 = batch().latents
    found = loss(1.0)
    s = (shown["t"] / 1000).view(2, 1, 1, 1, 1)
    eps = (shown["x"] - (1 - s) * x0) / s
    assert found == pytest.approx(float((eps - x0).square().mean()), rel=1e-4)
    early = shown["t"].clone()
    loss(3.0)
    s = early / 1000
    torch.testing.assert_close(shown["t"], 1000 * 3 * s / (1 + 2 * s))
    assert shift_of(checkpoint) == 3.0  # of its scheduler


def test_a_given_first_frame_is_clean_at_time_zero_and_teaches_nothing(tmp_path: Path) -> None:
    checkpoint = find_checkpoint(str(wan(tmp_path / "ti2v", "ti2v")))
    transformer = load_part(checkpoint, "transformer")
    seen: dict[str, Any] = {}

    class Spy:
        config, dtype = transformer.config, torch.float32

        def __call__(self, **given: Any) -> tuple[Any]:
            seen.update(given)
            return transformer(**given)

    objective = OpenObjective(Spy(), torch.nn.Module(), shift=5.0, per_token=True, text_drop=1.0, first=1.0)
    data = batch(48)
    loss, _ = objective(data, torch.Generator().manual_seed(0))
    assert torch.equal(seen["hidden_states"][:, :, 0], data.latents[:, :, 0])
    assert seen["timestep"].shape == (2, 2 * 2 * 3)
    assert (seen["timestep"][:, :6] == 0).all()
    assert (seen["timestep"][:, 6:] > 0).all()
    assert not seen["encoder_hidden_states"].any()  # all words dropped for those of no words
    assert torch.isfinite(loss)


def test_the_embedding_of_time_is_exact_under_autocast(model: Path) -> None:
    transformer = load_part(find_checkpoint(str(model)), "transformer")
    sample = torch.randn(2, 32)
    wanted = transformer.condition_embedder.time_embedder(sample)
    exact_times(transformer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transformer.condition_embedder.time_embedder(sample), wanted)


def test_a_step_is_counted_as_the_profiler_counts_it(model: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    checkpoint = find_checkpoint(str(model))
    transformer = load_part(checkpoint, "transformer").requires_grad_(True)
    objective = OpenObjective(transformer, transformer, shift=1.0, per_token=False, text_drop=0.0, first=0.0)
    with FlopCounterMode(display=False) as counter:
        objective(batch(), torch.Generator().manual_seed(0))[0].backward()
    mine = 2 * flops(checkpoint, (16, 2, 4, 6), 512, True, False)
    assert mine == pytest.approx(counter.get_total_flops(), rel=0.25)


# ---------------------------------------------------------------------- runs


def logged(out: Path, name: str = "loss") -> list[float]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def test_two_clips_are_learned_by_heart(model: Path, cache: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"  # the tiny transformer is narrower than the noise it is to predict
    shutil.copytree(model, wide)
    torch.manual_seed(0)
    wan_transformer(dim=128).save_pretrained(wide / "transformer")
    options = ("loop.steps=60", "loop.learning_rate=0.003", "batch=4", "loop.log_every=5", "checkpointing=false",
               "text_drop=0", "loop.decay=0.2", "sample_minutes=0")  # fmt: skip
    train(*recipe(wide, cache, tmp_path / "run", *options, name="wan-1b3-full"))
    losses = logged(tmp_path / "run")
    assert losses[-1] < 0.15 * losses[0]


def test_an_adapter_learns_and_loads_in_diffusers_with_every_key(model: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("loop.steps=60", "loop.learning_rate=0.01", "lora.r=8", "lora.alpha=16", "batch=4", "loop.log_every=10",
               "checkpointing=false", "loop.ema=0", "text_drop=0")  # fmt: skip
    folder = train(*recipe(model, cache, out, *options))
    losses = logged(out)
    assert losses[-1] < 0.95 * losses[0]
    assert (out / "samples").is_dir()

    pipe = diffusers().WanPipeline.from_pretrained(model)
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights(folder)
    saved = load_file(folder / "pytorch_lora_weights.safetensors")
    live = dict(pipe.transformer.named_parameters())
    matched = 0
    for name, tensor in saved.items():
        module, side = name.removeprefix("transformer.").rsplit(".lora_", 1)
        [mine] = [p for n, p in live.items() if n.startswith(f"{module}.lora_{side.split('.')[0]}.")]
        torch.testing.assert_close(mine.float(), tensor.float())
        matched += 1
    assert matched == len(saved) == 2 * 2 * 10  # two matrices in two blocks of four, four and two linear maps
    assert all(tensor.any() for name, tensor in saved.items() if "lora_B" in name)
    scale = next(m.scaling for m in pipe.transformer.modules() if getattr(m, "scaling", None))
    assert set(scale.values()) == {2.0}  # alpha / r, from the file's header
    # ComfyUI looks a module up by "diffusion_model.", its original name and nothing more.
    named = {f"diffusion_model.{original('Wan', name)}" for name in before}
    theirs = load_file(folder / "comfyui_lora.safetensors")
    modules = {key.removesuffix(".lora_A.weight") for key in theirs if key.endswith(".lora_A.weight")}
    assert len(modules) == 20 and {f"{module}.weight" for module in modules} <= named
    wan = find_checkpoint(str(model))
    plain = load_part(wan, "transformer")
    one, two = (
        fitted(read_lora(folder / f"{name}.safetensors"), wan.family, plain)
        for name in ("comfyui_lora", "pytorch_lora_weights")
    )
    assert one.keys() == two.keys()
    assert {pair.alpha for pair in (*one.values(), *two.values())} == {16.0}
    assert all(torch.equal(one[n].down, two[n].down) and torch.equal(one[n].up, two[n].up) for n in one)
    pipe.unload_lora_weights()
    assert all(torch.equal(before[n], t) for n, t in pipe.transformer.state_dict().items())


def test_whole_training_gives_a_checkpoint_that_the_stock_pipeline_loads(
    model: Path, cache: Path, tmp_path: Path
) -> None:
    folder = train(*recipe(model, cache, tmp_path / "run", "loop.learning_rate=0.01", name="wan-1b3-full"))
    pipe = diffusers().WanPipeline.from_pretrained(folder)
    old = diffusers().WanPipeline.from_pretrained(model)
    before = old.transformer.state_dict()
    changed = [n for n, t in pipe.transformer.state_dict().items() if not torch.equal(t, before[n])]
    assert len(changed) > 40
    assert torch.equal(next(pipe.vae.parameters()), next(old.vae.parameters()))
    assert find_checkpoint(str(folder)).family.name == "Wan"


def test_whole_training_gives_one_file_that_other_tools_load(model: Path, cache: Path, tmp_path: Path) -> None:
    folder = train(*recipe(model, cache, tmp_path / "run", "loop.learning_rate=0.01", name="wan-1b3-full"))
    file = folder / "single_file.safetensors"
    kind = diffusers().WanTransformer3DModel
    wanted = load_part(find_checkpoint(str(folder)), "transformer").state_dict()
    before = load_part(find_checkpoint(str(model)), "transformer").state_dict()
    assert any(not torch.equal(wanted[name], before[name].to(wanted[name].dtype)) for name in wanted)
    # What keeps float32 is written in it; a swap of norms would be seen here too.
    kinds = {name: tensor.dtype for name, tensor in load_file(file).items()}
    assert kinds["blocks.0.modulation"] == kinds["head.modulation"] == torch.float32
    assert kinds["blocks.0.self_attn.q.weight"] == torch.bfloat16
    # diffusers tells the model by the names and turns them back; sizes it takes from the configuration beside it.
    theirs = kind.from_single_file(str(file), config=str(model), subfolder="transformer", torch_dtype=torch.float32)
    ours = open_single_file(file, find_checkpoint(str(model)))
    for found in (theirs, load_single_file(ours, find_checkpoint(str(model)), torch.float32)):
        state = found.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name].float()) for name in wanted)
    # ComfyUI tells a Wan model, its width and its kind by these (comfy/model_detection.py), bare of any prefix.
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
    width = theirs.config.num_attention_heads * theirs.config.attention_head_dim
    assert shapes["head.modulation"] == (1, 2, width) and shapes["blocks.1.ffn.0.weight"] == (2 * width, width)
    assert shapes["patch_embedding.weight"] == (width, 16, 1, 2, 2) and shapes["head.head.weight"][0] == 4 * 16
    assert "text_embedding.0.weight" in shapes and "img_emb.proj.0.weight" not in shapes
    without = ("single_file=false", "sample_minutes=0")
    folder = train(*recipe(model, cache, tmp_path / "bare", *without, name="wan-1b3-full"))
    assert not (folder / "single_file.safetensors").exists()


def same_adapter(one: Path, two: Path) -> bool:
    mine, theirs = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (one, two))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_stopped_run_goes_on_to_the_same_adapter(model: Path, cache: Path, tmp_path: Path) -> None:
    long = ("loop.steps=4", "loop.decay=0", "loop.ema=0.9")
    whole = train(*recipe(model, cache, tmp_path / "whole", *long))
    train(*recipe(model, cache, tmp_path / "parts", "loop.steps=2", *long[1:]))
    parts = train(*recipe(model, cache, tmp_path / "parts", *long))
    assert same_adapter(whole, parts)
    state = torch.load(next((tmp_path / "whole").glob("step-*.pt")), weights_only=True)
    sizes = sum(t.nbytes for t in state["objective"].values())
    assert sizes == sum(t.nbytes for t in load_file(whole / "pytorch_lora_weights.safetensors").values()) * 2  # fp32


def test_samples_are_drawn_while_training_and_leave_the_weights_alone(model: Path, cache: Path, tmp_path: Path) -> None:
    quiet = train(*recipe(model, cache, tmp_path / "quiet", "loop.steps=3", "loop.decay=0", "loop.ema=0"))
    out = tmp_path / "seen"
    seen = train(*recipe(model, cache, out, "loop.steps=3", "loop.decay=0", "sample_minutes=0.00001", "loop.ema=0"))
    files = sorted(file.name for file in (out / "samples").iterdir())
    assert [name for name in files if name.endswith(".png")] == [f"step-000000{n}.png" for n in (1, 2, 3)]
    films = [file for file in files if file.endswith(".mp4")]
    assert films == [f"step-000000{n}-0.mp4" for n in (1, 2, 3)]
    assert read_video(out / "samples" / films[0]).frames.shape == (5, 32, 32, 3)
    assert same_adapter(quiet, seen)


def test_ti2v_trains_with_first_frames(clips: Path, tmp_path: Path) -> None:
    model = wan(tmp_path / "ti2v", "ti2v")
    small = ["buckets={x: {height: 32, width: 64, frames: 5, fps: 8}}"]
    train("wan-5b-lora-latents", [f"out={tmp_path / 'c'}", f"model={model}", f"folder={clips}", *small, "device=cpu",
                                  "threads=1", "prompts=[]"])  # fmt: skip
    folder = train(*recipe(model, tmp_path / "c", tmp_path / "run", "first=0.5", name="wan-5b-lora"))
    assert (folder / "pytorch_lora_weights.safetensors").is_file()
    with pytest.raises(SeedanceError, match="first: this checkpoint has one time"):
        train(*recipe(wan(tmp_path / "t2v"), tmp_path / "c", tmp_path / "run2", "first=0.5"))


def test_bad_settings_are_named(model: Path, cache: Path, tmp_path: Path) -> None:
    for setting, words in [("batch=0", "batch: 0"), ("text_drop=2", "text_drop: 2"), ("lora.r=0", "lora: r 0"),
                           ("loop.fsdp=true", "loop.fsdp: spreads whole training"),
                           ("lora.targets=[nothing]", "lora.targets")]:  # fmt: skip
        with pytest.raises(SeedanceError, match=words):
            train(*recipe(model, cache, tmp_path / "run", setting))


# ---------------------------------------------------------------------- several processes


def in_processes(count: int, code: str, *arguments: object) -> list[str]:
    """What each of some processes on the CPU prints last, joined by gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(count):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in told.items()}}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    told = []
    for process in started:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        told.append(out.splitlines()[-1] if out else "")
    return told


RUN = """
import sys
from seedance.training import train
for words in sys.argv[1:]:
    name, *options = words.split("|")
    train(name, options)
"""


def test_two_processes_train_what_one_trains_with_spread_weights_and_with_shared_adapters(
    model: Path, cache: Path, tmp_path: Path
) -> None:
    fast = ("loop.learning_rate=0.003", "text_drop=0", "sample_minutes=0")
    runs = {
        "whole": ["wan-1b3-full", "loop.ema=0.9", "loop.fsdp=true"],
        "lora": ["wan-1b3-lora", "loop.ema=0", "checkpointing=false"],
    }  # fmt: skip
    words = []
    for kind, (name, *options) in runs.items():
        _, common = recipe(model, cache, tmp_path / "two" / kind, *fast, *options)
        words.append("|".join([name, *common]))
    in_processes(2, RUN, *words)
    for kind, (name, *options) in runs.items():
        train(*recipe(model, cache, tmp_path / "one" / kind, *fast, *options, "loop.accumulate=2", name=name))
        one, two = (
            torch.load(tmp_path / where / kind / "step-00000002.pt", weights_only=True) for where in ("one", "two")
        )
        for part in ("objective", "ema"):
            assert one[part].keys() == two[part].keys()
            for key in one[part]:
                # As tensors: AdamW blows the rounding of a gradient near zero up to a whole step of its element.
                assert (two[part][key] - one[part][key]).norm() <= 5e-3 * one[part][key].norm() + 1e-6, key
    file = "whole/model/transformer/diffusion_pytorch_model.safetensors"
    mine, theirs = (load_file(tmp_path / where / file) for where in ("one", "two"))
    assert mine.keys() == theirs.keys()
    told = (tmp_path / "two/whole/log.jsonl").read_text()
    assert '"fsdp": true' in told
