"""Constrained decoding: the probabilities are the model's own, and the answers are among the stamps shown."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import numpy as np
import pytest

from unitime import decode
from unitime.decode import Trie, choose, generate, ground_coarse, ground_fine, rank
from unitime.errors import UniTimeError
from unitime.prompts import Prompts, parse_stamps, parse_windows, stamp
from unitime.sequence import build_prefix, continuation, encode

STAMPS = (0.5, 1.5, 2.5, 10.5)
NOT_FOUND = Prompts(not_found="Not found.")


class FakeForest:
    """A forest whose hidden states are the paths themselves."""

    def __init__(self) -> None:
        self.paths: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return len(self.paths)

    def grow(self, ids: Any, parents: Any) -> np.ndarray:
        for token, parent in zip(ids, parents, strict=True):
            self.paths.append((*(self.paths[parent] if parent >= 0 else ()), token))
        rows = np.empty(len(ids), dtype=object)
        rows[:] = self.paths[len(self.paths) - len(ids) :]
        return rows


class FakeModel:
    """A language model over bytes that says ``reply`` with probability ``trust`` a token, and else anything."""

    def __init__(self, tokenizer: Any, prompts: Prompts, reply: str, trust: float = 0.9) -> None:
        self.tokenizer, self.prompts, self.trust, self.size = tokenizer, prompts, trust, 264
        self.reply = encode(tokenizer, [reply + prompts.footer])[0]
        self.header = encode(tokenizer, [prompts.header.replace("{role}", "assistant")])[0]

    def forest(self, prefix: Any) -> FakeForest:
        return FakeForest()

    def probabilities(self, path: tuple[int, ...]) -> np.ndarray:
        noise = np.random.default_rng(zlib.crc32(np.asarray(path).tobytes())).random(self.size)
        noise /= noise.sum()
        n = len(self.header)
        said = next(path[i + n :] for i in range(len(path)) if list(path[i : i + n]) == self.header)
        if list(said) != self.reply[: len(said)] or len(said) >= len(self.reply):
            return noise
        noise *= 1 - self.trust
        noise[self.reply[len(said)]] += self.trust
        return noise

    def log_probs(self, hidden: Any, rows: Any, tokens: Any) -> np.ndarray:
        return np.log([self.probabilities(hidden[r])[t] for r, t in zip(rows, tokens, strict=True)])

    def best(self, hidden: Any) -> list[int]:
        return [int(self.probabilities(path).argmax()) for path in hidden]


@pytest.fixture(scope="module")
def words(tiny_models: Any) -> Any:
    """The tokenizer of bytes."""
    return tiny_models["qwen2_vl"].tokenizer


@pytest.fixture
def prefix(tiny: Any) -> Any:
    """A prefix of four units of random frames."""
    from types import SimpleNamespace

    side = tiny.patch * tiny.merge
    frames = np.random.default_rng(0).integers(0, 256, (4, 2, side, side, 3), dtype=np.uint8)
    plan = SimpleNamespace(
        mode="fine", times=np.array([[t - 0.5, t + 0.5] for t in STAMPS]), grid=(1, 1),
        segments=[(i, i + 1) for i in range(4)], segment_stamps=STAMPS,
    )  # fmt: skip
    return tiny.prefill(build_prefix(plan, Prompts(), tiny.tokenizer, tiny.family), tiny.vision(frames))


def chain_log_prob(model: Any, prefix: Any, turn: str, text: str) -> float:
    """log P of a text as the beginning of the answer to a turn, by one forward of its own."""
    asked = continuation(model.tokenizer, model.prompts, turn).ids.tolist()
    ids = encode(model.tokenizer, [text])[0]
    hidden = model.forest(prefix).grow(asked + ids, list(range(-1, len(asked) + len(ids) - 1)))
    rows = range(len(asked) - 1, len(asked) + len(ids) - 1)
    return float(model.log_probs(hidden, list(rows), ids).sum())


def test_window_probabilities_equal_scoring_every_window_by_itself(tiny: Any, prefix: Any) -> None:
    answer = ground_fine(tiny, prefix, STAMPS, ["a cat"], coverage=1.0, prune=0)[0]
    step = answer.steps[0]
    assert sorted(step.starts) == [0, 1, 2, 3]
    turn = tiny.prompts.ask_when("a cat")
    for row, start in enumerate(step.starts):
        wanted = chain_log_prob(tiny, prefix, turn, f"From {stamp(STAMPS[start])}")
        assert step.start_log_probs[start] == pytest.approx(wanted, abs=1e-3)
        for end in range(4):
            if end < start:
                assert step.log_probs[row, end] == -np.inf
                continue
            text = f"From {stamp(STAMPS[start])} seconds to {stamp(STAMPS[end])}"
            assert step.log_probs[row, end] == pytest.approx(chain_log_prob(tiny, prefix, turn, text), abs=1e-3)


def shared(tiny: Any, prefix: Any, turn: str, before: str, texts: list[str]) -> np.ndarray:
    """The probability of each text after ``before``, each character shared among those that some text has there."""
    found = np.ones(len(texts))
    for i, text in enumerate(texts):
        for place in range(len(text)):
            allowed = sorted({t[place] for t in texts if t[:place] == text[:place]})
            scores = [chain_log_prob(tiny, prefix, turn, before + text[:place] + c) for c in allowed]
            found[i] *= np.exp(scores[allowed.index(text[place])] - np.logaddexp.reduce(scores))
    return found


def test_probabilities_are_shared_among_the_stamps_token_by_token(tiny: Any, prefix: Any) -> None:
    step = ground_fine(tiny, prefix, STAMPS, ["a cat"], coverage=1.0, prune=0)[0].steps[0]
    turn = tiny.prompts.ask_when("a cat")
    texts = [stamp(t) for t in STAMPS]
    np.testing.assert_allclose(step.start_probs, shared(tiny, prefix, turn, "From ", texts), atol=1e-3)
    for row, start in enumerate(step.starts):
        wanted = shared(tiny, prefix, turn, f"From {texts[start]} seconds to ", texts[start:])
        np.testing.assert_allclose(step.end_probs[row, start:], wanted, atol=1e-3)
        assert not step.end_probs[row, :start].any()


@pytest.mark.parametrize("prune", [0.0, 0.05])
def test_tries_grown_ahead_are_tries_grown_level_by_level(
    tiny: Any, prefix: Any, prune: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = [t / 2 for t in range(1, 45)]
    forest = type(tiny.forest(prefix))
    grow, grown = forest.grow, []
    monkeypatch.setattr(forest, "grow", lambda *how: (grown.append(1), grow(*how))[1])
    found = []
    for ahead in (0, 10**6):
        monkeypatch.setattr(decode, "NODES_AHEAD", ahead)
        grown.clear()
        answers = ground_fine(tiny, prefix, stamps, ["a cat", "two dogs"], several=True, prune=prune)
        found.append((answers, len(grown)))
    (slow, forwards), (fast, fewer) = found
    assert fewer < forwards
    for a, b in zip(slow, fast, strict=True):
        assert a.found == pytest.approx(b.found, abs=1e-5) and a.picks == b.picks
        for one, other in zip(a.steps, b.steps, strict=True):
            np.testing.assert_array_equal(one.starts, other.starts)
            np.testing.assert_allclose(one.probs, other.probs, atol=1e-5)
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-3)


def test_window_probabilities_are_probabilities(tiny: Any, prefix: Any) -> None:
    step = ground_fine(tiny, prefix, STAMPS, ["a cat"], coverage=1.0, prune=0)[0].steps[0]
    assert np.exp(step.log_probs).sum() <= 1
    assert step.probs.sum() == pytest.approx(1)
    assert (step.covered() <= 1).all()


def test_pruning_loses_no_mass_and_moves_little(words: Any) -> None:
    stamps = [t / 2 for t in range(1, 130)]
    sure = FakeModel(words, Prompts(), "From 12.5 seconds to 31.0 seconds.", trust=0.8)
    exact = ground_fine(sure, (), stamps, ["a cat"], starts=200, coverage=1.0, prune=0)[0].steps[0]
    quick = ground_fine(sure, (), stamps, ["a cat"], starts=200, coverage=1.0, prune=0.01)[0].steps[0]
    for step in (exact, quick):
        assert step.probs.sum() == pytest.approx(1)
        assert step.start_probs.sum() == pytest.approx(1)
    assert exact.windows()[0][0].tolist() == quick.windows()[0][0].tolist() == [12.5, 31.0]
    assert abs(exact.start_probs - quick.start_probs).max() < 0.01
    assert quick.probs.max() == pytest.approx(exact.probs.max(), abs=0.01)


def test_queries_asked_together_are_answered_as_alone(tiny: Any, prefix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = ["a cat", "two dogs run", "a cat", "हाथी 象", "<|im_end|> {query}"]
    alone = [ground_fine(tiny, prefix, STAMPS, [q], several=True)[0] for q in queries]
    for limit in (4096, 64):
        monkeypatch.setattr(decode, "NODES_AT_ONCE", limit)
        for one, other in zip(alone, ground_fine(tiny, prefix, STAMPS, queries, several=True), strict=True):
            assert one.picks == other.picks
            np.testing.assert_allclose(one.steps[0].log_probs, other.steps[0].log_probs, atol=1e-3)
            np.testing.assert_allclose(one.relevance(), other.relevance(), atol=1e-4)


def test_answers_are_always_among_the_stamps_and_always_parse(tiny: Any, prefix: Any) -> None:
    for answer in ground_fine(tiny, prefix, STAMPS, ["x", "y z", "?"], several=True):
        windows = parse_windows(tiny.prompts.answer(answer.picks))
        assert windows == list(answer.picks)
        assert all(a in STAMPS and b in STAMPS and a <= b for a, b in windows)
        assert all(0 <= m.score <= 1 and m.start < m.end for m in answer.moments(5))


@pytest.mark.parametrize("reply", ["From 1.5 seconds to 10.5 seconds.", "From 2.5 seconds to 2.5 seconds."])
def test_the_constrained_answer_is_the_greedy_one_where_that_is_valid(words: Any, reply: str) -> None:
    model = FakeModel(words, Prompts(), reply)
    turn = model.prompts.ask_when("a cat")
    assert generate(model, (), [turn]) == [reply]
    answer = ground_fine(model, (), STAMPS, ["a cat"])[0]
    assert list(answer.picks) == parse_windows(reply)
    assert model.prompts.answer(answer.picks) == reply
    assert answer.moments()[0].score > 0.9


def test_several_windows_are_followed_while_the_model_goes_on(words: Any) -> None:
    reply = "From 0.5 seconds to 1.5 seconds, from 2.5 seconds to 10.5 seconds."
    model = FakeModel(words, Prompts(), reply)
    answer = ground_fine(model, (), STAMPS, ["a cat"], several=True)[0]
    assert model.prompts.answer(answer.picks) == reply
    assert sorted((m.start, m.end) for m in answer.moments(2)) == [(0.5, 1.5), (2.5, 10.5)]
    assert (answer.relevance() > 0.8).all()
    assert len(ground_fine(model, (), STAMPS, ["a cat"])[0].steps) == 1


def test_not_found_is_weighed_against_the_first_word(words: Any) -> None:
    absent = FakeModel(words, NOT_FOUND, "Not found.")
    present = FakeModel(words, NOT_FOUND, "From 0.5 seconds to 1.5 seconds.")
    unable = FakeModel(words, Prompts(), "Not found.")
    assert ground_fine(absent, (), STAMPS, ["a cat"])[0].found < 0.05
    assert ground_fine(present, (), STAMPS, ["a cat"])[0].found > 0.95
    assert ground_fine(unable, (), STAMPS, ["a cat"])[0].found == 1
    assert ground_fine(absent, (), STAMPS, ["a cat"])[0].moments()[0].score < 0.05


@pytest.mark.parametrize("nothing", ["Fine, no.", "From nowhere."])
def test_not_found_may_begin_like_an_answer(words: Any, nothing: str) -> None:
    model = FakeModel(words, Prompts(not_found=nothing), nothing)
    assert ground_fine(model, (), STAMPS, ["a cat"])[0].found < 0.1


def test_an_answer_may_begin_with_its_stamp(words: Any) -> None:
    prompts = Prompts(window="{start} to {end}", segment="{t}", not_found="none")
    model = FakeModel(words, prompts, "0.5 to 1.5, 2.5 to 10.5.")
    answer = ground_fine(model, (), STAMPS, ["a cat"], several=True)[0]
    assert answer.picks == ((0.5, 1.5), (2.5, 10.5))
    assert answer.found > 0.95
    assert ground_fine(FakeModel(words, prompts, "none"), (), STAMPS, ["a cat"])[0].found < 0.2


def test_segments_are_listed_with_their_probabilities(words: Any) -> None:
    model = FakeModel(words, NOT_FOUND, "0.5 seconds, 1.5 seconds, 10.5 seconds.")
    answer = ground_coarse(model, (), STAMPS, ["a cat"])[0]
    assert (answer.listed[[0, 1, 3]] > 0.8).all()
    assert answer.listed[2] < 0.2
    assert {span[:2] for span in answer.spans[:2]} == {(0, 1), (3, 3)}
    assert answer.found > 0.9
    split = ground_coarse(model, (), STAMPS, ["a cat"], adjacent=[False, True, True])[0]
    assert {span[:2] for span in split.spans[:3]} == {(0, 0), (1, 1), (3, 3)}


def test_listing_equals_weighing_every_list_by_itself(tiny: Any, prefix: Any) -> None:
    """All ascending lists, each scored token by token and shared out as the beam does."""
    stamps = STAMPS[:3]
    turn = tiny.prompts.ask_when("a cat")

    def score(text: str) -> float:
        return chain_log_prob(tiny, prefix, turn, text)

    def share(items: list[float]) -> np.ndarray:
        return np.exp(np.array(items) - np.logaddexp.reduce(items))

    wanted = np.zeros(3)

    def follow(text: str, listed: list[int], probability: float) -> None:
        rest = range(listed[-1] + 1 if listed else 0, 3)
        steps = share([score(text + stamp(stamps[j])[0]) for j in rest])  # the first digit tells them apart
        for j, p in zip(rest, steps, strict=True):
            here = f"{text}{stamp(stamps[j])} seconds"
            more = share([score(here + "."), score(here + ",")])[1] if j < 2 else 0.0
            wanted[[*listed, j]] += probability * p * (1 - more)
            if more:
                follow(here + ", ", [*listed, j], probability * p * more)

    follow("", [], 1.0)
    # ", " is one decision here and the comma alone is weighed there, as the stop is one token: the blank is certain
    found = ground_coarse(tiny, prefix, stamps, ["a cat"], beams=8, least=0.0, prune=0)[0]
    np.testing.assert_allclose(found.listed, wanted, atol=1e-3)
    pruned = ground_coarse(tiny, prefix, stamps, ["a cat"], beams=1)[0]
    assert (pruned.listed <= 1).all() and pruned.listed.sum() >= 1 - 1e-6


def test_coarse_answers_parse(tiny: Any) -> None:
    assert parse_stamps(tiny.prompts.segments(STAMPS)) == list(STAMPS)


def test_choices_share_all_the_probability(tiny: Any, prefix: Any) -> None:
    answers = [tiny.prompts.chosen(i) for i in range(3)]
    turn = tiny.prompts.ask("who?", ["a", "b", "c"])
    found = choose(tiny, prefix, turn, answers)
    np.testing.assert_allclose(found, shared(tiny, prefix, turn, "", answers), atol=1e-3)
    assert choose(FakeModel(tiny.tokenizer, Prompts(), "(B)"), (), turn, answers).argmax() == 1


def test_free_text_is_the_argmax_token_by_token(tiny: Any, prefix: Any) -> None:
    turns = ["Describe.", "Query:x\nAnswer: "]
    wanted = []
    for turn in turns:
        ids = continuation(tiny.tokenizer, tiny.prompts, turn).ids.tolist()
        start = len(ids)
        for _ in range(6):
            hidden = tiny.forest(prefix).grow(ids, list(range(-1, len(ids) - 1)))
            ids.append(tiny.best(hidden[-1:])[0])
        wanted.append(tiny.tokenizer.decode(ids[start:], skip_special_tokens=True).strip())
    assert generate(tiny, prefix, turns, max_tokens=6) == wanted


def test_stamps_stand_alone_in_tokenizers_that_split_like_those_of_qwen(words: Any) -> None:
    """Merged words, single digits, a space before a digit by itself: the split of Qwen2's tokenizer file."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from shots.runtime.vision import transformers

    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    text = [
        Prompts().answer([(12.5, 100.0), (103.5, 110.0)]),
        Prompts().segments(STAMPS),
        Prompts().header,
        "assistant",
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(text * 50, trainer)
    tokenizer = transformers().PreTrainedTokenizerFast(tokenizer_object=inner)
    assert len(encode(tokenizer, [" seconds"])[0]) == 1
    model = FakeModel(tokenizer, NOT_FOUND, "From 0.5 seconds to 1.5 seconds, from 2.5 seconds to 10.5 seconds.")
    model.size = len(tokenizer)
    answer = ground_fine(model, (), STAMPS, ["a cat"], several=True)[0]
    assert answer.picks == ((0.5, 1.5), (2.5, 10.5)) and answer.found > 0.9
    model = FakeModel(tokenizer, NOT_FOUND, "1.5 seconds, 2.5 seconds.")
    model.size = len(tokenizer)
    assert (ground_coarse(model, (), STAMPS, ["a cat"])[0].listed[[1, 2]] > 0.7).all()


def test_a_tokenizer_that_joins_stamps_and_words_is_refused(words: Any) -> None:
    class Joining:
        def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
            known: dict[str, int] = {}
            return {"input_ids": [[known.setdefault(w, zlib.crc32(w.encode())) for w in t.split()] for t in texts]}

    model = FakeModel(words, Prompts(), "x")
    model.tokenizer = Joining()
    with pytest.raises(UniTimeError, match="decoding='text'"):
        ground_fine(model, (), STAMPS, ["a cat"])


def test_a_trie_refuses_sequences_it_cannot_tell_apart() -> None:
    for bad in ([[1], [1, 2]], [[1], [1]], [[]], []):
        with pytest.raises(UniTimeError, match="told apart"):
            Trie.of(bad)
    trie = Trie.of([[1, 2], [1, 3], [4]])
    assert trie.tokens.tolist() == [1, 2, 3, 4]
    assert trie.inner.tolist() == [True, False, False, False]
    assert trie.counts(np.array([0, 1, 2])).tolist() == [[2, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1]]


def test_the_best_window_maximises_the_expected_hits() -> None:
    """Two neighbours that agree beat a lone window that is likelier than either."""
    windows = np.array([[0.0, 10.0], [50.0, 60.0], [50.0, 61.0], [51.0, 60.0]])
    mass = np.array([0.34, 0.22, 0.22, 0.22])
    first, second = rank(windows, mass, 2, 1.0)
    assert (first.start, first.end) == (50.0, 60.0)
    assert first.score == pytest.approx(0.66)
    assert (second.start, second.end, second.score) == (0.0, 10.0, pytest.approx(0.34))
    assert len(rank(windows, mass, 10, 1.0)) == 2


def test_a_window_of_one_stamp_is_as_long_as_a_unit() -> None:
    (only,) = rank(np.array([[4.0, 4.0]]), np.array([1.0]), 3, 2.0)
    assert (only.start, only.end, only.score) == (3.0, 5.0, 1.0)


def test_long_lists_of_stamps_stay_cheap(words: Any) -> None:
    """A thousand stamps share their digits: the trie has about as many inner nodes as there are stamps."""
    trie = Trie.of(encode(words, [stamp(t + 0.5) for t in range(1000)]))
    assert trie.inner.sum() < 2200
    assert all(a < b for a, b in itertools.pairwise(trie.leaves))
    model = FakeModel(words, Prompts(), "From 12.5 seconds to 31.5 seconds.")
    forest = model.forest(())
    model.forest = lambda prefix: forest
    assert ground_fine(model, (), [t + 0.5 for t in range(1000)], ["x"])[0].picks == ((12.5, 31.5),)
    assert len(forest) < 400  # and most of it is not looked into
