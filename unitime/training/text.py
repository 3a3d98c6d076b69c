"""Training of a grounding language model on packed queries (UniTime, video-centric training): task ``text``.

Notable choices:

- The vision tower is frozen and its features are computed once (UniTime freezes it too), so a step costs the language
  model alone.
- One sequence is one video with everything asked of it: queries with one, several or no windows, questions with
  options, captions. Block mask and restarted positions come from `unitime.sequence`, the same code as at inference.
- Three kinds of sample: a *fine* crop of a scene, a single *shot* with its caption, and a *coarse* video of many scenes
  one after another, listed by segments. The stamps of most samples do not start at zero, so what is learned is to read
  the stamps that are shown; `stamps: false` shows none and asks for positions instead, the ablation of the paper's
  main claim.
- Few tokens of an answer carry what is asked: the digits of a time, the letter of an option, the words of a caption
  that say a fact. Each kind has a weight of its own in the loss (`TokenWeights`) beside 1 for all other tokens.
- Auxiliary heads, thrown away afterwards, say which colour and deed each query names (after two layers), which units it
  means and which stamp each unit stands under (at half depth), where its first window begins and ends (a layer later),
  and, at every token of an answer that is about to write a time, which stamp that is; one head of the next layer is
  made to look at the units under it, and the stamp's digits to be read off the token after it. So words, matching,
  times, edges and copying are each learned from every query and every unit, in fine passes and in coarse ones.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from shots.runtime.loop import LoopConfig
from shots.stage.scene import ACTIONS, COLOURS
from unitime import sequence
from unitime.errors import UniTimeError
from unitime.prompts import Prompts
from unitime.training.scenes import FPS, GAP, Ask, Told, fact_words, joined, lone_questions, near_misses

UNIT_SECONDS = 0.5
_WORDINGS = 3  # of each event, side by side in one sequence
TIME, LETTER, FACT = 1, 2, 3  # kinds of tokens in answers; 0 is any other
_OVERLAP = 0.3  # seconds of an event in a segment for it to be listed
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class TokenWeights:
    """Weights in the loss, beside 1 for other tokens of answers: of the tokens of a `time`, of the `letter` that
    chooses an option, and of the words of a caption that say a `fact` (colours, shapes, actions, the set, the camera).
    """

    time: float = 5.0
    letter: float = 1.0
    fact: float = 1.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not 0 < weight < math.inf:
                raise UniTimeError(f"weights.{name}: {weight:g}; more than 0 is needed (1 weighs it like other words)")


@dataclass(frozen=True)
class Most:
    """How much is asked of a sequence at most; the video costs more than what is asked of it.

    ask: wordings of events that happen. absent: events that do not. near: events that do, told with a wrong shape or
    colour. qa: questions with options. lone: questions put without their options, to be found in time. caption:
    wordings of a shot's caption.
    """

    ask: int = 14
    absent: int = 4
    near: int = 4
    qa: int = 2
    lone: int = 1
    caption: int = 1

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            if count < 0:
                raise UniTimeError(f"most.{name}: {count}; 0 or more are needed")


@dataclass(frozen=True)
class TextRecipe:
    """What ``task: text`` reads.

    out: run folder. model: folder with the model to train (see `unitime.training.nano`). features: folder of cached
    features. tokens: of a batch, padding included. kinds: weight of each kind of sample. long: seconds of the shortest
    and longest coarse video. curriculum: share of the run over which crops grow from 8 s to whole scenes. stamps:
    whether units carry their times. weights: of some tokens of answers. most: asked of one sequence. aux_weight: of the
    auxiliary losses. held_out: scenes never trained on. start: run
    folder of this task to go on from, auxiliary heads included; the vision tower stays that of `model`.
    """

    task: str
    out: Path
    model: Path
    features: Path
    loop: LoopConfig
    tokens: int = 8192
    kinds: dict[str, float] = field(default_factory=lambda: {"fine": 0.6, "shot": 0.2, "coarse": 0.2})
    long: tuple[float, float] = (40.0, 600.0)
    segment: float = 8.0
    curriculum: float = 0.25
    stamps: bool = True
    weights: TokenWeights = field(default_factory=TokenWeights)
    most: Most = field(default_factory=Most)
    aux_weight: float = 1.0
    held_out: int = 16
    start: Path | None = None


@dataclass(frozen=True)
class ShownPlan:
    """The part of a frame plan that a sequence is built from."""

    mode: str
    times: NDArray[np.float64]
    grid: tuple[int, int]
    segments: list[tuple[int, int]]
    segment_stamps: list[float]


@dataclass
class Item:
    """One packed sequence: the sample, the kind of each of its tokens (M,) (`TIME`, `LETTER`, `FACT` or 0), its
    features (P, D) in the order of its video tokens, and for the auxiliary loss the token that ends each query (Q,),
    the units each means (Q, U) as 0 or 1, the colour and the deed that it names (Q, 2) or -1, the units at the ends of
    its first window (Q, 2) or -1, the tokens that are about to write a time (W, 3), each with its side (0 for starts
    and segments, 1 for ends) and a unit that stands under that stamp, the segment (U,) of each unit and the digits
    (U, 4) of its stamp, and the tokens of a unit."""

    sample: sequence.Sample
    kinds: Tensor
    features: Tensor
    ends: Tensor
    relevant: Tensor
    named: Tensor
    edges: Tensor
    writers: Tensor
    segments: Tensor
    digits: Tensor
    unit_tokens: int


class Asker:
    """Makes packed sequences of scenes whose features are known.

    features: (F, 4, D), one row per pair of frames; first: (S + 1,) where each scene's rows begin.
    """

    def __init__(
        self, told: Sequence[Told], features: Tensor, first: Sequence[int], tokenizer: Any, prompts: Prompts,
        recipe: TextRecipe, family: str = "qwen2_vl",
    ) -> None:  # fmt: skip
        self.told, self.features, self.first = told, features, first
        self.tokenizer, self.recipe, self.family = tokenizer, recipe, family
        self.prompts = prompts if recipe.stamps else replace(prompts, marker="")
        self.characters = {sequence.encode(tokenizer, [c])[0][0]: c for c in "0123456789."}

    def item(self, rng: random.Random, share: float, scenes: Sequence[int]) -> Item:
        """A random sample from the given scenes; `share` of the run is behind us."""
        kinds = self.recipe.kinds
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        if kind == "coarse":
            return self.coarse(rng, share, scenes)
        scene = rng.choice(scenes)
        told = self.told[scene]
        if kind == "shot":
            start, end, captions = rng.choice(told.shots)
            if end - start >= 1.5:
                return self.fine(rng, scene, start, min(end, start + 30.0), captions)
        longest = told.duration
        if self.recipe.curriculum:
            longest = min(longest, 8.0 + 24.0 * share / self.recipe.curriculum)
        length = longest if rng.random() < 0.3 else rng.uniform(min(4.0, longest), longest)
        start = rng.uniform(0, told.duration - length)
        return self.fine(rng, scene, start, start + length)

    def fine(
        self, rng: random.Random, scene: int, start: float, end: float, captions: Sequence[str] = ()
    ) -> Item:
        """A fine pass over [start, end] seconds of a scene; with `captions` the part is one shot."""
        told = self.told[scene]
        rows = self.first[scene + 1] - self.first[scene]
        begin = math.ceil(start * FPS - 1e-6)
        last = min(int(end * FPS + 1e-6) - GAP, rows - 1)
        step = round(UNIT_SECONDS * FPS)
        picks = np.arange(begin + rng.randrange(step) * (last - begin > step), last + 1, step)
        if not len(picks):
            picks = np.array([min(begin, rows - 1)])
        centres: NDArray[np.float64] = ((picks + GAP / 2) / FPS).astype(np.float64)
        shift = rng.uniform(0, 0.3) - start
        if not self.recipe.stamps:  # positions alone can only tell the time since the first frame
            shift = UNIT_SECONDS / 2 - centres[0]
        elif rng.random() < 0.5:
            shift = rng.uniform(0, 560)
        stamps = np.round(centres + shift, 1)
        cut = (centres[0] - 0.25, centres[-1] + 0.25)
        plan = ShownPlan(
            "fine", np.stack([centres, centres], 1), (2, 2), [(i, i + 1) for i in range(len(picks))], stamps.tolist()
        )
        turns: list[tuple[str, str]] = []
        relevant: list[Tensor] = []
        pointed: list[list[int]] = []
        named: list[tuple[int, int]] = []
        for ask, wording in worded(rng, told.asks, self.recipe.most.ask):
            inside = [(max(s, cut[0]), min(e, cut[1]), e - s) for s, e in ask.windows if s < cut[1] and e > cut[0]]
            if any(e - s < 0.5 * whole for s, e, whole in inside):
                continue  # neither here nor not here
            answer = self.prompts.answer(self.snapped(inside, stamps, shift))
            turns.append((self.prompts.ask_when(wording), answer))
            relevant.append(self.covered(centres, inside))
            pointed.append([unit for window in inside for unit in nearest_units(window, stamps, shift)])
            named.append(names_of(ask))
        for ask in self.untrue(rng, told):
            turns.append((self.prompts.ask_when(rng.choice(ask.texts)), self.prompts.nothing()))
            relevant.append(torch.zeros(len(picks)))
            pointed.append([])
            named.append(names_of(ask))
        whole = start <= 0.01 and end >= told.duration - 0.01
        lone = [one for one in lone_questions(told) if one.start >= cut[0] - 0.3 and one.end <= cut[1] + 0.3]
        for one in rng.sample(lone, min(self.recipe.most.lone, len(lone) if not captions else 0)):
            window = (one.start, one.end, one.end - one.start)
            turns.append((self.prompts.ask_when(one.text), self.prompts.answer(self.snapped([window], stamps, shift))))
            relevant.append(self.covered(centres, [window]))
            pointed.append([*nearest_units(window, stamps, shift)])
        turns += self.questions(rng, told, start, end, whole, bool(captions))
        for caption in rng.sample([*captions], min(self.recipe.most.caption, len(captions))):
            turns.append((self.prompts.caption, caption))
        rows_of = self.first[scene] + torch.from_numpy(picks)
        return self.packed(plan, self.features[rows_of].flatten(0, 1), turns, relevant, named, 4, pointed)

    def untrue(self, rng: random.Random, told: Told) -> list[Ask]:
        """Events that do not happen."""
        most = self.recipe.most
        return [*rng.sample(told.absent, min(most.absent, len(told.absent))), *near_misses(told, rng, most.near)]

    def questions(
        self, rng: random.Random, told: Told, start: float, end: float, whole: bool, single: bool
    ) -> list[tuple[str, str]]:
        """Questions that what is shown answers. Those about one shot are asked of it alone without its number."""
        fitting = []
        for item in told.qa:
            if item["kind"] == "when":
                continue
            about = item["question"].startswith("In shot ")
            text = item["question"]
            if single and about:
                if not (item["start"] >= start - 0.1 and item["end"] <= end + 0.1):
                    continue
                text = text.split(", ", 1)[1]
                text = text[:1].upper() + text[1:]
            elif not whole and (about or single or item["start"] < start or item["end"] > end):
                continue
            fitting.append((text, item))
        turns = []
        for text, item in rng.sample(fitting, min(self.recipe.most.qa, len(fitting))):
            options = list(item["options"])
            rng.shuffle(options)
            turns.append((self.prompts.ask(text, options), self.prompts.chosen(options.index(item["answer"]))))
        return turns

    def coarse(self, rng: random.Random, share: float, scenes: Sequence[int]) -> Item:
        """A coarse pass over scenes one after another, one token a unit, one stamp a segment."""
        low, high = self.recipe.long
        duration = low * (high / low) ** (rng.random() * min(1.0, 0.3 + share))
        picked: list[int] = []
        while sum(self.told[scene].duration for scene in picked) < duration:
            picked.append(rng.choice(scenes))
        told = joined([self.told[scene] for scene in picked])
        offsets = np.cumsum([0.0, *(self.told[scene].duration for scene in picked)])
        seconds = max(UNIT_SECONDS, duration / 512) * rng.uniform(1.0, 1.1)
        centres = (np.arange(int(duration / seconds)) + 0.5) * seconds
        which = np.searchsorted(offsets, centres, side="right") - 1
        rows = []
        for place, t in zip(which, centres, strict=True):
            count = self.first[picked[place] + 1] - self.first[picked[place]]
            rows.append(self.first[picked[place]] + min(max(round((t - offsets[place]) * FPS - GAP / 2), 0), count - 1))
        size = max(1, round(self.recipe.segment / seconds))
        segments = [(i, min(i + size, len(centres))) for i in range(0, len(centres), size)]
        shift = rng.uniform(0, 600 - min(duration, 599)) if self.recipe.stamps and rng.random() < 0.3 else 0.0
        stamps = [round(float(centres[i]) + shift, 1) for i, _ in segments]
        plan = ShownPlan("coarse", np.stack([centres, centres], 1), (1, 1), segments, stamps)
        turns: list[tuple[str, str]] = []
        relevant: list[Tensor] = []
        pointed: list[list[int]] = []
        named: list[tuple[int, int]] = []
        edges = [(float(centres[i]) - seconds / 2, float(centres[j - 1]) + seconds / 2) for i, j in segments]
        asks = [ask for ask in told.asks if max(e for _, e in ask.windows) <= edges[-1][1]]
        for ask, wording in worded(rng, asks, self.recipe.most.ask):
            hit = [k for k, (s, e) in enumerate(edges) if any(min(e, b) - max(s, a) > _OVERLAP for a, b in ask.windows)]
            turns.append((self.prompts.ask_when(wording), self.prompts.segments(stamps[k] for k in hit)))
            relevant.append(self.covered(centres, [(s, e, e - s) for s, e in ask.windows]))
            pointed.append([segments[k][0] for k in hit])
            named.append(names_of(ask))
        for ask in self.untrue(rng, told):
            turns.append((self.prompts.ask_when(rng.choice(ask.texts)), self.prompts.nothing()))
            relevant.append(torch.zeros(len(centres)))
            pointed.append([])
            named.append(names_of(ask))
        lone = [one for one in lone_questions(told) if one.end <= edges[-1][1]]
        for one in rng.sample(lone, min(self.recipe.most.lone, len(lone))):
            hit = [k for k, (s, e) in enumerate(edges) if min(e, one.end) - max(s, one.start) > _OVERLAP]
            turns.append((self.prompts.ask_when(one.text), self.prompts.segments(stamps[k] for k in hit)))
            relevant.append(self.covered(centres, [(one.start, one.end, one.end - one.start)]))
            pointed.append([segments[k][0] for k in hit])
        features = self.features[torch.tensor(rows)].float().mean(1).to(self.features.dtype)
        return self.packed(plan, features, turns, relevant, named, 1, pointed)

    @staticmethod
    def covered(centres: NDArray[np.float64], windows: Sequence[tuple[float, float, float]]) -> Tensor:
        """(U,) 1 for each unit whose centre lies in one of the windows."""
        inside = np.zeros(len(centres), dtype=bool)
        for start, end, _ in windows:
            inside |= (centres >= start) & (centres <= end)
        return torch.from_numpy(inside).float()

    @staticmethod
    def snapped(
        windows: Sequence[tuple[float, float, float]], stamps: NDArray[np.float64], shift: float
    ) -> list[tuple[float, float]]:
        """Each window's ends moved to the nearest stamps, which misses by less than the smallest enclosing window."""
        units = [nearest_units(window, stamps, shift) for window in windows]
        return [(float(stamps[first]), float(stamps[last])) for first, last in units]

    def packed(
        self,
        plan: ShownPlan,
        features: Tensor,
        turns: list[tuple[str, str]],
        relevant: list[Tensor],
        named: list[tuple[int, int]],
        unit_tokens: int,
        pointed: list[list[int]],
    ) -> Item:
        """Everything in one sequence; the first turns are the queries of `relevant` and `pointed` (a unit under each
        stamp that the answer writes), the first of those of `named`."""
        if not turns:
            turns = [(self.prompts.ask_when("nothing"), self.prompts.nothing())]
            relevant, pointed = [torch.zeros(len(features) // unit_tokens)], [[]]
        prefix = sequence.build_prefix(plan, self.prompts, self.tokenizer, self.family)
        tails = [sequence.continuation(self.tokenizer, self.prompts, turn, answer) for turn, answer in turns]
        head = len(sequence.encode(self.tokenizer, [self.prompts.header.replace("{role}", "assistant")])[0])
        ends, writers, marked, place = [], [], [], len(prefix)
        for query, tail in enumerate(tails):
            asked = int((tail.labels == sequence.IGNORE).sum())
            if query >= len(relevant):
                marked += [(place + asked + token, kind) for token, kind in self.telling(*turns[query])]
                place += len(tail)
                continue
            ends.append(place + asked + head - 1)
            written = self.stamps_in(tail.ids[asked + head :].tolist())
            for number, (tokens, unit) in enumerate(zip(written, pointed[query], strict=False)):
                side = number % 2 if plan.mode == "fine" else 0
                writers += [(ends[-1] + token, side, unit) for token in tokens]  # written by the token before
            place += len(tail)
        names = torch.tensor([*named, *[(-1, -1)] * (len(relevant) - len(named))])
        meant = torch.stack(relevant)
        edges = first_run(meant)  # (Q, 2)
        if plan.mode == "fine":
            edges = torch.tensor([units[:2] or [-1, -1] for units in pointed])
        under = [k for k, (i, j) in enumerate(plan.segments) for _ in range(i, j)]
        digits = torch.tensor([[int(c) for c in f"{round(10 * plan.segment_stamps[k]):04d}"] for k in under])  # (U, 4)
        joint = sequence.join(prefix, tails)
        kinds = torch.zeros(len(joint.ids), dtype=torch.long)
        for token, kind in [*((token + 1, TIME) for token, _, _ in writers), *marked]:
            kinds[token] = kind
        who = torch.tensor(writers, dtype=torch.long).view(-1, 3)
        return Item(
            joint, kinds, features, torch.tensor(ends), meant, names, edges, who, torch.tensor(under), digits,
            unit_tokens,
        )  # fmt: skip

    def telling(self, turn: str, answer: str) -> list[tuple[int, int]]:
        """Where the tokens that tell something stand in the assistant's turn after a question or a request for a
        caption, and their kinds: the letter of an option, the words of a caption that say a fact."""
        if turn == self.prompts.caption:
            spans = [(m.start(), m.end()) for m in _WORD.finditer(answer) if m.group().lower() in fact_words()]
            kind = FACT
        else:
            start = self.prompts.option.index("{letter}")
            spans, kind = [(start, start + 1)], LETTER
        header = self.prompts.header.replace("{role}", "assistant")
        told = self.tokenizer([header + answer + self.prompts.footer], add_special_tokens=False,
                              return_offsets_mapping=True)  # fmt: skip
        return [
            (token, kind)
            for token, (begin, end) in enumerate(told["offset_mapping"][0])
            if any(begin - len(header) < last and end - len(header) > first for first, last in spans)
        ]

    def stamps_in(self, ids: Sequence[int]) -> list[list[int]]:
        """Where the tokens of each stamp of an answer stand in it; a stamp ends with the digit after its point."""
        stamps: list[list[int]] = []
        open_stamp, pointed = False, False
        for place, token in enumerate(ids):
            text = self.characters.get(token, "")
            if open_stamp or text.isdigit():
                if not open_stamp:
                    stamps.append([])
                stamps[-1].append(place)
                open_stamp, pointed = not pointed, text == "."
        return stamps


def worded(rng: random.Random, asks: Sequence[Ask], most: int) -> list[tuple[Ask, str]]:
    """Events to ask for, each in up to three of its wordings, at most `most` in all."""
    said = [(ask, text) for ask in asks for text in rng.sample(ask.texts, min(_WORDINGS, len(ask.texts)))]
    return rng.sample(said, min(most, len(said)))


def names_of(ask: Ask) -> tuple[int, int]:
    """Colour and deed of a query, as numbers."""
    return COLOURS.index(ask.colour), ACTIONS.index(ask.kind)


def nearest_units(
    window: tuple[float, float, float], stamps: NDArray[np.float64], shift: float
) -> tuple[int, int]:
    """The units whose stamps are nearest to the ends of a window."""
    first, last = (int(np.abs(stamps - (end + shift)).argmin()) for end in window[:2])
    return first, last


def first_run(meant: Tensor) -> Tensor:
    """(Q, 2): first and last unit of the first run of ones in each row of (Q, U), -1 where there is none."""
    found = []
    for row in meant.bool().tolist():
        start = row.index(True) if True in row else -1
        end = row.index(False, start) - 1 if start >= 0 and False in row[start:] else len(row) - 1
        found.append((start, end if start >= 0 else -1))
    return torch.tensor(found)


@dataclass
class PackedBatch:
    """Items padded to one length, as `unitime.sequence.collate` has them, with features and auxiliary targets."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor
    pads: Tensor
    features: Tensor
    items: list[Item]

    def __len__(self) -> int:
        return sum(len(item.ends) for item in self.items)

    def to(self, device: torch.device) -> PackedBatch:
        """On another device."""
        return PackedBatch(
            self.ids.to(device), self.labels.to(device), self.positions.to(device), self.mask.to(device),
            self.pads.to(device), self.features.to(device), self.items,
        )  # fmt: skip


def collate(items: Sequence[Item], pad_id: int) -> PackedBatch:
    """A batch of items."""
    ids, labels, positions, mask, pads = sequence.collate([item.sample for item in items], pad_id)
    return PackedBatch(ids, labels, positions, mask, pads, torch.cat([item.features for item in items]), list(items))


def lean_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """transformers' eager attention without its copies: query heads that share keys are one product, nothing leaves the
    query's dtype. On a CPU in bf16 the fused kernel's backward pass is several times slower than this.

    query (B, H, M, d), key and value (B, G, M, d), attention_mask additive (B, 1, M, M). Returns (B, M, H, d) and the
    weights (B, H, M, M).
    """
    b, heads, m, d = query.shape
    groups = key.shape[1]
    grouped = (query * scaling).reshape(b, groups, heads // groups * m, d)
    scores = (grouped @ key.transpose(2, 3)).view(b, groups, heads // groups, m, m)
    weights = (scores + attention_mask[:, :, None].to(scores.dtype)).softmax(-1)
    out = weights.view(b, groups, heads // groups * m, m) @ value  # (B, G, H / G * M, d)
    return out.view(b, heads, m, d).transpose(1, 2), weights.view(b, heads, m, m)


def use_lean_attention(model: Any) -> None:
    """Has the language model train with `lean_attention`."""
    from shots.runtime.vision import transformers

    transformers().AttentionInterface.register("unitime_lean", lean_attention)
    model.model.language_model.config._attn_implementation = "unitime_lean"


class PackedObjective(nn.Module):
    """Next-token loss on the answers, and the auxiliary relevance loss; forward as `shots.runtime.loop` wants it."""

    def __init__(self, model: Any, recipe: TextRecipe) -> None:
        super().__init__()
        use_lean_attention(model)
        self.language = model.model.language_model
        self.head = model.lm_head
        width = self.language.config.hidden_size
        self.layer = max(1, self.language.config.num_hidden_layers // 2)
        self.asks, self.units = nn.Linear(width, width), nn.Linear(width, width)
        self.names = nn.Linear(width, len(COLOURS) + len(ACTIONS))
        self.digits = nn.Linear(width, 4 * 10)
        self.ends = nn.ModuleList(nn.Linear(width, width) for _ in range(4))  # of queries and units, start and end
        self.bias = nn.Parameter(torch.tensor(-1.0))
        self.weight = recipe.aux_weight
        self.weights = (1.0, recipe.weights.time, recipe.weights.letter, recipe.weights.fact)  # by kind of token

    def forward(self, batch: PackedBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.language.embed_tokens(batch.ids)  # (B, M, D)
        hidden = hidden.index_put((batch.pads[:, 0], batch.pads[:, 1]), batch.features.to(hidden.dtype))
        mask = sequence.additive(batch.mask, hidden.dtype)
        out = self.language(
            inputs_embeds=hidden, position_ids=batch.positions, attention_mask=mask, use_cache=False,
            output_hidden_states=True, output_attentions=self.weight > 0,
        )  # fmt: skip
        wanted = batch.labels[:, 1:] != sequence.IGNORE
        logits = self.head(out.last_hidden_state[:, :-1][wanted]).float()  # (N, V)
        target = batch.labels[:, 1:][wanted]
        each = F.cross_entropy(logits, target, reduction="none")
        kinds = torch.zeros(batch.ids.shape, dtype=torch.long, device=wanted.device)
        for row, item in enumerate(batch.items):
            kinds[row, : len(item.kinds)] = item.kinds.to(kinds.device)
        kinds = kinds[:, 1:][wanted]  # (N,)
        weight = torch.tensor(self.weights, device=kinds.device)[kinds]
        loss = (each * weight).sum() / weight.sum()
        right = (logits.argmax(-1) == target).float()
        figures = {"answer": each.mean().detach(), "right": right.mean()}
        for kind, name in ((TIME, "written"), (LETTER, "chosen"), (FACT, "facts")):
            if (of := kinds == kind).any():
                figures |= {name: each[of].mean().detach(), f"{name}_right": right[of].mean()}
        if self.weight:
            aux = self.relevance(out.hidden_states[self.layer], batch)
            words = self.naming(out.hidden_states[min(2, self.layer)], batch)
            middle, later = out.hidden_states[self.layer], out.hidden_states[self.layer + 1]
            stamps, edges = self.times_and_edges(middle, later, batch)
            gaze = self.gaze(out.attentions[min(self.layer + 1, len(out.attentions) - 1)], batch)
            told = self.told(out.hidden_states[min(self.layer + 2, len(out.hidden_states) - 2)], batch)
            parts = {"aux": aux, "words": words, "times": stamps, "edges": edges, "gaze": gaze, "told": told}
            figures |= {name: part.detach() for name, part in parts.items()}
            loss = loss + self.weight * torch.stack(tuple(parts.values())).sum()
        return loss, figures

    def relevance(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Binary cross entropy of which units each query means."""
        losses = []
        for row, item in enumerate(batch.items):
            asks = self.asks(hidden[row, item.ends.to(hidden.device)])  # (Q, D)
            units = hidden[row, item.sample.pads.to(hidden.device)].unflatten(0, (-1, item.unit_tokens)).mean(1)
            scores = (asks @ self.units(units).T).float() / asks.shape[-1] ** 0.5 + self.bias  # (Q, U)
            target = item.relevant.to(scores.device)
            each = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
            losses.append((each * torch.where(target > 0, 3.0, 1.0)).mean())
        return torch.stack(losses).mean()

    def times_and_edges(self, middle: Tensor, later: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Cross entropies of the digits of each unit's stamp, and of the units at the ends of each first window."""
        times, edges = [], []
        for row, item in enumerate(batch.items):
            pads = item.sample.pads.to(middle.device)
            units = middle[row, pads].unflatten(0, (-1, item.unit_tokens)).mean(1)  # (U, D)
            read = self.digits(units).float().view(-1, 10)  # (U 4, 10)
            times.append(F.cross_entropy(read, item.digits.to(read.device).flatten()))
            there = (item.edges[:, 0] >= 0).nonzero()[:, 0]
            if not len(there):
                continue
            units = later[row, pads].unflatten(0, (-1, item.unit_tokens)).mean(1)
            asks = later[row, item.ends[there].to(later.device)]  # (Q, D)
            for side in range(2):
                about = item.writers[item.writers[:, 1] == side]  # (W, 3)
                hands = later[row, about[:, 0].to(later.device)]  # (W, D)
                scores = self.ends[side](torch.cat([asks, hands])) @ self.ends[2 + side](units).T  # (Q + W, U)
                scores = scores.float() / units.shape[-1] ** 0.5
                edge = F.cross_entropy(scores[: len(there)], item.edges[there, side].to(scores.device))
                edges.append(edge)
                if len(about):  # any unit under the stamp will do
                    right = item.segments[about[:, 2], None] == item.segments  # (W, U)
                    likely = scores[len(there) :].log_softmax(-1).masked_fill(~right.to(scores.device), -torch.inf)
                    edges.append(-likely.logsumexp(-1).mean())
        return torch.stack(times).mean(), torch.stack(edges).mean() if edges else middle.sum() * 0.0

    def gaze(self, weights: Tensor, batch: PackedBatch) -> Tensor:
        """How far the first head of a layer is from looking at the units under the stamp its token is about to write:
        -log of its weight there; weights (B, H, M, M)."""
        losses = []
        for row, item in enumerate(batch.items):
            if len(item.writers):
                pads = item.sample.pads.to(weights.device)  # (P,)
                looks = weights[row, 0, item.writers[:, 0].to(weights.device)].float()[:, pads]  # (W, P)
                right = item.segments[item.writers[:, 2], None] == item.segments  # (W, U)
                seen = (looks * right.repeat_interleave(item.unit_tokens, 1).to(looks.device)).sum(1)  # (W,)
                losses.append(-(seen + 1e-4).log().mean())
        return torch.stack(losses).mean() if losses else weights.sum() * 0.0

    def told(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Cross entropy of the digits of the time that a token is about to write, read off that token."""
        losses = []
        for row, item in enumerate(batch.items):
            if len(item.writers):
                digits = item.digits[item.writers[:, 2]]  # (W, 4)
                read = self.digits(hidden[row, item.writers[:, 0].to(hidden.device)]).float().view(-1, 10)  # (W 4, 10)
                losses.append(F.cross_entropy(read, digits.to(read.device).flatten()))
        return torch.stack(losses).mean() if losses else hidden.sum() * 0.0

    def naming(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Cross entropy of the colour and the deed that each query names."""
        ends = torch.cat([hidden[row, item.ends.to(hidden.device)] for row, item in enumerate(batch.items)])  # (Q, D)
        colour, deed = self.names(ends).float().split([len(COLOURS), len(ACTIONS)], -1)
        named = torch.cat([item.named for item in batch.items]).to(hidden.device)  # (Q, 2)
        if not (named[:, 0] >= 0).any():
            return colour.sum() * 0.0
        losses = (F.cross_entropy(s, t, ignore_index=-1) for s, t in ((colour, named[:, 0]), (deed, named[:, 1])))
        return torch.stack(tuple(losses)).sum()


def load_features(folder: Path) -> tuple[list[Told], Tensor, list[int]]:
    """What `unitime.training.nano.cache_features` wrote: scenes, features (F, 4, D) and where each scene begins."""
    from safetensors.torch import load_file

    paths = sorted(folder.glob("features-*.safetensors"))
    if not paths:
        raise UniTimeError(f"features: there are none in {folder}; run the features recipe first")
    told, parts, first = [], [], [0]
    for path in paths:
        tensors = load_file(path)
        told += [Told.from_dict(json.loads(line)) for line in path.with_suffix(".jsonl").read_text().splitlines()]
        parts.append(tensors["features"])
        first += (first[-1] + tensors["lengths"].cumsum(0)).tolist()
    return told, torch.cat(parts), first
