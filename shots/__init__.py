"""Shots: the ground floor. Scripts, video files, the stage and its judge, and the runtime every model shares.

`script` reads scripts, `video` and `images` files, `files` writes them whole, `sheet` lays films out as pictures;
`clip` is the one training sample and `folder` makes such samples of real clips; `stage` is the film set whose every
fact is known, with its judge; `protocols` says what is expected of models, and `runtime` is what they all need.

`evaluation` says whether a film shows what its script says: `claims` takes scripts apart, `evidence` asks models,
`calibration` weighs what they say, `cuts` (with its `detectors`) finds shots, and `quality` measures how films look.
`loop` has failed shots taken again, and `publish` puts titles and sound around a film.
`captions` turns a video into a script, with `camera` to tell how the camera moves.

Notable choices:
- Public names are looked up on first use, so `import shots` loads neither torch nor a video library.
- Nothing here imports `seedance` or `unitime`; what needs a model takes it as an argument typed by a `Protocol`
  (`shots.protocols`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shots.calibration import Calibration
    from shots.captions import CaptionedFilm, caption_film, describe_film
    from shots.clip import Clip, ClipShot
    from shots.cuts import CutList, find_cuts
    from shots.errors import ShotsError
    from shots.evaluation import Report, ShotReport, verify
    from shots.images import fit_image, read_image
    from shots.loop import direct
    from shots.publish import publish
    from shots.script import Script, Shot
    from shots.video import Video, VideoInfo, VideoWriter, probe, read_record, read_video

_HOME = {
    "Calibration": "shots.calibration",
    "CaptionedFilm": "shots.captions",
    "Clip": "shots.clip",
    "ClipShot": "shots.clip",
    "CutList": "shots.cuts",
    "Report": "shots.evaluation",
    "Script": "shots.script",
    "ShotReport": "shots.evaluation",
    "Shot": "shots.script",
    "ShotsError": "shots.errors",
    "Video": "shots.video",
    "VideoInfo": "shots.video",
    "VideoWriter": "shots.video",
    "caption_film": "shots.captions",
    "describe_film": "shots.captions",
    "direct": "shots.loop",
    "find_cuts": "shots.cuts",
    "fit_image": "shots.images",
    "probe": "shots.video",
    "publish": "shots.publish",
    "read_image": "shots.images",
    "read_record": "shots.video",
    "read_video": "shots.video",
    "verify": "shots.evaluation",
}

__all__ = [
    "Calibration",
    "CaptionedFilm",
    "Clip",
    "ClipShot",
    "CutList",
    "Report",
    "Script",
    "Shot",
    "ShotReport",
    "ShotsError",
    "Video",
    "VideoInfo",
    "VideoWriter",
    "caption_film",
    "describe_film",
    "direct",
    "find_cuts",
    "fit_image",
    "probe",
    "publish",
    "read_image",
    "read_record",
    "read_video",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'shots' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
