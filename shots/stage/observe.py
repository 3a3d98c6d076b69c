"""What a viewer can tell from a rendered film, computed from its pixels' labels and its projected boxes.

A fact that cannot be told (a spinning matte sphere, "toward" against "grows" without a floor line to judge by, an
actor out of frame) is never said in a caption, never asked, never counted. Thresholds are shares of the picture's
width, height or area and were set by looking at renders at 128 x 128.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .render import Rendered
from .scene import Action, Film

SEEN_AREA = 0.006  # an actor smaller than this share of the picture is not asked about
SURFACE_AREA = 0.012
ROUND_SHAPES = ("sphere", "cylinder", "cone", "capsule")  # look alike from all sides about the upright axis
SCALE_FLOORS = ("checker", "tiles", "planks", "concrete")  # a pattern of known pitch makes size readable


class Observations:
    """Answers `shots.stage.facts.Observed` for one film; shots count from 0."""

    def __init__(self, film: Film, rendered: Rendered) -> None:
        self.film = film
        names = [a.name for a in film.cast]
        self._shots: list[dict[str, dict[str, Tensor]]] = []
        self._times: list[Tensor] = []
        for k, shot in enumerate(film.shots):
            frames = (rendered.shot_index == k).nonzero()[:, 0]
            start = rendered.times[frames[0]]
            self._times.append((rendered.times[frames] - start).cpu())
            tracks = {}
            for place in shot.placements:
                i = names.index(place.actor)
                tracks[place.actor] = {
                    "visible": rendered.visible[frames, i].cpu(),
                    "full": rendered.full[frames, i].cpu(),
                    "box": rendered.box[frames, i].cpu(),
                }
            self._shots.append(tracks)

    # -- actors ---------------------------------------------------------------------------------------------------

    def sees_actor(self, shot: int, actor: str) -> bool:
        track = self._shots[shot].get(actor)
        if track is None:
            return False
        clear = (track["visible"] >= SEEN_AREA) & (track["visible"] >= 0.5 * track["full"]) & self._inside(track)
        return float(clear.float().mean()) >= 0.25

    def sees_surface(self, shot: int, actor: str) -> bool:
        if not self.sees_actor(shot, actor):
            return False
        area = float(self._shots[shot][actor]["visible"].max())
        return area >= SURFACE_AREA or self.film.actor(actor).surface == "striped" and area >= SEEN_AREA * 1.3

    def sees_size(self, shot: int, actor: str) -> bool:
        changed = any(
            a.actor == actor and a.kind in ("grow", "shrink", "stretch", "squash")
            for a in self.film.shots[shot].actions
        )
        scale = self.film.set.floor in SCALE_FLOORS or self.film.set.style == "neon"
        return self.sees_actor(shot, actor) and not changed and scale and not self.film.set.fog

    def sees_still(self, shot: int, actor: str) -> bool:
        return self._lasts(shot) and self.sees_actor(shot, actor)

    # -- actions --------------------------------------------------------------------------------------------------

    def sees_action(self, shot: int, index: int) -> bool:
        action = self.film.shots[shot].actions[index]
        track = self._shots[shot].get(action.actor)
        if track is None or action.kind == "still":
            return track is not None and self.sees_still(shot, action.actor)
        times = self._times[shot]
        during = ((times >= action.start - 1e-6) & (times <= action.end + 1e-6)).nonzero()[:, 0]
        if len(during) < 3:
            return False
        if action.other is not None and not self.sees_actor(shot, action.other):
            return False
        clear = (track["visible"] >= SEEN_AREA * 0.6) & (track["visible"] >= 0.3 * track["full"]) & self._inside(track)
        needed = 0.35 if action.kind in ("hide_behind", "fall", "circle", "jump_over") else 0.7
        if float(clear[during].float().mean()) < needed:
            return False
        return self._moves_enough(shot, action, track, during)

    def _moves_enough(self, shot: int, action: Action, track: dict[str, Tensor], during: Tensor) -> bool:
        film, spec = self.film, self.film.shots[shot]
        box = track["box"][during]
        x, top, bottom = (box[:, 0] + box[:, 2]) / 2, box[:, 1], box[:, 3]
        tall, broad = bottom - top, box[:, 2] - box[:, 0]
        kind = action.kind
        if kind == "spin":
            actor = film.actor(action.actor)
            return actor.surface == "striped" or actor.shape not in ROUND_SHAPES
        if kind in ("move_left", "move_right", "jump_over"):
            return abs(float(x[-1] - x[0])) >= 0.08
        if kind in ("move_toward", "move_away"):
            # A camera at floor height sees no floor line move: nearer and bigger look the same.
            ratio = float(tall[-1] / tall[0].clamp_min(1e-3))
            return spec.camera.angle != "low" and max(ratio, 1 / max(ratio, 1e-3)) >= 1.15
        if kind in ("grow", "shrink"):
            ratio = float(tall[-1] / tall[0].clamp_min(1e-3))
            return spec.camera.angle != "low" and max(ratio, 1 / max(ratio, 1e-3)) >= 1.22
        if kind in ("stretch", "squash"):
            ratio = float((tall[-1] / broad[-1].clamp_min(1e-3)) / (tall[0] / broad[0].clamp_min(1e-3)))
            return max(ratio, 1 / max(ratio, 1e-3)) >= 1.4
        if kind in ("jump", "fall"):
            return float(bottom.max() - bottom.min()) >= 0.06
        if kind == "circle":
            return float(x.max() - x.min()) >= 0.10
        if kind == "push":
            other = self._shots[shot][action.other or ""]["box"][during]
            ox = (other[:, 0] + other[:, 2]) / 2
            return abs(float(ox[-1] - ox[0])) >= 0.06
        if kind == "hide_behind":
            share = track["visible"][during] / track["full"][during].clamp_min(1e-6)
            return float(share[0]) >= 0.7 and float(share[-1]) <= 0.4
        return True  # change_colour: seen long enough

    # -- camera and set -------------------------------------------------------------------------------------------

    def sees_camera(self, shot: int) -> bool:
        """A moving camera needs something that stands still and has a pattern; one at rest needs a second frame."""
        if not self._lasts(shot):
            return False
        move = self.film.shots[shot].camera.move
        plain = self.film.set.style != "neon" and self.film.set.floor in ("snow",)
        return move == "static" or not (plain or self.film.set.fog)

    def sees_set(self, shot: int, fact: str) -> bool:
        """Whether `fact` (floor, sky, fog, shot_size, angle, style) can be told in that shot."""
        place, camera = self.film.set, self.film.shots[shot].camera
        if fact == "floor":
            return place.style != "neon"
        if fact == "sky":
            return place.style != "neon" and not place.fog and (camera.angle != "high" or camera.size == "wide")
        if fact == "fog":
            return place.style == "realistic" and camera.angle != "high"
        if fact == "shot_size":
            return not camera.move.startswith(("zoom", "dolly")) and self.film.set.floor in SCALE_FLOORS
        return True

    def _lasts(self, shot: int) -> bool:
        """Whether the shot has more than one frame: of a single one nobody can tell that anything stands still."""
        return len(self._times[shot]) > 1

    @staticmethod
    def _inside(track: dict[str, Tensor]) -> Tensor:
        """Frames in which at least half of the actor's projected box lies inside the picture (T,)."""
        box = track["box"]
        clipped = box.clamp(0.0, 1.0)
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        within = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
        return within >= 0.5 * area.clamp_min(1e-9)


def observe(film: Film, rendered: Rendered) -> Observations:
    """What a viewer of `rendered` can tell about `film`."""
    if torch.isnan(rendered.visible).any():
        raise ValueError("rendered.visible holds NaN: render the film again")
    return Observations(film, rendered)
