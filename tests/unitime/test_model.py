"""The wrapper over Qwen-VL checkpoints: what it computes is what transformers computes, only quicker."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shots.runtime.vision import transformers
from unitime.errors import UniTimeError
from unitime.model import Features, VisionLanguageModel
from unitime.prompts import Prompts
from unitime.sequence import block_mask, build_prefix, collate, continuation, encode, join, pack

UNITS = 4


def plan(model: Any, units: int = UNITS, segment: int = 1, grid: tuple[int, int] = (2, 3)) -> SimpleNamespace:
    """A plan of units a second apart."""
    times = np.arange(units * 2).reshape(units, 2) * 0.5
    stamps = tuple(float(round(t, 1)) for t in times.mean(axis=1))
    return SimpleNamespace(
        mode="fine" if segment == 1 else "coarse",
        times=times,
        grid=grid,
        segments=[(i, min(i + segment, units)) for i in range(0, units, segment)],
        segment_stamps=stamps[::segment],
    )


def frames(model: Any, units: int = UNITS, grid: tuple[int, int] = (2, 3), seed: int = 0) -> np.ndarray:
    side = model.patch * model.merge
    shape = (units, 2, grid[0] * side, grid[1] * side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def video(model: Any, segment: int = 1) -> tuple[Any, Features, Any]:
    sequence = build_prefix(
        plan(model, segment=segment), Prompts(), model.tokenizer, model.family,
        tokens_per_second=model.tokens_per_second,
    )  # fmt: skip
    features = model.vision(frames(model))
    return sequence, features, model.prefill(sequence, features)


def test_patches_are_those_of_the_video_processor(tiny: Any) -> None:
    library = transformers()
    pictures = frames(tiny)
    video = torch.from_numpy(pictures).flatten(0, 1).permute(0, 3, 1, 2)  # (T, 3, H, W)
    kind = library.Qwen3VLVideoProcessor if tiny.family == "qwen3_vl" else library.Qwen2VLVideoProcessor
    processor = kind(do_resize=False, do_sample_frames=False, patch_size=tiny.patch)
    wanted = processor(videos=[video], return_tensors="pt", cap_pixels_per_frame=False)
    found, grid = tiny.patches(pictures)
    torch.testing.assert_close(found, wanted["pixel_values_videos"])
    assert grid.tolist() == wanted["video_grid_thw"].tolist()


def test_the_quick_vision_tower_equals_that_of_transformers(tiny: Any, fresh_net: Any) -> None:
    slow = fresh_net(tiny.family)
    patches, grid = tiny.patches(frames(tiny))
    wanted = slow.model.visual(patches, grid_thw=grid)
    found = tiny.net.model.visual(patches, grid_thw=grid)
    torch.testing.assert_close(found.pooler_output, wanted.pooler_output, atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(
        getattr(found, "deepstack_features", None) or [], getattr(wanted, "deepstack_features", None) or [], strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_vision_in_chunks_equals_vision_at_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = frames(tiny, units=5)
    whole = tiny.vision(pictures, (1, 2))
    monkeypatch.setattr("unitime.model.VISION_PATCHES", 48)
    parts = tiny.vision(pictures, (1, 2))
    assert whole.tokens.shape == (5, 2, 64)
    torch.testing.assert_close(parts.tokens, whole.tokens, atol=1e-5, rtol=1e-4)
    assert (whole.deepstack is None) == (tiny.family != "qwen3_vl")


def test_compression_is_bilinear_over_the_token_grid() -> None:
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    small = Features(tokens, None, (4, 4)).compress((2, 2))
    assert small.tokens.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]  # means of the four quarters


def test_features_survive_as_tensors(tiny: Any) -> None:
    features = tiny.vision(frames(tiny))
    again = Features.from_tensors(features.tensors())
    assert again.grid == features.grid
    assert torch.equal(again.tokens, features.tokens)
    assert torch.equal(Features.cat([again.select([0]), again.select([1, 2, 3])]).tokens, features.tokens)


def reference_logits(model: Any, ids: torch.Tensor, positions: torch.Tensor | None, segment: int = 1) -> torch.Tensor:
    """Logits of transformers' own multimodal forward, whole sequence at once, without the processor."""
    patches, grid = model.patches(frames(model))
    _, height, width = grid[0].tolist()
    sizes = [b - a for a, b in plan(model, segment=segment).segments]
    grids = torch.tensor([[n, height, width] for n in sizes])
    kinds = (ids == model.net.config.video_token_id).int() * 2
    extra = {} if positions is None else {"position_ids": positions[:, None]}
    model.net.model.rope_deltas = None
    with torch.no_grad():
        return model.net(
            input_ids=ids[None], mm_token_type_ids=kinds[None], pixel_values_videos=patches, video_grid_thw=grids,
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64), **extra,
        ).logits[0]  # fmt: skip


def grow_chain(model: Any, prefix: Any, ids: list[int]) -> torch.Tensor:
    """Logits after each token of a chain on a prefix."""
    forest = model.forest(prefix)
    with torch.no_grad():
        return model.net.lm_head(forest.grow(ids, list(range(-1, len(ids) - 1))))


def test_prefix_and_growth_equal_the_forward_of_transformers(tiny: Any) -> None:
    """Fine pass: every unit a block of its own, positions left to transformers."""
    sequence, _, prefix = video(tiny)
    tail = continuation(tiny.tokenizer, tiny.prompts, "Query:a cat\nAnswer: ").ids
    wanted = reference_logits(tiny, torch.cat([sequence.ids, tail]), None)[len(sequence) :]
    torch.testing.assert_close(grow_chain(tiny, prefix, tail.tolist()), wanted, atol=2e-4, rtol=1e-3)


def test_coarse_blocks_equal_the_forward_of_transformers_at_our_positions(tiny: Any) -> None:
    sequence, _, prefix = video(tiny, segment=2)
    tail = continuation(tiny.tokenizer, tiny.prompts, "Query:a cat\nAnswer: ").ids
    positions = torch.cat([sequence.positions, (torch.arange(len(tail)) + sequence.next_position).expand(3, -1)], 1)
    segment = 1 if tiny.family == "qwen3_vl" else 2
    wanted = reference_logits(tiny, torch.cat([sequence.ids, tail]), positions, segment)[len(sequence) :]
    torch.testing.assert_close(grow_chain(tiny, prefix, tail.tolist()), wanted, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("spread", [0, 1 << 30])
def test_packed_questions_equal_one_by_one_and_leave_the_prefix_as_it_was(
    tiny: Any, spread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As trees of one row, and as rows of their own."""
    monkeypatch.setattr("unitime.model.SPREAD_BYTES", spread)
    _, _, prefix = video(tiny)
    before = [t.clone() for t in (*prefix.keys, *prefix.values)]
    texts = encode(tiny.tokenizer, ["a cat", "two dogs run", "x"])
    alone = [grow_chain(tiny, prefix, ids) for ids in texts]
    ids, parents = [], []
    for text in texts:
        parents += [-1, *range(len(ids), len(ids) + len(text) - 1)]
        ids += text
    forest = tiny.forest(prefix)
    with torch.no_grad():
        packed = tiny.net.lm_head(forest.grow(ids, parents))
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, (*prefix.keys, *prefix.values), strict=True))
    assert len(prefix) == before[0].shape[2]


@pytest.mark.parametrize("spread", [0, 1 << 30])
def test_a_tree_gives_every_path_what_the_path_alone_gives(
    tiny: Any, spread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unitime.model.SPREAD_BYTES", spread)
    _, _, prefix = video(tiny)
    forest = tiny.forest(prefix)
    first = forest.grow([10, 11, 12], [-1, 0, 0])  # 10 - {11, 12}
    monkeypatch.setattr("unitime.model.GROWN_TOKENS", 2)  # and growth in parts changes nothing
    second = forest.grow([13, 14, 15, 16, 17], [1, 2, 4, -1, 6])  # 10 11 13; 10 12 14 15; 16 17
    with torch.no_grad():
        found = tiny.net.lm_head(torch.cat([first, second]))
    torch.testing.assert_close(found[[6, 7]], grow_chain(tiny, prefix, [16, 17]), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found[[0, 1, 3]], grow_chain(tiny, prefix, [10, 11, 13]), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found[[0, 2, 4, 5]], grow_chain(tiny, prefix, [10, 12, 14, 15]), atol=1e-4, rtol=1e-3)


def test_packed_training_equals_one_by_one(tiny: Any) -> None:
    sequence, features, prefix = video(tiny)
    asked = [
        continuation(tiny.tokenizer, tiny.prompts, tiny.prompts.ask_when("a cat"), "From 1.0 seconds to 2.0 seconds."),
        continuation(tiny.tokenizer, tiny.prompts, tiny.prompts.ask("who?", ["a", "b"]), tiny.prompts.chosen(1)),
    ]
    short = join(sequence, asked[:1])
    ids, labels, positions, mask, pads = collate([join(sequence, asked), short], pad_id=256)
    with torch.no_grad():
        hidden = tiny.hidden(ids, positions, mask, pads, [features, features])
        logits = tiny.net.lm_head(hidden)
    start = len(sequence)
    for item in asked:
        wanted = grow_chain(tiny, prefix, item.ids.tolist())
        torch.testing.assert_close(logits[0, start : start + len(item)], wanted, atol=2e-4, rtol=1e-3)
        start += len(item)
    wanted = grow_chain(tiny, prefix, asked[0].ids.tolist())
    torch.testing.assert_close(logits[1, len(sequence) : len(short.ids)], wanted, atol=2e-4, rtol=1e-3)
    assert (labels[1, len(short.ids) :] == -100).all()


def test_eager_and_sdpa_attention_agree_on_the_masks(tiny: Any, tiny_folders: dict[str, Any]) -> None:
    eager = VisionLanguageModel.from_pretrained(
        tiny_folders[tiny.family], dtype="fp32", device="cpu", attention="eager"
    )  # fmt: skip
    sequence, features, prefix = video(tiny)
    ids = encode(tiny.tokenizer, ["a cat"])[0]
    wanted = grow_chain(tiny, prefix, ids)
    torch.testing.assert_close(grow_chain(eager, eager.prefill(sequence, features), ids), wanted, atol=2e-4, rtol=1e-3)


def test_log_probs_are_the_log_softmax_of_the_logits(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unitime.model.LOGIT_ROWS", 2)
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    wanted = tiny.net.lm_head(hidden).log_softmax(-1).detach().numpy()
    rows, tokens = [4, 0, 2, 2, 3], [7, 1, 9, 9, 250]
    np.testing.assert_allclose(tiny.log_probs(hidden, rows, tokens), wanted[rows, tokens], atol=1e-5)
    assert tiny.best(hidden) == wanted.argmax(-1).tolist()


def test_a_saved_model_is_the_same_model(tiny: Any, tmp_path: Any) -> None:
    again = VisionLanguageModel.from_pretrained(tiny.save_pretrained(tmp_path / "saved"), dtype="fp32", device="cpu")
    assert (again.prompts, again.rule, again.fingerprint) == (tiny.prompts, tiny.rule, tiny.fingerprint)
    pictures = frames(tiny)
    assert torch.equal(again.vision(pictures).tokens, tiny.vision(pictures).tokens)


def test_settings_in_the_folder_are_obeyed(tiny_folders: dict[str, Any], tmp_path: Any) -> None:
    import json
    import shutil

    folder = shutil.copytree(tiny_folders["qwen2_vl"], tmp_path / "own")
    settings = {"prompts": {"marker": "<{t}>"}, "rule": {"budget": 512}, "not_found_threshold": 0.7}
    (folder / "unitime.json").write_text(json.dumps(settings))
    model = VisionLanguageModel.from_pretrained(folder, dtype="fp32", device="cpu")
    assert (model.prompts.mark(1), model.rule.budget, model.threshold) == ("<1.0>", 512, 0.7)


def test_a_limit_of_frames_a_second_goes_before_the_folders(tiny_folders: dict[str, Any], tmp_path: Any) -> None:
    folder = shutil.copytree(tiny_folders["qwen2_vl"], tmp_path / "own")
    (folder / "unitime.json").write_text('{"format": "unitime", "rule": {"max_fps": 8}}')

    def frames_of_ten_seconds(**said: Any) -> tuple[int, int]:
        rule = VisionLanguageModel.from_pretrained(folder, dtype="fp32", device="cpu", **said).rule
        plan = rule.plan(duration=10, height=360, width=640)
        return plan.times.size, plan.tokens

    assert frames_of_ten_seconds() == (80, 11960)
    assert frames_of_ten_seconds(max_fps=2) == (20, 2990)
    for wrong in (0, -1, float("nan"), float("inf"), "2"):
        with pytest.raises(UniTimeError, match="max_fps"):
            VisionLanguageModel.from_pretrained(folder, max_fps=wrong)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [("[1]", "no object"), ("{", "cannot be read"), ('{"rule": {"patches": 1}}', "rule"),
     ('{"rule": {"patch": 8}}', "rule"), ('{"prompts": {"mark": ""}}', "prompts")],
)  # fmt: skip
def test_bad_settings_are_named(tiny_folders: dict[str, Any], tmp_path: Any, settings: str, fault: str) -> None:
    import shutil

    folder = shutil.copytree(tiny_folders["qwen2_vl"], tmp_path / "own")
    (folder / "unitime.json").write_text(settings)
    with pytest.raises(UniTimeError, match=fault):
        VisionLanguageModel.from_pretrained(folder, dtype="fp32", device="cpu")


def test_what_is_no_model_is_refused(tmp_path: Any) -> None:
    with pytest.raises(UniTimeError, match="model"):
        VisionLanguageModel.from_pretrained("no such thing")
    with pytest.raises(UniTimeError, match=r"config\.json"):
        VisionLanguageModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UniTimeError, match="qwen2_vl"):
        VisionLanguageModel.from_pretrained(tmp_path)


def test_frames_of_the_wrong_shape_are_refused(tiny: Any) -> None:
    with pytest.raises(UniTimeError, match="frames"):
        tiny.vision(np.zeros((1, 2, 30, 56, 3), dtype=np.uint8))
    with pytest.raises(UniTimeError, match="features"):
        tiny.prefill(build_prefix(plan(tiny), Prompts(), tiny.tokenizer, tiny.family), tiny.vision(frames(tiny, 1)))


def test_the_block_mask_of_a_pack_is_the_forest_of_its_chains() -> None:
    from unitime.sequence import tree_mask

    assert torch.equal(block_mask(2, (2, 3)), tree_mask([-1, 0, -1, 2, 3], prefix=2))
    with pytest.raises(UniTimeError, match="continuations"):
        pack([], 0)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    folder = tmp_path / "partial"
    shutil.copytree(tiny_folders["qwen2_vl"], folder)
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "layers.1.mlp" in name)
    save_file({k: v for k, v in tensors.items() if k != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UniTimeError, match="lacks 1 weights"):
        VisionLanguageModel.from_pretrained(folder)
