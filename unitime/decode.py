"""Reading answers out of the model: exact probabilities of windows over the stamps shown, or free text.

A fine answer is "From s seconds to e seconds", with s and e among the stamps that were shown. Written as tokens, the
stamps form a trie. Going down it level by level gives P(start = s) for every s; going down once more below the
likeliest starts gives P(end = e | s). Nothing is sampled, no answer fails to parse, and every window has a probability.
All questions asked of a video, and all their tries, go down together in the same forwards (`unitime.model.Forest`).

Notable choices:

- ``log_probs`` are the model's own, over its whole vocabulary, product by product along the answer's tokens; a test
  compares them with brute-force scoring. ``probs`` share each token's probability among those that are allowed there,
  so they sum to one over the windows.
- A branch of the trie with too little probability to matter (``prune``) is not looked into: what it holds is shared out
  evenly among the stamps below it. And starts are taken until they hold ``coverage`` of the mass, at most ``starts`` of
  them. So a model that is sure costs little, and no mass is lost. ``prune=0, coverage=1`` is exact.
- A window's score is the mass of windows that overlap it by IoU >= 0.5, times the probability that there is anything to
  find: the chance that it counts as a hit. The answer is the window with the best mean of hit rate at 0.5, hit rate at
  0.7 and expected IoU (minimum Bayes risk), which is steadier than the single likeliest window.
- "Not found" is weighed against the answer's first words, where both are one token away.
- Coarse answers list segments. Their lists are followed by a beam, and a segment's score is the mass of the lists that
  it is on; what falls off the beam still counts with the segments listed so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unitime.errors import UniTimeError
from unitime.prompts import Prompts, capital, stamp
from unitime.sequence import Tokenizer, continuation, encode, tree_depths

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NODES_AT_ONCE = 2048  # tokens of one forest, unless the prefix is longer
NODES_OF_A_TRIE = 40  # that are grown where the model is fairly sure
NODES_AHEAD = 256  # of tries that are grown whole: so many tokens cost less than the forwards they save
PRUNE = 1e-3
KEPT_WINDOWS = 400  # likeliest windows that scores are computed from
MAX_WINDOWS = 8  # windows of one answer


class Grower(Protocol):
    """A forest on a prefix; see :class:`unitime.model.Forest`."""

    def __len__(self) -> int: ...
    def grow(self, ids: Sequence[int], parents: Sequence[int]) -> Any: ...


class Model(Protocol):
    """What is needed of a :class:`unitime.model.VisionLanguageModel`."""

    @property
    def prompts(self) -> Prompts: ...
    @property
    def tokenizer(self) -> Any: ...
    def forest(self, prefix: Any) -> Grower: ...
    def log_probs(self, hidden: Any, rows: Sequence[int], tokens: Sequence[int]) -> Floats: ...
    def best(self, hidden: Any) -> list[int]: ...


# Tries.


@dataclass(frozen=True, eq=False)
class Trie:
    """Token sequences with their common beginnings shared; none is the beginning of another.

    tokens, parents: (M,) of each node; a parent stands before its children, -1 is the root. leaves: (S,) last node of
    each sequence. inner: (M,) bool, nodes that have children. only: (M,) bool, nodes whose parent has no other child.
    levels: the nodes of each depth, those of one parent together, and where each parent's begin.
    """

    tokens: Ints
    parents: Ints
    leaves: Ints
    inner: NDArray[np.bool_]
    only: NDArray[np.bool_]
    levels: tuple[tuple[Ints, Ints], ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Trie:
        """The trie of some sequences. Raises UniTimeError where one begins another, or one is there twice."""
        children: dict[tuple[int, int], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        leaves: list[int] = []
        for sequence in sequences:
            node = -1
            for token in sequence:
                key = (node, token)
                if key not in children:
                    children[key] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = children[key]
            leaves.append(node)
        above = np.asarray(parents, dtype=np.int64)
        inner = np.zeros(len(tokens), dtype=bool)
        inner[above[above >= 0]] = True
        only = (np.bincount(above + 1, minlength=len(tokens) + 1) == 1)[above + 1]
        ends = np.asarray(leaves, dtype=np.int64)
        if len(ends) == 0 or (ends < 0).any() or inner[ends].any() or len(set(leaves)) < len(leaves):
            raise UniTimeError(
                "answers: one is empty, there twice, or the beginning of another; they cannot be told apart"
            )
        depths = tree_depths(parents)
        levels = []
        for depth in range(int(depths.max()) + 1):
            nodes = np.flatnonzero(depths == depth)
            nodes = nodes[np.argsort(above[nodes], kind="stable")]
            begins = np.flatnonzero(np.diff(above[nodes], prepend=-2))
            levels.append((nodes, begins))
        return cls(np.asarray(tokens, dtype=np.int64), above, ends, inner, only, tuple(levels))

    def __len__(self) -> int:
        return len(self.leaves)

    def counts(self, first: Ints) -> Ints:
        """(W, M): how many sequences from index ``first`` (W,) on go through each node."""
        found = np.zeros((len(first), len(self.tokens)), dtype=np.int64)
        found[:, self.leaves] = np.arange(len(self))[None] >= first[:, None]
        for nodes, begins in self.levels[:0:-1]:
            found[:, self.parents[nodes[begins]]] += np.add.reduceat(found[:, nodes], begins, axis=1)
        return found


@dataclass
class _Batch:
    """Nodes to be grown together, and the probabilities to be read from them afterwards."""

    model: Model
    forest: Grower
    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    rows: list[Ints] = field(default_factory=list)
    tokens: list[Ints] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = len(self.forest)

    def chain(self, ids: Sequence[int], parent: int) -> int:
        """Grows ids one below the other; returns the last one's index in the forest, ``parent`` where there is none."""
        for token in ids:
            self.ids.append(int(token))
            self.parents.append(parent)
            parent = self.tip
        return parent

    @property
    def tip(self) -> int:
        """The forest's index of the latest node."""
        return self.base + len(self.ids) - 1

    def want(self, nodes: Ints | Sequence[int], tokens: Ints | Sequence[int]) -> slice:
        """Asks for log P(token | node) of pairs; the nodes are grown in this batch."""
        start = sum(map(len, self.rows))
        self.rows.append(np.asarray(nodes, dtype=np.int64) - self.base)
        self.tokens.append(np.asarray(tokens, dtype=np.int64))
        return slice(start, start + len(self.rows[-1]))

    def run(self) -> Floats:
        """Grows everything; the answers to all that was asked, in order."""
        hidden = self.forest.grow(self.ids, self.parents)
        return self.model.log_probs(hidden, np.concatenate(self.rows).tolist(), np.concatenate(self.tokens).tolist())


@dataclass(eq=False)
class _Hang:
    """Where a trie is to be hung: below ``chain``, which is grown below the node ``parent``.

    first: the least sequence allowed. weight: how much its probabilities matter, for pruning. asked: pairs of a place
    in the chain and a token whose probability after it is wanted too.
    """

    parent: int
    chain: list[int]
    first: int = 0
    weight: float = 1.0
    asked: list[tuple[int, int]] = field(default_factory=list)


@dataclass(eq=False)
class _Hung:
    """A trie that was gone down: shares (S,) and log-probabilities (S,) of its sequences.

    nodes: (M,) the forest's index of each node, -1 for those not grown. asked: log-probabilities of what was asked.
    """

    trie: Trie
    root: int
    nodes: Ints
    shares: Floats
    log_probs: Floats
    asked: Floats

    def path(self, sequence: int) -> tuple[int, list[int]]:
        """A grown node and the tokens below it that lead to the end of a sequence."""
        node = int(self.trie.leaves[sequence])
        tokens = [int(self.trie.tokens[node])]
        while (node := int(self.trie.parents[node])) >= 0 and self.nodes[node] < 0:
            tokens.insert(0, int(self.trie.tokens[node]))
        return (self.root if node < 0 else int(self.nodes[node])), tokens


def _descend(model: Model, forest: Grower, trie: Trie, hangs: Sequence[_Hang], prune: float) -> list[_Hung]:
    """Hangs the trie at W places and goes down all of them together, one forward a level, or one in all.

    The first level is grown with the chains. Below it only nodes that hold at least ``prune`` of the mass are entered,
    and the best one of each level. An only child is grown with its parent, so the point of "12.5" costs no forward of
    its own. Where all of it is few tokens, all of it is grown with the chains, which gives the same answer: what hangs
    below a node counts only where the node is entered.
    """
    first = np.array([hang.first for hang in hangs])
    weight = np.array([hang.weight for hang in hangs])[:, None]
    counts = trie.counts(first)  # (W, M)
    allowed = counts > 0
    nodes_at = np.full(counts.shape, -1, dtype=np.int64)
    entered = np.zeros(counts.shape, dtype=bool)  # whose children's probabilities count
    edges = np.full(counts.shape, -np.inf)  # log P(node | parent), where the parent was grown
    shares = np.zeros(counts.shape)
    log_probs = np.full(counts.shape, -np.inf)
    batch = _Batch(model, forest)
    roots, asked = [], []
    for hang in hangs:
        places = [batch.chain([token], hang.parent if i == 0 else batch.tip) for i, token in enumerate(hang.chain)]
        roots.append(places[-1])
        asked.append(batch.want([places[i] for i, _ in hang.asked], [token for _, token in hang.asked]))
    root = np.array(roots)[:, None]

    def above(nodes: Ints) -> Ints:
        """(W, n): the forest's index of the nodes' parents, -1 for those not grown."""
        parents = trie.parents[nodes]
        return np.where(parents[None] < 0, root, nodes_at[:, parents])

    def want(nodes: Ints, mask: NDArray[np.bool_]) -> tuple[Ints, Ints, slice]:
        """Asks for the probabilities of nodes whose parents are grown in this batch."""
        rows, columns = np.nonzero(mask)
        tokens = trie.tokens[nodes[columns]]
        return rows, nodes[columns], batch.want(above(nodes)[rows, columns], tokens)

    def grow(nodes: Ints, mask: NDArray[np.bool_], more: NDArray[np.bool_]) -> list[tuple[Ints, Ints, slice]]:
        """Grows nodes, with those of the nodes below them that are in ``more``, and asks what follows each."""
        wanted = []
        while mask.any():
            rows, columns = np.nonzero(mask)
            nodes_at[rows, nodes[columns]] = batch.base + len(batch.ids) + np.arange(len(rows))
            batch.ids += trie.tokens[nodes[columns]].tolist()
            batch.parents += above(nodes)[rows, columns].tolist()
            grown = np.zeros(counts.shape, dtype=bool)
            grown[rows, nodes[columns]] = True
            under = np.zeros(len(trie.tokens), dtype=bool)
            under[nodes[columns]] = True
            below = np.flatnonzero((trie.parents >= 0) & under[trie.parents])
            follows = grown[:, trie.parents[below]] & allowed[:, below]
            wanted.append(want(below, follows))
            nodes, mask = below, follows & more[below]
        return wanted

    def run(wanted: Sequence[tuple[Ints, Ints, slice]]) -> Floats:
        answers = batch.run()
        for rows, nodes, which in wanted:
            edges[rows, nodes] = answers[which]
        return answers

    def settle(level: tuple[Ints, Ints]) -> None:
        nodes, begins = level
        parents = trie.parents[nodes]
        over = parents >= 0
        known = allowed[:, nodes] & (entered[:, parents] | ~over)
        step = np.where(known, edges[:, nodes], -np.inf)
        sizes = np.diff(np.append(begins, len(nodes)))
        top = np.repeat(np.maximum.reduceat(step, begins, axis=1), sizes, axis=1)
        mass = np.exp(step - np.where(np.isfinite(top), top, 0.0))
        total = np.repeat(np.add.reduceat(mass, begins, axis=1), sizes, axis=1)
        local = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)
        blind = ~known & allowed[:, nodes]  # below what was not looked into: evenly
        inside = counts[:, nodes] / np.maximum(counts[:, parents], 1)
        local[blind] = inside[blind]
        step[blind] = np.log(inside[blind])
        shares[:, nodes] = np.where(over, shares[:, parents], 1.0) * local
        log_probs[:, nodes] = np.where(over, log_probs[:, parents], 0.0) + step

    top = trie.levels[0][0]
    entered[:, top] = allowed[:, top] & trie.inner[top]
    ahead = trie.inner if np.count_nonzero(allowed & trie.inner) <= NODES_AHEAD else np.zeros_like(trie.inner)
    answers = run([want(top, allowed[:, top]), *grow(top, entered[:, top], ahead)])
    found = [answers[each] for each in asked]
    settle(trie.levels[0])
    for depth in range(1, len(trie.levels)):
        settle(trie.levels[depth])
        nodes = trie.levels[depth][0]
        able = trie.inner[nodes] & allowed[:, nodes] & entered[:, trie.parents[nodes]]
        held = np.where(able, shares[:, nodes], -1.0)
        entered[:, nodes] = able & ((weight * held >= prune) | (held >= held.max(axis=1, keepdims=True)))
        missing = entered[:, nodes] & (nodes_at[:, nodes] < 0)
        if missing.any():
            batch = _Batch(model, forest)
            run(grow(nodes, missing, trie.inner & trie.only))
    ends = trie.leaves
    return [
        _Hung(trie, int(roots[w]), nodes_at[w], shares[w, ends], log_probs[w, ends], found[w])
        for w in range(len(hangs))
    ]


# The fixed words around stamps.


@dataclass(frozen=True)
class _Words:
    """Tokens between the stamps of an answer, and the answer that says there is nothing."""

    head: list[int]  # "From ", before the first stamp
    middle: list[int]  # " seconds to "
    tail: list[int]  # " seconds"
    join: list[int]  # ", from "
    stop: list[int]  # "."
    nothing: list[int]  # "Not found." or empty

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompts: Prompts, mode: str, example: tuple[float, float]) -> _Words:
        """The words of fine or coarse answers. Raises UniTimeError where the tokenizer melts stamps and words."""
        if mode == "fine":
            head, rest = prompts.window.split("{start}")
            middle, tail = rest.split("{end}")
            whole = prompts.answer([example, example])
        else:
            head, tail = prompts.segment.split("{t}")
            middle = ""
            whole = prompts.segments(example)
        first = capital(prompts.opening + head) if mode == "fine" else capital(head)
        parts = [first, middle, tail, ", " + head, ".", prompts.not_found or ""]
        header = prompts.header.replace("{role}", "assistant")
        stamps = [stamp(example[0]), stamp(example[1])]
        a, b, full, begin, *words = encode(tokenizer, [*stamps, header + whole, header, *parts])
        found = cls(*words)
        window = a + found.middle + b if mode == "fine" else a
        second = window if mode == "fine" else b
        if full != begin + found.head + window + found.tail + found.join + second + found.tail + found.stop:
            raise UniTimeError(
                "model: its tokenizer joins stamps with the words beside them, so answers cannot be constrained; "
                "use decoding='text'"
            )
        return found

    @property
    def fork(self) -> int:
        """How many tokens "nothing" and the answer's head have in common."""
        pairs = zip(self.head, self.nothing, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.head), len(self.nothing)))

    def opening(self, chain: list[int]) -> tuple[list[int], list[tuple[int, int]], list[tuple[int, int]]]:
        """The chain with the answer's first words; what is asked to know whether there is one; and what its words cost.

        Both as pairs of a place in the chain and the token after it. The first is empty where there is no choice, and
        holds "nothing" alone where the answer has no words before its first stamp to weigh it against.
        """
        place = len(chain) - 1
        words = [(place + i, token) for i, token in enumerate(self.head)]
        at = self.fork
        weighed = [(place + at, part[at]) for part in (self.nothing, self.head) if at < len(part)]
        return chain + self.head, weighed if at < len(self.nothing) else [], words


def _found(answers: Floats) -> float:
    """P(the second of two tokens), or what the only one leaves, or 1 where none was asked about."""
    if len(answers) == 0:
        return 1.0
    if len(answers) == 1:
        return float(1.0 - np.exp(min(answers[0], 0.0)))
    return float(1.0 / (1.0 + np.exp(np.clip(answers[0] - answers[1], -500, 500))))


# Windows.


@dataclass(frozen=True, eq=False)
class WindowDistribution:
    """One window of an answer, as the model sees it.

    Attributes:
        stamps: (S,) seconds, ascending, without repeats.
        start_probs: (S,) P(start) among the stamps.
        starts: (B,) indices of the starts whose ends were looked at, likeliest first.
        end_probs: (B, S) P(end | start) among the stamps from the start on.
        start_log_probs, log_probs: (S,) and (B, S) log P of the answer's very tokens up to its start and to its end;
            -inf where the end lies before the start. Both count from where the answer begins, or for a later window
            from the word that joins it to the one before.
        weight: probability that the answer gets as far as this window.
    """

    stamps: Floats
    start_probs: Floats
    starts: Ints
    end_probs: Floats
    start_log_probs: Floats
    log_probs: Floats
    weight: float = 1.0

    @property
    def probs(self) -> Floats:
        """(B, S): P(start, end) among the windows; sums to the mass of the starts looked at."""
        return self.start_probs[self.starts, None] * self.end_probs

    def windows(self, most: int = KEPT_WINDOWS) -> tuple[Floats, Floats]:
        """The likeliest windows (n, 2) in seconds and their probabilities (n,), likeliest first."""
        probs = self.probs
        flat = np.argsort(-probs, axis=None, kind="stable")[:most]
        rows, ends = np.unravel_index(flat, probs.shape)
        mass = probs[rows, ends]
        keep = mass > 0
        return np.stack([self.stamps[self.starts[rows]], self.stamps[ends]], axis=1)[keep], mass[keep]

    def covered(self) -> Floats:
        """(S,): the mass of windows that hold each stamp."""
        after = np.cumsum(self.probs[:, ::-1], axis=1)[:, ::-1]  # (B, S) P(start, end >= stamp)
        inside = np.arange(len(self.stamps))[None] >= self.starts[:, None]
        return np.minimum((after * inside).sum(axis=0), 1.0)


@dataclass(frozen=True, eq=False)
class Scored:
    """A window with its score: seconds, and the chance that it is a hit."""

    start: float
    end: float
    score: float


@dataclass(frozen=True, eq=False)
class FineAnswer:
    """What the model says of one query in a fine pass.

    found: probability that there is something to find. steps: the windows of the answer, one distribution each. picks:
    the windows it names, (start, end), one for each step.
    """

    found: float
    steps: tuple[WindowDistribution, ...]
    picks: tuple[tuple[float, float], ...]

    @property
    def stamps(self) -> Floats:
        return self.steps[0].stamps

    def moments(self, top_k: int = 1) -> list[Scored]:
        """The best windows, best first, no two overlapping by IoU >= 0.5."""
        candidates = [
            Scored(s.start, s.end, s.score * step.weight * self.found)
            for step in self.steps
            for s in rank(*step.windows(), top_k, spacing(step.stamps))
        ]
        chosen: list[Scored] = []
        for item in sorted(candidates, key=lambda s: -s.score):
            if all(window_iou((item.start, item.end), (c.start, c.end)) < 0.5 for c in chosen):
                chosen.append(item)
        return chosen[:top_k]

    def later(self, seconds: float) -> FineAnswer:
        """The same answer on a clock that reads ``seconds`` more."""
        steps = tuple(replace(step, stamps=step.stamps + seconds) for step in self.steps)
        return FineAnswer(self.found, steps, tuple((a + seconds, b + seconds) for a, b in self.picks))

    def relevance(self) -> Floats:
        """(S,): for each stamp the probability that a window of the answer holds it."""
        missed = np.ones(len(self.stamps))
        for step in self.steps:
            missed *= 1.0 - step.weight * step.covered()
        return self.found * (1.0 - missed)


def spacing(stamps: Floats) -> float:
    """Typical seconds between stamps; 0.1, their resolution, where there is only one."""
    return float(np.median(np.diff(stamps))) if len(stamps) > 1 else 0.1


def rank(windows: Floats, mass: Floats, top_k: int, gap: float) -> list[Scored]:
    """The windows of least expected loss, best first, each scored by the mass that overlaps it by IoU >= 0.5.

    ``windows`` (n, 2) with their probabilities ``mass`` (n,). A window of no length is given that of one ``gap``. After
    the first, only the mass that no chosen window hits counts, and no two of them overlap by half.
    """
    spans = np.array([lengthened((a, b), gap) for a, b in windows.tolist()]).reshape(-1, 2)
    overlap = _iou(spans, spans)  # (n, n)
    hits = overlap >= 0.5
    gain = (hits + (overlap >= 0.7) + overlap) / 3
    left = mass.copy()
    free = np.ones(len(spans), dtype=bool)
    chosen: list[Scored] = []
    while len(chosen) < top_k and free.any():
        worth = np.where(free, gain @ left, -np.inf)
        best = int(worth.argmax())
        chosen.append(Scored(float(spans[best, 0]), float(spans[best, 1]), float(min(hits[best] @ left, 1.0))))
        left = np.where(hits[best], 0.0, left)
        free &= ~hits[best]
    return chosen


def lengthened(window: tuple[float, float], gap: float) -> tuple[float, float]:
    """The window (start, end), or where it has no length so many seconds about it."""
    start, end = window
    return (start, end) if end > start else (start - gap / 2, end + gap / 2)


def window_iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """IoU of two windows (start, end)."""
    return float(_iou(np.array([a]), np.array([b]))[0, 0])


def _iou(a: Floats, b: Floats) -> Floats:
    """IoU (n, m) of windows (n, 2) and (m, 2); 0 where both have no length."""
    inter = np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0])
    inter = np.maximum(inter, 0.0)
    union = (a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0])[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def ground_fine(
    model: Model,
    prefix: Any,
    stamps: Sequence[float],
    queries: Sequence[str],
    *,
    several: bool = False,
    starts: int = 12,
    coverage: float = 0.95,
    prune: float = PRUNE,
) -> list[FineAnswer]:
    """The distribution of each query's windows over the stamps of a fine prefix.

    Args:
        model, prefix: what was prefilled with the fine plan whose ``stamps`` these are.
        queries: in words; they are asked together, in groups of bounded size.
        several: also follow the answer to its second and later windows, while the model prefers to go on.
        starts, coverage: ends are looked at for the likeliest starts, at most so many, until they hold so much mass.
        prune: mass of a branch below which it is not looked into.
    """
    values = np.unique(np.asarray(stamps, dtype=np.float64))
    trie = Trie.of(encode(model.tokenizer, [stamp(t) for t in values]))
    words = _Words.of(model.tokenizer, model.prompts, "fine", (float(values[0]), float(values[-1])))
    chains = [continuation(model.tokenizer, model.prompts, model.prompts.ask_when(q)).ids.tolist() for q in queries]
    each = NODES_OF_A_TRIE + min(starts, len(trie)) * (len(words.middle) + 8)
    answers: list[FineAnswer] = []
    for group in _groups(chains, each, len(prefix)):
        forest = model.forest(prefix)
        answers += _fine_group(_Down(model, forest, trie, prune), values, words, group, several, starts, coverage)
    return answers


def _groups(chains: list[list[int]], each: int, prefix: int) -> list[list[list[int]]]:
    """Chains in groups whose forests hold about as many nodes as is worth one forward."""
    limit = max(NODES_AT_ONCE, prefix)
    groups: list[list[list[int]]] = []
    used = limit + 1
    for chain in chains:
        if used + each + len(chain) > limit:
            groups.append([])
            used = 0
        groups[-1].append(chain)
        used += each + len(chain)
    return groups


@dataclass(frozen=True, eq=False)
class _Down:
    """What goes down a trie in a forest."""

    model: Model
    forest: Grower
    trie: Trie
    prune: float

    def __call__(self, hangs: Sequence[_Hang]) -> list[_Hung]:
        return _descend(self.model, self.forest, self.trie, hangs, self.prune)


@dataclass(eq=False)
class _Branch:
    """One query on its way: the trie of its next start, and log P of the words before it."""

    index: int
    hung: _Hung
    weight: float = 1.0
    spent: float = 0.0


def _fine_group(
    down: _Down,
    values: Floats,
    words: _Words,
    chains: list[list[int]],
    several: bool,
    starts: int,
    coverage: float,
) -> list[FineAnswer]:
    steps: list[list[WindowDistribution]] = [[] for _ in chains]
    picks: list[list[tuple[float, float]]] = [[] for _ in chains]

    # The queries and the tries of their first starts.
    opened = [words.opening(chain) for chain in chains]
    hung = down([_Hang(-1, chain, asked=weighed + head) for chain, weighed, head in opened])
    found = [_found(h.asked[: len(weighed)]) for h, (_, weighed, _) in zip(hung, opened, strict=True)]
    branches = [
        _Branch(i, h, spent=float(h.asked[len(weighed) :].sum()))
        for i, (h, (_, weighed, _)) in enumerate(zip(hung, opened, strict=True))
    ]
    while branches:
        # The ends of the likeliest starts.
        hangs, owners = [], []
        for branch in branches:
            for start in _likeliest(branch.hung.shares, starts, coverage):
                parent, tokens = branch.hung.path(start)
                asked = [(len(tokens) - 1 + i, token) for i, token in enumerate(words.middle)]
                share = float(branch.hung.shares[start])
                hangs.append(_Hang(parent, tokens + words.middle, int(start), share, asked))
                owners.append((branch, int(start)))
        below: dict[int, list[tuple[int, _Hung]]] = {}
        for (branch, start), h in zip(owners, down(hangs), strict=True):
            below.setdefault(branch.index, []).append((start, h))

        # The window that is named, and whether the answer goes on after it.
        hangs, going = [], []
        for branch in branches:
            i, ends = branch.index, below[branch.index]
            starts_at = np.array([start for start, _ in ends])
            before = branch.spent + branch.hung.log_probs
            rows = [before[start] + h.asked.sum() + h.log_probs for start, h in ends]
            step = WindowDistribution(
                values, branch.hung.shares, starts_at, np.stack([h.shares for _, h in ends]), before, np.stack(rows),
                branch.weight,
            )  # fmt: skip
            row, end = np.unravel_index(int(step.probs.argmax()), step.end_probs.shape)
            start, h = ends[int(row)]
            steps[i].append(step)
            picks[i].append((float(values[start]), float(values[end])))
            if several and len(steps[i]) < MAX_WINDOWS and start + 1 < len(values):
                parent, tokens = h.path(int(end))
                place = len(tokens) + len(words.tail) - 1
                asked = [(place, words.stop[0]), (place, words.join[0])]
                hangs.append(_Hang(parent, tokens + words.tail + words.join, start + 1, asked=asked))
                going.append(branch)
        branches = [
            _Branch(branch.index, h, branch.weight * more)
            for branch, h in zip(going, down(hangs) if hangs else [], strict=True)
            if (more := _found(h.asked)) >= 0.5
        ]
    return [FineAnswer(f, tuple(s), tuple(p)) for f, s, p in zip(found, steps, picks, strict=True)]


def _likeliest(shares: Floats, most: int, coverage: float) -> Ints:
    """Indices of the largest shares, in order, until they hold ``coverage`` of the mass."""
    order = np.argsort(-shares, kind="stable")[:most]
    enough = int(np.searchsorted(np.cumsum(shares[order]), coverage)) + 1
    order = order[:enough]
    return order[shares[order] > 0]


# Segments.


@dataclass(frozen=True, eq=False)
class CoarseAnswer:
    """What the model says of one query in a coarse pass.

    found: probability that there is something to find. listed: (S,) probability that each segment is on the list.
    spans: runs of neighbouring segments (first, last), both included, with the mass of the lists that hold just that
    run, likeliest first.
    """

    found: float
    listed: Floats
    spans: tuple[tuple[int, int, float], ...]

    @classmethod
    def listing(cls, times: Sequence[float], stamps: Sequence[float], adjacent: Sequence[bool] | None) -> CoarseAnswer:
        """The answer that lists just these times, each taken for the segment that it lies in; none is not found."""
        shown = np.asarray(stamps, dtype=np.float64)
        listed = np.zeros(len(shown))
        items = sorted({max(int(np.searchsorted(shown, t, side="right")) - 1, 0) for t in times})
        listed[items] = 1.0
        touching = [True] * (len(shown) - 1) if adjacent is None else adjacent
        return cls(float(bool(items)), listed, tuple((a, b, 1.0) for a, b in _runs(items, touching)))


@dataclass(eq=False)
class _Beam:
    """A list of segments that is still being written."""

    index: int
    probability: float
    items: list[int]
    hung: _Hung  # the trie that its last item was read from


def ground_coarse(
    model: Model,
    prefix: Any,
    stamps: Sequence[float],
    queries: Sequence[str],
    *,
    beams: int = 6,
    least: float = 0.02,
    longest: int = 12,
    adjacent: Sequence[bool] | None = None,
    prune: float = PRUNE,
) -> list[CoarseAnswer]:
    """Which segments of a coarse prefix each query's answer lists.

    Args:
        model, prefix: what was prefilled with the coarse plan whose segment ``stamps`` these are, ascending.
        beams: lists followed at once for each query.
        least: lists with less than this probability are followed no further.
        longest: segments on a list.
        adjacent: (S - 1,) whether each segment touches the next; None: all do.
        prune: mass of a branch below which it is not looked into.
    """
    shown = np.asarray(stamps, dtype=np.float64)
    values, place = np.unique(shown, return_inverse=True)  # segments of one stamp share what is said of it
    trie = Trie.of(encode(model.tokenizer, [stamp(t) for t in values]))
    words = _Words.of(model.tokenizer, model.prompts, "coarse", (float(values[0]), float(values[-1])))
    turns = [model.prompts.ask_when(query, "coarse") for query in queries]
    chains = [continuation(model.tokenizer, model.prompts, turn).ids.tolist() for turn in turns]
    firsts = np.searchsorted(place, np.arange(len(values)))
    lasts = np.append(firsts[1:] - 1, len(shown) - 1)
    touching = [adjacent is None or bool(adjacent[last]) for last in lasts[:-1]]
    each = NODES_OF_A_TRIE * (1 + beams)
    answers: list[CoarseAnswer] = []
    for group in _groups(chains, each, len(prefix)):
        forest = model.forest(prefix)
        answers += _coarse_group(_Down(model, forest, trie, prune), words, group, beams, least, longest, touching)
    return [
        CoarseAnswer(a.found, a.listed[place], tuple((int(firsts[i]), int(lasts[j]), p) for i, j, p in a.spans))
        for a in answers
    ]


def _coarse_group(
    down: _Down,
    words: _Words,
    chains: list[list[int]],
    beams: int,
    least: float,
    longest: int,
    touching: list[bool],
) -> list[CoarseAnswer]:
    count = len(down.trie)
    listed = np.zeros((len(chains), count))
    spans: list[dict[tuple[int, int], float]] = [{} for _ in chains]

    def finish(beam: _Beam, probability: float) -> None:
        listed[beam.index, beam.items] += probability
        for run in _runs(beam.items, touching):
            spans[beam.index][run] = spans[beam.index].get(run, 0.0) + probability

    def prune(alive: list[_Beam]) -> list[_Beam]:
        kept: list[_Beam] = []
        for i in range(len(chains)):
            mine = sorted((b for b in alive if b.index == i), key=lambda b: -b.probability)
            for place, beam in enumerate(mine):
                if place < beams and beam.probability >= least and len(beam.items) < longest:
                    kept.append(beam)
                else:
                    finish(beam, beam.probability)
        return kept

    def extend(before: list[int], i: int, probability: float, hung: _Hung) -> list[_Beam]:
        """The list before with each of its likeliest next segments; the others end here."""
        order = np.argsort(-hung.shares, kind="stable")
        likely, others = order[:beams], order[beams:]
        listed[i, others] += probability * hung.shares[others]
        listed[i, before] += probability * float(hung.shares[others].sum())
        return [
            _Beam(i, probability * float(hung.shares[j]), [*before, int(j)], hung) for j in likely if hung.shares[j] > 0
        ]

    opened = [words.opening(chain) for chain in chains]
    hung = down([_Hang(-1, chain, asked=weighed) for chain, weighed, _ in opened])
    found = [_found(h.asked) for h in hung]
    alive = prune([beam for i, h in enumerate(hung) for beam in extend([], i, 1.0, h)])
    while alive:
        going = [beam for beam in alive if beam.items[-1] + 1 < count]
        for beam in alive:
            if beam.items[-1] + 1 == count:
                finish(beam, beam.probability)
        hangs = []
        for beam in going:
            parent, tokens = beam.hung.path(beam.items[-1])
            place = len(tokens) + len(words.tail) - 1
            asked = [(place, words.stop[0]), (place, words.join[0])]
            chain = tokens + words.tail + words.join
            hangs.append(_Hang(parent, chain, beam.items[-1] + 1, beam.probability, asked))
        alive = []
        for beam, h in zip(going, down(hangs) if hangs else [], strict=True):
            more = _found(h.asked)
            finish(beam, beam.probability * (1.0 - more))
            alive += extend(beam.items, beam.index, beam.probability * more, h)
        alive = prune(alive)

    return [
        CoarseAnswer(f, np.minimum(row, 1.0), tuple((a, b, p) for (a, b), p in sorted(s.items(), key=lambda x: -x[1])))
        for f, row, s in zip(found, listed, spans, strict=True)
    ]


def _runs(items: Sequence[int], touching: Sequence[bool]) -> list[tuple[int, int]]:
    """Runs of neighbours (first, last) in ascending items."""
    runs: list[tuple[int, int]] = []
    for item in items:
        if runs and runs[-1][1] + 1 == item and touching[item - 1]:
            runs[-1] = (runs[-1][0], item)
        else:
            runs.append((item, item))
    return runs


# Choices and free text.


def choose(model: Model, prefix: Any, turn: str, answers: Sequence[str]) -> Floats:
    """The probability (n,) of each of some answers to a user turn, among these answers. None may begin another."""
    trie = Trie.of(encode(model.tokenizer, list(answers)))
    chain = continuation(model.tokenizer, model.prompts, turn).ids.tolist()
    return _descend(model, model.forest(prefix), trie, [_Hang(-1, chain)], 0.0)[0].shares


def generate(model: Model, prefix: Any, turns: Sequence[str], max_tokens: int = 128) -> list[str]:
    """The likeliest text, token by token, in reply to each of some user turns; at most ``max_tokens`` each."""
    texts: list[str] = []
    stop = encode(model.tokenizer, [model.prompts.footer])[0][0]
    chains = [continuation(model.tokenizer, model.prompts, turn).ids.tolist() for turn in turns]
    for group in _groups(chains, max_tokens, len(prefix)):
        forest = model.forest(prefix)
        batch = _Batch(model, forest)
        ends = [batch.chain(chain, -1) for chain in group]
        hidden = forest.grow(batch.ids, batch.parents)[ends]
        written: list[list[int]] = [[] for _ in group]
        alive = list(range(len(group)))
        while alive:
            tokens = model.best(hidden)
            going = []
            for i, token in zip(alive, tokens, strict=True):
                if token != stop:
                    written[i].append(token)
                    if len(written[i]) < max_tokens:
                        going.append(i)
            alive = going
            if alive:
                base = len(forest)
                hidden = forest.grow([written[i][-1] for i in alive], [ends[i] for i in alive])
                for place, i in enumerate(alive):
                    ends[i] = base + place
        texts += [model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]
    return texts
