"""Token sequences: the video prefix, what is asked after it, their positions and their masks. Pure tensor functions.

A prefix is shared by everything asked about a video; every question with its answer is a continuation of it:

    [system] [user: marker <video> marker <video> ... instruction]  |  [user: question] [assistant: answer]

or, for checkpoints that want what is asked in the turn of the video (``prompts.one_turn``):

    [system] [user: marker <video> marker <video> ...  |  question] [assistant: answer]

Notable choices:

- Text between two special tokens is tokenized on its own. Byte-level tokenizers do the same inside a whole string, so
  the ids equal those of the whole text (a test holds it).
- Positions are M-RoPE's three rows, computed here for every family and passed to the language model, since
  transformers 5 changed a rule that released weights were trained with. Text advances all rows by one. A block of
  k x h x w video tokens counts from where it begins, and the text goes on after the largest position in it:

  ============  =====================================================  ======================
  family        rows of a block                                        the block advances by
  ============  =====================================================  ======================
  qwen2_vl      unit, row, column                                      max(k, h, w)
  qwen2_5_vl    int(unit x seconds per unit x tokens per second), ...  max(last + 1, h, w)
  qwen3_vl      a block of its own for every unit (k = 1)              max(h, w)
  ============  =====================================================  ======================

  For blocks of one unit this is what ``get_rope_index`` of transformers 5 gives; for longer ones it is the rule of
  transformers 4.49, where `max(h, w)` would let the text overlap the video.
- Continuations restart at the same position and cannot see each other (UniTime, section on video-centric training), so
  many are run in one forward, in training as at inference. A tree of tokens is the same thing with shared beginnings.
- Masks are made as booleans, True where a query may look; :func:`additive` makes the float form, the only one that
  sdpa and eager attention of transformers agree on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unitime.errors import UniTimeError
from unitime.prompts import Prompts

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
VISION_START, VIDEO_PAD, VISION_END = "<|vision_start|>", "<|video_pad|>", "<|vision_end|>"
IGNORE = -100  # label of a token that is not learned, torch's own convention


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]: ...


class Plan(Protocol):
    """What is needed of a :class:`unitime.frames.FramePlan`."""

    @property
    def mode(self) -> str: ...
    @property
    def times(self) -> Any: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def segments(self) -> list[tuple[int, int]]: ...
    @property
    def segment_stamps(self) -> Sequence[float]: ...


@dataclass(frozen=True)
class PrefixSequence:
    """The tokens of a video.

    Attributes:
        ids: (L,) int64.
        pads: (P,) int64, indices into ``ids`` of the video tokens: units in order, rows, then columns.
        positions: (3, L) int64.
        next_position: where every continuation starts.
    """

    ids: Tensor
    pads: Tensor
    positions: Tensor
    next_position: int

    def __len__(self) -> int:
        return int(self.ids.shape[0])


@dataclass(frozen=True)
class Continuation:
    """What follows a prefix: ids (n,) int64 and labels (n,) int64, -100 where nothing is to be learned.

    Labels stand at the token they name; whoever computes a loss shifts them by one.
    """

    ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return int(self.ids.shape[0])


@dataclass(frozen=True)
class Pack:
    """Several continuations of one prefix, one after the other.

    Attributes:
        ids, labels: (N,) int64.
        positions: (3, N) int64, restarted at the prefix's next position for each.
        lengths: tokens of each continuation.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return int(self.ids.shape[0])


# Prefix.


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of each text, with nothing added."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def special_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Ids of vision start, video pad and vision end. Raises UniTimeError where the tokenizer lacks one."""
    tokens = (VISION_START, VIDEO_PAD, VISION_END)
    found = encode(tokenizer, list(tokens))
    for token, ids in zip(tokens, found, strict=True):
        if len(ids) != 1:
            raise UniTimeError(f"model: its tokenizer has no {token} token, so it cannot be shown a video")
    start, pad, end = (int(ids[0]) for ids in found)
    return start, pad, end


def build_prefix(
    plan: Plan,
    prompts: Prompts,
    tokenizer: Tokenizer,
    family: str,
    *,
    instruction: str | None = None,
    tokens_per_second: float = 2.0,
) -> PrefixSequence:
    """The tokens of a video as ``plan`` shows it: system turn, then one user turn of stamps, frames and instruction.

    Args:
        plan: which units are shown, with which stamps, on which token grid.
        prompts: the model's strings.
        tokenizer: the model's tokenizer; it must know the vision tokens.
        family: "qwen2_vl", "qwen2_5_vl" or "qwen3_vl": whose positions.
        instruction: what stands after the video; None takes the one of the plan's mode.
        tokens_per_second: temporal positions a second inside a block of several units (Qwen2.5-VL alone).
    """
    if family not in FAMILIES:
        raise UniTimeError(f"family: {family!r} is not one of {', '.join(FAMILIES)}")
    start, pad, end = special_ids(tokenizer)
    height, width = plan.grid
    opening = "" if prompts.system is None else prompts.header.replace("{role}", "system") + prompts.system
    opening += "" if prompts.system is None else prompts.footer
    opening += prompts.header.replace("{role}", "user")
    closing = prompts.instruction(plan.mode) if instruction is None else instruction
    closing += "" if prompts.one_turn else prompts.footer
    segments, markers = list(plan.segments), [prompts.mark(t) for t in plan.segment_stamps]
    if prompts.one_block:
        segments, markers = [(segments[0][0], segments[-1][1])], [""]
    markers[0] = opening + markers[0]
    *texts, last = encode(tokenizer, [*markers, closing])

    # ids, and for every pad its block: how many units it holds
    ids: list[int] = []
    blocks: list[tuple[int, int]] = []  # index of the first pad, units
    for text, (first, stop) in zip(texts, segments, strict=True):
        ids += text
        for units in [1] * (stop - first) if family == "qwen3_vl" else [stop - first]:
            ids.append(start)
            blocks.append((len(ids), units))
            ids += [pad] * (units * height * width)
            ids.append(end)
    ids += last

    seconds = _seconds_per_unit(plan.times) * tokens_per_second if family == "qwen2_5_vl" else 1.0
    positions, next_position = block_positions(len(ids), blocks, (height, width), seconds)
    tokens = torch.tensor(ids, dtype=torch.int64)  # (L,)
    return PrefixSequence(tokens, (tokens == pad).nonzero()[:, 0], positions, next_position)


def block_positions(
    length: int, blocks: Sequence[tuple[int, int]], grid: tuple[int, int], step: float = 1.0
) -> tuple[Tensor, int]:
    """M-RoPE positions (3, length) of text with video blocks in it, and the position after all of them.

    Args:
        length: tokens in all.
        blocks: (index of the first token, units) of each block, in order.
        grid: tokens (h, w) of one unit.
        step: temporal positions between units of one block.
    """
    height, width = grid
    advance = np.ones(length, dtype=np.int64)  # (L,) how far each token moves the next one
    offsets = np.zeros((3, length), dtype=np.int64)  # within its block
    shapes: dict[int, tuple[np.ndarray, int]] = {}
    for first, units in blocks:
        if units not in shapes:
            time = (np.arange(units) * step).astype(np.int64)  # truncated, as the families do
            grids = np.meshgrid(time, np.arange(height), np.arange(width), indexing="ij")
            shapes[units] = np.stack(grids).reshape(3, -1), max(int(time[-1]) + 1, height, width)  # (3, k*h*w)
        inside, size = shapes[units]
        stop = first + inside.shape[1]
        offsets[:, first:stop] = inside
        advance[first:stop] = 0
        advance[stop - 1] = size
    begin = np.cumsum(advance) - advance  # (L,)
    return torch.from_numpy(begin[None] + offsets), int(advance.sum())


def _seconds_per_unit(times: Any) -> float:
    """Seconds between the centres of neighbouring units; 1 where there is only one."""
    centres = np.asarray(times, dtype=np.float64).mean(axis=1)  # (units,)
    return float((centres[-1] - centres[0]) / (len(centres) - 1)) if len(centres) > 1 else 1.0


# Continuations.


def continuation(tokenizer: Tokenizer, prompts: Prompts, turn: str, answer: str | None = None) -> Continuation:
    """One user turn, then the assistant's.

    Args:
        turn: what the user says, such as ``prompts.ask_when(query)``, ``prompts.ask(question, options)`` or
            ``prompts.caption``.
        answer: what the assistant says, such as ``prompts.answer(windows)`` or ``prompts.chosen(0)``; its header, the
            answer and its footer are labelled. None ends after the header, ready to generate, with no labels.
    """
    asked = ("" if prompts.one_turn else prompts.header.replace("{role}", "user")) + turn + prompts.footer
    header = prompts.header.replace("{role}", "assistant")
    replied = header if answer is None else header + answer + prompts.footer
    question, reply = encode(tokenizer, [asked, replied])
    labels = [IGNORE] * len(question) + (reply if answer is not None else [IGNORE] * len(reply))
    return Continuation(torch.tensor(question + reply), torch.tensor(labels))


def pack(continuations: Sequence[Continuation], next_position: int) -> Pack:
    """Several continuations of a prefix as one run of tokens, each starting at ``next_position``."""
    if not continuations:
        raise UniTimeError("continuations: is empty; give at least one")
    lengths = tuple(len(c) for c in continuations)
    positions = torch.cat([torch.arange(n) for n in lengths]) + next_position  # (N,)
    return Pack(
        torch.cat([c.ids for c in continuations]),
        torch.cat([c.labels for c in continuations]),
        positions.expand(3, -1),
        lengths,
    )


@dataclass(frozen=True)
class Sample:
    """A prefix with its pack, whole, as one forward of training wants it.

    Attributes:
        ids, labels: (L + N,) int64.
        pads: (P,) int64, indices of the video tokens.
        positions: (3, L + N) int64.
        mask: (L + N, L + N) bool, True where the row may look at the column.
    """

    ids: Tensor
    labels: Tensor
    pads: Tensor
    positions: Tensor
    mask: Tensor


def join(prefix: PrefixSequence, continuations: Sequence[Continuation]) -> Sample:
    """A prefix with everything asked after it, for training (UniTime's video-centric packing)."""
    tail = pack(continuations, prefix.next_position)
    return Sample(
        torch.cat([prefix.ids, tail.ids]),
        torch.cat([torch.full_like(prefix.ids, IGNORE), tail.labels]),
        prefix.pads,
        torch.cat([prefix.positions, tail.positions], dim=1),
        block_mask(len(prefix), tail.lengths, whole=True),
    )


def collate(samples: Sequence[Sample], pad_id: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Samples padded on the right to one length M.

    Returns ids (B, M), labels (B, M), positions (3, B, M), mask (B, 1, M, M) bool and pads (P, 2): for every video
    token, sample after sample, its row and its index. A padding token looks at itself alone, so no row is empty.
    """
    longest = max(len(s.ids) for s in samples)
    ids = torch.full((len(samples), longest), pad_id, dtype=torch.int64)
    labels = torch.full((len(samples), longest), IGNORE, dtype=torch.int64)
    positions = torch.zeros(3, len(samples), longest, dtype=torch.int64)
    mask = torch.eye(longest, dtype=torch.bool).expand(len(samples), 1, -1, -1).clone()
    pads = []
    for row, sample in enumerate(samples):
        n = len(sample.ids)
        ids[row, :n], labels[row, :n], positions[:, row, :n] = sample.ids, sample.labels, sample.positions
        mask[row, 0, :n, :n] = sample.mask
        pads.append(torch.stack([torch.full_like(sample.pads, row), sample.pads], dim=1))
    return ids, labels, positions, mask, torch.cat(pads)


# Masks.


def block_mask(prefix: int, lengths: Sequence[int], *, whole: bool = False) -> Tensor:
    """Who may look at whom: every continuation at the prefix and causally at itself, never at another.

    Returns (N, prefix + N) bool for the continuations' tokens alone, as they extend a cached prefix, or with ``whole``
    (prefix + N, prefix + N), where the prefix is causal.
    """
    groups = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(list(lengths)))  # (N,)
    order = torch.arange(len(groups))
    own = (groups[:, None] == groups[None, :]) & (order[:, None] >= order[None, :])  # (N, N)
    rows = torch.cat([torch.ones(len(groups), prefix, dtype=torch.bool), own], dim=1)  # (N, L + N)
    if not whole:
        return rows
    top = torch.ones(prefix, prefix, dtype=torch.bool).tril()  # (L, L)
    return torch.cat([torch.cat([top, torch.zeros(prefix, len(groups), dtype=torch.bool)], dim=1), rows])


def tree_depths(parents: Sequence[int]) -> np.ndarray:
    """Depth (N,) of every node of a forest; ``parents`` are indices before the node's own, -1 for a root (depth 0)."""
    depths = np.zeros(len(parents), dtype=np.int64)
    for node, parent in enumerate(parents):
        if parent >= 0:
            depths[node] = depths[parent] + 1
    return depths


def tree_mask(parents: Sequence[int], prefix: int = 0) -> Tensor:
    """(N, prefix + N) bool: every node looks at the prefix, at its ancestors and at itself."""
    count = len(parents)
    mask = np.zeros((count, prefix + count), dtype=bool)
    mask[:, :prefix] = True
    mask[np.arange(count), prefix + np.arange(count)] = True
    depths = tree_depths(parents)
    above = np.asarray(parents, dtype=np.int64)
    for depth in range(1, int(depths.max(initial=0)) + 1):
        nodes = np.flatnonzero(depths == depth)
        mask[nodes] |= mask[above[nodes]]
    return torch.from_numpy(mask)


def additive(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A boolean mask as numbers to add to attention scores: 0 where True, the dtype's least number where False.

    (Q, K) becomes (1, 1, Q, K); more dimensions are kept.
    """
    scores = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return scores if scores.ndim == 4 else scores[None, None]
