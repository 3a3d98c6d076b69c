"""Folders of real clips and pictures with captions, as training samples; packs of them for machines without a decoder.

Captions are looked for in `metadata.jsonl` (rows {"file", "caption"} or {"file", "shots": [{"caption", "seconds"}]}),
else beside the file as NAME.yaml or NAME.json (a script, or the annotations of a film of the stage, whose events come
along) or NAME.txt (a prompt or a script in plain text).

Notable choices:
- A long video becomes several clips of the asked length, one after the other; a remainder is left out, a video that is
  shorter than one clip is kept whole.
- A picture is a clip of one frame.
- A pack is one safetensors file: frames as they are, everything else in its header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from shots.clip import Clip, ClipShot
from shots.errors import ShotsError
from shots.script import Script

VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".gif"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_TOP = ("title", "style", "caption", "shots")

Events = tuple[dict[str, Any], ...]


def clips_in_folder(path: str | Path, frames: int, size: tuple[int, int], fps: float) -> Iterator[Clip]:
    """Every video and picture in a folder as clips of up to `frames` frames at `fps`, `size` = (height, width) pixels.

    Files come in the order of their names, at any depth. Those without a caption get an empty one. Raises ShotsError
    for a folder without any, a caption file that is not one, a script whose shots do not say how long they are, and a
    file that cannot be decoded.
    """
    if frames < 1:
        raise ShotsError(f"frames: {frames}; a clip has at least 1")
    for file, script, events in captioned_files(path):
        yield from clips_in_file(file, script, frames, size, fps, events)


def captioned_files(path: str | Path) -> Iterator[tuple[Path, Script | None, Events]]:
    """Every video and picture in a folder, at any depth, in the order of their names, with its script and the events
    that its caption file tells. Raises ShotsError as :func:`clips_in_folder` does."""
    folder = Path(path)
    if not folder.is_dir():
        raise ShotsError(f"folder: {folder} does not exist")
    listed = _listed(folder)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in VIDEOS | PICTURES)
    if not files:
        raise ShotsError(f"folder: {folder} holds no video and no picture")
    for file in files:
        name = file.relative_to(folder).as_posix()
        yield file, *((listed[name], ()) if name in listed else _beside(file))


def clips_in_file(
    file: Path, script: Script | None, frames: int, size: tuple[int, int], fps: float, events: Events = ()
) -> Iterator[Clip]:
    """The clips of one video, or the one of a picture, as in :func:`clips_in_folder`."""
    if file.suffix.lower() in PICTURES:
        yield _picture(file, script, size, fps)
    else:
        yield from _windows(file, script, events, frames, size, fps)


def _listed(folder: Path) -> dict[str, Script]:
    """The scripts in the folder's metadata.jsonl, by file name; empty without one."""
    path = folder / "metadata.jsonl"
    if not path.is_file():
        return {}
    scripts: dict[str, Script] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "file" not in row or not ("caption" in row or "shots" in row):
                raise ShotsError('a row is {"file", "caption"} or {"file", "shots"}')
            if not (folder / row["file"]).is_file():
                raise ShotsError(f"the file {row['file']!r} is not there")
            fields = {key: row[key] for key in _TOP if key in row}
            scripts[row["file"]] = Script.from_dict(fields if "shots" in row else {"shots": [fields]})
        except (ShotsError, json.JSONDecodeError) as error:
            raise ShotsError(f"{path}, line {number}: {error}") from None
    return scripts


def _beside(file: Path) -> tuple[Script | None, Events]:
    """The script in a caption file beside a clip, or None, and the events where the file tells them."""
    for suffix in (".yaml", ".yml", ".json", ".txt"):
        if (caption := file.with_suffix(suffix)).is_file():
            return _annotated(caption) or (Script.load(caption), ())
    return None, ()


def _annotated(path: Path) -> tuple[Script, Events] | None:
    """The captions and events of a film of the stage, or None when `path` holds something else."""
    if path.suffix != ".json":
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        shots = [{"caption": shot["caption"], "seconds": shot["end"] - shot["start"]} for shot in found["shots"]]
        top = {"caption": found["caption"]} if found.get("caption") else {}
        return Script.from_dict({**top, "shots": shots}), tuple(found["events"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None  # no annotations; a script says itself what is wrong with it


def _spans(script: Script | None, total: int, fps: float, source: str) -> list[ClipShot]:
    """The script's shots laid over `total` frames; the last one takes what is left."""
    if script is None:
        return [ClipShot("", 0, total)]
    spans, start = [], 0
    for number, shot in enumerate(script.shots, start=1):
        last = number == len(script.shots)
        if shot.seconds is None and not last:
            raise ShotsError(f"{source}: shot {number} does not say its seconds, so the next one has no beginning")
        end = total if last or shot.seconds is None else min(total, start + round(shot.seconds * fps))
        if end > start:
            spans.append(ClipShot(shot.caption, start, end))
        start = end
    return spans


def _picture(file: Path, script: Script | None, size: tuple[int, int], fps: float) -> Clip:
    from shots.images import fit_image, read_image

    frames = torch.from_numpy(fit_image(read_image(file), *size).copy())[None]  # (1, H, W, 3)
    caption = (script.caption if script else None) or ""
    return Clip(frames, None, fps, tuple(_spans(script, 1, fps, str(file))), caption, source=str(file))


def _windows(
    file: Path, script: Script | None, events: Events, frames: int, size: tuple[int, int], fps: float
) -> Iterator[Clip]:
    """The clips of one video, decoded one window at a time so that memory does not grow with its length."""
    from shots.video import probe, read_video

    info = probe(file)
    total = max(1, round((info.duration - info.start) * fps))
    spans = _spans(script, total, fps, str(file))
    caption = (script.caption if script else None) or ""
    for first in range(0, max(1, total - frames + 1), frames):
        count = min(frames, total - first)
        begin = info.start + first / fps
        video = read_video(file, start=begin, end=begin + (count + 0.5) / fps, fps=fps, size=size)
        pictures = torch.from_numpy(video.frames[:count])  # (T, H, W, 3)
        last = first + len(pictures)
        shots = tuple(
            ClipShot(span.caption, max(span.start, first) - first, min(span.end, last) - first)
            for span in spans
            if span.start < last and span.end > first
        )
        source = f"{file} at {begin:.3f} s"
        here = _events_between(events, begin, begin + len(pictures) / fps)
        yield Clip(pictures, None, fps, shots, caption, here, source=source)


def _events_between(events: Events, begin: float, end: float) -> Events:
    """What happens from `begin` to `end` (seconds of the file), on a clock that starts at `begin`."""
    return tuple(
        {**event, "start": max(event["start"], begin) - begin, "end": min(event["end"], end) - begin}
        for event in events
        if event["start"] < end and event["end"] > begin
    )


def pack_clips(clips: Iterable[Clip], path: str | Path) -> int:
    """Write the frames, captions and events of `clips` as one safetensors file. Returns how many there were."""
    path = Path(path)
    tensors, rows = {}, []
    for number, clip in enumerate(clips):
        if clip.frames is None:
            raise ShotsError(f"clip {clip.source!r}: has no frames to pack")
        tensors[f"{number:07d}"] = clip.frames.contiguous()
        rows.append(
            {
                "fps": clip.fps,
                "shots": [asdict(shot) for shot in clip.shots],
                "caption": clip.caption,
                "events": list(clip.events),
                "source": clip.source,
            }
        )
    temporary = path.with_name(f".{path.name}.part")
    save_file(tensors, temporary, metadata={"clips": json.dumps(rows, ensure_ascii=False)})
    temporary.replace(path)
    return len(rows)


def load_pack(path: str | Path) -> list[Clip]:
    """The clips of a pack; their frames stay on disk until they are looked at. Raises ShotsError when it is no pack."""
    path = Path(path)
    if not path.is_file():
        raise ShotsError(f"pack: {path} does not exist; make it with shots.folder.pack_clips")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            rows: list[dict[str, Any]] = json.loads((file.metadata() or {})["clips"])
            return [
                Clip(
                    frames=file.get_tensor(f"{number:07d}"),
                    latents=None,
                    fps=row["fps"],
                    shots=tuple(ClipShot(**shot) for shot in row["shots"]),
                    caption=row["caption"],
                    events=tuple(row["events"]),
                    source=row["source"],
                )
                for number, row in enumerate(rows)
            ]
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ShotsError(
            f"pack: {path} is not a pack of clips ({error}); make it with shots.folder.pack_clips"
        ) from error
