"""The training core: recipes, schedule, data, resume."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seedance.errors import SeedanceError
from seedance.training import RECIPES, train
from seedance.training.data import ArraySource, Bucket, ClipSource, FrameBatches, SourceConfig, StageSource, crop
from seedance.training.frames import pan
from seedance.training.vae import VAERecipe
from shots.errors import ShotsError
from shots.runtime.checkpoint import latest_checkpoint, load_checkpoint
from shots.runtime.loop import LoopConfig, Prefetch, run_loop
from shots.runtime.optim import (
    OPTIMIZERS,
    MovingAverage,
    adamw,
    parameter_groups,
    set_learning_rate,
    warmup_stable_decay,
)
from shots.runtime.recipe import build, load_recipe

# ---------------------------------------------------------------------------------------------------------------------
# Recipes


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Two clips as arrays: one long and wide, one short."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, shape in (("long", (30, 48, 64, 3)), ("short", (3, 32, 32, 3))):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, shape, dtype=np.uint8))
    return folder


@pytest.fixture
def recipe(tmp_path: Path, arrays: Path) -> Path:
    """A VAE recipe that runs in a second."""
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"""
task: vae
out: {tmp_path / "run"}
model: {{encoder_widths: [8, 16, 32], decoder_widths: [8, 16, 32], decoder_blocks: [1, 1, 1]}}
data:
  sources: [{{kind: arrays, path: {arrays}, augment: true}}]
  buckets: [{{frames: 5, height: 32, width: 32, batch: 2}}, {{frames: 1, height: 16, width: 16, batch: 4, weight: 0.5}}]
loop: {{steps: 6, learning_rate: 1e-3, warmup_steps: 2, log_every: 2, threads: 1, device: cpu}}
pca_clips: 16
statistics_clips: 8
"""
    )
    return file


def test_a_recipe_becomes_typed_and_overrides_reach_nested_keys_and_list_items(recipe: Path) -> None:
    values = load_recipe(recipe, ["loop.steps=9", "data.buckets.1.batch=7", "losses.kl=1e-4", "start=null"])
    made = build(VAERecipe, values)
    assert made.loop.steps == 9
    assert made.loop.learning_rate == pytest.approx(1e-3)  # YAML calls 1e-3 a string
    assert made.data.buckets[1].batch == 7
    assert made.losses.kl == pytest.approx(1e-4)
    assert made.start is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.stepz=1", "loop: unknown key stepz; there are steps"),
        ("loop.steps=many", "loop.steps: 'many' is not a valid int"),
        ("loop.steps=0", "loop.steps: 0 must be above zero"),
        ("data.sources=[]", "at least one source"),
        ("data.sources.0.kind=tape", "kind 'tape'"),
        ("data.sources.5.kind=stage", "no position in a list of 1"),
        ("data.buckets.0.frames=6", "frames: 6 is not 1"),
        ("task=dream", "task 'dream' is not one of"),
        ("freeze_encoder=true", "freeze_encoder: needs start"),
        ("loop", "is not key=value"),
    ],
)
def test_a_wrong_setting_is_named(recipe: Path, override: str, message: str) -> None:
    with pytest.raises((SeedanceError, ShotsError)) as caught:
        train(recipe, [override])
    assert message in str(caught.value)


def test_a_recipe_that_is_nowhere_lists_those_that_ship() -> None:
    with pytest.raises(ShotsError, match="nano-vae"):
        load_recipe("no-such-recipe", shipped=[RECIPES])


def test_every_shipped_vae_recipe_fits_its_dataclass() -> None:
    assert build(VAERecipe, load_recipe("nano-vae", shipped=[RECIPES])).task == "vae"


# ---------------------------------------------------------------------------------------------------------------------
# Optimizer


def test_the_rate_warms_up_stays_and_decays_when_the_last_share_begins() -> None:
    def rate(step: int, progress: float) -> float:
        return warmup_stable_decay(step, progress, warmup_steps=10, decay=0.2, floor=0.1)

    assert rate(0, 0.0) == pytest.approx(0.1)
    assert rate(9, 0.1) == rate(500, 0.8) == 1.0
    assert rate(900, 0.9) == pytest.approx(0.55)
    assert rate(1000, 1.0) == pytest.approx(0.1)


def test_a_group_keeps_its_own_scale_of_the_rate() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = adamw([{"params": [a]}, {"params": [b], "lr_scale": 0.25}], 1.0)
    set_learning_rate(optimizer, 0.4)
    assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.1]


def test_muon_moves_every_direction_of_a_hidden_matrix_alike_and_adamw_the_rest() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    groups = parameter_groups(net, 0.0, inside=net[0])
    assert [p.shape for group in groups for p in group["params"]] == [(2, 6), (6,), (2,), (6, 6)]
    optimizer = OPTIMIZERS["muon"](groups, 0.1)
    before, bias = net[0].weight.detach().clone(), net[0].bias.detach().clone()
    net[0].weight.grad = torch.diag(torch.tensor([100.0, 10.0, 1.0, 1.0, 1.0, 1.0]))
    net[0].bias.grad = torch.tensor([100.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    optimizer.step()
    step = (before - net[0].weight.detach()).diagonal()
    assert step.min() > 0.5 * step.max() > 0  # the gradient's differ a hundredfold
    assert torch.allclose(bias - net[0].bias.detach(), torch.full((6,), 0.1), atol=1e-3)
    other = OPTIMIZERS["muon"](parameter_groups(net, 0.0, inside=net[0]), 0.1)
    other.load_state_dict(optimizer.state_dict())
    assert str(other.state_dict()) == str(optimizer.state_dict())


def test_muon_takes_a_kernel_as_a_matrix() -> None:
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(4, 8, 3), nn.Linear(36, 8)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        linear.bias.copy_(conv.bias)
    picture = torch.randn(2, 4, 3, 3)
    for net, x in ((conv, picture), (linear, picture.flatten(1))):
        groups = [
            {"params": [net.weight], "weight_decay": 0.1, "hidden": True},
            {"params": [net.bias], "weight_decay": 0.0},
        ]
        optimizer = OPTIMIZERS["muon"](groups, 0.1)
        for _ in range(3):
            net(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert net.weight.grad is None
    torch.testing.assert_close(conv.weight.flatten(1), linear.weight, rtol=1e-3, atol=1e-4)


def test_muon_without_hidden_matrices_is_refused() -> None:
    with pytest.raises(ShotsError, match="hidden matrices"):
        OPTIMIZERS["muon"](parameter_groups(nn.Linear(2, 2), 0.0), 0.1)
    with pytest.raises(ShotsError, match=r"loop\.optimizer: 'sgd' is unknown"):
        LoopConfig(steps=1, optimizer="sgd")


def test_the_moving_average_follows_and_is_copied_back() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average = MovingAverage(module, 0.9)
    nn.init.ones_(module.weight)
    for step in range(1000, 1005):
        average.update(module, step)
    average.copy_to(module)
    assert module.weight.item() == pytest.approx(1 - 0.9**5)


# ---------------------------------------------------------------------------------------------------------------------
# Data


def test_a_batch_is_a_function_of_its_number(arrays: Path) -> None:
    sources, buckets = [SourceConfig("arrays", arrays, augment=True)], [Bucket(5, 32, 32, 3), Bucket(1, 16, 16, 2)]
    one, two = FrameBatches(sources, buckets, seed=1), FrameBatches(sources, buckets, seed=1)
    _ = one(0)
    shapes = set()
    for number in range(12):
        assert torch.equal(one(number), two(number))
        shapes.add(tuple(one(number).shape))
    assert shapes == {(3, 5, 32, 32, 3), (2, 1, 16, 16, 3)}
    assert not torch.equal(one(0), FrameBatches(sources, buckets, seed=2)(0)) or len(shapes) > 1


def test_a_crop_without_changes_of_colour_holds_frames_of_the_clip_in_order() -> None:
    clip = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), dtype=np.uint8)
    for seed in range(20):
        piece = crop(clip, Bucket(9, 16, 16, 1), np.random.default_rng(seed), augment=False)
        steps = np.diff(piece[:, 0, 0, 0].astype(int))
        assert piece.shape == (9, 16, 16, 3)
        assert set(steps) in ({1}, {-1})


def test_a_short_or_small_clip_is_played_forth_and_back_and_repeated_at_the_edge() -> None:
    clip = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 40, 3), dtype=np.uint8)
    piece = crop(clip, Bucket(9, 16, 16, 1), np.random.default_rng(1), augment=False)
    assert piece.shape == (9, 16, 16, 3)
    assert np.abs(np.diff(piece[:, 0, 0, 0].astype(int))).max() == 1


def test_stage_clips_are_rendered_once_and_given_again(tmp_path: Path) -> None:
    config = SourceConfig("stage", tmp_path / "stage", height=32, width=32, frames=5, pool=2, reuse=3, workers=0)
    source = StageSource(config)
    assert [source.available(draw) for draw in (0, 2, 3, 7)] == [2, 2, 3, 4]
    seen = [source.frames(0, np.random.default_rng(seed)) for seed in range(4)]
    assert all(frames.shape == (5, 32, 32, 3) and frames.dtype == np.uint8 for frames in seen)
    files = sorted((tmp_path / "stage").glob("*.npy"))
    assert 1 <= len(files) <= 2
    before = [file.stat().st_mtime_ns for file in files]
    again = StageSource(config).frames(0, np.random.default_rng(0))
    assert np.array_equal(again, seen[0])
    assert [file.stat().st_mtime_ns for file in files] == before


def test_folders_that_hold_no_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SeedanceError, match="holds no .npy clips"):
        ArraySource(tmp_path)
    np.save(tmp_path / "floats.npy", np.zeros((2, 4, 4, 3)))
    with pytest.raises(SeedanceError, match="not uint8"):
        ArraySource(tmp_path)
    with pytest.raises(SeedanceError, match="without frames"):
        ClipSource([])


def test_a_vae_trains_on_a_folder_of_videos_and_pictures(tmp_path: Path, recipe: Path) -> None:
    from PIL import Image

    from shots.video import VideoWriter

    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with VideoWriter(folder / "clip.mp4", fps=12, height=48, width=64) as writer:
        writer.write(rng.integers(0, 256, (20, 48, 64, 3), dtype=np.uint8))
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / "still.png")
    source = f"{{kind: folder, path: {folder}, frames: 9, height: 32, width: 48, fps: 12}}"
    assert train(recipe, [f"data.sources=[{source}]"]).finished
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_a_pan_moves_slowly_over_a_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    frames = pan(picture, 12, 48, np.random.default_rng(1))
    assert frames.shape == (12, 48, 48, 3)
    neighbours = np.abs(np.diff(frames.astype(int), axis=0)).mean()
    ends = np.abs(frames[-1].astype(int) - frames[0]).mean()
    assert 0 < neighbours < ends


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def weights(out: Path) -> dict[str, Tensor]:
    """Everything a run ended with, in one flat mapping."""
    found = latest_checkpoint(out)
    assert found is not None
    state = load_checkpoint(found)
    return {**state["objective"], **{f"ema.{name}": tensor for name, tensor in state["ema"].items()}}


def test_a_run_stopped_by_a_signal_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe, [f"out={tmp_path / 'whole'}"])
    made = FrameBatches.__call__

    def stop_at_third(self: FrameBatches, number: int) -> Tensor:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return made(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(FrameBatches, "__call__", stop_at_third)
        stopped = train(recipe, [f"out={tmp_path / 'stopped'}"])
    assert not stopped.finished
    assert 0 < stopped.step < 6
    assert not (tmp_path / "stopped" / "final").exists()
    ended = train(recipe, [f"out={tmp_path / 'stopped'}"])
    assert ended.finished
    assert ended.step == 6
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    one, two = (path / "final" / "model.safetensors" for path in (tmp_path / "whole", tmp_path / "stopped"))
    assert one.read_bytes() == two.read_bytes()


def test_training_makes_the_loss_smaller_and_logs_rates_and_mfu(recipe: Path, tmp_path: Path) -> None:
    train(recipe, ["loop.steps=16", "loop.log_every=4", "loop.learning_rate=3e-3", "losses.adversarial=0.01"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [4, 8, 12, 16]
    assert {"psnr", "adversarial", "samples_per_second", "gflops", "mfu", "grad_norm", "lr"} <= steps[0].keys()
    assert steps[-1]["rmse"] < steps[0]["rmse"]


def test_the_encoder_stays_to_the_bit_when_only_the_decoder_is_trained(recipe: Path, tmp_path: Path) -> None:
    from shots.runtime.weights import load_tensors

    train(recipe)
    first = tmp_path / "run" / "final"
    train(recipe, [f"out={tmp_path / 'more'}", f"start={first}", "freeze_encoder=true"])
    before, after = load_tensors(first), load_tensors(tmp_path / "more" / "final")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


class Line(nn.Module):
    """Learns y = 2x; `poison` makes the loss not finite in the steps it names."""

    def __init__(self, poison: Callable[[int], bool] = lambda number: False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.poison = poison

    def forward(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        number, x = int(batch[0, 0]), batch[:, 1]
        loss = (self.weight * x - 2 * x).square().mean()
        return (loss * float("nan") if self.poison(number) else loss), {}


def numbered(number: int) -> Tensor:
    x = torch.randn(8, generator=torch.Generator().manual_seed(number))
    return torch.stack([torch.full((8,), float(number)), x], dim=1)


def test_steps_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    line = Line(lambda number: number % 5 == 3)
    progress, _ = run_loop(
        LoopConfig(steps=100, learning_rate=0.1, dtype="fp32", device="cpu"), line, line, numbered, tmp_path
    )
    assert progress.skipped == 20
    assert 1.5 < line.weight.item() < 2.5  # it learned from the others


def test_a_run_whose_every_step_is_not_finite_ends_with_a_reason(tmp_path: Path) -> None:
    line = Line(lambda number: True)
    with pytest.raises(ShotsError, match="not finite; lower loop.learning_rate"):
        run_loop(LoopConfig(steps=100, dtype="fp32", device="cpu"), line, line, numbered, tmp_path)


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path: Path) -> None:
    ends = []
    for accumulate in (1, 2):
        line = Line()

        def batches(number: int, parts: int = 2 // accumulate) -> Tensor:
            return torch.cat([numbered(number * parts + part) for part in range(parts)])

        config = LoopConfig(steps=5, accumulate=accumulate, dtype="fp32", device="cpu", clip=1e9)
        run_loop(config, line, line, batches, tmp_path / str(accumulate))
        ends.append(line.weight.item())
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)


LINE_WITH_SPARE = """
import sys
from pathlib import Path
import torch
from shots.runtime.loop import LoopConfig, run_loop

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.spare = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, generator):
        return (self.weight * x - 2 * x).square().mean(), {}

line, (out, accumulate) = Line(), sys.argv[1:]
config = LoopConfig(steps=5, accumulate=int(accumulate), dtype="fp32", device="cpu", clip=1e9, warmup_steps=1)
run_loop(config, line, line, lambda n: torch.randn(8, generator=torch.Generator().manual_seed(n)), Path(out))
print(line.weight.item())
"""


def test_two_processes_learn_what_one_with_twice_the_micro_batches_learns(tmp_path: Path) -> None:
    """A parameter that gets no gradient, as the label heads do late in a run, is no obstacle."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(rank: int, count: int) -> subprocess.Popen[str]:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in told.items()}}
        command = [sys.executable, "-c", LINE_WITH_SPARE, str(tmp_path / str(count)), str(2 // count)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    ends = []
    for process in (start(0, 2), start(1, 2), start(0, 1)):
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        ends.append(float(out.split()[-1]))
    assert ends[0] == ends[1] == pytest.approx(ends[2], abs=1e-6)
    assert ends[0] > 0


def test_a_time_budget_ends_the_run_and_counts_over_resumes(tmp_path: Path) -> None:
    line = Line()
    config = LoopConfig(time_budget=0.3, dtype="fp32", device="cpu")
    progress, _ = run_loop(config, line, line, numbered, tmp_path)
    assert progress.finished
    assert 0.3 <= progress.seconds < 5
    again, _ = run_loop(config, Line(), line, numbered, tmp_path)
    assert again.step == progress.step


def test_an_error_while_a_batch_is_made_reaches_the_trainer() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise SeedanceError("no clip")
        return number

    prefetch = Prefetch(make)
    assert [prefetch.get(0, 1), prefetch.get(1, 2)] == [0, 1]
    with pytest.raises(SeedanceError, match="no clip"):
        prefetch.get(2, 3)
