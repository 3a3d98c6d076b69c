"""What a query on a long video costs: `python -m tests.benchmarks.grounding_io [--minutes 10 60] [--height 720]`.

For a clip of each length: seconds to decode all of its frames and do nothing with them, seconds to ground one query in
it with unitime-nano, coarse to fine (the model is loaded before), and the highest memory of that process.

Notable choices:
- The clip is made once: 20 seconds are encoded and their packets repeated, so an hour takes a minute to make.
- Each figure is taken in a process of its own. Seconds of the clock and of the processor are both given: the latter
  count all threads, and mean something on a busy machine too.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import av
import numpy as np

from shots import VideoWriter
from tests.benchmarks.figures import Row, _python

_FPS, _PART = 25, 20.0

_DECODE = """
import av, json, time
begun = time.perf_counter()
with av.open({path!r}) as container:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    frames = sum(1 for _ in container.decode(stream))
print(json.dumps({{"seconds": time.perf_counter() - begun, "work": time.process_time(), "frames": frames}}))
"""

_GROUND = """
import json, resource, time
from unitime import UniTime
model = UniTime.from_pretrained("unitime-nano")
begun, worked = time.perf_counter(), time.process_time()
model.ground({path!r}, ["the red cube jumps"])
print(json.dumps({{"seconds": time.perf_counter() - begun, "work": time.process_time() - worked,
                   "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}}))
"""


def make_clip(folder: Path, minutes: float, height: int = 720) -> Path:
    """A clip of so many minutes at 16:9 in `folder`: a textured picture that drifts over itself and brightens."""
    width = height * 16 // 9
    part, path = folder / f"part{height}.mp4", folder / f"{minutes:g}min{height}.mp4"
    if not part.exists():
        draw = np.random.default_rng(0)
        coarse = draw.integers(0, 200, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        fine = draw.integers(0, 12, (height, width, 3), np.uint8)
        with VideoWriter(part, fps=_FPS, height=height, width=width, crf=26) as writer:
            for k in range(round(_PART * _FPS)):
                writer.write((np.roll(coarse, 2 * k, 1) + np.roll(fine, -k, 0) + k % 16)[None])
    with av.open(str(part)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        stamps = [(packet.pts, packet.dts) for packet in packets]
        step = round(_PART / stream.time_base)
        for turn in range(round(minutes * 60 / _PART)):
            for packet, (pts, dts) in zip(packets, stamps, strict=True):
                packet.pts, packet.dts, packet.stream = pts + turn * step, dts + turn * step, copied
                packet.time_base = stream.time_base
                target.mux(packet)
    return path


def grounding_io(minutes: tuple[float, ...] = (10, 60), height: int = 720) -> list[Row]:
    """Rows of one query on clips of these lengths."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            path = str(make_clip(Path(folder), length, height))
            plain = _python(_DECODE.format(path=path))
            asked = _python(_GROUND.format(path=path))
            rows.append((
                f"one query on a {length:g} min {height}p clip, against decoding it alone",
                f"{asked['seconds'] / plain['seconds']:.2f} x ({asked['seconds']:.0f} s and {plain['seconds']:.0f} s; "
                f"{asked['work'] / plain['work']:.2f} x in processor time), {asked['peak']:.0f} MB at most",
                "<= 1.7 x, <= 2 GB, 60 min within 10 %",
            ))  # fmt: skip
            Path(path).unlink()
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 60])
    parser.add_argument("--height", type=int, default=720)
    said = parser.parse_args()
    for what, figure, _ in grounding_io(tuple(said.minutes), said.height):
        print(f"{what}: {figure}")


if __name__ == "__main__":
    main()
