"""Scenes of the stage with everything grounding can ask of them: drawn once, kept as shards, read many times.

Notable choices:

- A scene is one film of the stage, 5 to 30 s, at 64 x 64 pixels and 4 frames a second. A visual unit is a pair of
  frames half a second apart, so any phase and any lower rate of units can be taken from the same frames.
- What a scene is asked is settled when it is drawn: every event a viewer can tell, in several wordings, with *all* the
  windows in which it happens; events that do not happen (another action of an actor that is there, an actor that is
  not); questions with options; captions of shots. Training needs neither the renderer nor the grammar then.
- Events that a viewer could take for each other are left out: those after their actor has changed colour in the same
  shot, standing still, and those of which only some windows can be seen.
- Long videos are scenes one after another (`joined`): what is asked of one scene is looked for in all of them.
- Dense labels for the vision tower: per frame and 16 x 16 pixel cell the share that each actor covers, and per frame
  what each actor is doing.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shots.stage.annotate import annotations as annotate
from shots.stage.observe import Observations, observe
from shots.stage.render import Rendered, render_film
from shots.stage.scene import ACTIONS, COLOURS, PAIR_ACTIONS, SHAPES, SIZES, SOLO_ACTIONS, SURFACES, Action, Actor, Film
from shots.stage.words import (
    ACTION_WORDS,
    ANGLE_TAGS,
    ANGLE_WORDS,
    CAMERA_TAGS,
    CAMERA_WORDS,
    COLOUR_WORDS,
    DIRECTION_TAILS,
    FLOOR_WORDS,
    FOG_WORDS,
    SHAPE_WORDS,
    SHOT_SIZE_TAILS,
    SHOT_SIZE_WORDS,
    SIZE_WORDS,
    SKY_WORDS,
    STYLE_WORDS,
    SURFACE_TAILS,
    SURFACE_WORDS,
    Phrases,
    describe_shot,
    event_query,
    verb_forms,
)
from shots.stage.writer import write_film
from unitime.errors import UniTimeError

SIDE, FPS, CELLS = 64, 4.0, 4
GAP = 2  # frames between the two of a visual unit
MAX_CAST = 3
STILL = ACTIONS.index("still")
_LITTLE = frozenset(
    ("a", "an", "the", "of", "in", "on", "at", "by", "to", "for", "with", "from", "into", "is", "are", "be", "being",
     "and", "that", "it", "its", "us")
)  # fmt: skip

Window = tuple[float, float]


@dataclass(frozen=True)
class Ask:
    """One thing to be found: its wordings, all its windows (none: it does not happen), and what it is, for reports."""

    texts: tuple[str, ...]
    windows: tuple[Window, ...]
    colour: str
    shape: str
    kind: str
    key: str


@dataclass(frozen=True)
class Told:
    """What one scene can be asked. Times in seconds from its start.

    shots: (start, end, captions). qa: as the stage's annotations have it. unclear: keys of events that happen, but that
    nobody can be asked for.
    """

    seed: int
    duration: float
    asks: tuple[Ask, ...]
    absent: tuple[Ask, ...]
    shots: tuple[tuple[float, float, tuple[str, ...]], ...]
    qa: tuple[dict[str, Any], ...] = field(default_factory=tuple)
    unclear: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Told:
        """The inverse of `to_dict`."""

        def asks(items: list[dict[str, Any]]) -> tuple[Ask, ...]:
            return tuple(
                Ask(**{**item, "texts": tuple(item["texts"]), "windows": tuple((s, e) for s, e in item["windows"])})
                for item in items
            )

        return cls(
            seed=data["seed"],
            duration=data["duration"],
            asks=asks(data["asks"]),
            absent=asks(data["absent"]),
            shots=tuple((start, end, tuple(captions)) for start, end, captions in data["shots"]),
            qa=tuple(data["qa"]),
            unclear=tuple(data["unclear"]),
        )


@dataclass
class Scene:
    """A drawn scene.

    frames uint8 (F, 64, 64, 3); cover uint8 (F, 4, 4, 3), 255 x the share of the cell an actor covers; cast int8
    (3, 4), colour, shape, size and surface of each actor (-1: no such actor); doing int8 (F, 3), the action of each
    actor at each frame; box float16 (F, 3, 4), as the renderer has it.
    """

    frames: Tensor
    cover: Tensor
    cast: Tensor
    doing: Tensor
    box: Tensor
    told: Told


def film_of(seed: int, split: str = "train", seconds: tuple[float, float] = (5.0, 30.0)) -> Film:
    """The film of a scene: 3 to 8 events in one to six shots, as many as its length holds."""
    rng = random.Random(f"scene-{seed}")
    duration = rng.uniform(*seconds)
    events = min(rng.randint(3, 8), max(1, int(duration / 1.7)))
    shots = max(1, min(events, round(duration / rng.uniform(4.0, 9.0))))
    per_shot = max(1, round(events / shots))
    actors = rng.choices((1, 2, 3), (0.3, 0.45, 0.25))[0]
    return write_film(
        seed, shots=shots, seconds=round(duration / shots, 2), actors=actors, split=split,
        transitions=rng.random() < 0.2, actions_per_shot=per_shot,
    )  # fmt: skip


def draw(seed: int, split: str = "train", wording: str = "train", wordings: int = 4) -> Scene:
    """Writes, renders and annotates the scene of `seed`; see `shots.stage.writer.write_film` for `split`."""
    film = film_of(seed, split)
    rendered = render_film(film, SIDE, SIDE, FPS)
    seen = observe(film, rendered)
    cast = torch.full((MAX_CAST, 4), -1, dtype=torch.int8)
    for i, actor in enumerate(film.cast):
        cast[i] = torch.tensor(
            [COLOURS.index(actor.colour), SHAPES.index(actor.shape), SIZES.index(actor.size),
             SURFACES.index(actor.surface)]
        )  # fmt: skip
    count = len(film.cast)
    inside = torch.stack([(rendered.instance == i + 1).float() for i in range(MAX_CAST)], 1)  # (F, 3, H, W)
    cover = torch.nn.functional.avg_pool2d(inside, SIDE // CELLS).permute(0, 2, 3, 1)  # (F, 4, 4, 3)
    box = torch.zeros(len(rendered.frames), MAX_CAST, 4, dtype=torch.float16)
    box[:, :count] = rendered.box.nan_to_num().clamp(-2, 3).half()
    return Scene(
        rendered.frames,
        (cover * 255).round().to(torch.uint8),
        cast,
        _doing(film, rendered),
        box,
        tell(film, rendered, seen, wording, wordings),
    )


def _edges(film: Film, rendered: Rendered) -> list[float]:
    return [index / rendered.fps for index in (0, *rendered.boundaries, len(rendered.times))]


def _doing(film: Film, rendered: Rendered) -> Tensor:
    """(F, 3) int8: the action of each cast member at each frame, "still" between actions."""
    middle = rendered.times
    doing = torch.full((len(middle), MAX_CAST), STILL, dtype=torch.int8)
    names = [actor.name for actor in film.cast]
    edges = _edges(film, rendered)
    for k, shot in enumerate(film.shots):
        for action in shot.actions:
            during = (middle >= edges[k] + action.start) & (middle <= min(edges[k] + action.end, edges[k + 1]))
            doing[during, names.index(action.actor)] = ACTIONS.index(action.kind)
    return doing


def _key(action: Action) -> str:
    """What is asked: the same key is the same event to a viewer who was told in words."""
    return "|".join([action.actor, action.kind, action.other or "", action.colour or ""])


def tell(film: Film, rendered: Rendered, seen: Observations, wording: str = "train", wordings: int = 4) -> Told:
    """Everything that can be asked of a rendered film; the same for the same film."""
    rng = random.Random(f"told-{film.seed}")
    edges = _edges(film, rendered)
    found: dict[str, list[tuple[int, Action, Window]]] = {}
    spoilt: set[str] = set()
    for k, shot in enumerate(film.shots):
        recoloured: dict[str, float] = {}
        for index, action in sorted(enumerate(shot.actions), key=lambda item: item[1].start):
            key = _key(action)
            window = (edges[k] + action.start, min(edges[k] + action.end, edges[k + 1]))
            unclear = action.kind == "still" or not seen.sees_action(k, index) or window[1] - window[0] < 0.3
            if unclear or action.start >= recoloured.get(action.actor, float("inf")):
                spoilt.add(key)
            if action.other is not None and action.start >= recoloured.get(action.other, float("inf")):
                spoilt.add(key)
            found.setdefault(key, []).append((k, action, (round(window[0], 2), round(window[1], 2))))
            if action.kind == "change_colour":
                recoloured[action.actor] = action.start
    asks = []
    for key, places in found.items():
        directions = {action.direction for _, action, _ in places}
        if places[0][1].kind == "push" and len(directions) > 1:
            spoilt.add(key)
        if key in spoilt:
            continue
        texts = tuple(event_query(film, k, action, rng, wording) for k, action, _ in (places * wordings)[:wordings])
        asks.append(_ask(film, places[0][1], texts, tuple(sorted(window for _, _, window in places))))
    truth = annotate(film, rendered, seen, rng)
    return Told(
        seed=film.seed,
        duration=round(edges[-1], 3),
        asks=tuple(asks),
        absent=tuple(_absent(film, rng, wording, wordings)),
        shots=tuple(
            (edges[k], edges[k + 1], tuple(describe_shot(film, k, rng, seen, wording) for _ in range(2)))
            for k in range(len(film.shots))
        ),
        qa=tuple(truth["qa"]),
        unclear=tuple(sorted(spoilt)),
    )


def _ask(film: Film, action: Action, texts: tuple[str, ...], windows: tuple[Window, ...]) -> Ask:
    actor = film.actor(action.actor)
    return Ask(texts, windows, actor.colour, actor.shape, action.kind, _key(action))


def _absent(film: Film, rng: random.Random, wording: str, wordings: int, count: int = 4) -> Iterable[Ask]:
    """Events that do not happen: half of them of an actor that is there, half of one that is not."""
    done = {(action.actor, action.kind) for shot in film.shots for action in shot.actions}
    clash = {"jump_over": {"jump", "move_left", "move_right"}, "push": {"move_left", "move_right"}}
    for number in range(count):
        k = rng.randrange(len(film.shots))
        present = [placement.actor for placement in film.shots[k].placements]
        actor = film.actor(rng.choice(present))
        changed = film
        if number % 2:
            seen = {a.colour for a in film.cast} | {action.colour for shot in film.shots for action in shot.actions}
            free = [colour for colour in COLOURS if colour not in seen]
            colour, shape = rng.choice(free), rng.choice(SHAPES)
            stranger = replace(actor, name=f"{colour} {shape}", colour=colour, shape=shape)
            changed = _recast(film, k, actor.name, stranger)
            kinds = [kind for kind in SOLO_ACTIONS if kind not in ("still", "change_colour")]
        else:
            taken = {kind for name, kind in done if name == actor.name}
            taken |= {other for kind in taken for other in clash.get(kind, ())}
            kinds = [kind for kind in SOLO_ACTIONS if kind not in taken | {"still", "change_colour"}]
            others = [name for name in present if name != actor.name]
            if others and rng.random() < 0.3:
                kinds = [kind for kind in PAIR_ACTIONS if kind not in taken] or kinds
        kind = rng.choice(kinds)
        other = None
        if kind in PAIR_ACTIONS:
            other = rng.choice([name for name in present if name != actor.name])
        name = stranger.name if changed is not film else actor.name
        fake = Action(name, kind, 0.0, 1.0, direction=rng.choice((-1, 1)), other=other)
        shots = tuple(replace(s, actions=(*s.actions, fake)) if i == k else s for i, s in enumerate(changed.shots))
        changed = replace(changed, shots=shots)
        texts = tuple(event_query(changed, k, fake, rng, wording) for _ in range(wordings))
        yield _ask(changed, fake, texts, ())


def near_misses(told: Told, rng: random.Random, count: int) -> list[Ask]:
    """Up to `count` events told wrongly in one word: the deed is done, by an actor of another shape or colour.

    Without them nothing asks for a shape: colours name actors, and an event that does not happen had another colour or
    another deed. Each has one wording, a word of which is changed for one that training says too.
    """
    known = {(*_actor(ask.key), ask.kind) for ask in told.asks} | {
        (*_actor(key), key.split("|")[1]) for key in told.unclear
    }
    found: list[Ask] = []
    for ask in rng.sample(told.asks, min(count, len(told.asks))):
        shape, colour = ask.shape, ask.colour
        if rng.random() < 0.5:
            shape, words, old = rng.choice([s for s in SHAPES if s != shape]), SHAPE_WORDS, shape
            wrong, taken = shape, {(colour, shape, ask.kind)}
        else:
            colour, words, old = rng.choice([c for c in COLOURS if c != colour]), COLOUR_WORDS, colour
            wrong, taken = colour, {(colour, s, ask.kind) for s in SHAPES}
        text = _reworded(rng.choice(ask.texts), words[old], rng.choice(words[wrong].train))
        if text is not None and not taken & known:
            found.append(Ask((text,), (), colour, shape, ask.kind, f"{colour} {shape}|{ask.key.partition('|')[2]}"))
    return found


def _actor(key: str) -> tuple[str, str]:
    """Colour and shape of who does what a key says."""
    colour, shape = key.partition("|")[0].split()
    return colour, shape


def _reworded(text: str, phrases: Phrases, word: str) -> str | None:
    """`text` with `word` for the first of `phrases` in it, and its article after it; None where there is none."""
    said = "|".join(map(re.escape, sorted(phrases.all, key=len, reverse=True)))
    changed, count = re.subn(rf"\b(?:{said})\b", word, text, count=1)
    articled = re.sub(r"\b(?:a|an) (?=(\w))", lambda m: "an " if m[1] in "aeiou" else "a ", changed)
    return articled if count else None


def _recast(film: Film, k: int, name: str, stranger: Actor) -> Film:
    """The film with somebody else in the place of actor `name` in shot `k`, doing nothing yet."""
    cast = tuple(stranger if actor.name == name else actor for actor in film.cast)
    shot = film.shots[k]
    places = tuple(replace(p, actor=stranger.name) if p.actor == name else p for p in shot.placements)
    actions = tuple(a for a in shot.actions if name not in (a.actor, a.other))
    shots = tuple(replace(shot, placements=places, actions=actions) if i == k else s for i, s in enumerate(film.shots))
    return replace(film, cast=cast, shots=shots)


def joined(told: Sequence[Told]) -> Told:
    """Scenes one after another as one video: what is asked of one is true of all whose actors and deeds are alike.

    An event is the same in two scenes when colour and shape of the actors, the deed and what it leads to are the same.
    Events that some scene shows and nobody can tell, and those absent from one scene that another one shows, are
    dropped.
    """
    unclear = {key for scene in told for key in scene.unclear}
    asks: dict[str, Ask] = {}
    offset, shots, qa = 0.0, [], []
    for scene in told:
        for ask in scene.asks:
            windows = tuple((round(s + offset, 2), round(e + offset, 2)) for s, e in ask.windows)
            known = asks.get(ask.key)
            asks[ask.key] = replace(ask, windows=(*known.windows, *windows)) if known else replace(ask, windows=windows)
        shots += [(start + offset, end + offset, captions) for start, end, captions in scene.shots]
        qa += [{**item, "start": item["start"] + offset, "end": item["end"] + offset} for item in scene.qa]
        offset += scene.duration
    shown = {(ask.colour, ask.kind) for ask in asks.values()} | {_deed(key) for key in unclear}
    absent = [ask for scene in told for ask in scene.absent if (ask.colour, ask.kind) not in shown]
    clear = tuple(ask for key, ask in asks.items() if key not in unclear)
    return Told(
        told[0].seed, round(offset, 3), clear, tuple(absent), tuple(shots), tuple(qa), tuple(sorted(unclear))
    )  # fmt: skip


def _deed(key: str) -> tuple[str, str]:
    """Colour and deed of a key."""
    actor, kind, *_ = key.split("|")
    return actor.split()[0], kind


@dataclass(frozen=True)
class Lone:
    """A question that only one shot of a video answers, without its shot's number, and where that shot is."""

    text: str
    options: tuple[str, ...]
    answer: str
    start: float
    end: float


def lone_questions(told: Told) -> list[Lone]:
    """What an actor does, turns into or looks like, of actors (by colour and shape) of whom it is asked only once."""
    by_text: dict[str, list[dict[str, Any]]] = {}
    for item in told.qa:
        if item["kind"] in ("action", "new_colour", "surface", "size"):
            text = item["question"]
            text = text.split(", ", 1)[1] if text.startswith("In shot") else text
            by_text.setdefault(text[:1].upper() + text[1:], []).append(item)
    return [
        Lone(text, tuple(items[0]["options"]), items[0]["answer"], items[0]["start"], items[0]["end"])
        for text, items in by_text.items()
        if len(items) == 1
    ]


# ------------------------------------------------------------------------------------------------ shards


@dataclass(frozen=True)
class ScenesRecipe:
    """What ``task: scenes`` reads.

    out: folder of shards. scenes: how many. seed: of the first; scene i has seed ``seed + i``. shard: scenes in a file.
    workers: processes, one core each. time_budget: seconds after which no new shard is begun.
    """

    task: str
    out: Path
    scenes: int
    seed: int = 300_000_000
    shard: int = 64
    workers: int = 2
    time_budget: float | None = None


def draw_scenes(recipe: ScenesRecipe) -> int:
    """Draws the shards that are missing. Returns how many scenes there are."""
    recipe.out.mkdir(parents=True, exist_ok=True)
    numbers = [n for n in range(-(-recipe.scenes // recipe.shard)) if not shard_path(recipe.out, n).is_file()]
    began = time.monotonic()
    jobs = [(recipe.out, n, recipe.seed, min(recipe.shard, recipe.scenes - n * recipe.shard), recipe.shard)
            for n in numbers]  # fmt: skip
    if jobs:
        with multiprocessing.get_context("spawn").Pool(min(recipe.workers, len(jobs))) as pool:
            for _ in pool.imap(_draw_shard, jobs):
                if recipe.time_budget is not None and time.monotonic() - began > recipe.time_budget:
                    pool.terminate()
                    break
    return len(list(recipe.out.glob("scenes-*.safetensors"))) * recipe.shard


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies; its annotations lie beside it as .jsonl."""
    return folder / f"scenes-{number:05d}.safetensors"


def _draw_shard(job: tuple[Path, int, int, int, int]) -> None:
    folder, number, seed, count, stride = job
    torch.set_num_threads(1)
    scenes = [draw(seed + number * stride + i) for i in range(count)]
    save_scenes(shard_path(folder, number), scenes)


def save_scenes(path: Path, scenes: Sequence[Scene]) -> None:
    """Writes a shard and its annotations; the tensors' file appears last, whole."""
    path.with_suffix(".jsonl").write_text("".join(json.dumps(scene.told.to_dict()) + "\n" for scene in scenes))
    lengths = torch.tensor([len(scene.frames) for scene in scenes])
    parts = {name: torch.cat([getattr(s, name) for s in scenes]) for name in ("frames", "cover", "doing", "box")}
    temporary = path.with_suffix(".part")
    save_file({"lengths": lengths, "cast": torch.stack([s.cast for s in scenes]), **parts}, temporary)
    temporary.replace(path)


def load_scenes(path: Path) -> list[Scene]:
    """The scenes of a shard."""
    if not path.is_file():
        raise UniTimeError(f"scenes: {path} does not exist; draw them with the scenes recipe")
    tensors = load_file(path)
    told = [Told.from_dict(json.loads(line)) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    lengths = tensors["lengths"].tolist()
    names = ("frames", "cover", "doing", "box")
    parts = zip(*(tensors[name].split(lengths) for name in names), strict=True)
    return [
        Scene(frames, cover, cast, doing, box, t)
        for (frames, cover, doing, box), cast, t in zip(parts, tensors["cast"], told, strict=True)
    ]


@cache
def fact_words() -> frozenset[str]:
    """The words by which a caption of the training grammar tells one film from another, in lower case: all words of its
    phrases for colours, shapes, sizes, surfaces, actions, the camera and the set but the little ones."""
    tables: tuple[Mapping[Any, Phrases], ...] = (
        COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, SURFACE_WORDS, SURFACE_TAILS, DIRECTION_TAILS, CAMERA_TAGS,
        SHOT_SIZE_WORDS, SHOT_SIZE_TAILS, ANGLE_WORDS, ANGLE_TAGS, FLOOR_WORDS, SKY_WORDS, STYLE_WORDS, FOG_WORDS,
    )  # fmt: skip
    said = [phrase for table in tables for phrases in table.values() for phrase in phrases.train]
    said += [form for table in (ACTION_WORDS, CAMERA_WORDS) for phrases in table.values() for phrase in phrases.train
             for form in verb_forms(phrase)]  # fmt: skip
    return frozenset(re.findall("[a-z]+", re.sub(r"\{\w+\}", "", " ".join(said).lower()))) - _LITTLE


def corpus(texts: Iterable[str] = ()) -> list[str]:
    """Every phrase of the training grammar's deeds in its three forms, and `texts`: what a tokenizer is fitted to."""
    forms = [form for phrases in ACTION_WORDS.values() for phrase in phrases.train for form in verb_forms(phrase)]
    return [*forms, *texts]
