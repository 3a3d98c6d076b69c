"""Render, verify, take again: failed shots are made anew until they show what they should, or the takes are used up.

    result = direct(script, Seedance.from_pretrained("seedance-nano"), lambda film, said: verify(film, said, grounder))
    result.video.save("film.mp4")
    result.report.failed_shots()

Notable choices:

- Protocols only (`shots.protocols`): a `Retaker` holds the shots that are good and makes the others anew in their
  sight; of any other `Renderer` whole films are taken and the best is kept, as shots of several would not match.
- The takes of a shot are compared by what the verifier says of that shot: passed before failed, then the higher score,
  which compares what was asked for with what else it could be. Scores so compared need not mean much by themselves.
- What is said of a shot depends on the rest of the film. So what is put together of several takes is verified as it
  will be seen, and given up unless it is better than what there was: no film gets worse, and the report is always of
  the film that is given back.
- Passed shots that the verifier doubts are made anew as well: one that raises few false alarms lets bad shots pass.
- Deterministic: the seeds of later takes are drawn from the first one's, and stand in the record with all verdicts.
- The stage's judge does not choose: what it may have added to a report is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from shots.errors import ShotsError
from shots.protocols import Renderer, Retaker
from shots.script import Script

if TYPE_CHECKING:
    from shots.evaluation import Report, ShotReport
    from shots.video import Video

Verifier = Callable[["Video", Script], "Report"]
"""Holds a film against its script, such as `shots.evaluation.verify` with its grounder."""

Progress = Callable[[int, int, str], None]
"""``progress(takes done, takes at most, what is done now)``; an exception in it ends everything."""

DOUBT = 0.5  # a passed shot with a lower score is made anew as well
MOST_RETAKES = 100


@dataclass(frozen=True)
class Take:
    """One take: which shots were made in it (numbers from 1), from which seed, and what the verifier said of each.

    number: from 1, the film that the others were made from. seen: the shots' reports, in the order of `made`.
    """

    number: int
    seed: int
    made: tuple[int, ...]
    seen: tuple[ShotReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "take": self.number, "seed": self.seed,
            "shots": [
                {"shot": shot.number, "passed": shot.passed, "score": round(shot.score, 4),
                 "defects": [defect.to_dict() for defect in shot.defects]}
                for shot in self.seen
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class Result:
    """The best film of all takes.

    film: its state, as the `Retaker` gave it; of another renderer the video. video: the film to be seen. report: of
    that film. takes: all of them, in order. chosen: of which take each shot is. stopped: whether `stop` ended it.
    """

    film: Any
    video: Video
    report: Report
    takes: tuple[Take, ...]
    chosen: tuple[int, ...]
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The record of all takes as plain JSON data."""
        return {
            "passed": self.report.passed, "score": round(self.report.score, 4),
            "failed_shots": self.report.failed_shots(), "chosen": list(self.chosen), "stopped": self.stopped,
            "takes": [take.to_dict() for take in self.takes],
        }  # fmt: skip


def direct(
    script: Script | str,
    renderer: Retaker | Renderer,
    verifier: Verifier,
    retakes: int = 3,
    *,
    seed: int = 0,
    film: Any = None,
    doubt: float = DOUBT,
    callback: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    keep: Callable[[Take, Any], None] | None = None,
) -> Result:
    """Makes a film of a script and takes its failed shots again, at most `retakes` times.

    Args:
        renderer: who makes the film; with the methods of a `Retaker`, its good shots are held.
        verifier: who says what each shot of a film is worth, `verifier(video, script)`.
        retakes: rounds after the first take; 0 verifies only. It ends early when every shot is good.
        seed: of the first take, from 0; the others follow from it.
        film: a first take that is there already, as `renderer.take` gave it from `seed`.
        doubt: passed shots with a lower score (0 to 1) are taken again too; 0 takes only what failed.
        callback: told before each step what comes; raising in it stops everything.
        stop: asked before each further take; when true, the best film so far is given back.
        keep: given every take and its film, to be kept.

    Raises ShotsError for arguments that cannot be used and for a verifier that leaves shots out.
    """
    if isinstance(retakes, bool) or not isinstance(retakes, int) or not 0 <= retakes <= MOST_RETAKES:
        raise ShotsError(f"retakes: {retakes!r}; a whole number from 0 to {MOST_RETAKES} is needed")
    if not 0 <= doubt <= 1:
        raise ShotsError(f"doubt: {doubt}; a score from 0 to 1 is needed")
    script = Script.parse(script) if isinstance(script, str) else script
    set_ = _Set(script, renderer, verifier, doubt)
    tell = callback or (lambda done, total, what: None)
    total, seeds = retakes + 1, Random(seed)
    if film is None:
        tell(0, total, "take 1: rendering")
        film = set_.take(seed)
    tell(0, total, "take 1: verifying")
    best = set_.verified(film)
    everything = tuple(range(1, len(script.shots) + 1))
    takes = [Take(1, seed, everything, tuple(best.report.shots))]
    chosen = dict.fromkeys(everything, 1)
    if keep is not None:
        keep(takes[0], film)
    stopped = False
    for number in range(2, total + 1):
        wanted = set_.wanted(best.report)
        if not wanted:
            break
        if stop is not None and stop():
            stopped = True
            break
        own_seed = seeds.randrange(2**31)
        said = ", ".join(map(str, wanted))
        tell(number - 1, total, f"take {number}: rendering shot{'s' if len(wanted) > 1 else ''} {said} again")
        made = set_.again(best.film, wanted, own_seed)
        tell(number - 1, total, f"take {number}: verifying")
        new = set_.verified(made)
        takes.append(Take(number, own_seed, wanted, tuple(new.report.shots[k - 1] for k in wanted)))
        if keep is not None:
            keep(takes[-1], made)
        better = set_.better(best.report, new.report, wanted)
        if better and better != wanted:
            new = set_.verified(set_.put_together(best.film, made, better))
        if better and _worth(new.report) > _worth(best.report):
            best = new
            chosen |= dict.fromkeys(better, number)
    tell(total, total, "done")
    return Result(best.film, best.video, best.report, tuple(takes), tuple(chosen.values()), stopped)


@dataclass(frozen=True)
class _Seen:
    """A film and what was said of it."""

    film: Any
    video: Video
    report: Report


class _Set:
    """Who works on one film: for renderers that hold shots and for those that do not."""

    def __init__(self, script: Script, renderer: Retaker | Renderer, verifier: Verifier, doubt: float) -> None:
        self.script, self.renderer, self.verifier, self.doubt = script, renderer, verifier, doubt
        self.everything = tuple(range(1, len(script.shots) + 1))

    def take(self, seed: int) -> Any:
        if isinstance(self.renderer, Retaker):
            return self.renderer.take(self.script, seed=seed)
        return self.renderer(self.script, seed=seed)

    def verified(self, film: Any) -> _Seen:
        video = self.renderer.video(film) if isinstance(self.renderer, Retaker) else film
        report = self.verifier(video, self.script)
        if tuple(shot.number for shot in report.shots) != self.everything:
            raise ShotsError(
                f"verifier: reports on shots {[shot.number for shot in report.shots]} of a script with "
                f"{len(self.everything)}; one report a shot is needed, in order"
            )
        return _Seen(film, video, report)

    def wanted(self, report: Report) -> tuple[int, ...]:
        """The shots to be made anew: all of them where the renderer holds none."""
        bad = tuple(shot.number for shot in report.shots if not shot.passed or shot.score < self.doubt)
        if not bad and not report.passed:  # there are more shots than the script has, and none to blame
            bad = self.everything
        return bad if not bad or isinstance(self.renderer, Retaker) else self.everything

    def again(self, film: Any, shots: tuple[int, ...], seed: int) -> Any:
        return self.renderer.retake(film, shots, seed=seed) if isinstance(self.renderer, Retaker) else self.take(seed)

    def better(self, old: Report, new: Report, shots: tuple[int, ...]) -> tuple[int, ...]:
        """Which of the shots are worth more in the new take."""
        if not isinstance(self.renderer, Retaker):
            return shots if _worth(new) > _worth(old) else ()
        return tuple(k for k in shots if _rank(new.shots[k - 1]) > _rank(old.shots[k - 1]))

    def put_together(self, film: Any, other: Any, shots: tuple[int, ...]) -> Any:
        if not isinstance(self.renderer, Retaker):  # of whole films, either is taken
            raise ShotsError("renderer: it cannot splice shots; give one that has take, retake, splice and video")
        return self.renderer.splice(film, other, shots)


def _rank(shot: ShotReport) -> tuple[bool, float]:
    return shot.passed, shot.score


def _worth(report: Report) -> tuple[bool, int, float]:
    """What a film is worth: whether all is well, how many shots passed, then how likely the shots are good."""
    likely = sum(math.log(max(shot.score, 1e-6)) for shot in report.shots)
    return report.passed, sum(shot.passed for shot in report.shots), likely
