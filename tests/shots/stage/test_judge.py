"""The judge: labels, damage, training, reading, cuts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shots.errors import ShotsError
from shots.runtime.loop import LoopConfig
from shots.runtime.recipe import build
from shots.stage.facts import facts_of
from shots.stage.judge import pool as pools
from shots.stage.judge import train as training
from shots.stage.judge.augment import _cells, augment, flip, freeze, plain, spoil
from shots.stage.judge.cuts import CutHead, cut_features, fit_cuts
from shots.stage.judge.model import (
    SHOT_FACTS,
    SLOT_FACTS,
    Glimpse,
    JudgeConfig,
    JudgeNet,
    displacement,
    geometry,
    matches,
)
from shots.stage.judge.read import SHIPPED, FilmReading, Judge, _reading
from shots.stage.judge.train import JudgeRecipe, count_right, cut_pairs, groups, losses, save_judge
from shots.stage.scene import ACTIONS, COLOURS, SHAPES, Action, Actor, Camera, Film, Placement, Set, ShotSpec
from shots.video import Video

TINY = JudgeConfig(size=48, whole=32, glimpse=16, frames=4, stem=8, fine=16, deep=16, slot=16, heads=2, layers=1)


def two_shots() -> Film:
    """A red cube moves right past a still blue sphere; then the sphere alone turns green."""
    cube, ball = Actor("cube", "cube", "red", "large"), Actor("ball", "sphere", "blue", "medium", "striped")
    first = ShotSpec(
        3.0, Camera(), (Placement("cube", -1.2, 0.5), Placement("ball", 0.4, -0.8)),
        (Action("cube", "move_right", 0.3, 2.7, 2.2),),
    )
    second = ShotSpec(
        3.0, Camera("pan_left", amount=20.0), (Placement("ball", 0.0, 0.0),),
        (Action("ball", "change_colour", 0.5, 2.0, colour="green"),),
    )
    return Film(Set(), (cube, ball), (first, second))


@pytest.fixture(scope="module")
def shots() -> list[pools.Example]:
    return list(pools.examples_of(two_shots(), JudgeConfig()))


@pytest.fixture
def batch(shots: list[pools.Example]):
    return plain(pools.stack(shots))


def row(name: str) -> int:
    return list(SLOT_FACTS).index(name)


def test_the_judge_has_at_most_six_hundred_thousand_parameters_and_reads_every_fact():
    model = JudgeNet()
    assert sum(p.numel() for p in model.parameters()) <= 600_000
    out = model(torch.rand(2, 5, 3, 128, 128), torch.linspace(0, 3, 5).expand(2, 5))
    for name, values in SLOT_FACTS.items():
        assert out[f"slot/{name}"].shape == (2, 10, len(values))
    for name, values in SHOT_FACTS.items():
        assert out[f"shot/{name}"].shape == (2, len(values)) and values[0] == "none"
    assert out["map"].shape == (2, 5, 11, 24, 24)


def test_geometry_measures_size_and_place_of_a_map():
    maps = torch.zeros(1, 1, 2, 24, 24)
    maps[0, 0, 0, 6:12, 12:18] = 1.0  # upper half, right half
    found = geometry(maps)[0, 0]
    assert found[0, 2] / 2 == pytest.approx(0.25, abs=0.01) and found[0, 3] / 2 == pytest.approx(-0.25, abs=0.01)
    assert found[0, 1] > found[1, 1] and found[1, 0] == 0.0


def test_a_glimpse_shows_a_far_actor_as_large_as_a_near_one():
    glimpse = Glimpse(JudgeConfig())
    frames, maps = torch.zeros(2, 3, 128, 128), torch.zeros(2, 10, 24, 24)
    frames[0, :, 32:96, 16:80], maps[0, 4, 6:18, 3:15] = 1.0, 1.0  # half the picture
    frames[1, :, 64:80, 80:96], maps[1, 4, 12:15, 15:18] = 1.0, 1.0  # an eighth of it
    index, pictures, half = glimpse.cut(frames, maps, most=4)
    assert index.tolist() == [4, 14] and pictures.shape == (2, 4, 32, 32)
    near, far = (pictures[:, 0] > 0.5).float().mean((1, 2)).tolist()
    assert 0.4 < near < 0.8 and 0.25 < far < 0.8  # a square actor and a margin around it; the far one's is a cell wide
    assert (half[0] - half[1]).item() == pytest.approx(np.log(4.0), abs=0.45)
    middle = pictures[:, 0, 12:20, 12:20]
    assert (middle == 1).all()  # both are in the middle


def test_an_empty_map_is_not_looked_at_closer():
    model = JudgeNet(TINY)
    index, pictures, _ = model.glimpse.cut(torch.rand(3, 3, 48, 48), torch.full((3, 10, 8, 8), 0.09), most=4)
    assert index.numel() == 0 and model.glimpse(pictures, torch.zeros(0, 1)).shape == (0, TINY.slot)


def test_a_judge_without_a_closer_view_reads_too():
    model = JudgeNet(replace(TINY, size=32, glimpse=0))
    out = model(torch.rand(1, 4, 3, 32, 32), torch.linspace(0, 3, 4)[None])
    assert model.glimpse is None and "frame/shape" in out and "frame/size" not in out


def test_matches_point_where_the_picture_went():
    still = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    x = torch.cat([still, still.roll(1, dims=-1)])  # the second frame is the first, moved one column to the right
    found = matches(x, 2)  # (2, 15, 16, 16), rows -1..1 by columns -2..2
    assert (found[0, :, 4:12, 4:12].argmax(0) == 1 * 5 + 3).all()
    columns, rows = displacement(found)[0, :, 4:12, 4:12].mean((1, 2))
    assert columns > 0.8 and abs(rows) < 0.1


def test_labels_say_what_holds_and_leave_open_what_nobody_can_tell(shots: list[pools.Example]):
    first, second = shots
    red, blue, green, pink = (COLOURS.index(c) for c in ("red", "blue", "green", "pink"))
    assert first.slot[row("shape"), red] == 1 + SHAPES.index("cube")
    assert first.slot[row("action"), red] == ACTIONS.index("move_right")
    assert first.slot[row("action"), blue] == ACTIONS.index("still")
    assert first.slot[row("shape"), pink] == 0 and first.slot[row("size"), pink] == -1
    assert second.slot[row("new_colour"), blue] == green
    assert second.slot[row("shape"), green] == -1  # it is the ball, later on
    names = list(SHOT_FACTS)
    assert first.shot[names.index("count")] == 2 and second.shot[names.index("count")] == 1
    assert SHOT_FACTS["camera"][second.shot[names.index("camera")]] == "pan_left"


def test_the_map_follows_the_colour_that_is_shown(batch):
    mass = batch.map[1].sum((-2, -1))  # (T, 11) cells
    blue, green = 1 + COLOURS.index("blue"), 1 + COLOURS.index("green")
    assert mass[0, blue] > 5 and mass[0, green] == 0
    assert mass[-1, green] > 5 and mass[-1, blue] == 0
    assert torch.allclose(batch.map.sum(2), torch.ones(()), atol=0.01)


def test_a_mirrored_shot_has_mirrored_labels(batch):
    red, names = COLOURS.index("red"), list(SHOT_FACTS)
    before = batch.frames.clone(), batch.slot.clone(), batch.shot.clone()
    flip(batch, 0)
    flip(batch, 1)
    assert batch.slot[0, row("action"), red] == ACTIONS.index("move_left")
    assert SHOT_FACTS["camera"][batch.shot[1, names.index("camera")]] == "pan_right"
    flip(batch, 0)
    flip(batch, 1)
    for now, then in zip((batch.frames, batch.slot, batch.shot), before, strict=True):
        assert torch.equal(now, then)


def test_a_frozen_shot_is_still_and_static(batch):
    freeze(batch, 0, 3)
    assert (batch.frames[0] == batch.frames[0, 0]).all()
    assert batch.slot[0, row("action"), COLOURS.index("red")] == ACTIONS.index("still")
    assert SHOT_FACTS["camera"][batch.shot[0, list(SHOT_FACTS).index("camera")]] == "static"
    assert batch.sound[0] == 1


def test_broken_shots_teach_nothing_but_that_they_are_broken(shots: list[pools.Example]):
    rng = np.random.default_rng(0)
    for _ in range(30):
        batch = plain(pools.stack(shots))
        spoil(batch, 0, batch.frames[1].clone(), rng)
        assert batch.sound[0] <= 0 and not batch.mapped[0]
        assert int(batch.slot[0].max()) <= 0 and int(batch.shot[0].max()) <= 0
        assert batch.frames[0].shape == batch.frames[1].shape


def test_damage_is_a_function_of_its_seed_and_keeps_pictures_in_range(shots: list[pools.Example]):
    many = [*shots, *shots, *shots]
    a, b = (augment(plain(pools.stack(many)), np.random.default_rng(5), broken=0.3) for _ in range(2))
    assert torch.equal(a.frames, b.frames) and torch.equal(a.slot, b.slot)
    assert float(a.frames.min()) >= 0 and float(a.frames.max()) <= 1


def test_cells_fit_themselves_and_not_their_neighbours():
    x = torch.full((6, 3, 64, 64), 0.5)
    steps = []
    for seed in range(12):
        y = _cells(x, np.random.default_rng(seed))
        assert y.shape == x.shape and torch.equal(y, _cells(x, np.random.default_rng(seed)))
        coarse = y.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))  # every cell is some of these
        assert coarse.amax((3, 5)).sub(coarse.amin((3, 5))).max() < 1e-5
        steps.append(float(y[0, :, :, 1:].sub(y[0, :, :, :-1]).abs().max()))
    assert max(steps) > 0.03


def test_what_nobody_can_tell_moves_no_weight(batch):
    model = JudgeNet(JudgeConfig())
    batch.slot[:], batch.shot[:], batch.sound[:], batch.mapped[:] = -1, -1, -1, False
    parts = losses(model(batch.frames, batch.seconds), batch)
    assert all(float(part.detach()) == 0 for name, part in parts.items() if name != "sound")


def test_perfect_logits_are_counted_as_right(batch):
    class Oracle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, frames, seconds):
            out = {"sound": torch.ones(2)}
            for group, names, labels in (("slot", SLOT_FACTS, batch.slot), ("shot", SHOT_FACTS, batch.shot)):
                for i, (name, values) in enumerate(names.items()):
                    out[f"{group}/{name}"] = torch.nn.functional.one_hot(labels[:, i].clamp_min(0), len(values)).float()
            return out

    counted = count_right(Oracle(), batch, torch.float32)
    assert all(hits == of for hits, of in counted.values())
    assert counted["shape"] == (3, 3) and counted["absent"][1] == 8 + 8


def test_recipes_name_unknown_keys():
    with pytest.raises(ShotsError, match="learning_rate"):
        build(JudgeRecipe, {"task": "judge", "out": "a", "pool": "b", "loop": {"steps": 1}, "learning_rate": 1})


def test_muon_takes_kernels_and_leaves_heads_and_the_cut_head_alone():
    model = JudgeNet(TINY)
    hidden, *others = groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    inside = {names[id(p)] for p in hidden["params"]}
    assert {"fine.0.conv.weight", "glimpse.conv.weight", "slots.0.mlp.0.weight"} <= inside
    assert not any(name.startswith(("stem", "slot_heads", "place_", "cuts")) for name in inside)
    outside = {names[id(p)] for group in others for p in group["params"]}
    assert inside | outside == {name for name in names.values() if not name.startswith("cuts.")}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pools, training):
        monkeypatch.setattr(module, "SHARD", 4)


def test_a_killed_run_resumes_and_ends_with_the_same_bits(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
):
    loop = LoopConfig(steps=6, optimizer="muon", dtype="fp32", log_every=2, checkpoint_every=3)
    recipe: dict[str, Any] = {
        "task": "judge", "pool": tmp_path / "pool", "pool_size": 8, "start_size": 8, "check_size": 4, "check_every": 2,
        "batch": 4, "render_workers": 0, "cut_films": 2, "loop": loop, "model": TINY.to_dict(),
    }
    whole = training.train(JudgeRecipe(out=tmp_path / "whole", **recipe))
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [2, 4, 6]
    assert all("held_shape" in line for line in log if "loss" in line)

    with monkeypatch.context() as patch:

        def killed(batch, device):
            if len(steps) == 4:
                raise KeyboardInterrupt
            steps.append(batch)
            return batch

        steps: list[Any] = []
        patch.setattr(training, "_to_device", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train(JudgeRecipe(out=tmp_path / "killed", **recipe))
    resumed = training.train(JudgeRecipe(out=tmp_path / "killed", **recipe))
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_run_whose_shots_nobody_draws_ends_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "_start_workers", lambda recipe, config: [])
    recipe = JudgeRecipe("judge", tmp_path / "out", tmp_path / "pool", LoopConfig(steps=1), model=TINY.to_dict())
    with pytest.raises(ShotsError, match="pool: .* holds 0 shots"):
        training.train(recipe)


def test_shards_are_the_same_whoever_makes_them(tmp_path: Path, small_shards: None):
    pools.fill(tmp_path / "a", 8, TINY)
    pools.make_shard(tmp_path / "b", 1, TINY)
    for field in ("frames.npy", "cover.npy"):
        name = f"shard-00001.{field}"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    pool = pools.Pool(tmp_path / "b")
    assert pool.refresh() == 0  # shard 0 is missing: no gaps
    with pytest.raises(ShotsError, match="no shots"):
        pool.batch(np.array([0]))


@pytest.fixture
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge(JudgeNet(TINY))


@pytest.mark.parametrize("shape", [(1, 20, 20), (3, 48, 32), (50, 33, 70), (37, 128, 128)])
def test_any_length_and_size_is_read(judge: Judge, shape: tuple[int, int, int]):
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    reading = judge.read(frames, 12.0)
    assert all(sum(p.values()) == pytest.approx(1.0, abs=1e-3) for p in reading.shot.values())
    assert set(reading.actors) == set(COLOURS)
    assert 0 <= reading.probability("red.action", "jump") <= 1 and 0 <= reading.probability("fog", True) <= 1


def test_bad_shots_are_named(judge: Judge):
    with pytest.raises(ShotsError, match="uint8"):
        judge.read(np.zeros((2, 8, 8, 3), np.float32), 12.0)
    with pytest.raises(ShotsError, match="fps"):
        judge.read(np.zeros((2, 8, 8, 3), np.uint8), 0.0)


def test_a_shot_that_is_not_whole_reads_as_none():
    net = {f"slot/{name}": torch.zeros(10, len(values)) for name, values in SLOT_FACTS.items()}
    net |= {f"shot/{name}": torch.zeros(len(values)) for name, values in SHOT_FACTS.items()}
    net["slot/shape"][:, 3] = 9.0
    net["shot/camera"][4] = 9.0
    whole = _reading({**net, "sound": torch.tensor(8.0)})
    broken = _reading({**net, "sound": torch.tensor(-8.0)})
    assert whole.present == COLOURS and whole.best("camera") == SHOT_FACTS["camera"][4]
    assert broken.present == () and broken.best("camera") == "none" and broken.facts().actors == ()


def test_weights_are_checked_before_they_are_read(judge: Judge, tmp_path: Path):
    save_judge(judge.model, tmp_path, {"steps": 0})
    again = Judge.load(tmp_path)
    frames = np.random.default_rng(1).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    a, b = judge.read(frames, 12.0), again.read(frames, 12.0)
    assert a.sound == pytest.approx(b.sound, abs=0.02)
    card = json.loads((tmp_path / "config.json").read_text())
    card["sha256"]["model.safetensors"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(card))
    with pytest.raises(ShotsError, match="model.safetensors"):
        Judge.load(tmp_path)
    with pytest.raises(ShotsError, match="config.json"):
        Judge.load(tmp_path / "nowhere")


def test_actors_agree_over_shots_only_in_what_can_be_told_in_both():
    film = two_shots()
    base = {f"slot/{name}": torch.zeros(10, len(values)) for name, values in SLOT_FACTS.items()}
    base |= {f"shot/{name}": torch.zeros(len(values)) for name, values in SHOT_FACTS.items()}
    base["sound"] = torch.tensor(9.0)
    base["slot/shape"][:, 0] = 9.0
    base["slot/shape"][COLOURS.index("blue"), 1] = 20.0
    other = {name: value.clone() for name, value in base.items()}
    other["slot/size"][COLOURS.index("blue"), 2] = 9.0
    reading = FilmReading((_reading(base), _reading(other)), (36,))
    shown = [facts_of(film, k) for k in range(2)]
    assert reading.agreement(shown) == (3, 4)  # colour, shape and surface; the size is read otherwise
    assert FilmReading((_reading(base),), ()).agreement() == (0, 0)


def test_hard_cuts_are_found_and_moves_are_not():
    head = CutHead()
    fit_cuts(head, *cut_pairs(16), steps=200)
    features, is_cut = cut_pairs(6, first_seed=500)
    with torch.no_grad():
        said = head(features) > 0
    assert said[is_cut].float().mean() > 0.9 and said[~is_cut].float().mean() < 0.02


def test_one_frame_has_no_cut(judge: Judge):
    assert cut_features(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)).shape == (0, 12)
    assert judge.cuts(np.zeros((1, 8, 8, 3), np.uint8)) == ()


@pytest.mark.skipif(not (SHIPPED / "config.json").is_file(), reason="no judge ships with this checkout")
def test_the_shipped_judge_reads_held_out_shots():
    judge = Judge.load()
    first = pools.CHECK_SEEDS + 9_000_000
    rows = [shot for seed in range(first, first + 8) for shot in pools.examples(seed, judge.model.config)]
    counted = count_right(judge.model, plain(pools.stack(rows)), judge.dtype)
    assert sum(hits for hits, _ in counted.values()) / sum(of for _, of in counted.values()) > 0.9


def test_a_film_whose_cuts_are_given_as_none_is_one_shot(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.zeros((12, 32, 32, 3), np.uint8)
    video = Video(frames=frames, fps=12.0, times=np.arange(12) / 12)
    judge = Judge(JudgeNet(JudgeConfig()))
    monkeypatch.setattr(judge, "cuts", lambda frames: (6,))
    assert len(judge.read_film(video, []).shots) == 1
    assert judge.read_film(video).cuts == (6,)
