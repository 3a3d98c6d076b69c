"""Token sequences: ids as of the whole text, positions by each family's rule, masks that keep questions apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unitime.errors import UniTimeError
from unitime.frames import FrameRule
from unitime.prompts import Prompts
from unitime.sequence import (
    additive,
    block_mask,
    block_positions,
    build_prefix,
    collate,
    continuation,
    encode,
    join,
    pack,
    tree_mask,
)


def plan(units: int = 5, segment: int = 1, grid: tuple[int, int] = (2, 3), every: float = 1.0) -> SimpleNamespace:
    times = (np.arange(units)[:, None] + np.array([0.0, 0.5])) * every
    stamps = tuple(float(round(t, 1)) for t in times.mean(axis=1))
    return SimpleNamespace(
        mode="fine" if segment == 1 else "coarse", times=times, grid=grid,
        segments=[(i, min(i + segment, units)) for i in range(0, units, segment)], segment_stamps=stamps[::segment],
    )  # fmt: skip


def text(prefix: Any, model: Any) -> str:
    return model.tokenizer.decode(prefix.ids)


def test_a_fine_prefix_reads_as_published(tiny: Any) -> None:
    prefix = build_prefix(plan(2, grid=(1, 2)), Prompts(), tiny.tokenizer, tiny.family)
    pads = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    assert text(prefix, tiny) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"timestamp: 0.2 seconds; feature: {pads}timestamp: 1.2 seconds; feature: {pads}"
        f"{Prompts().fine}<|im_end|>\n"
    )
    assert prefix.ids.tolist() == encode(tiny.tokenizer, [text(prefix, tiny)])[0]
    assert (prefix.ids[prefix.pads] == tiny.net.config.video_token_id).all()
    assert len(prefix.pads) == 4


def test_a_segment_is_one_block_but_in_qwen3(tiny: Any) -> None:
    prefix = build_prefix(plan(3, segment=2, grid=(1, 1)), Prompts(system=None), tiny.tokenizer, tiny.family)
    one, two = "<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    first = one + one if tiny.family == "qwen3_vl" else two
    assert text(prefix, tiny) == (
        f"<|im_start|>user\ntimestamp: 0.2 seconds; feature: {first}timestamp: 2.2 seconds; feature: {one}"
        f"{Prompts().coarse}<|im_end|>\n"
    )


def test_the_instruction_can_be_another(tiny: Any) -> None:
    prefix = build_prefix(plan(1), Prompts(), tiny.tokenizer, tiny.family, instruction="Answer.")
    assert text(prefix, tiny).endswith("<|vision_end|>Answer.<|im_end|>\n")


@pytest.mark.parametrize("segment", [1, 2])
def test_positions_are_those_of_transformers_where_the_rules_agree(tiny: Any, segment: int) -> None:
    """Units by themselves always; segments as long as no block lasts longer than it is wide."""
    prefix = build_prefix(
        plan(5, segment, every=0.5), Prompts(), tiny.tokenizer, tiny.family, tokens_per_second=tiny.tokens_per_second
    )
    sizes = [b - a for a, b in plan(5, segment).segments]
    grids = torch.tensor([[n, 4, 6] for n in sizes])
    kinds = (prefix.ids == tiny.net.config.video_token_id).int() * 2
    extra = {"second_per_grid_ts": torch.full((len(sizes),), 0.5)} if tiny.family == "qwen2_5_vl" else {}
    wanted, delta = tiny.net.model.get_rope_index(prefix.ids[None], kinds[None], video_grid_thw=grids, **extra)
    assert torch.equal(prefix.positions, wanted[:, 0])
    assert prefix.next_position == len(prefix) + int(delta)


def test_long_segments_follow_the_rule_of_the_released_weights() -> None:
    """transformers 4.49: text goes on after the largest position of the block, be it in time."""
    positions, after = block_positions(10, [(2, 6)], (1, 1))
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert positions[1].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 8, 9]
    assert after == 10
    positions, after = block_positions(8, [(1, 6)], (1, 1), step=2.0)  # Qwen2.5-VL, a second apart
    assert positions[0].tolist() == [0, 1, 3, 5, 7, 9, 11, 12]
    assert after == 13


def old_positions(kinds: list[int], grid: tuple[int, int, int]) -> list[list[int]]:
    """The loop of transformers 4.49 for Qwen2-VL, written out: one block of ``grid`` between text."""
    rows: list[list[int]] = [[], [], []]
    start = 0
    i = 0
    while i < len(kinds):
        if kinds[i] == 0:
            for row in rows:
                row.append(start)
            start += 1
            i += 1
            continue
        t, h, w = grid
        for a in range(t):
            for b in range(h):
                for c in range(w):
                    for row, value in zip(rows, (a, b, c), strict=True):
                        row.append(start + value)
        start = max(max(row) for row in rows) + 1
        i += t * h * w
    return rows


@pytest.mark.parametrize("grid", [(1, 2, 3), (4, 1, 2), (2, 3, 2)])
def test_positions_equal_the_old_loop(grid: tuple[int, int, int]) -> None:
    size = grid[0] * grid[1] * grid[2]
    kinds = [0] * 3 + [1] * size + [0] * 2 + [1] * size + [0]
    positions, after = block_positions(len(kinds), [(3, grid[0]), (5 + size, grid[0])], grid[1:])
    assert positions.tolist() == old_positions(kinds, grid)
    assert after == positions[0, -1] + 1


def test_a_planned_video_of_the_full_budget_is_written_quickly(tiny: Any) -> None:
    whole = FrameRule().plan(duration=1024, height=360, width=640)
    prefix = build_prefix(whole, Prompts(), tiny.tokenizer, "qwen2_vl")
    assert len(prefix.pads) == 15360
    assert (prefix.positions[:, 1:].max(dim=0).values >= prefix.positions[:, :-1].max(dim=0).values - 31).all()


def test_continuations_read_as_chat_and_learn_the_answer_alone(tiny: Any) -> None:
    item = continuation(tiny.tokenizer, Prompts(), Prompts().ask_when("a cat"), "From 1.0 seconds to 2.0 seconds.")
    answer = "<|im_start|>assistant\nFrom 1.0 seconds to 2.0 seconds.<|im_end|>\n"
    assert tiny.tokenizer.decode(item.ids) == f"<|im_start|>user\nQuery:a cat\nAnswer: <|im_end|>\n{answer}"
    assert tiny.tokenizer.decode(item.labels[item.labels >= 0]) == answer
    assert torch.equal(item.labels[item.labels >= 0], item.ids[item.labels >= 0])
    asked = continuation(tiny.tokenizer, Prompts(), "Describe.")
    assert tiny.tokenizer.decode(asked.ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert (asked.labels == -100).all()


def test_packed_continuations_restart_and_cannot_see_each_other(tiny: Any) -> None:
    items = [continuation(tiny.tokenizer, Prompts(), turn, "x") for turn in ("a", "bcd")]
    packed = pack(items, 100)
    first, second = packed.lengths
    assert packed.positions[0].tolist() == [*range(100, 100 + first), *range(100, 100 + second)]
    mask = block_mask(7, packed.lengths)
    assert mask[:, :7].all()
    assert not mask[:first, 7 + first :].any() and not mask[first:, 7 : 7 + first].any()
    assert torch.equal(mask[:first, 7 : 7 + first], torch.ones(first, first, dtype=torch.bool).tril())
    whole = block_mask(7, packed.lengths, whole=True)
    assert torch.equal(whole[7:], mask)
    assert torch.equal(whole[:7], torch.ones(7, 7 + first + second, dtype=torch.bool).tril())


def test_samples_are_padded_without_empty_rows(tiny: Any) -> None:
    prefix = build_prefix(plan(2), Prompts(), tiny.tokenizer, tiny.family)
    long = join(prefix, [continuation(tiny.tokenizer, Prompts(), "a longer turn", "x")])
    short = join(prefix, [continuation(tiny.tokenizer, Prompts(), "a", "x")])
    ids, labels, positions, mask, pads = collate([long, short], 256)
    size = len(long.ids)
    assert (
        ids.shape == labels.shape == (2, size) and positions.shape == (3, 2, size) and mask.shape == (2, 1, size, size)
    )
    assert (ids[1, len(short.ids) :] == 256).all() and (labels[1, len(short.ids) :] == -100).all()
    assert mask.any(dim=-1).all() and not mask[1, 0, : len(short.ids), len(short.ids) :].any()
    assert (ids[pads[:, 0], pads[:, 1]] == tiny.net.config.video_token_id).all()
    assert len(pads) == 24


def test_a_tree_mask_shows_each_node_its_ancestors() -> None:
    mask = tree_mask([-1, 0, 0, 1, -1], prefix=1)
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 1],
    ]  # fmt: skip


def test_the_float_mask_adds_nothing_where_one_may_look() -> None:
    mask = additive(torch.tensor([[True, False]]), torch.bfloat16)
    assert mask.shape == (1, 1, 1, 2) and mask.dtype == torch.bfloat16
    assert mask[0, 0, 0].tolist() == [0.0, torch.finfo(torch.bfloat16).min]


def test_what_cannot_be_written_is_named(tiny: Any) -> None:
    with pytest.raises(UniTimeError, match="family"):
        build_prefix(plan(1), Prompts(), tiny.tokenizer, "bert")
    with pytest.raises(UniTimeError, match="continuations"):
        pack([], 0)

    def blind(texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1, 2] for _ in texts]}

    with pytest.raises(UniTimeError, match="vision_start"):
        build_prefix(plan(1), Prompts(), blind, "qwen2_vl")
