"""How a film looks, whatever it shows: flicker, smoothness, movement and warp error, without weights.

Formulas are VBench's (repository 45e79ec) where they need no weights; what replaces a network has a name of its own,
and its figures are not comparable with VBench's.

Notable choices:

- `flicker` is VBench's temporal flickering. A still picture scores 1, so `flow_dynamic_degree` always stands beside.
- Optical flow is OpenCV's DIS, on pictures of at most `SIDE` pixels on the short side.
- `warp_smoothness` is VBench's motion smoothness with the middle frame made by warping its neighbours half-way along
  the flow, where VBench asks a network (AMT-S).
- `flow_dynamic_degree` is VBench's dynamic degree with DIS flow for RAFT: the same sampling, top-5-percent rule and
  thresholds. Of one shot it is 0 or 1; of a film the share of its shots.
- `warp_error` is the mean difference of a frame and the next one warped back, where forward and backward flow agree.
- No pair of frames crosses a cut: shots are measured one by one, and a film's figures weigh them by their pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shots.errors import ShotsError

Frames = NDArray[np.uint8]
Flow = NDArray[np.float32]
SIDE = 256  # pixels of the short side, from which larger pictures are shrunk for flow


@dataclass(frozen=True)
class Quality:
    """Figures of one shot or film; higher is better but for `warp_error`, and `flow_dynamic_degree` is neither.

    flicker: 1 is no change at all between neighbouring frames. warp_smoothness: 1 is a middle frame that is what its
    neighbours say. flow_dynamic_degree: 1 is a shot that moves. flow: mean of the fastest 5 % of pixels, in shares of
    the short side a second. warp_error: 0 is a frame that follows from the one before. None where a shot has too few
    frames to tell.
    """

    flicker: float | None
    warp_smoothness: float | None
    flow_dynamic_degree: float | None
    flow: float | None
    warp_error: float | None
    frames: int

    @property
    def still(self) -> bool:
        """Whether nothing moves: then flicker and smoothness say nothing good."""
        return self.flow_dynamic_degree == 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {key: round(v, 4) if isinstance(v, float) else v for key, v in asdict(self).items()}

    @classmethod
    def mean(cls, parts: Sequence[Quality]) -> Quality:
        """Of a film: its shots' figures, weighed by their pairs of frames; the dynamic degree is the share of shots."""

        def of(name: str, weighed: bool = True) -> float | None:
            told = [(getattr(part, name), max(part.frames - 1, 1) if weighed else 1) for part in parts]
            told = [(value, weight) for value, weight in told if value is not None]
            total = sum(weight for _, weight in told)
            return sum(value * weight for value, weight in told) / total if total else None

        return cls(
            of("flicker"), of("warp_smoothness"), of("flow_dynamic_degree", weighed=False), of("flow"),
            of("warp_error"), sum(part.frames for part in parts),
        )  # fmt: skip


def measure(frames: Frames, fps: float) -> Quality:
    """The figures of one shot, uint8 (T, H, W, 3) at `fps` frames a second.

    Raises ShotsError for frames of another form and for fps of 0 or less.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ShotsError(f"frames: {frames.dtype} {frames.shape}; uint8 (T, H, W, 3) with at least one frame is needed")
    if not fps > 0:
        raise ShotsError(f"fps: {fps}; more than 0 is needed")
    if len(frames) < 2:
        return Quality(None, None, None, None, None, len(frames))
    steps = _Steps(frames)
    speed, dynamic = _dynamic(frames, fps)
    return Quality(
        flicker(frames), steps.smoothness() if len(frames) > 2 else None, float(dynamic), speed, steps.warp_error(),
        len(frames),
    )  # fmt: skip


def flicker(frames: Frames) -> float:
    """VBench's temporal flickering: (255 - mean absolute difference of neighbouring frames) / 255."""
    change = [np.abs(a.astype(np.int16) - b).mean() for a, b in zip(frames, frames[1:], strict=False)]
    return float((255.0 - np.mean(change)) / 255.0)


def _grey(frame: Frames) -> Frames:
    """uint8 (h, w), the short side at most `SIDE` pixels and at least the 16 that DIS needs."""
    import cv2

    height, width = frame.shape[:2]
    factor = min(1.0, SIDE / min(height, width))
    factor = max(factor, 16 / min(height, width))
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    if factor != 1.0:
        size = (max(16, round(width * factor)), max(16, round(height * factor)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    return np.asarray(grey, np.uint8)


class _Flows:
    """DIS flow between two grey pictures: float32 (h, w, 2), where each pixel of the first is in the second."""

    def __init__(self) -> None:
        import cv2

        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, first: Frames, second: Frames) -> Flow:
        return np.asarray(self._dis.calc(first, second, None), np.float32)


def _warped(picture: NDArray[Any], flow: Flow) -> NDArray[np.float32]:
    """What `picture` shows at each pixel moved by `flow`, borders repeated."""
    import cv2

    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(
        cv2.remap(
            picture.astype(np.float32), x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
    )  # fmt: skip


class _Steps:
    """Measures that need the flow of neighbouring frames; grey pictures are kept, flows are not."""

    def __init__(self, frames: Frames) -> None:
        self.grey = [_grey(frame) for frame in frames]
        self.flow = _Flows()

    def smoothness(self) -> float:
        """VBench's motion smoothness: every odd frame against what its neighbours say of it."""
        errors = []
        for before, middle, after in zip(self.grey[::2], self.grey[1::2], self.grey[2::2], strict=False):
            forth, back = self.flow(before, after), self.flow(after, before)
            # A point at x half-way came from about x - forth / 2 and goes to about x - back / 2.
            made = (_warped(before, np.float32(-0.5) * forth) + _warped(after, np.float32(-0.5) * back)) / 2
            errors.append(np.abs(made - middle).mean())
        return float((255.0 - np.mean(errors)) / 255.0)

    def warp_error(self) -> float | None:
        """Mean difference, 0 to 1, of each frame and the next one warped back to it, where nothing is covered.

        Covered is where going forth and back misses by |F + B|^2 > 0.01 (|F|^2 + |B|^2) + 0.5 (Sundaram et al. 2010).
        """
        errors = []
        for first, second in zip(self.grey, self.grey[1:], strict=False):
            forth, back = self.flow(first, second), self.flow(second, first)
            there = np.stack([_warped(back[..., i], forth) for i in (0, 1)], -1).astype(np.float32)
            missed = ((forth + there) ** 2).sum(-1)
            open_ = missed <= 0.01 * ((forth**2).sum(-1) + (there**2).sum(-1)) + 0.5
            if open_.any():
                errors.append(float(np.abs(_warped(second, forth) - first)[open_].mean() / 255.0))
        return float(np.mean(errors)) if errors else None


def _dynamic(frames: Frames, fps: float) -> tuple[float, bool]:
    """Speed of the fastest pixels (shares of the short side a second), and VBench's dynamic degree.

    Of about 8 frames a second; a pair counts where the mean of the fastest 5 % exceeds 6 pixels at a short side of 256,
    and the shot moves where round(4 N / 16) of the N frames' pairs do.
    """
    flow, every = _Flows(), max(1, round(fps / 8))
    taken = [_grey(frame) for frame in frames[::every]]
    if len(taken) < 2:
        taken, every = [_grey(frames[0]), _grey(frames[-1])], len(frames) - 1
    short = min(taken[0].shape)
    speeds = []
    for first, second in zip(taken, taken[1:], strict=False):
        length = np.sqrt((flow(first, second) ** 2).sum(-1)).ravel()
        top = max(1, int(0.05 * length.size))
        speeds.append(float(np.partition(length, -top)[-top:].mean()) / short)
    needed = max(1, round(4 * len(taken) / 16))
    return float(np.mean(speeds)) * fps / every, sum(speed > 6 / 256 for speed in speeds) >= needed
