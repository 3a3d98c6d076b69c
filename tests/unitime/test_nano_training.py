"""How nano is made: its vision tower, its tokenizer, its packed sequences, and a run through all of it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shots.errors import ShotsError
from shots.runtime.checkpoint import latest_checkpoint, load_checkpoint
from shots.runtime.vision import transformers
from shots.stage.words import COLOUR_WORDS, SHAPE_WORDS
from unitime import UniTime, sequence
from unitime.errors import UniTimeError
from unitime.training import card, nano, scenes, text, train, vision
from unitime.training.scenes import Ask, Told, _reworded, near_misses

TOWER = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2}
WORDS = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 2,
         "num_key_value_heads": 1}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of four scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    scenes.save_scenes(scenes.shard_path(folder, 0), [scenes.draw(seed) for seed in (1, 2, 3, 4)])
    return folder


@pytest.fixture(scope="module")
def made(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of every step of the recipe on that shard: vision, base, features, text."""
    folder = tmp_path_factory.mktemp("run")
    size = [f"config.{key}={value}" for key, value in {**nano.VISION, **TOWER, "hidden_size": 64}.items()]
    train("unitime-nano-vision", [*size, f"scenes={drawn}", f"out={folder}/vision", "batch=16", "held_out=1",
                                  "loop.steps=2", "loop.time_budget=null"])  # fmt: skip
    changes = [f"vision.{key}={value}" for key, value in TOWER.items()]
    changes += [f"text.{key}={value}" for key, value in WORDS.items()]
    train("unitime-nano-base", [*changes, f"scenes={drawn}", f"tower={folder}/vision/tower", f"out={folder}/base",
                                f"features={folder}/features", "vocabulary=400"])  # fmt: skip
    train("unitime-nano-text", [f"model={folder}/base", f"features={folder}/features", f"out={folder}/text",
                                "tokens=1500", "held_out=1", "loop.steps=30", "loop.time_budget=null",
                                "loop.learning_rate=5e-3", "loop.warmup_steps=2", "loop.log_every=10",
                                "loop.ema=0.5"])  # fmt: skip
    return folder


def test_the_tower_run_in_one_batch_is_the_tower_run_by_transformers() -> None:
    torch.manual_seed(0)
    tower = vision.build_tower({**nano.VISION, **TOWER, "hidden_size": 64}).eval()
    rows = vision.patches(torch.rand(3, 2, 64, 64, 3))
    with torch.no_grad():
        ours = vision.run_tower(tower, rows, 3)
        theirs = tower(rows, torch.tensor([[3, 8, 8]])).pooler_output
    torch.testing.assert_close(ours.flatten(0, 1), theirs, atol=2e-5, rtol=1e-4)


def test_training_and_inference_see_the_same_features(made: Path, drawn: Path) -> None:
    model = UniTime.from_pretrained(made / "base", dtype="fp32").model
    frames = scenes.load_scenes(scenes.shard_path(drawn, 0))[0].frames
    told, features, first = text.load_features(made / "features")
    pairs = torch.stack([frames[: -scenes.GAP], frames[scenes.GAP :]], 1)[:5]
    seen = model.vision(pairs.numpy(), (2, 2)).tokens
    kept = features[:5].float()
    assert float((seen.float() - kept).norm() / kept.norm()) < 0.03  # bf16 apart
    whole = model.vision(pairs.numpy(), (1, 1)).tokens
    assert float((whole[:, 0].float() - kept.mean(1)).norm() / kept.mean(1).norm()) < 0.03
    assert first[-1] == len(features) and len(told) == 4


def test_an_actor_that_has_changed_colour_is_not_called_by_its_old_one(drawn: Path) -> None:
    scene = scenes.load_scenes(scenes.shard_path(drawn, 0))[0]
    scene.doing[:] = scenes.STILL
    start, end, _ = scene.told.shots[0]
    middle, last = round(scenes.FPS * (start + end) / 2), round(scenes.FPS * end)
    scene.doing[middle, 1] = scenes.ACTIONS.index("change_colour")
    true = vision._true_to_colour(scene)
    assert true[:middle].all() and not true[middle:last].any() and true[last:].all()


def test_lean_attention_is_eager_attention() -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import eager_attention_forward

    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = sequence.additive(torch.rand(2, 1, 9, 9) < 0.5 + torch.eye(9))
    module: Any = torch.nn.Module()
    module.num_key_value_groups = 2
    ours, _ = text.lean_attention(module, q, k, v, mask, 8**-0.5)
    theirs, _ = eager_attention_forward(module, q, k, v, mask, scaling=8**-0.5)
    torch.testing.assert_close(ours, theirs)


def _asker(made: Path, told: list[Told], **changes: Any) -> text.Asker:
    recipe = text.TextRecipe("text", Path(), Path(), Path(), None, **changes)  # type: ignore[arg-type]
    rows = [round(t.duration * scenes.FPS) - scenes.GAP for t in told]
    tokenizer = transformers().AutoTokenizer.from_pretrained(made / "base")
    features = torch.randn(sum(rows), 4, 64)
    return text.Asker(told, features, [0, *np.cumsum(rows).tolist()], tokenizer, nano.PROMPTS, recipe)


def _told(seed: int = 0, at: float = 4.0) -> Told:
    ask = Ask(("the red cube jumps",), ((at, at + 2.0),), "red", "cube", "jump", f"red cube|jump||{seed}")
    lost = Ask(("the blue cone spins",), (), "blue", "cone", "spin", "blue cone|spin||")
    return Told(seed, 12.0, (ask,), (lost,), ((0.0, 12.0, ("A red cube jumps.",)),))


def _turns(asker: text.Asker, item: text.Item) -> dict[str, str]:
    """What is asked in an item and what is to be answered."""
    words = asker.tokenizer.decode(item.sample.ids.tolist())
    turns = words.split("<|im_start|>user\n")[2:]
    return dict(turn.split("<|im_end|>\n<|im_start|>assistant\n") for turn in turns)


def test_a_fine_item_answers_with_the_stamps_nearest_to_the_event(made: Path) -> None:
    asker = _asker(made, [_told()])
    for seed in range(8):
        item = asker.fine(random.Random(seed), 0, 0.0, 12.0)
        shown = [float(part.split("<|im_start|>user\n")[-1]) for part in
                 asker.tokenizer.decode(item.sample.ids.tolist()).replace("<|video_pad|>", "").split("<|vision_start|>")
                 [:-1] for part in [part.split("<|vision_end|>")[-1]]]  # fmt: skip
        turns = _turns(asker, item)
        assert turns["the blue cone spins"] == "Not found.<|im_end|>\n"
        start, end = map(float, turns["the red cube jumps"].removeprefix("From ").split(".<")[0].split(" to "))
        assert start in shown and end in shown
        assert abs((end - start) - 2.0) <= 0.6
        centres = np.arange(len(shown)) * 0.5
        inside = item.relevant[0].bool().numpy()
        assert abs(centres[inside][0] - centres[shown.index(start)]) <= 0.5


@pytest.mark.parametrize("mode", ["fine", "coarse"])
def test_every_token_that_writes_a_time_is_told_the_units_under_that_stamp(made: Path, mode: str) -> None:
    asker = _asker(made, [_told(0), _told(1, 6.0)], long=(30.0, 60.0))
    for seed in range(6):
        rng = random.Random(seed)
        item = asker.fine(rng, 0, 0.0, 12.0) if mode == "fine" else asker.coarse(rng, 1.0, [0, 1])
        written: dict[tuple[int, int], str] = {}  # by the unit and the place of its first token
        last = (-2, -1, -1)
        for at, _, unit in item.writers.tolist():
            begin = last[2] if (at, unit) == (last[0] + 1, last[1]) else at
            written[unit, begin] = written.get((unit, begin), "") + asker.characters[int(item.sample.ids[at + 1])]
            last = (at, unit, begin)
        assert written
        for (unit, _), stamp in written.items():
            assert stamp == f"{int(''.join(map(str, item.digits[unit].tolist()))) / 10:.1f}"
            assert mode == "coarse" or item.segments[unit] == unit


def _asked(seed: int) -> Told:
    """A scene of one shot with a caption and three questions."""
    questions = [("colour", "what colour is the cube?", "red", "blue"), ("size", "how large is it?", "small", "large"),
                 ("floor", "what is the floor?", "snow", "sand")]  # fmt: skip
    qa = [{"kind": kind, "question": f"In shot 1, {text}", "options": [right, wrong], "answer": right, "start": 0.0,
           "end": 12.0} for kind, text, right, wrong in questions]  # fmt: skip
    told = _told(seed)
    captions = ("A red cube jumps on the snow.", "We see a tiny crimson box hopping up.")
    return dataclasses.replace(told, qa=tuple(qa), shots=((0.0, 12.0, captions),))


@pytest.mark.parametrize("seed", range(4))
def test_the_tokens_that_tell_something_are_known_by_their_kind(made: Path, seed: int) -> None:
    asker = _asker(made, [_asked(seed)], most=text.Most(qa=3, caption=2))
    told = asker.told[0]
    item = asker.fine(random.Random(seed), 0, 0.0, 12.0, told.shots[0][2])
    kinds = (text.TIME, text.LETTER, text.FACT)
    words = {kind: asker.tokenizer.decode(item.sample.ids[item.kinds == kind].tolist()) for kind in kinds}
    turns = _turns(asker, item)
    letters = [answer[1] for answer in turns.values() if answer.startswith("(")]
    assert len(letters) == 3 and re.findall("[A-Z]", words[text.LETTER]) == letters
    said = "".join(words[text.FACT].split())
    assert said in ("redcubejumpssnowtinycrimsonboxhoppingup", "tinycrimsonboxhoppingupredcubejumpssnow")
    times = item.writers[:, 0] + 1
    assert len(times) and (item.kinds == text.TIME).nonzero()[:, 0].tolist() == sorted(times.tolist())
    assert not item.kinds[item.sample.labels == sequence.IGNORE].any()
    fewer = _asker(made, [told], most=text.Most(ask=1, absent=0, near=0, qa=1, lone=0, caption=0))
    asked = _turns(fewer, fewer.fine(random.Random(seed), 0, 0.0, 12.0, told.shots[0][2]))
    assert len(asked) == 2 and sum(answer.startswith("(") for answer in asked.values()) == 1


def test_near_misses_are_events_with_one_wrong_word(made: Path) -> None:
    told = _told()
    said = {ask.texts: ask for ask in told.asks}
    for seed in range(40):
        for miss in near_misses(told, random.Random(seed), 9):
            (words,) = miss.texts
            right = next(a for texts, a in said.items() for t in texts if a.kind == miss.kind)
            assert (miss.colour != right.colour) != (miss.shape != right.shape)
            assert words not in right.texts and miss.windows == ()
            phrases = SHAPE_WORDS[miss.shape] if miss.shape != right.shape else COLOUR_WORDS[miss.colour]
            assert any(phrase in words for phrase in phrases.train)
            assert not any(a.key == miss.key for a in told.asks)
    happens = dataclasses.replace(told.asks[0], shape="sphere", key=told.asks[0].key.replace(" cube", " sphere"))
    both = dataclasses.replace(told, asks=(told.asks[0], happens))
    assert not any(
        (miss.colour, miss.shape) in {("red", "cube"), ("red", "sphere")}
        for seed in range(40)
        for miss in near_misses(both, random.Random(seed), 9)
    )
    asker = _asker(made, [told], most=text.Most(ask=0, absent=0, near=3, qa=0, lone=0, caption=0))
    answers = _turns(asker, asker.fine(random.Random(0), 0, 0.0, 12.0)).values()
    assert answers and set(answers) == {"Not found.<|im_end|>\n"}


def test_a_changed_word_takes_its_article_along() -> None:
    assert _reworded("a red toy block jumps", SHAPE_WORDS["cube"], "upright pill") == "a red upright pill jumps"
    assert _reworded("an emerald green cone spins", COLOUR_WORDS["green"], "red") == "a red cone spins"
    assert _reworded("a red cone spins", COLOUR_WORDS["red"], "aqua") == "an aqua cone spins"
    assert _reworded("it spins", COLOUR_WORDS["red"], "aqua") is None


def test_the_loss_is_the_mean_over_tokens_weighed_by_their_kind(made: Path) -> None:
    model = transformers().Qwen2VLForConditionalGeneration.from_pretrained(
        made / "base", dtype=torch.float32, attn_implementation="eager"
    )
    asker = _asker(made, [_asked(0)], most=text.Most(qa=3))
    items = [asker.fine(random.Random(n), 0, 0.0, 12.0, asker.told[0].shots[0][2] * (n % 2)) for n in range(3)]
    batch = text.collate(items, asker.tokenizer.pad_token_id)
    counts = sum(torch.bincount(i.kinds[i.sample.labels != sequence.IGNORE], minlength=4) for i in items)
    for weights in (text.TokenWeights(), text.TokenWeights(3.0, 7.0, 2.0)):
        recipe = text.TextRecipe("text", Path(), Path(), Path(), None, weights=weights, aux_weight=0)  # type: ignore[arg-type]
        with torch.no_grad():
            loss, figures = text.PackedObjective(model, recipe)(batch, torch.Generator())
        means = torch.stack([figures["answer"], figures["written"], figures["chosen"], figures["facts"]])
        sums = means * counts
        sums[0] = figures["answer"] * counts.sum() - sums[1:].sum()
        of = torch.tensor([1.0, weights.time, weights.letter, weights.fact])
        torch.testing.assert_close(loss, (sums * of).sum() / (counts * of).sum(), atol=1e-4, rtol=1e-4)


def test_weights_and_counts_that_mean_nothing_are_refused() -> None:
    for bad in ("weights.letter=0", "weights.fact=.nan", "most.qa=-1", "weights.word=2"):
        with pytest.raises((UniTimeError, ShotsError), match=bad.split("=")[0].split(".")[0]):
            train("unitime-nano-text", [bad])


def test_no_batch_is_empty_and_those_of_one_batch_are_about_as_long(made: Path) -> None:
    asker = _asker(made, [_told(seed) for seed in range(4)], tokens=200)
    for seed in range(5):
        parts = nano.draw_pool(asker, random.Random(seed), 1.0, range(4))
        assert all(parts)
    asker = _asker(made, [_told(seed) for seed in range(4)], tokens=6000, kinds={"fine": 1.0})
    parts = nano.draw_pool(asker, random.Random(0), 1.0, range(4))
    lengths = [[len(item.sample.ids) for item in part] for part in parts]
    assert max(max(part) - min(part) for part in lengths) < max(map(max, lengths)) - min(map(min, lengths))


def test_a_coarse_item_lists_the_segments_that_the_event_overlaps(made: Path) -> None:
    asker = _asker(made, [_told(seed, at=1.0) for seed in range(6)], long=(60.0, 60.0))
    asker.told = [_told(0, at=1.0)] + [_told(9, at=9.0)] * 5
    item = asker.coarse(random.Random(3), 1.0, range(6))
    turns = _turns(asker, item)
    assert item.unit_tokens == 1 and len(item.features) == item.relevant.shape[1]
    listed = [float(t) for t in turns["the red cube jumps"].split(".<")[0].split(", ")]
    assert listed == sorted(listed) and 1 <= len(listed) <= 8
    assert turns.get("the blue cone spins", "Not found.<|im_end|>\n") == "Not found.<|im_end|>\n"


def test_a_run_through_the_whole_recipe_learns_and_its_model_grounds(made: Path, drawn: Path) -> None:
    rows = [json.loads(line) for line in (made / "text" / "log.jsonl").read_text().splitlines()]
    losses = [row["answer"] for row in rows if "answer" in row]
    assert losses[-1] < 0.7 * losses[0]
    from shots.video import Video

    frames = scenes.load_scenes(scenes.shard_path(drawn, 0))[1].frames.numpy()
    film = Video(frames, scenes.FPS, np.arange(len(frames)) / scenes.FPS)
    model = UniTime.from_pretrained(made / "text" / "model")
    found = model.ground(film, ["the red cube jumps", "the blue cone spins"], top_k=2, threshold=1.0)
    for grounding in found:
        assert grounding.status == "ok" and grounding.moments
        assert all(0 <= m.start <= m.end <= film.duration and 0 <= m.score <= 1 for m in grounding.moments)
    assert model.ask(film, "What colour is the cube?", ["red", "blue"]).answer in ("red", "blue")


def test_the_threshold_is_written_where_loading_finds_it_and_the_card_says_it(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made / "text" / "model", folder)
    threshold = train("unitime-nano-threshold", [f"model={folder}", "scenes=2", "seed=1"])
    assert UniTime.from_pretrained(folder).threshold() == threshold
    card.write_card(folder, [("language model", made / "text" / "log.jsonl")], machine="a machine")
    said = (folder / "README.md").read_text()
    assert f"probability of {threshold:g}" in said and "| language model | 30 |" in said and "a machine" in said
    first = said
    card.write_card(folder)
    assert (folder / "README.md").read_text() == first  # from what is stored alone


def test_a_stopped_run_goes_on_where_it_was(made: Path) -> None:
    before = (made / "text" / "log.jsonl").read_text().count('"event": "end"')
    train("unitime-nano-text", [f"model={made}/base", f"features={made}/features", f"out={made}/text", "tokens=1500",
                                "held_out=1", "loop.steps=31", "loop.time_budget=null"])  # fmt: skip
    log = (made / "text" / "log.jsonl").read_text()
    assert log.count('"event": "end"') == before + 1 and '"event": "resumed", "step": 30' in log


def test_a_run_goes_on_from_another_one_with_its_heads_and_another_optimizer(made: Path, tmp_path: Path) -> None:
    changes = [f"model={made}/base", f"features={made}/features", "tokens=1500", "held_out=1", "loop.steps=1",
               "loop.time_budget=null", "loop.optimizer=muon", "loop.learning_rate=1e-9"]  # fmt: skip
    train("unitime-nano-text", [*changes, f"start={made}/text", f"out={tmp_path}/more"])
    old, new = (load_checkpoint(latest_checkpoint(run))["objective"] for run in (made / "text", tmp_path / "more"))
    assert old.keys() == new.keys() and any(name.startswith("ends.") for name in old)
    for name, tensor in old.items():
        torch.testing.assert_close(new[name], tensor, atol=1e-6, rtol=0)
    with pytest.raises(UniTimeError, match="start: there is no checkpoint"):
        train("unitime-nano-text", [*changes, f"start={tmp_path}/none", f"out={tmp_path}/other"])


def test_the_tokenizer_reads_and_writes_any_text(made: Path) -> None:
    tokenizer = transformers().AutoTokenizer.from_pretrained(made / "base")
    for said in ("the red cube jumps", "From 12.5 to 113.0.", "красный куб прыгает", "跳", "  two  spaces"):
        assert tokenizer.decode(tokenizer(said, add_special_tokens=False)["input_ids"]) == said
    assert len(tokenizer("113.5", add_special_tokens=False)["input_ids"]) == 5


# ------------------------------------------------------------------------------------------------ several processes


def together(count: int, *lines: str) -> None:
    """Recipes, each as "NAME|key=value|...", run one after another in some processes on the CPU, joined by gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = "import sys; from unitime.training import train\nfor line in sys.argv[1:]: name, *more = line.split('|'); "
    code += "train(name, more)"
    started = []
    for rank in range(count):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in told.items()}}
        command = [sys.executable, "-c", code, *lines]
        started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]


def test_two_processes_train_what_one_trains_of_twice_as_many_batches(made: Path, drawn: Path, tmp_path: Path) -> None:
    """The tower, the language model on packed queries with its curriculum, and a LoRA on somebody's videos."""
    from shots.video import Video

    frames = scenes.load_scenes(scenes.shard_path(drawn, 0))[0].frames.numpy()[:24]
    Video(frames, scenes.FPS, np.arange(24) / scenes.FPS).save(tmp_path / "film.mp4", record=False)
    rows = [{"qid": i, "query": f"it jumps {i} times", "vid": "film", "duration": 6, "relevant_windows": [[1, 2 + i]]}
            for i in range(4)]  # fmt: skip
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ["loop.time_budget=null", "loop.steps=4", "loop.warmup_steps=1", "loop.log_every=1", "loop.dtype=fp32",
              "loop.device=cpu", "loop.optimizer=adamw", "loop.learning_rate=1e-3", "loop.decay=0",
              "loop.threads=1"]  # fmt: skip
    size = [f"config.{key}={value}" for key, value in {**nano.VISION, **TOWER, "hidden_size": 64}.items()]
    recipes = {
        "vision": ["unitime-nano-vision", *size, f"scenes={drawn}", "batch=8", "held_out=1", "loop.ema=0.5"],
        "text": ["unitime-nano-text", f"model={made}/base", f"features={made}/features", "tokens=900", "held_out=1",
                 "loop.ema=0.5"],
        "adapt": ["unitime-lora", f"model={made}/text/model", f"data.0.annotations={tmp_path}/asked.jsonl",
                  f"data.0.videos={tmp_path}", "epochs=null", "lora.dropout=0", "checkpointing=false",
                  "loop.accumulate=1", "lessons.queries=1", f"features={tmp_path}/features"],
    }  # fmt: skip
    together(2, *("|".join([*line, *common, f"out={tmp_path}/two/{name}"]) for name, line in recipes.items()))
    for name, (recipe, *options) in recipes.items():
        wholes = {"one": "loop.accumulate=2", "half": "loop.accumulate=1"}
        for where, accumulate in wholes.items():
            train(recipe, [*options, *common, accumulate, f"out={tmp_path}/{where}/{name}"])
        two, one, half = (
            load_checkpoint(latest_checkpoint(tmp_path / where / name))["objective"] for where in ("two", *wholes)
        )
        assert two.keys() == one.keys()

        def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
            return float(torch.cat([(a[key] - b[key]).flatten() for key in a]).abs().mean())

        assert apart(two, one) < 0.02 * apart(half, one), name
        log = [json.loads(row) for row in (tmp_path / "two" / name / "log.jsonl").read_text().splitlines()]
        assert [row["processes"] for row in log if row.get("event") == "start"] == [2], name  # one process writes
    UniTime.from_pretrained(tmp_path / "two" / "text" / "model")
    UniTime.from_pretrained(made / "text" / "model", adapter=tmp_path / "two" / "adapt" / "adapter")


@pytest.mark.parametrize("name", ["unitime-nano", "unitime-nano-scenes", "unitime-nano-base", "unitime-nano-threshold"])
def test_what_one_process_does_by_itself_is_not_done_by_all_of_several(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UniTimeError, match=r"done by one process; .* vision, text, adapt in several"):
        train(name)
