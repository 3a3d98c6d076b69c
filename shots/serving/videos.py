"""Which files a server lets near a decoder.

Notable choices:
- Only containers that hold their pictures themselves: a playlist (HLS, DASH, concat) or a session description is text
  that makes FFmpeg open other files and addresses, so a "video" of a few bytes could read the disk or the network.
- A path is allowed by where it leads when every symbolic link is followed. A file outside and a file that is absent get
  the same answer, so nothing can be learnt about the rest of the disk.
"""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from shots.errors import ShotsError
from shots.serving.errors import Refusal

if TYPE_CHECKING:
    from shots.video import VideoInfo

CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif,ivf,mxf,m4v,h264,hevc,obu"
"""FFmpeg's names of the containers that are read."""


def local(path: str, folder: Path | None) -> Path:
    """The file that `path` names inside `folder`, every link followed. Raises Refusal 403 when `folder` is None, 404
    for anything that is not a plain file inside it."""
    if folder is None:
        raise Refusal(403, "video.path: this server reads no files of its own; upload the video to /v1/files")
    absent = Refusal(404, "video.path: there is no such file in the folder that this server reads from")
    try:
        root = folder.resolve(strict=True)
        found = (root / path).resolve(strict=True)
        if not found.is_relative_to(root) or not stat.S_ISREG(found.stat().st_mode):
            raise absent
    except (OSError, RuntimeError, ValueError) as error:  # absent, a circle of links, a NUL in the name
        raise absent from error
    return found


def admit(path: Path, name: str, *, seconds: float, pixels: int) -> VideoInfo:
    """What the video at `path` holds, if it is one and within the limits.

    name: what messages call it. seconds: longest duration. pixels: largest picture, width times height. Raises
    Refusal: 413 for one too long or too large, 422 for a file that is no video.
    """
    import av

    from shots.video import probe

    try:
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        with av.open(str(path), "r", options=options, metadata_errors="replace") as container:
            sizes = [stream.codec_context.width * stream.codec_context.height for stream in container.streams.video]
    except (OSError, av.error.FFmpegError) as error:
        raise Refusal(422, f"{name}: not a video that can be read; mp4, mov, mkv, webm or avi is") from error
    if max(sizes, default=0) > pixels:
        raise Refusal(413, f"{name}: pictures of more than the {pixels} pixels that this server takes")
    try:
        info = probe(path)
    except ShotsError as error:
        raise Refusal(422, str(error).replace(f"video: {path}", name).replace(str(path), name)) from error
    if not (math.isfinite(info.duration) and info.duration > 0):
        raise Refusal(422, f"{name}: its length cannot be told")
    if info.duration > seconds:
        raise Refusal(413, f"{name}: {info.duration:.0f} seconds long; at most {seconds:g} are taken")
    return info
