"""Reading answers out of the model: exact probabilities of windows over the stamps shown, or free text.

A fine answer is "From s seconds to e seconds", with s and e among the stamps that were shown. Written as tokens, the
stamps form a trie. One forward over the trie's nodes gives P(start = s) for every s; one more, with the trie hung below
the likeliest starts, gives P(end = e | s). Nothing is sampled, no answer fails to parse, and every window has a
probability. All questions asked of a video, and all their tries, run in the same forwards (`unitime.model.Forest`).

Notable choices:

- Probabilities are the model's own, over its whole vocabulary, product by product along the answer's tokens
  (``log_probs``); a test compares them with brute-force scoring. ``probs`` are the same, shared out among the answers
  that are allowed: first among the starts, then among the ends of each start.
- Starts are taken until they hold ``coverage`` of the mass, at most ``starts`` of them: a sharp model costs little.
- A window's score is the mass of windows that overlap it by IoU >= 0.5, times the probability that there is anything to
  find: the chance that it counts as a hit. The answer is the window with the best mean of hit rate at 0.5, hit rate at
  0.7 and expected IoU (minimum Bayes risk), which is steadier than the single likeliest window.
- "Not found" is weighed against the answer's first words, where both are one token away.
- Coarse answers list segments. Their lists are followed by a beam, and a segment's score is the mass of the lists that
  it is on; what falls off the beam still counts with the segments listed so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unitime.errors import UniTimeError
from unitime.prompts import Prompts, capital, stamp
from unitime.sequence import Tokenizer, continuation, encode, tree_depths

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NODES_AT_ONCE = 4096  # tokens of one forest, unless the prefix is longer
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
    each sequence. inner: (M,) bool, nodes that have children. last: (M,) the largest sequence index below a node.
    levels: the nodes of each depth.
    """

    tokens: Ints
    parents: Ints
    leaves: Ints
    inner: NDArray[np.bool_]
    last: Ints
    levels: tuple[Ints, ...]

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
        ends = np.asarray(leaves, dtype=np.int64)
        if len(ends) == 0 or (ends < 0).any() or inner[ends].any() or len(set(leaves)) < len(leaves):
            raise UniTimeError(
                "answers: one is empty, there twice, or the beginning of another; they cannot be told apart"
            )
        last = np.full(len(tokens), -1, dtype=np.int64)
        last[ends] = np.arange(len(ends))
        for node in range(len(tokens) - 1, -1, -1):
            if parents[node] >= 0:
                last[parents[node]] = max(last[parents[node]], last[node])
        depths = tree_depths(parents)
        levels = tuple(np.flatnonzero(depths == depth) for depth in range(int(depths.max()) + 1))
        return cls(np.asarray(tokens, dtype=np.int64), above, ends, inner, last, levels)

    def __len__(self) -> int:
        return len(self.leaves)


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
            parent = self.base + len(self.ids) - 1
        return parent

    def tree(self, trie: Trie, parent: int, first: int = 0) -> tuple[Ints, slice]:
        """Grows the inner nodes of the sequences from ``first`` on and asks for the probability of all their edges.

        Returns the forest's index of each node (M,), -1 for those not grown, and the slice of the answers that belong
        to it: one for each kept node, in order.
        """
        kept = trie.last >= first
        grown = np.flatnonzero(kept & trie.inner)
        index = np.full(len(trie.tokens), -1, dtype=np.int64)
        index[grown] = self.base + len(self.ids) + np.arange(len(grown))
        above = trie.parents[grown]
        self.ids += trie.tokens[grown].tolist()
        self.parents += np.where(above < 0, parent, index[above]).tolist()
        edges = np.flatnonzero(kept)
        over = trie.parents[edges]
        return index, self.want(np.where(over < 0, parent, index[over]), trie.tokens[edges])

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


def _leaf_log_probs(trie: Trie, edges: Floats, first: int = 0) -> Floats:
    """log P (S,) of each sequence from the log-probabilities of the kept edges; -inf for sequences not kept."""
    total = np.full(len(trie.tokens), -np.inf)
    total[trie.last >= first] = edges
    for nodes in trie.levels[1:]:
        total[nodes] += total[trie.parents[nodes]]
    found = total[trie.leaves]
    found[:first] = -np.inf
    return found


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
        first = capital(head) if head else ""
        parts = [first, middle, tail, ", " + head, ".", prompts.not_found or ""]
        header = prompts.header.replace("{role}", "assistant")
        begin, *words = encode(tokenizer, [header, *parts])
        a, b, full = encode(tokenizer, [stamp(example[0]), stamp(example[1]), header + whole])
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


def _ask_found(batch: _Batch, words: _Words, chain_end: int, head_nodes: list[int]) -> slice | None:
    """Asks for the two tokens at which "nothing" and an answer part; None where there is nothing to weigh."""
    at = words.fork
    if at >= len(words.nothing):
        return None
    node = head_nodes[at - 1] if at else chain_end
    return batch.want([node] * 2, [words.nothing[at], words.head[at]]) if at < len(words.head) else batch.want(
        [node], [words.nothing[at]]
    )  # fmt: skip


def _found(answers: Floats | None) -> float:
    """P(found) from what :func:`_ask_found` asked."""
    if answers is None:
        return 1.0
    if len(answers) == 1:
        return float(1.0 - np.exp(answers[0]))
    return float(1.0 / (1.0 + np.exp(np.clip(answers[0] - answers[1], -500, 500))))


# Windows.


@dataclass(frozen=True, eq=False)
class WindowDistribution:
    """One window of an answer, as the model sees it.

    Attributes:
        stamps: (S,) seconds, ascending, without repeats.
        start_log_probs: (S,) log P of the answer up to its start.
        starts: (B,) indices of the starts whose ends were looked at, likeliest first.
        log_probs: (B, S) log P of the answer up to its end; -inf where the end lies before the start. Both count from
            where the answer begins, or for a later window from the word that joins it to the one before.
        weight: probability that the answer gets as far as this window.
    """

    stamps: Floats
    start_log_probs: Floats
    starts: Ints
    log_probs: Floats
    weight: float = 1.0

    @property
    def probs(self) -> Floats:
        """(B, S): P(start, end) among the windows that are allowed; sums to the mass of the starts looked at."""
        return _share(self.start_log_probs)[self.starts, None] * np.stack([_share(row) for row in self.log_probs])

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


def _share(log_probs: Floats) -> Floats:
    """Probabilities that sum to one; all zero where nothing is possible."""
    top = log_probs.max()
    if not np.isfinite(top):
        return np.zeros_like(log_probs)
    mass = np.exp(log_probs - top)
    return mass / mass.sum()


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
    spans = windows.copy()
    flat = spans[:, 1] <= spans[:, 0]
    spans[flat] += np.array([-gap / 2, gap / 2])
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
    starts: int = 16,
    coverage: float = 0.97,
) -> list[FineAnswer]:
    """The distribution of each query's windows over the stamps of a fine prefix.

    Args:
        model, prefix: what was prefilled with the fine plan whose ``stamps`` these are.
        queries: in words; they are asked together, in groups of bounded size.
        several: also follow the answer to its second and later windows, while the model prefers to go on.
        starts, coverage: ends are looked at for the likeliest starts, at most so many, until they hold so much mass.
    """
    values = np.unique(np.asarray(stamps, dtype=np.float64))
    trie = Trie.of(encode(model.tokenizer, [stamp(t) for t in values]))
    words = _Words.of(model.tokenizer, model.prompts, "fine", (float(values[0]), float(values[-1])))
    chains = [continuation(model.tokenizer, model.prompts, model.prompts.ask_when(q)).ids.tolist() for q in queries]
    inner = int(trie.inner.sum())
    one = inner + min(starts, len(trie)) * (inner // 2 + len(words.middle) + 2)
    answers: list[FineAnswer] = []
    for group in _groups(chains, one, len(prefix)):
        answers += _fine_group(model, prefix, trie, values, words, group, several, starts, coverage)
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


@dataclass(eq=False)
class _Branch:
    """One query on its way: where its next start trie hangs, and what was found so far."""

    index: int
    root: int
    weight: float = 1.0
    first: int = 0  # least start that may come next


def _fine_group(
    model: Model,
    prefix: Any,
    trie: Trie,
    values: Floats,
    words: _Words,
    chains: list[list[int]],
    several: bool,
    starts: int,
    coverage: float,
) -> list[FineAnswer]:
    forest = model.forest(prefix)
    found = [1.0] * len(chains)
    spent = [0.0] * len(chains)  # log P of the words before the first start
    steps: list[list[WindowDistribution]] = [[] for _ in chains]
    picks: list[list[tuple[float, float]]] = [[] for _ in chains]

    # The queries and the tries of their first starts.
    batch = _Batch(model, forest)
    asked = []
    branches = []
    for i, chain in enumerate(chains):
        end = batch.chain(chain, -1)
        nodes: list[int] = []
        for token in words.head:
            nodes.append(batch.chain([token], nodes[-1] if nodes else end))
        above = [end, *nodes][: len(words.head)]
        branch = _Branch(i, nodes[-1] if nodes else end)
        branches.append(branch)
        asked.append(
            (_ask_found(batch, words, end, nodes), batch.want(above, words.head), batch.tree(trie, branch.root))
        )
    answers = batch.run()
    pending = []
    for branch, (weighed, head, (nodes_of, edges)) in zip(branches, asked, strict=True):
        found[branch.index] = _found(None if weighed is None else answers[weighed])
        spent[branch.index] = float(answers[head].sum())
        pending.append((branch, nodes_of, _leaf_log_probs(trie, answers[edges])))

    while pending:
        # The ends of the likeliest starts.
        batch = _Batch(model, forest)
        hung = []
        for branch, nodes_of, log_starts in pending:
            chosen = _likeliest(log_starts, starts, coverage)
            below = []
            for start in chosen:
                leaf = int(trie.leaves[start])
                parent = _at(nodes_of, trie.parents[leaf], branch.root)
                middle = []
                node = batch.chain([int(trie.tokens[leaf])], parent)
                for token in words.middle:
                    middle.append(node)
                    node = batch.chain([token], node)
                spent_on = batch.want(middle, words.middle)
                below.append((node, spent_on, batch.tree(trie, node, int(start))))
            hung.append((branch, log_starts, chosen, below))
        answers = batch.run()
        ready = []
        for branch, log_starts, chosen, below in hung:
            base = spent[branch.index] if not steps[branch.index] else 0.0
            rows = [
                base + log_starts[start] + answers[between].sum() + _leaf_log_probs(trie, answers[edges], int(start))
                for start, (_, between, (_, edges)) in zip(chosen, below, strict=True)
            ]
            step = WindowDistribution(values, base + log_starts, chosen, np.stack(rows), branch.weight)
            steps[branch.index].append(step)
            pick = _pick(step)
            picks[branch.index].append((float(values[chosen[pick[0]]]), float(values[pick[1]])))
            if several and len(steps[branch.index]) < MAX_WINDOWS and chosen[pick[0]] + 1 < len(trie):
                node, _, (nodes_of, _) = below[pick[0]]
                leaf = int(trie.leaves[pick[1]])
                parent = _at(nodes_of, trie.parents[leaf], node)
                ready.append((branch, int(chosen[pick[0]]) + 1, leaf, parent))
        pending = []
        if not ready:
            break

        # Whether they go on, and the tries of the next starts.
        batch = _Batch(model, forest)
        asked_on = []
        for branch, first, leaf, parent in ready:
            end = batch.chain([int(trie.tokens[leaf]), *words.tail], parent)
            weighed_on = batch.want([end, end], [words.stop[0], words.join[0]])
            root = batch.chain(words.join, end)
            asked_on.append((branch, first, weighed_on, root, batch.tree(trie, root, first)))
        answers = batch.run()
        for branch, first, weighed_on, root, (nodes_of, edges) in asked_on:
            more = _found(answers[weighed_on])
            if more >= 0.5:
                follower = _Branch(branch.index, root, branch.weight * more, first)
                pending.append((follower, nodes_of, _leaf_log_probs(trie, answers[edges], first)))

    return [FineAnswer(f, tuple(s), tuple(p)) for f, s, p in zip(found, steps, picks, strict=True)]


def _at(nodes: Ints, node: Any, root: int) -> int:
    """The forest's index of a trie's node, -1 being its root."""
    return root if node < 0 else int(nodes[node])


def _likeliest(log_probs: Floats, most: int, coverage: float) -> Ints:
    """Indices of the likeliest entries, in order, until they hold ``coverage`` of the mass."""
    share = _share(log_probs)
    order = np.argsort(-share, kind="stable")[:most]
    enough = int(np.searchsorted(np.cumsum(share[order]), coverage)) + 1
    order = order[:enough]
    return order[np.isfinite(log_probs[order])]


def _pick(step: WindowDistribution) -> tuple[int, int]:
    """Row and end of the likeliest window."""
    row, end = np.unravel_index(int(step.probs.argmax()), step.log_probs.shape)
    return int(row), int(end)


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
    log_prob: float
    items: list[int]
    parent: int  # node above the leaf of the last item


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
) -> list[CoarseAnswer]:
    """Which segments of a coarse prefix each query's answer lists.

    Args:
        model, prefix: what was prefilled with the coarse plan whose segment ``stamps`` these are, ascending.
        beams: lists followed at once for each query.
        least: lists with less than this probability are followed no further.
        longest: segments on a list.
        adjacent: (S - 1,) whether each segment touches the next; None: all do.
    """
    shown = np.asarray(stamps, dtype=np.float64)
    values, place = np.unique(shown, return_inverse=True)  # segments of one stamp share what is said of it
    trie = Trie.of(encode(model.tokenizer, [stamp(t) for t in values]))
    words = _Words.of(model.tokenizer, model.prompts, "coarse", (float(values[0]), float(values[-1])))
    chains = [continuation(model.tokenizer, model.prompts, model.prompts.ask_when(q)).ids.tolist() for q in queries]
    firsts = np.searchsorted(place, np.arange(len(values)))
    lasts = np.append(firsts[1:] - 1, len(shown) - 1)
    touching = [adjacent is None or bool(adjacent[last]) for last in lasts[:-1]]
    each = int(trie.inner.sum()) * (1 + beams)
    answers: list[CoarseAnswer] = []
    for group in _groups(chains, each, len(prefix)):
        answers += _coarse_group(model, prefix, trie, words, group, beams, least, longest, touching)
    return [
        CoarseAnswer(a.found, a.listed[place], tuple((int(firsts[i]), int(lasts[j]), p) for i, j, p in a.spans))
        for a in answers
    ]


def _coarse_group(
    model: Model,
    prefix: Any,
    trie: Trie,
    words: _Words,
    chains: list[list[int]],
    beams: int,
    least: float,
    longest: int,
    touching: list[bool],
) -> list[CoarseAnswer]:
    forest = model.forest(prefix)
    listed = np.zeros((len(chains), len(trie)))
    spans: list[dict[tuple[int, int], float]] = [{} for _ in chains]

    def finish(beam: _Beam, probability: float) -> None:
        listed[beam.index, beam.items] += probability
        for run in _runs(beam.items, touching):
            spans[beam.index][run] = spans[beam.index].get(run, 0.0) + probability

    def prune(alive: list[_Beam]) -> list[_Beam]:
        kept: list[_Beam] = []
        for i in range(len(chains)):
            mine = sorted((b for b in alive if b.index == i), key=lambda b: -b.log_prob)
            for place, beam in enumerate(mine):
                if place < beams and np.exp(beam.log_prob) >= least and len(beam.items) < longest:
                    kept.append(beam)
                else:
                    finish(beam, float(np.exp(beam.log_prob)))
        return kept

    def extend(before: list[int], i: int, log_prob: float, log_next: Floats, nodes: Ints, root: int) -> list[_Beam]:
        """The list before with each of its likeliest next segments; the others end here."""
        share = _share(log_next)
        order = np.argsort(-share, kind="stable")
        likely, others = order[:beams], order[beams:]
        probability = float(np.exp(log_prob))
        listed[i, others] += probability * share[others]
        listed[i, before] += probability * float(share[others].sum())
        above = trie.parents[trie.leaves]
        return [
            _Beam(i, log_prob + float(np.log(share[j])), [*before, int(j)], _at(nodes, above[j], root))
            for j in likely
            if share[j] > 0
        ]  # fmt: skip

    batch = _Batch(model, forest)
    asked = []
    for chain in chains:
        end = batch.chain(chain, -1)
        nodes: list[int] = []
        for token in words.head:
            nodes.append(batch.chain([token], nodes[-1] if nodes else end))
        root = nodes[-1] if nodes else end
        asked.append((_ask_found(batch, words, end, nodes), root, batch.tree(trie, root)))
    answers = batch.run()
    found = [_found(None if weighed is None else answers[weighed]) for weighed, _, _ in asked]
    alive: list[_Beam] = []
    for i, (_, root, (nodes_of, edges)) in enumerate(asked):
        alive += extend([], i, 0.0, _leaf_log_probs(trie, answers[edges]), nodes_of, root)
    alive = prune(alive)

    while alive:
        batch = _Batch(model, forest)
        asked_on = []
        for beam in alive:
            leaf = int(trie.leaves[beam.items[-1]])
            end = batch.chain([int(trie.tokens[leaf]), *words.tail], beam.parent)
            weighed_on = batch.want([end, end], [words.stop[0], words.join[0]])
            first = beam.items[-1] + 1
            tree = None
            root = end
            if first < len(trie):
                root = batch.chain(words.join, end)
                tree = batch.tree(trie, root, first)
            asked_on.append((beam, weighed_on, first, root, tree))
        answers = batch.run()
        alive = []
        for beam, weighed_on, first, root, tree in asked_on:
            more = _found(answers[weighed_on]) if tree is not None else 0.0
            probability = float(np.exp(beam.log_prob))
            finish(beam, probability * (1.0 - more))
            if tree is not None and more > 0:
                log_next = _leaf_log_probs(trie, answers[tree[1]], first)
                alive += extend(beam.items, beam.index, beam.log_prob + float(np.log(more)), log_next, tree[0], root)
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
    batch = _Batch(model, model.forest(prefix))
    end = batch.chain(continuation(model.tokenizer, model.prompts, turn).ids.tolist(), -1)
    _, edges = batch.tree(trie, end)
    return _share(_leaf_log_probs(trie, batch.run()[edges]))


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
