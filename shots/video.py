"""Video files: frames with their presentation times in, standard mp4 out.

Notable choices:
- Times are seconds on the file's own clock (zero is where the container starts), read from presentation timestamps and
  never computed as index / fps.
- A frame is shown from its timestamp until the next one's; sampling at a rate or at a few places picks what is shown
  there.
- Written: H.264, yuv420p, BT.709, constant frame rate, index in front; to a temporary file beside the target that takes
  the target's name when whole (`shots.files`).
- The record (how the film was made) goes into the container's comment tag and into `NAME.json` beside the video.
- PyAV reads and writes; decord seeks when few frames of a long file are wanted.
- `frames_at` gives what is shown at many places in one pass: packets wait undecoded until a wanted picture needs them,
  a key frame makes those before it needless, and what no other picture is predicted from is decoded only when wanted.
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from numpy.typing import NDArray

from shots.errors import ShotsError, ShotsFailure
from shots.files import check_place, claim
from shots.images import fit_image

log = logging.getLogger(__name__)

Frames = NDArray[np.uint8]
Times = NDArray[np.float64]

_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
_SEEK_FROM = 1000  # frames; shorter files are decoded through even for a few pictures
_SEEK_SHARE = 50  # decord is used when fewer than one frame in so many is wanted (and not below 64 pixels of width,
# where decord2 3.4 takes row padding for a fourth channel)
_REORDER = 16  # packets: pictures are stored at most so many places after one that is shown later (H.264's most)
_WORTH_A_JUMP = 8  # packets: fewer are decoded rather than left out, which costs the decoder a fresh start
_SKIPPING = frozenset({"h264", "hevc", "mpeg4", "vp8", "vp9"})  # decoders that may be told for each packet
_MOST_WAITING = 32 << 20  # bytes of packets that may wait undecoded


@dataclass(eq=False)
class Video:
    """A film in memory.

    frames: uint8 (T, H, W, 3), RGB. fps: frames a second (the average, where it varies). times: float64 (T,), when each
    frame is shown, seconds. cuts: times between shots, seconds. record: how it was made, or None.
    """

    frames: Frames
    fps: float
    times: Times
    cuts: tuple[float, ...] = ()
    record: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_frames(self.frames)
        _check_fps(self.fps)
        if self.times.shape != self.frames.shape[:1]:
            raise ShotsError(f"times: {self.times.shape} for {len(self.frames)} frames; one time per frame is needed")

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.times[-1] - self.times[0]) + 1.0 / self.fps

    def save(self, path: str | Path, record: bool = True) -> Path:
        """Write as a video file at a constant `fps`; with `record` the record goes into it and beside it.

        Frames at uneven times are repeated or left out so that each is shown when it should be. Returns the path.
        """
        height, width = self.frames.shape[1:3]
        frames = self.frames[_at_constant_rate(self.times, self.fps)]
        with VideoWriter(
            path, fps=self.fps, height=height, width=width, record=self.record if record else None
        ) as writer:
            writer.write(frames)
        return Path(path)


@dataclass(frozen=True)
class Sound:
    """A sound track: `chunks` of samples, float32 (n, 2) from -1 to 1, left and right, `rate` of them a second."""

    rate: int
    chunks: Iterable[NDArray[np.float32]]


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds.

    width, height: pixels, upright. fps: average frames a second. start: when the first frame is shown, seconds.
    duration: when the last one ends, seconds. frames: how many, from the rate where the file does not say. rotation:
    degrees counter-clockwise by which the stored picture is turned to stand upright.
    """

    width: int
    height: int
    fps: float
    start: float
    duration: float
    frames: int
    rotation: int
    codec: str
    alpha: bool
    has_audio: bool


def _check_frames(frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ShotsError(f"frames: {frames.dtype} {frames.shape}; uint8 (T, H, W, 3) with at least one frame is needed")


def _check_fps(fps: float) -> None:
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise ShotsError(f"fps: {fps} frames a second; more than 0 and at most 1000 are needed")


def _at_constant_rate(times: Times, fps: float) -> NDArray[np.intp]:
    """Which frame to show at each tick of a constant rate, for frames shown at `times`."""
    ticks = np.arange(len(times)) / fps
    if np.abs(times - times[0] - ticks).max() < 0.5 / fps:
        return np.arange(len(times))
    ticks = np.arange(max(1, round((times[-1] - times[0]) * fps) + 1)) / fps + times[0]
    return np.searchsorted(times, ticks + 1e-6, side="right") - 1


# ---------------------------------------------------------------------------------------------------------- writing


def sidecar(path: str | Path) -> Path:
    """Where the record of the video at `path` lies as a file: NAME.mp4 has NAME.mp4.json."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def check_target(path: str | Path) -> Path:
    """`path` if a video can be written there, else a ShotsError; to be asked before the work, not after it."""
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ShotsError(f"output: {path} should end in one of {', '.join(_FORMATS)}")
    return check_place(path, "output")


class VideoWriter:
    """Writes a film frame by frame; nothing stands at `path` before the `with` block ends well.

        with VideoWriter("film.mp4", fps=12, height=128, width=128, record={...}) as writer:
            writer.write(frames)

    crf is x264's constant quality (0 lossless, 18 visually so, 51 worst). `record` may be set until the first write.
    sound: goes into the file beside the pictures (AAC), as far as there are pictures.
    Odd sides are made even by repeating the last row or column, which is said in the log.
    Raises ShotsError when `path` cannot be written, the disk is full, or the frames do not fit.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float,
        height: int,
        width: int,
        record: dict[str, Any] | None = None,
        crf: int = 18,
        sound: Sound | None = None,
    ) -> None:
        _check_fps(fps)
        if height < 2 or width < 2:
            raise ShotsError(f"height, width: {height} x {width}; a video has at least 2 x 2 pixels")
        self.path = Path(path)
        self.fps = Fraction(fps).limit_denominator(1001)
        self.height, self.width = height, width
        self.record = record
        self.crf = crf
        self.sound = sound
        self.frames_written = 0

    def __enter__(self) -> VideoWriter:
        check_target(self.path)
        self._pad = (self.height % 2, self.width % 2)
        if any(self._pad):
            log.warning(
                "%s: %d x %d has odd sides, written as %d x %d with the last row or column repeated",
                self.path.name, self.height, self.width, self.height + self._pad[0], self.width + self._pad[1],
            )  # fmt: skip
        self._temporary, self._lock = claim(self.path)
        kind = _FORMATS[self.path.suffix.lower()]
        options = {"movflags": "+faststart"} if kind != "matroska" else {}
        try:
            self._container = av.open(str(self._temporary), "w", format=kind, options=options)
            self._stream = self._container.add_stream("libx264", rate=self.fps, options={"crf": str(self.crf)})
        except (OSError, av.error.FFmpegError) as error:
            self._discard()
            raise self._failure(error) from error
        self._track = None if self.sound is None else _Track(self._container, self.sound)
        stream = self._stream
        stream.height, stream.width = self.height + self._pad[0], self.width + self._pad[1]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = max(1, round(2 * self.fps))  # a key frame every two seconds, so that players seek well
        stream.colorspace = int(Colorspace.ITU709)
        stream.color_range = int(ColorRange.MPEG)
        stream.color_primaries = int(ColorPrimaries.BT709)
        stream.color_trc = int(ColorTrc.BT709)
        return self

    def write(self, frames: Frames) -> None:
        """Append frames, uint8 (t, H, W, 3), RGB."""
        _check_frames(frames)
        if frames.shape[1:3] != (self.height, self.width):
            raise ShotsError(f"frames: {frames.shape[1:3]} pixels, this film has {(self.height, self.width)}")
        if self.frames_written == 0 and self.record is not None:
            self._container.metadata["comment"] = json.dumps(self.record, ensure_ascii=False)
        if any(self._pad):
            frames = np.pad(frames, ((0, 0), (0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        try:
            for rgb in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24").reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                    dst_color_primaries=ColorPrimaries.BT709,
                    dst_color_trc=ColorTrc.BT709,
                    interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
                )
                picture.pts = self.frames_written
                picture.time_base = 1 / self.fps
                self._container.mux(self._stream.encode(picture))
                self.frames_written += 1
                if self._track is not None:
                    self._track.play_until(self.frames_written / self.fps)
        except (OSError, av.error.FFmpegError) as error:
            raise self._failure(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or self.frames_written == 0:
            with contextlib.suppress(
                OSError, av.error.FFmpegError
            ):  # the film is given up, so is what closing it would still write
                self._container.close()
            self._discard()
            if kind is None:
                raise ShotsError(f"output: no frame was written to {self.path}")
            return
        try:
            self._container.mux(self._stream.encode())
            if self._track is not None:
                self._track.end()
            self._container.close()
            self._finish()
        except (OSError, av.error.FFmpegError) as problem:
            raise self._failure(problem) from problem
        finally:
            self._discard()

    def _finish(self) -> None:
        """Put the whole film, then its record, where they belong."""
        beside = sidecar(self.path)
        with self._temporary.open("rb") as film:
            os.fsync(film.fileno())  # a full disk may only show itself here
        if self.record is None:
            os.replace(self._temporary, self.path)
            beside.unlink(missing_ok=True)  # it would tell of the film that stood here before
            return
        text, lock = claim(beside)
        try:
            text.write_text(json.dumps(self.record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            os.replace(self._temporary, self.path)
            os.replace(text, beside)
        finally:
            text.unlink(missing_ok=True)
            lock.close()

    def _discard(self) -> None:
        self._temporary.unlink(missing_ok=True)
        self._lock.close()

    def _failure(self, error: Exception) -> ShotsFailure:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return ShotsFailure(f"output: {self.path} could not be written ({reason}); nothing was left there")


class _Track:
    """The sound of a film that is being written, kept in step with its pictures."""

    def __init__(self, container: av.container.OutputContainer, sound: Sound) -> None:
        self._container, self._rate = container, sound.rate
        self._chunks = iter(sound.chunks)
        self._stream = container.add_stream("aac", rate=sound.rate, layout="stereo", options={"b": "192k"})
        self._waiting = np.zeros((0, 2), np.float32)
        self._played = 0  # samples

    def play_until(self, time: Fraction) -> None:
        """Write what is heard before `time` seconds."""
        wanted = int(time * self._rate) - self._played
        while len(self._waiting) < wanted and (chunk := next(self._chunks, None)) is not None:
            if chunk.ndim != 2 or chunk.shape[1] != 2:
                raise ShotsError(f"sound: samples of shape {chunk.shape}; (n, 2), left and right, is needed")
            self._waiting = np.concatenate([self._waiting, chunk.astype(np.float32, copy=False)])
        now, self._waiting = self._waiting[:wanted], self._waiting[max(wanted, 0) :]
        if not len(now):
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(now.T.clip(-1, 1)), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._played, Fraction(1, self._rate)
        self._played += len(now)
        self._container.mux(self._stream.encode(frame))

    def end(self) -> None:
        self._container.mux(self._stream.encode(None))


# ---------------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """The file at `path`, open for reading; what FFmpeg cannot open is a ShotsError."""
    if not path.is_file():
        raise ShotsError(f"video: {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        container = av.open(str(path), "r", metadata_errors="replace")
    except (OSError, av.error.FFmpegError) as error:
        raise ShotsError(f"video: {path} is not a video that can be read ({error.strerror})") from error
    with container:
        if not any(map(_moves, container.streams.video)):
            raise ShotsError(f"video: {path} has no pictures in it")
        yield container


def _moves(stream: av.VideoStream) -> bool:
    """Whether a stream is a film, not the cover of a song."""
    return not stream.disposition & Disposition.attached_pic


def _film(container: av.container.InputContainer) -> av.VideoStream:
    """The first stream of moving pictures."""
    return next(filter(_moves, container.streams.video))


def _origin(container: av.container.InputContainer) -> float:
    """Where the container's clock starts, seconds."""
    return (container.start_time or 0) / av.time_base


def _packets(container: av.container.InputContainer, begin: float = 0.0) -> Iterator[av.Packet]:
    """The film's packets in order of decoding, from a key frame at or before `begin` seconds to the last.

    Some files are sought to any packet, or too far; then an earlier place is tried, at last the start.
    """
    stream, origin = _film(container), _origin(container)
    for back in (0, 2, 10, 60):
        if begin - back < 1 or not stream.time_base:
            break
        with contextlib.suppress(av.error.FFmpegError):  # then it stands where it stood, which is looked at below
            container.seek(int((begin - back + origin) / stream.time_base), stream=stream)
        packets = _whole(container.demux(stream))
        first = next((packet for packet in packets if packet.is_keyframe), None)
        if first is not None and first.pts is not None and float(first.pts * stream.time_base) - origin <= begin:
            yield first
            yield from packets
            return
    if begin >= 1:
        _rewind(container)
    yield from _whole(container.demux(stream))


def _whole(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """`packets` without empty ones, which tell a decoder that the film is over."""
    return (packet for packet in packets if packet.size)


class _NeedsAll(Exception):
    """The film has to be decoded from its start: a key frame needs what stands before it, or times are unsaid."""


class _Decoder:
    """Decodes the film's packets one by one; damaged ones are skipped, as players do, and the first is said in the log.

    Raises _NeedsAll when `starting_at` a key frame does not show that picture.
    """

    def __init__(self, container: av.container.InputContainer, path: Path) -> None:
        stream = _film(container)
        self.context, self._path, self._origin = stream.codec_context, path, _origin(container)
        if not self.context.is_open:
            stream.thread_type = "AUTO"
        self._tick = stream.time_base or Fraction(1, av.time_base)
        self.stores_order = "avi" in container.format.name  # such a file says only in which order pictures are stored
        self._late: int | None = None
        self._last = 0
        self._damaged = False
        self._expected: float | None = None

    def time(self, packet: av.Packet) -> float | None:
        """When the picture in `packet` is shown, seconds; None where the file does not say."""
        return None if packet.pts is None or self.stores_order else float(packet.pts * self._tick) - self._origin

    def starting_at(self, packet: av.Packet) -> Iterator[tuple[float, Any]]:
        """Give out all that is held, then forget it, so that the key frame `packet` may follow."""
        yield from self.decode(None)
        self.context.flush_buffers()
        self._expected = self.time(packet)

    def decode(self, packet: av.Packet | None) -> Iterator[tuple[float, Any]]:
        """(time, frame) for each picture that is ready; None asks for all that are still held."""
        try:
            frames = self.context.decode(packet)
        except av.error.InvalidDataError:
            if not self._damaged:
                log.warning("%s is damaged; what cannot be decoded is skipped", self._path)
            self._damaged = True
            return
        for frame in frames:
            if (stamp := self._in_order(frame) if self.stores_order else frame.pts) is None:
                continue
            time = float(stamp * self._tick) - self._origin
            if self._expected is not None and time >= self._expected - 1e-6:
                if time > self._expected + 1e-6:
                    raise _NeedsAll
                self._expected = None
            yield time, frame
        if packet is None and self._expected is not None:
            raise _NeedsAll

    def _in_order(self, frame: Any) -> int | None:
        """The stamp of a frame whose file stores only an order: frames come out in turn, one for each packet."""
        if frame.pts is not None and self._late is None:
            self._late = (frame.dts or frame.pts) - frame.pts  # the first is a key frame, whose guessed place is right
            self._last = frame.pts - 1
        if self._late is None:
            return None
        self._last = self._last + 1 if frame.dts is None else frame.dts - self._late
        return self._last


def _decoded(container: av.container.InputContainer, path: Path, begin: float = 0.0) -> Iterator[tuple[float, Any]]:
    """(time, frame) in order of presentation, from one at or before `begin`, or from the first, to the last."""
    decoder = _Decoder(container, path)
    packets = _packets(container, begin)
    try:
        if begin > 0 and (first := next(packets, None)) is not None:
            yield from decoder.starting_at(first)
            yield from decoder.decode(first)
        for packet in packets:
            yield from decoder.decode(packet)
        yield from decoder.decode(None)
    except _NeedsAll:
        yield from _from_the_start(container, path)


def _from_the_start(container: av.container.InputContainer, path: Path) -> Iterator[tuple[float, Any]]:
    """(time, frame) of the whole film, wherever the container stands."""
    _rewind(container)
    _film(container).codec_context.flush_buffers()
    _film(container).codec_context.skip_frame = "DEFAULT"
    yield from _decoded(container, path)


def _rewind(container: av.container.InputContainer) -> None:
    with contextlib.suppress(av.error.FFmpegError):  # what cannot be sought in was not moved either
        container.seek(0)


def _rgb(frame: Any) -> Frames:
    """A decoded frame as uint8 (H, W, 3), upright, transparency over white."""
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
        alpha = rgba[..., 3:]
        img = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    else:
        img = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(img, k=round(frame.rotation / 90) % 4))


def probe(path: str | Path) -> VideoInfo:
    """What the file at `path` holds. Raises ShotsError when it is no video or not one picture can be decoded."""
    path = Path(path)
    with _opened(path) as container:
        stream = _film(container)
        first = next(_decoded(container, path), None)
        if first is None:
            raise ShotsError(f"video: {path} holds no picture that can be decoded")
        start, frame = first
        turned = round(frame.rotation / 90) % 2 == 1
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        has_audio = bool(container.streams.audio)
        alpha = any(component.is_alpha for component in frame.format.components)
        end, counted = _tail(container, rate)
        count = stream.frames or (round((end - start) * rate) if rate else counted)
        rate = rate or count / max(end - start, 1e-6)
        rotation = round(frame.rotation) % 360
        return VideoInfo(width, height, rate, start, end, count, rotation, stream.codec_context.name, alpha, has_audio)


def _tail(container: av.container.InputContainer, rate: float) -> tuple[float, int]:
    """(end of the last frame in seconds, packets looked at), from the packets after the last key frame the index knows.

    The durations in headers are often those of the sound, or forget the last frames where the rate varies.
    """
    origin, end, count = _origin(container), 0.0, 0
    for place in ((container.start_time or 0) + max((container.duration or 0) - av.time_base, 0), 0):
        with contextlib.suppress(av.error.FFmpegError):
            container.seek(place)
        for packet in _whole(container.demux(_film(container))):
            if packet.pts is not None and packet.time_base is not None:
                lasts = float(packet.duration * packet.time_base) if packet.duration else 1 / rate if rate else 0.0
                end = max(end, float(packet.pts * packet.time_base) - origin + lasts)
                count += 1
        if count:
            break  # else the file is shorter than it says: look at all of it
    return end, count


def read_video(
    path: str | Path,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    max_frames: int | None = None,
) -> Video:
    """Frames of a video file with the times at which they are shown.

    start, end: seconds; frames shown in [start, end) are read. fps: one frame every 1 / fps seconds, that which is
    shown then (repeated where the file has fewer); None reads every frame. max_frames: when there would be more, this
    many are taken evenly spread instead. size: (height, width), covered and cropped around the centre; None keeps the
    size. `times` are the file's own timestamps. Raises ShotsError for a file that is no video, a bad argument, or an
    empty range.
    """
    path = Path(path)
    begin = 0.0 if start is None else float(start)
    if not (math.isfinite(begin) and begin >= 0):
        raise ShotsError(f"start: {start} seconds; 0 or more is needed")
    if end is not None and not end > begin:
        raise ShotsError(f"end: {end} seconds is not after start at {begin} seconds")
    if fps is not None:
        _check_fps(fps)
    if max_frames is not None and max_frames < 1:
        raise ShotsError(f"max_frames: {max_frames}; at least 1 is needed")
    if size is not None and min(size) < 1:
        raise ShotsError(f"size: {size}; (height, width) of at least 1 x 1 is needed")
    info = probe(path)
    stop = info.duration if end is None else min(end, info.duration)
    wanted, rate = _wanted(info, begin, stop, fps, max_frames)
    if wanted is None:
        picked = _every(path, begin, stop, size)
    elif info.frames >= max(_SEEK_FROM, _SEEK_SHARE * len(wanted)) and info.width >= 64 and not info.alpha:
        picked = _sought(path, info, wanted, size)
    else:
        picked = _shown_at(path, wanted, lambda frame: _resized(_rgb(frame), size))
    frames, times = [], []
    for time, img in picked:
        frames.append(img)
        times.append(time)
    if not frames:
        raise ShotsError(f"start, end: {path} shows nothing between {begin:g} and {stop:g} seconds")
    return Video(np.stack(frames), rate, np.array(times, np.float64), record=read_record(path))


def _wanted(
    info: VideoInfo, begin: float, stop: float, fps: float | None, max_frames: int | None
) -> tuple[Times | None, float]:
    """The times to take a picture at (None: every frame), and the resulting frames a second."""
    span = stop - max(begin, info.start)
    if span <= 0:
        return None, info.fps
    rate = info.fps if fps is None else fps
    count = max(1, math.ceil(span * rate - 1e-6))
    if max_frames is not None and count > max_frames:
        return stop - span + (np.arange(max_frames) + 0.5) * span / max_frames, max_frames / span
    if fps is None:
        return None, rate
    return stop - span + np.arange(count) / fps, fps


def _resized(img: Frames, size: tuple[int, int] | None) -> Frames:
    return img if size is None else fit_image(img, *size)


def _every(path: Path, begin: float, stop: float, size: tuple[int, int] | None) -> Iterator[tuple[float, Frames]]:
    """Every frame shown first in [begin, stop)."""
    with _opened(path) as container:
        for time, frame in _decoded(container, path, begin):
            if time >= stop - 1e-6:
                return
            if time >= begin - 1e-6:
                yield time, _resized(_rgb(frame), size)


def each_frame(path: str | Path, *, least: tuple[int, int] | None = None) -> Iterator[tuple[float, Frames]]:
    """Every frame of a file in order, one (time, uint8 (H, W, 3)) after the other: times are when each is first shown.

    least: (height, width): much larger pictures are shrunk to no less than this, which is faster; None keeps the size.
    One picture is held at a time. Raises ShotsError for a file that is no video or has no picture that can be read.
    """
    if least is not None and min(least) < 1:
        raise ShotsError(f"least: {least}; (height, width) of at least 1 x 1 is needed")
    return _converted(Path(path), _rgb if least is None else _Shrinker(least))


def _converted(path: Path, convert: Callable[[Any], Frames]) -> Iterator[tuple[float, Frames]]:
    """Every frame, converted."""
    seen = False
    with _opened(path) as container:
        for time, frame in _decoded(container, path):
            seen = True
            yield time, convert(frame)
    if not seen:
        raise ShotsError(f"video: {path} holds no picture that can be decoded")


def frames_at(
    path: str | Path, times: Sequence[float] | Times, *, least: tuple[int, int] | None = None
) -> Iterator[tuple[float, Frames]]:
    """What is shown at each of `times`, one (time, uint8 (H, W, 3)) after the other, in one pass over the file.

    times: ascending, seconds; before the first picture that one is shown, after the end the last. The time given back
    is when the picture's showing begins; a picture wanted twice is the same array twice. least: (height, width): much
    larger pictures are shrunk to no less than this, which is faster; None keeps the size. One picture is held at a
    time, and what no wanted picture needs is not decoded. Raises ShotsError for a file that is no video or holds no
    picture that can be decoded.
    """
    wanted = np.asarray(times, np.float64)
    if wanted.ndim != 1 or not np.isfinite(wanted).all() or (np.diff(wanted) < 0).any():
        raise ShotsError("times: a list of finite, ascending seconds is needed")
    if least is not None and min(least) < 1:
        raise ShotsError(f"least: {least}; (height, width) of at least 1 x 1 is needed")
    return _shown_at(Path(path), wanted, _rgb if least is None else _Shrinker(least))


class _Shrinker:
    """Turns decoded frames into uint8 (H, W, 3), those much larger than `least` shrunk to about twice that on the way.

    The shrinking averages areas, before colours are converted; what is left to do is small enough for a good filter.
    """

    def __init__(self, least: tuple[int, int]) -> None:
        self.least = least
        self._scaler = VideoReformatter()  # keeps its filters from frame to frame

    def __call__(self, frame: Any) -> Frames:
        turns = round(frame.rotation / 90) % 4
        height, width = self.least if turns % 2 == 0 else self.least[::-1]
        factor = min(frame.height / height, frame.width / width) / 2
        if factor < 1.5 or any(component.is_alpha for component in frame.format.components):
            return _rgb(frame)
        sides = {"height": math.ceil(frame.height / factor), "width": math.ceil(frame.width / factor)}
        small = self._scaler.reformat(frame, **sides, format="rgb24", interpolation=Interpolation.AREA, threads=1)
        return np.ascontiguousarray(np.rot90(small.to_ndarray(), k=turns))


def _shown_at(path: Path, wanted: Times, convert: Callable[[Any], Frames]) -> Iterator[tuple[float, Frames]]:
    """What is shown at each of the `wanted` times (ascending)."""
    if not len(wanted):
        return
    with _opened(path) as container:
        tick = float(_film(container).time_base or 0)  # timestamps are rounded to it
        slack = max(1e-6, min(tick, 1e-3))
        shown: tuple[float, Any] | None = None
        converted: tuple[float, Frames] | None = None
        done = 0
        for now in _needed(container, path, wanted + slack):
            while done < len(wanted) and wanted[done] + slack < now[0]:
                source = shown or now
                if converted is None or converted[0] != source[0]:
                    converted = source[0], convert(source[1])
                yield converted
                done += 1
            if done == len(wanted):
                return
            shown = now
        if shown is None:
            raise ShotsError(f"video: {path} holds no picture that can be decoded")
        if converted is None or converted[0] != shown[0]:
            converted = shown[0], convert(shown[1])
        yield from (converted for _ in range(done, len(wanted)))


class _Needs:
    """Tells from the packets' times, which come in order of decoding, what is shown at the `wanted` times.

    Of so many packets as can stand out of order, the lowest time is a floor under all that follow: what is shown at a
    time below the floor is known.
    """

    def __init__(self, wanted: Times) -> None:
        self._wanted = wanted
        self._place = 0  # the first of `wanted` whose picture is not known yet
        self._seen: list[float] = []  # sorted, from the picture that would be shown at that time on
        self._latest: list[float] = []  # a heap of times that may be out of order

    @property
    def next(self) -> float:
        """The first wanted time whose picture is not known; infinity when all are."""
        return float(self._wanted[self._place]) if self._place < len(self._wanted) else math.inf

    def add(self, time: float) -> set[float]:
        """Take note of one more picture. Returns the times of those now known to be shown."""
        bisect.insort(self._seen, time)
        heapq.heappush(self._latest, time)
        return self.known_below(heapq.heappop(self._latest)) if len(self._latest) > _REORDER else set()

    def known_below(self, floor: float) -> set[float]:
        """As `add`, when no picture before `floor` will follow."""
        known = set()
        while self.next < floor and self._seen:
            place = max(0, bisect.bisect_right(self._seen, self.next) - 1)
            del self._seen[:place]
            known.add(self._seen[0])
            self._place += 1
        return known

    def without(self, time: float) -> bool:
        """Whether the picture at `time` is shown at none of the times that are not known yet."""
        later = bisect.bisect_right(self._seen, time)
        return later < len(self._seen) and self._seen[later] <= self.next


def _needed(container: av.container.InputContainer, path: Path, wanted: Times) -> Iterator[tuple[float, Any]]:
    """(time, frame): those shown at the `wanted` times (ascending) in order of presentation, and few others.

    Should the file turn out not to be decodable from its key frames alone, everything follows from the first frame on.
    """
    decoder, needs, begin = _Decoder(container, path), _Needs(wanted), float(wanted[0])
    if decoder.stores_order:
        yield from _decoded(container, path, begin)
        return
    waiting: list[tuple[float, av.Packet]] = []
    held = 0  # bytes that wait
    jumps = begin >= 1  # the first that waits is a key frame, and what stands before it was left out
    skips = decoder.context.name in _SKIPPING

    def decode_waiting(known: set[float], everything: bool = False) -> Iterator[tuple[float, Any]]:
        nonlocal jumps
        last = max((place for place, (time, _) in enumerate(waiting) if everything or time in known), default=-1)
        if jumps and last >= 0:
            yield from decoder.starting_at(waiting[0][1])
            jumps = False
        for time, packet in waiting[: last + 1]:
            if skips:
                decoder.context.skip_frame = "NONREF" if time not in known and needs.without(time) else "DEFAULT"
            yield from decoder.decode(packet)
        del waiting[: last + 1]

    try:
        for packet in _packets(container, begin):
            if (time := decoder.time(packet)) is None:
                raise _NeedsAll
            if packet.is_keyframe and len(waiting) >= _WORTH_A_JUMP and time <= needs.next:
                waiting.clear()  # what is shown from here on can be decoded from here
                held, jumps = 0, True
            waiting.append((time, packet))
            held += packet.size
            known = set() if packet.is_discard else needs.add(time)
            if known or held > _MOST_WAITING:
                yield from decode_waiting(known, everything=held > _MOST_WAITING)
                held = sum(packet.size for _, packet in waiting)
            if needs.next == math.inf:
                break
        else:
            yield from decode_waiting(needs.known_below(math.inf))
        yield from decoder.decode(None)
    except _NeedsAll:
        yield from _from_the_start(container, path)


def _sought(path: Path, info: VideoInfo, wanted: Times, size: tuple[int, int] | None) -> Iterator[tuple[float, Frames]]:
    """What is shown at each of the `wanted` times, seeking from one to the next."""
    import decord

    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        # decord's clock starts at the first picture
        times = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64) + info.start
        picks = np.maximum(np.searchsorted(times, wanted + 1e-3, side="right") - 1, 0)
        images = [reader[int(pick)].asnumpy() for pick in picks]
    except decord.DECORDError as error:
        reason = str(error).splitlines()[-1]
        log.warning("%s cannot be sought in (%s); decoding it through, which takes longer", path, reason)
        yield from _shown_at(path, wanted, lambda frame: _resized(_rgb(frame), size))
        return
    for pick, img in zip(picks, images, strict=True):
        yield float(times[pick]), _resized(img, size)


def read_record(path: str | Path) -> dict[str, Any] | None:
    """The record in a video's comment tag, or else in the file beside it; None when it has none."""
    path = Path(path)
    with _opened(path) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    texts = [tags.get("comment", "")]
    if (beside := sidecar(path)).is_file():
        texts.append(beside.read_text(encoding="utf-8", errors="replace"))
    for text in texts:
        with contextlib.suppress(json.JSONDecodeError):  # other programs write plain comments there
            if isinstance(record := json.loads(text), dict):
                return record
    return None
