"""Training for grounding on benchmarks' files: labels, packing, adapters, resume, and what is left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from shots.errors import ShotsError
from shots.runtime.recipe import build, load_recipe
from shots.video import Video
from unitime.errors import UniTimeError
from unitime.frames import FrameRule
from unitime.grounder import UniTime, VideoHandle
from unitime.model import VisionLanguageModel
from unitime.prompts import Prompts
from unitime.training import RECIPES, adapt, train
from unitime.training.adapt import AdaptRecipe, GroundingObjective
from unitime.training.lessons import (
    Batches,
    Lesson,
    LessonConfig,
    Source,
    coarse_answer,
    collate,
    cut,
    fine_answer,
    lessons_of,
    make_item,
    passes,
    survey,
    within,
)
from unitime.training.lora import LoRA, LoRAConfig

SHORT = {"marker": "{t}", "fine": "When?", "coarse": "Where?", "query": "{query}", "segment": "{t}", "system": None}
SHORT |= {"window": "from {start} to {end}", "not_found": "Not found."}
# One unit a second and four tokens a unit; segments of 4 s above 16 s, halves above 64 s.
RULE = {"budget": 256, "min_tokens": 4, "max_tokens": 4, "fine_tokens": 4, "coarse_tokens": 1, "short_limit": 16.0}
RULE |= {"long_limit": 64.0, "segment": 4.0, "max_fps": 2.0, "pair_gap": 0.5}
ASKED = {
    "red": [("it is dark", [[0.0, 3.0]]), ("it is bright", [[3.0, 6.0]]), ("it never is", [])],
    "blue": [("it is dark", [[4.0, 6.0]]), ("it is bright", [[0.0, 4.0]])],
}


def untold(**_: Any) -> None:
    """Of a log that nobody reads."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of six seconds, dark and bright, with annotations in QVHighlights' form."""
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for name, asked in ASKED.items():
        dark = asked[0][1][0]
        times = np.arange(24) / 4
        frames = np.full((24, 32, 32, 3), 220, dtype=np.uint8)
        frames[(times >= dark[0]) & (times < dark[1])] = 30
        Video(frames, fps=4.0, times=times).save(folder / f"{name}.mp4", record=False)
        rows += [
            {"qid": f"{name} {i}", "query": query, "vid": name, "duration": 6, "relevant_windows": windows}
            for i, (query, windows) in enumerate(asked)
        ]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def recipe(videos: Path, tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs a small recipe with overrides; returns the result's folder, the run's log and the model that was trained."""
    values = {
        "task": "adapt",
        "out": "",
        "model": str(tiny_folders["qwen2_vl"]),
        "data": [{"annotations": str(videos / "asked.jsonl"), "videos": str(videos)}],
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
        "batch": 2,
        "prompts": SHORT,
        "rule": RULE,
        "loop": {"steps": 4, "learning_rate": 1e-2, "warmup_steps": 1, "decay": 0.0, "ema": 0.0, "log_every": 1}
        | {"device": "cpu", "dtype": "fp32", "threads": 1, "clip": 10.0, "weight_decay": 0.0},
    }
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))

    def run(*overrides: str, out: Path | None = None) -> tuple[Path, list[dict[str, Any]], VisionLanguageModel]:
        out = out or tmp_path_factory.mktemp("run")
        models = []

        def keep(wanted: AdaptRecipe) -> VisionLanguageModel:
            models.append(load(wanted))
            return models[-1]

        load = adapt.load
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adapt, "load", keep)
            folder = train(file, [f"out={out}", *overrides])
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return folder, rows, models[0]

    return run


@pytest.fixture(scope="module")
def trained(recipe: Any) -> tuple[Path, list[dict[str, Any]], VisionLanguageModel]:
    return recipe("loop.steps=40")


def event(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row.get("event") == name)


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def test_a_fine_answer_names_the_smallest_stamps_around_the_moment_or_the_nearest() -> None:
    stamps = [0.2, 1.2, 2.2, 3.2, 4.2]
    cases = [((1.3, 3.1), (1.2, 3.2)), ((1.2, 3.2), (1.2, 3.2)), ((0.0, 0.1), (0.2, 0.2)), ((3.9, 9.0), (3.2, 4.2))]
    for window, wanted in cases:
        assert fine_answer([window], stamps, "enclosing") == [wanted]
    assert fine_answer([(1.3, 2.8)], stamps, "nearest") == [(1.2, 3.2)]
    assert fine_answer([(1.9, 2.6)], stamps, "nearest") == [(2.2, 2.2)]
    assert fine_answer([(0.3, 1.0), (2.5, 2.6), (0.4, 1.1)], stamps, "enclosing") == [(0.2, 1.2), (2.2, 3.2)]


def test_a_coarse_answer_lists_every_segment_that_the_moments_overlap_once() -> None:
    rule = FrameRule(**RULE)
    plan = rule.plan(duration=40, height=56, width=56, mode="coarse")  # segments begin at 0, 4, 8 ... 36 s
    assert plan.segment_stamps == (0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5, 28.5, 32.5, 36.5)
    assert coarse_answer([(5.0, 7.0)], plan) == [4.5]
    assert coarse_answer([(5.0, 13.0)], plan) == [4.5, 8.5, 12.5]
    assert coarse_answer([(5.0, 6.0), (5.5, 7.0), (38.0, 40.0)], plan) == [4.5, 36.5]
    begins = [0.0, *(plan.times[first, 0] for first, _ in plan.segments[1:])]
    assert coarse_answer([(begins[1], begins[2])], plan) == [4.5]  # what only touches a segment is not in it


def test_a_long_video_is_passed_coarsely_and_in_pieces_of_three_lengths() -> None:
    published = FrameRule()
    assert passes(128.0, published) == [[("fine", (0.0, 128.0))]]
    coarse, *fine = passes(200.0, published)
    assert coarse == [("coarse", (0.0, 200.0))]
    assert [[part for _, part in cover] for cover in fine] == [
        [(0.0, 96.0), (96.0, 200.0)],  # the rest of 8 s is shorter than a quarter of 96
        [(0.0, 64.0), (64.0, 128.0), (128.0, 200.0)],
        [(0.0, 32.0), (32.0, 64.0), (64.0, 96.0), (96.0, 128.0), (128.0, 160.0), (160.0, 192.0), (192.0, 200.0)],
    ]
    assert passes(2000.0, published)[0] == [("coarse", (0.0, 1000.0)), ("coarse", (1000.0, 2000.0))]
    assert [len(cover) for cover in passes(200.0, published, [50.0])] == [1, 4]
    assert cut(5.0, 8.0) == [(0.0, 5.0)]


def test_windows_are_clipped_to_a_piece_and_remnants_count_neither_as_there_nor_as_absent() -> None:
    assert within([(3.0, 9.0), (1.0, 2.0)], (1.5, 5.0)) == [(1.5, 2.0), (3.0, 5.0)]
    assert within([(3.0, 9.0)], (9.0, 12.0)) == [] == within([], (0.0, 5.0))
    assert within([(3.0, 9.0)], (8.95, 12.0)) is None
    assert within([(4.00, 4.05)], (0.0, 8.0)) == [(4.00, 4.05)]  # short, but whole


def test_a_long_film_teaches_both_granularities_and_what_is_not_there(tiny_models: Any, film: Any) -> None:
    tiny = tiny_models["qwen2_vl"]
    model = VisionLanguageModel(tiny.net, tiny.tokenizer, rule=FrameRule(**RULE), prompts=Prompts.from_dict(SHORT))
    queries = [("jump", [(9.0, 14.0), (30.0, 31.0)]), ("late", [(38.0, 40.0)]), ("never", [])]
    handle, counts = VideoHandle(model, film(40)), Counter()
    lessons = lessons_of(handle, Path("film"), queries, LessonConfig(repeat=3, negatives=0.25), 0, counts)
    coarse = [lesson for lesson in lessons if lesson.mode == "coarse"]
    assert len(coarse) == 3 and len(set(coarse)) == 1
    assert coarse[0].asks == (("jump", "8.5, 12.5, 28.5."), ("late", "36.5."), ("never", "Not found."))
    fine = [(lesson.window, dict(lesson.asks)) for lesson in lessons if lesson.mode == "fine"]
    told = {(window, query): answer for window, asks in fine for query, answer in asks.items()}
    assert told[(0.0, 12.0), "jump"] == "From 8.5 to 11.5."  # nearest: the prompts are not the published ones
    assert told[(12.0, 24.0), "jump"] == "From 12.5 to 13.5."
    assert told[(24.0, 36.0), "jump"] == "From 29.5 to 30.5." and told[(36.0, 40.0), "late"] == "From 37.5 to 39.5."
    absent = [answer for _, asks in fine for answer in asks.values()].count("Not found.")
    assert absent == 3  # one to the four, three and four that are asked where they happen, on the three grids
    assert counts["not_found"] == absent + 1 and counts["coarse"] == 1
    silent = lessons_of(handle, Path("film"), queries, LessonConfig(negatives=0.0), 0)
    assert not any("Not found." in dict(lesson.asks).values() for lesson in silent if lesson.mode == "fine")


def test_published_prompts_name_enclosing_stamps_and_never_what_is_not_there(tiny_models: Any, film: Any) -> None:
    tiny = tiny_models["qwen2_vl"]
    model = VisionLanguageModel(tiny.net, tiny.tokenizer, rule=FrameRule(**RULE))
    (lesson,) = lessons_of(VideoHandle(model, film(10)), Path("film"), [("jump", [(2.6, 5.4)])], LessonConfig(), 0)
    assert lesson.asks == (("Query:jump\nAnswer: ", "From 2.5 seconds to 5.5 seconds."),)
    for piece in lessons_of(VideoHandle(model, film(40)), Path("film"), [("jump", [(2.6, 5.4)])], LessonConfig(), 0):
        assert len(piece.asks) == 1


def test_many_queries_are_split_by_number_and_by_tokens(tiny_models: Any, film: Any) -> None:
    tiny = tiny_models["qwen2_vl"]
    model = VisionLanguageModel(tiny.net, tiny.tokenizer, rule=FrameRule(**RULE), prompts=Prompts.from_dict(SHORT))
    handle = VideoHandle(model, film(10))
    queries = [(f"query {i}", [(2.0, 5.0)]) for i in range(7)]

    def sizes(**limits: int) -> list[int]:
        return [len(one.asks) for one in lessons_of(handle, Path("film"), queries, LessonConfig(**limits), 0)]

    assert sizes() == [7]
    assert sizes(queries=3) == [3, 3, 1]
    assert sizes(tokens=130) == [2, 2, 2, 1]  # each is about 55 bytes
    assert sizes(tokens=1) == [1] * 7  # what is too long goes alone


# ---------------------------------------------------------------------------------------------------------------------
# Packing


def test_the_packed_loss_is_the_mean_of_the_losses_one_by_one(tiny: VisionLanguageModel, videos: Path) -> None:
    patch = {"patch": tiny.patch, "merge": tiny.merge, "temporal_patch": tiny.temporal_patch}
    model = VisionLanguageModel(
        tiny.net, tiny.tokenizer, rule=FrameRule(**RULE, **patch), prompts=Prompts.from_dict(SHORT)
    )
    asks = (("it is dark", "From 0.5 to 2.5."), ("it never is", "Not found."), ("it is bright, surely", "From 2.5."))
    objective = GroundingObjective(model, torch.nn.Module()).eval()

    def loss(*lessons: Lesson) -> float:
        batch = collate([make_item(lesson, model, None) for lesson in lessons], 0)
        with torch.no_grad():
            return float(objective(batch, torch.Generator())[0])

    def lesson(*some: tuple[str, str], until: float = 6.0) -> Lesson:
        return Lesson(videos / "red.mp4", "fine", (0.0, until), some, 0)

    alone = [loss(lesson(ask)) for ask in asks]
    assert max(alone) - min(alone) > 0.05
    assert loss(lesson(*asks)) == pytest.approx(np.mean(alone), rel=1e-5)
    other = loss(lesson(asks[0], until=4.0))
    assert loss(lesson(*asks), lesson(asks[0], until=4.0)) == pytest.approx(np.mean([*alone, other]), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Adapters


def test_a_run_lowers_the_loss_and_never_touches_the_base(trained: Any, tiny_folders: Any) -> None:
    _, rows, model = trained
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    base = VisionLanguageModel.from_pretrained(tiny_folders["qwen2_vl"], dtype="fp32", device="cpu").net.state_dict()
    assert base.keys() == model.net.state_dict().keys()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.net.state_dict().items())


def test_the_adapter_read_anew_gives_what_the_trained_model_gives(
    trained: Any, tiny_folders: Any, videos: Path
) -> None:
    folder, _, live = trained
    again = UniTime.from_pretrained(tiny_folders["qwen2_vl"], adapter=folder, dtype="fp32", device="cpu").model
    base = VisionLanguageModel.from_pretrained(tiny_folders["qwen2_vl"], dtype="fp32", device="cpu")
    assert again.prompts == live.prompts == Prompts.from_dict(SHORT) and again.rule == live.rule
    lesson = Lesson(videos / "red.mp4", "fine", (0.0, 6.0), (("it is dark", "From 0.5 to 2.5."),), 0)
    batch = collate([make_item(lesson, live, None)], 0)
    with torch.no_grad():
        outputs = [
            model.hidden(batch.ids, batch.positions, batch.mask, batch.pads, batch.features)
            for model in (live, again, base)
        ]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    assert (outputs[2] - outputs[0]).abs().max() > 0.1


def test_an_adapter_has_the_names_that_peft_writes(trained: Any) -> None:
    folder, _, _ = trained
    tensors = load_file(folder / "adapter_model.safetensors")
    projections = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    assert tensors.keys() == {  # as PEFT 0.21 saves an adapter of transformers 5's Qwen2-VL
        f"base_model.model.model.language_model.layers.{layer}.{projection}.lora_{side}.weight"
        for layer in range(3)
        for projection in projections
        for side in "AB"
    }
    first = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_"
    assert tensors[first + "A.weight"].shape == (4, 64) and tensors[first + "B.weight"].shape == (96, 4)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 4, 8, "none")
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "unitime.json",
    ]  # fmt: skip


def test_checkpoints_hold_the_adapters_alone(trained: Any) -> None:
    folder, _, _ = trained
    state = torch.load(max(folder.parent.glob("step-*.pt")), weights_only=True)
    assert sum(t.numel() for t in state["objective"].values()) == sum(
        t.numel() for t in load_file(folder / "adapter_model.safetensors").values()
    )
    assert state["ema"] == {}


def test_fresh_adapters_change_nothing_and_removed_ones_are_gone(fresh_net: Any) -> None:
    net = fresh_net("qwen2_5_vl")
    x = torch.randn(2, 5, 64)
    layer = net.model.language_model.layers[1].mlp
    before = layer(x)
    lora = LoRA(net, LoRAConfig(r=2, alpha=6))
    assert not any("visual" in name or "lm_head" in name for name in lora.names)
    assert torch.equal(layer(x), before)
    torch.nn.init.normal_(lora.b[lora.names.index("model.language_model.layers.1.mlp.down_proj")])
    assert not torch.allclose(layer(x), before)
    lora.remove()
    assert torch.equal(layer(x), before)


def test_dropout_falls_on_what_enters_an_adapter_in_training_alone(fresh_net: Any) -> None:
    net = fresh_net("qwen2_vl")
    lora = LoRA(net, LoRAConfig(r=2, alpha=2, dropout=0.5))
    torch.nn.init.ones_(lora.b[0])
    module, x = net.get_submodule(lora.names[0]), torch.randn(64)
    exact = x @ module.weight.T + module.bias + (lora.a[0] @ x).sum()
    torch.testing.assert_close(lora.eval() and module(x), exact)
    assert lora.train() and not torch.allclose(module(x), exact)


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(recipe: Any, tmp_path: Path) -> None:
    whole, _, _ = recipe("loop.steps=6")
    recipe("loop.steps=3", out=tmp_path / "run")
    resumed, rows, _ = recipe("loop.steps=6", out=tmp_path / "run")
    assert event(rows, "resumed")["step"] == 3
    assert (whole / "adapter_model.safetensors").read_bytes() == (resumed / "adapter_model.safetensors").read_bytes()


def test_gradient_checkpointing_changes_no_gradient(recipe: Any) -> None:
    plain, _, _ = recipe()
    thrifty, _, _ = recipe("checkpointing=true")
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (plain, thrifty))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-5)


def test_full_training_leaves_the_vision_tower_and_saves_a_whole_model(recipe: Any, tiny_folders: Any) -> None:
    folder, rows, _ = recipe("lora=null", "loop.steps=12", "loop.learning_rate=3e-3", "loop.ema=0.5")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    new = VisionLanguageModel.from_pretrained(folder, dtype="fp32", device="cpu")
    old = VisionLanguageModel.from_pretrained(tiny_folders["qwen2_vl"], dtype="fp32", device="cpu")
    assert new.fingerprint == old.fingerprint and new.prompts == Prompts.from_dict(SHORT)
    changed = {name for name, t in new.net.state_dict().items() if not torch.equal(t, old.net.state_dict()[name])}
    assert changed == {name for name in old.net.state_dict() if "visual" not in name}


def test_frames_are_looked_at_once_for_each_pass(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    see = VisionLanguageModel.vision
    monkeypatch.setattr(VisionLanguageModel, "vision", lambda *a: looked.append(len(a[1])) or see(*a))
    folder, rows, _ = recipe("loop.steps=5", "batch=1", "lessons.queries=1")
    assert event(rows, "lessons")["sequences"] == 5
    assert sum(looked) == 12  # six units of both films
    assert len(list((folder.parent / "features").glob("*.safetensors"))) == 2


def test_epochs_end_a_run(recipe: Any) -> None:
    _, rows, _ = recipe("epochs=1.5", "batch=1", "lessons.queries=1")
    assert event(rows, "end")["step"] == 4  # loop.steps is less than 1.5 epochs of 5
    _, rows, _ = recipe("epochs=1.5", "batch=1")
    assert event(rows, "epoch")["steps"] == 2 and event(rows, "end")["step"] == 3


def test_missing_and_unreadable_videos_are_named_and_the_rest_is_trained_on(
    recipe: Any, videos: Path, tmp_path: Path
) -> None:
    for name in ("red.mp4", "blue.mp4"):
        (tmp_path / name).write_bytes((videos / name).read_bytes())
    (tmp_path / "text.mp4").write_text("no film")
    rows = [{"qid": i, "query": "what", "vid": vid, "duration": 6, "relevant_windows": [[1, 2]]}
            for i, vid in enumerate(("red", "gone", "gone", "text", "blue"))]  # fmt: skip
    rows[4]["relevant_windows"] = [[7, 7]]
    rows += [{"qid": 8, "query": "far", "vid": "blue", "relevant_windows": [[50, 60]]}]
    rows += [{"qid": 9, "query": "secret", "vid": "blue"}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, log, _ = recipe(f"data.0.annotations={tmp_path / 'asked.jsonl'}", f"data.0.videos={tmp_path}", "loop.steps=1")
    skipped = {Path(row["video"]).name: row["queries"] for row in log if row.get("event") == "skipped"}
    assert skipped == {"gone": 2, "text.mp4": 1}
    said = event(log, "lessons")
    assert said["videos_missing"] == said["videos_unreadable"] == 1 and said["queries"] == 1
    assert said["windows_without_length"] == said["beyond_the_end"] == said["windows_not_told"] == 1


def test_a_video_that_fails_later_is_named_once_and_others_take_its_place(tiny_models: Any, videos: Path) -> None:
    tiny = tiny_models["qwen2_vl"]
    model = VisionLanguageModel(tiny.net, tiny.tokenizer, rule=FrameRule(**RULE), prompts=Prompts.from_dict(SHORT))
    ask = (("it is dark", "From 0.5 to 2.5."),)
    good = Lesson(videos / "red.mp4", "fine", (0.0, 6.0), ask, 1)
    gone = Lesson(videos / "gone.mp4", "fine", (0.0, 6.0), ask, 1)
    said: list[dict[str, Any]] = []
    batches = Batches([gone, good, gone], model, None, 1, 0, lambda **fields: said.append(fields))
    ids = make_item(good, model, None).sample.ids
    assert all(torch.equal(batches(number).ids[0], ids) for number in range(4))
    assert [(Path(row["video"]).name, row["sequences"]) for row in said] == [("gone.mp4", 2)]
    with pytest.raises(UniTimeError, match="no video can be read any more"):
        Batches([gone], model, None, 1, 0, untold)(0)


def test_batches_are_the_same_for_the_same_number_and_every_epoch_holds_all(tiny_models: Any, videos: Path) -> None:
    tiny = tiny_models["qwen2_vl"]
    model = VisionLanguageModel(tiny.net, tiny.tokenizer, rule=FrameRule(**RULE), prompts=Prompts.from_dict(SHORT))
    lessons = [
        Lesson(videos / "red.mp4", "fine", (0.0, 2.0 + i), (("q", f"From 0.5 to {i}.5."),), i) for i in range(3)
    ]
    first, second = (Batches(lessons, model, None, 1, 7, untold) for _ in range(2))
    row = [first(number).ids.tolist() for number in range(6)]
    assert [second(number).ids.tolist() for number in (5, 0, 3)] == [row[5], row[0], row[3]]
    for epoch in (row[:3], row[3:]):
        assert len({str(ids) for ids in epoch}) == 3


def test_the_stages_annotations_are_trained_on_and_what_cannot_be_said_is_counted(
    tiny_models: Any, videos: Path, tmp_path: Path
) -> None:
    tiny = tiny_models["qwen2_vl"]
    model = VisionLanguageModel(tiny.net, tiny.tokenizer, rule=FrameRule(**RULE))
    event = {"query": "when does the cube jump?", "actor": "cube", "action": "jump", "start": 1.6, "end": 3.2}
    (tmp_path / "red.json").write_text(json.dumps({"duration": 6.0, "fps": 4, "shots": [], "events": [event]}))
    said: list[dict[str, Any]] = []
    sources = [Source(tmp_path, videos), Source(videos / "asked.jsonl", videos)]
    red, blue = survey(sources, model, LessonConfig(), 0, lambda **fields: said.append(fields))
    assert red.video.name == "red.mp4" and len(red.asks) == 3 and len(blue.asks) == 2
    assert red.asks[0] == ("Query:when does the cube jump?\nAnswer: ", "From 1.5 seconds to 3.5 seconds.")
    assert [row["format"] for row in said[:2]] == ["stage", "qvhighlights"]
    assert said[-1]["never_happens_unsayable"] == 1  # published prompts have no sentence for it


def test_files_without_anything_to_train_on_are_refused(tiny_models: Any, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UniTimeError, match="no query of these files"):
        survey([Source(videos / "asked.jsonl", tmp_path)], tiny_models["qwen2_vl"], LessonConfig(), 0, untold)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=[]", "data: is empty"),
        ("lora.r=0", "lora: r 0"),
        ("lora.rank=3", "lora: unknown key rank; there are r, alpha, dropout"),
        ("lessons.negatives=1", "lessons.negatives"),
        ("lessons.snap=far", "enclosing, nearest"),
        ("lessons.queries=0", "lessons.queries: 0"),
        ("rule.patch=8", "rule.patch: is the model's own"),
        ("rule.colour=8", "rule: "),
        ("prompts.colour=8", "prompts: unknown key 'colour'"),
        ("batch=0", "batch: 0"),
        ("epochs=0", "epochs: 0"),
        ("model=nowhere", "model: 'nowhere'"),
    ],
)
def test_a_wrong_setting_is_named(recipe: Any, override: str, message: str) -> None:
    with pytest.raises((UniTimeError, ShotsError)) as caught:
        recipe(override)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["unitime-lora", "grounding-finetune"])
def test_shipped_recipes_fit_their_dataclass(name: str) -> None:
    made = build(AdaptRecipe, load_recipe(name, shipped=[RECIPES]))
    assert made.task == "adapt" and (made.lora is None) == (name == "grounding-finetune")
    if made.lora is not None:
        assert (made.lora.r, made.lora.alpha, made.lora.dropout, made.loop.learning_rate) == (8, 8.0, 0.05, 2e-4)
