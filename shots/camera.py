"""How the camera moves in a shot, told from its pictures: static, pan, tilt, zoom, orbit, or None: not to be told.

Notable choices:

- Optical flow (OpenCV's DIS) between looks a quarter of a second apart; an affine map fitted to it by RANSAC is what
  the background does, actors are its outliers. Points without texture say nothing and are left out.
- Of the map, its translation at the middle of the picture is a pan or tilt, its scale a zoom or dolly. A camera that
  orbits turns what is near one way and what is far the other, so the horizontal flow changes sign from the bottom of
  the picture to the top: the map's shear.
- A dolly and a zoom differ by parallax alone, which these maps do not hold: both are told as a zoom.
- Rates are medians over the shot; a move that goes back and forth is none. Where a good part of the picture does not
  move at all, nor does the camera, however many actors do. Where few points agree on a map (a cut to black, water, a
  crowd) nothing is told.
- Words are the stage's (`shots.stage.words.CAMERA_TAGS`), which anybody's are: "pan left", "zoom in", "static camera".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shots.errors import ShotsError

Frames = NDArray[np.uint8]

SIDE = 128  # pixels of the short side of the pictures that are compared, at most
GAP = 0.25  # seconds between the two looks of a pair
PAIRS = 8  # of one shot
_STEP = 4  # pixels between the points of the flow that the map is fitted to
_TEXTURE = 6.0  # standard deviation, of 255, around a point below which its flow means nothing
_AGREE = 0.18  # share of the points that must follow the map
_STILL = 0.3  # share of the points that do not move at all from which the camera does not either, whatever else moves
_REST = 0.15  # pixels between two looks up to which a point rests
_POINTS = 24  # points a map needs
# Rates a second above which a move is one: shares of the picture's side, and of its scale.
_PAN, _TILT, _ZOOM, _ORBIT = 0.03, 0.03, 0.03, 0.06


@dataclass(frozen=True)
class CameraMotion:
    """What the background of a shot does, per second.

    right, down: shift of the picture's middle in shares of its width and height; positive is content that moves right,
    down. scale: growth, 0 is none. shear: how much faster to the right the picture's bottom moves than its top, in
    shares of its width. agree, still: shares of the points that the map holds for and that do not move, 0 to 1.
    """

    right: float
    down: float
    scale: float
    shear: float
    agree: float
    still: float

    @property
    def move(self) -> str | None:
        """The move by its name in `shots.stage.scene.CAMERA_MOVES`, None where it cannot be told."""
        if self.still >= _STILL:
            return "static"
        if self.agree < _AGREE:
            return None
        strengths = {
            "pan_left" if self.right > 0 else "pan_right": abs(self.right) / _PAN,
            "tilt_up" if self.down > 0 else "tilt_down": abs(self.down) / _TILT,
            "zoom_in" if self.scale > 0 else "zoom_out": abs(self.scale) / _ZOOM,
            # A camera that goes to the left sees what is near go to the right.
            "orbit_left" if self.shear > 0 else "orbit_right": abs(self.shear) / _ORBIT,
        }
        best = max(strengths, key=lambda name: strengths[name])
        return best if strengths[best] >= 1 else "static"


def looks(start: float, end: float) -> list[tuple[float, float]]:
    """Pairs of times, seconds, at which a shot is looked at; ascending. None for a shot without length."""
    length = end - start
    gap = min(GAP, length / 3)
    if not gap > 0:
        return []
    count = max(1, min(PAIRS, int((length - gap) / gap)))
    firsts = np.linspace(start + gap / 2, end - 1.5 * gap, count) if count > 1 else [start + gap]
    return [(float(t), float(t) + gap) for t in firsts]


def camera_motion(pairs: Sequence[tuple[Frames, Frames]], gap: float) -> CameraMotion:
    """The motion of a shot's background over pairs of its pictures, uint8 (H, W, 3), `gap` seconds apart.

    Raises ShotsError for no pair, a gap that is not positive, or pictures of unequal sizes.
    """
    if not pairs or not gap > 0:
        raise ShotsError("pairs: at least one pair of pictures with some time between them is needed")
    rows = [_between(_grey(first), _grey(second)) for first, second in pairs]
    told = np.array([row for row in rows if row is not None])  # (n, 6)
    if len(told) * 2 < len(rows) or not len(told):
        return CameraMotion(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    rates, shares = np.median(told, axis=0)[:4] / gap, np.median(told, axis=0)[4:]
    return CameraMotion(*map(float, rates), *map(float, shares))


def _grey(picture: Frames) -> Frames:
    """A picture in grey, (h, w) with the short side at most `SIDE`."""
    import cv2

    height, width = picture.shape[:2]
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or min(height, width) < 16:
        raise ShotsError(f"pairs: a picture is {picture.dtype} {picture.shape}; uint8 (H, W, 3) from 16 x 16 is needed")
    small = min(1.0, SIDE / min(height, width))
    size = (max(16, round(width * small)), max(16, round(height * small)))
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def _between(first: Frames, second: Frames) -> tuple[float, ...] | None:
    """(right, down, scale, shear, agree, still) from one grey picture to another; None where too little can be seen."""
    import cv2

    if first.shape != second.shape:
        raise ShotsError(f"pairs: pictures of {first.shape} and {second.shape} pixels; one size is needed")
    height, width = first.shape
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(first, second, None)  # (h, w, 2)
    y, x = np.mgrid[_STEP : height - _STEP : _STEP, _STEP : width - _STEP : _STEP]
    mean = cv2.blur(first.astype(np.float32), (9, 9))
    spread = np.sqrt(np.maximum(cv2.blur(first.astype(np.float32) ** 2, (9, 9)) - mean**2, 0))
    seen = spread[y, x] > _TEXTURE
    if seen.sum() < _POINTS:
        return None
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    points = np.stack([x[seen], y[seen]], 1) - middle  # (n, 2)
    moved = points + flow[y[seen], x[seen]]
    cv2.setRNGSeed(0)  # the same pictures give the same map
    affine, inliers = cv2.estimateAffine2D(points, moved, method=cv2.RANSAC, ransacReprojThreshold=0.5, maxIters=500)
    if affine is None:
        return None
    scale = (affine[0, 0] + affine[1, 1]) / 2 - 1
    shear = affine[0, 1] * height / width
    still = (np.linalg.norm(moved - points, axis=1) < _REST).mean()
    return affine[0, 2] / width, affine[1, 2] / height, scale, shear, float(inliers.mean()), float(still)
