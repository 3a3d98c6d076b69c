"""From what was gathered for a fact to the probability that it holds: a few weights, fitted for one grounder.

Notable choices:

- Logistic regression for each kind of fact, on a handful of differences of scores; the weights are readable, and a
  feature that tells nothing gets none.
- Good and bad weigh the same in the fit, so 0.5 is where either is as likely, whatever the share of bad shots was.
- One limit for all kinds: a kind that the grounder cannot judge comes out near 0.5 everywhere and raises no alarm.
- `verification.json` beside this file holds what was fitted for the shipped grounder, by its name, with the sha256 of
  its weights; `python -m tests.benchmarks.verification --calibrate` writes it. For other weights it is stale: it still
  ranks better than plain weights, but nothing calls its outcome a probability, and a warning says so once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shots.errors import ShotsError

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("verification.json")
CLIP = 6.0  # features are differences of log-odds; more certainty than this is not believed
FEATURES: dict[str, tuple[str, ...]] = {
    "colour": ("contrast", "asked"),
    "shape": ("contrast", "asked"),
    "action": ("contrast", "asked", "present"),
    "place": ("present", "elsewhere", "overlap"),
    "order": ("later",),
}


@dataclass(frozen=True)
class Weights:
    """Of one kind of fact: log-odds that it holds = bias + sum of weight x feature."""

    bias: float
    weights: Mapping[str, float]

    def probability(self, features: Mapping[str, float]) -> float:
        """That the fact holds; features that are not there count nothing."""
        total = self.bias + sum(self.weights.get(name, 0.0) * value for name, value in features.items())
        return float(1.0 / (1.0 + np.exp(-np.clip(total, -30, 30))))


_TOLD: set[tuple[str, str]] = set()  # grounders and weights of which it was said that they are not those
PLAIN = {kind: Weights(0.0, dict.fromkeys(names, 1.0)) for kind, names in FEATURES.items()}


@dataclass(frozen=True)
class Calibration:
    """Weights for each kind of fact, and the probability below which a fact is a defect.

    grounder: for whose scores they were fitted; "" are plain weights, fitted for none. weights: the sha256 of that
    grounder's weights, "" where it tells none. stale: it has other weights by now.
    """

    kinds: Mapping[str, Weights] = field(default_factory=lambda: PLAIN)
    limit: float = 0.5
    grounder: str = ""
    weights: str = ""
    stale: bool = False

    def probability(self, kind: str, features: Mapping[str, float]) -> float:
        """That a fact of this kind holds."""
        return self.kinds.get(kind, PLAIN[kind]).probability(features)

    def weight(self, kind: str, feature: str) -> float:
        """What one feature counts; 0 is nothing, so it need not be gathered."""
        return self.kinds.get(kind, PLAIN[kind]).weights.get(feature, 0.0)

    @classmethod
    def of(cls, grounder: object, path: Path = SHIPPED) -> Calibration:
        """What was fitted for a grounder, by its `name`; plain weights where nothing was.

        Where the grounder tells its `weights` (sha256) and it was fitted to others, or to nobody knows which, it is
        `stale`.
        """
        name = getattr(grounder, "name", None)
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(name, str) or name not in known:
            return cls()
        found = cls.from_dict(known[name])
        weights = getattr(grounder, "weights", None)
        if weights is None or weights == found.weights:
            return found
        if (name, weights) not in _TOLD:
            _TOLD.add((name, weights))
            log.warning(
                "verification: %s was calibrated with other weights, so its scores rank and are no probabilities; "
                "calibrate anew with `python -m tests.benchmarks.verification --calibrate`", name,
            )  # fmt: skip
        return replace(found, stale=True)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Of a file as `save` writes it. Raises ShotsError where there is none."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShotsError(
                f"calibration: {path} holds none ({error}); make one with shots.calibration.fit"
            ) from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`."""
        kinds = {kind: Weights(float(w["bias"]), dict(w["weights"])) for kind, w in data["kinds"].items()}
        return cls(kinds, float(data["limit"]), str(data.get("grounder", "")), str(data.get("weights", "")))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        kinds = {
            kind: {
                "bias": round(w.bias, 4),
                "weights": {name: round(value, 4) for name, value in w.weights.items()},
            }
            for kind, w in self.kinds.items()
        }
        return {"grounder": self.grounder, "weights": self.weights, "limit": round(self.limit, 4), "kinds": kinds}


@dataclass(frozen=True)
class Sample:
    """What was gathered for one fact of one shot, and whether it holds there."""

    kind: str
    features: Mapping[str, float]
    holds: bool
    shot: tuple[int, int] = (0, 0)  # film and shot


def fit(samples: Sequence[Sample], grounder: str = "", false_alarms: float = 0.05) -> Calibration:
    """Weights for each kind, and the highest limit at which no more than `false_alarms` of the good shots fail.

    A good shot is one of whose facts none is wrong. A kind without an example of either sort keeps the plain weights.
    """
    if not 0 <= false_alarms < 1:
        raise ShotsError(f"false_alarms: {false_alarms}; a share from 0 to below 1 is needed")
    kinds: dict[str, Weights] = {}
    for kind, names in FEATURES.items():
        own = [sample for sample in samples if sample.kind == kind]
        if {sample.holds for sample in own} == {True, False}:
            kinds[kind] = _logistic(own, names)
    made = Calibration({**PLAIN, **kinds}, 0.5, grounder)
    bad = {sample.shot for sample in samples if not sample.holds}
    lowest: dict[tuple[int, int], float] = {}
    for sample in samples:
        if sample.shot not in bad:
            p = made.probability(sample.kind, sample.features)
            lowest[sample.shot] = min(p, lowest.get(sample.shot, 1.0))
    if not lowest:
        return made
    ordered = np.sort(list(lowest.values()))
    limit = float(ordered[int(false_alarms * len(ordered))])  # so many lie strictly below
    return Calibration(made.kinds, min(limit, 0.5), grounder)


def _logistic(samples: Sequence[Sample], names: Sequence[str], ridge: float = 1.0, steps: int = 50) -> Weights:
    """Ridge logistic regression by Newton's method, good and bad weighing the same; no weight is negative.

    A negative weight would say that what speaks for a fact speaks against it: such a feature is dropped.
    """
    x = np.array([[sample.features.get(name, 0.0) for name in names] for sample in samples])
    y = np.array([sample.holds for sample in samples], float)
    weight = np.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    kept = list(range(len(names)))
    while True:
        design = np.column_stack([np.ones(len(y)), x[:, kept]])
        theta = np.zeros(design.shape[1])
        penalty = ridge * np.eye(len(theta))
        penalty[0, 0] = 1e-3
        for _ in range(steps):
            p = 1 / (1 + np.exp(-np.clip(design @ theta, -30, 30)))
            gradient = design.T @ (weight * (p - y)) + penalty @ theta
            curve = (design * (weight * p * (1 - p))[:, None]).T @ design + penalty
            step = np.linalg.solve(curve, gradient)
            theta -= step
            if np.abs(step).max() < 1e-8:
                break
        worst = int(theta[1:].argmin()) if kept else 0
        if not kept or theta[1 + worst] >= 0:
            return Weights(float(theta[0]), {names[i]: float(t) for i, t in zip(kept, theta[1:], strict=True)})
        del kept[worst]
