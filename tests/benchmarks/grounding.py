"""What is measured of grounding: quality on the stage's held-out videos, and what queries and caches cost.

Notable choices:
- `grounding` is `seedance evaluate grounding` laid out as rows; nothing is measured here that the command does not
  print.
- Eight queries stand against one of them: the median of each of the eight alone.
- A first call is on a file that this process has not seen and with nothing on disk, a second one on the same file with
  a handle of its own, so that of the first only vision features are left. The small clip is the hard case: what a
  second call saves is reading and looking, and there is little of it.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.figures import ROOT, Row, _python

MODEL = "unitime-nano"
REAL = ROOT.parent / "shared" / "data" / "video" / "PySceneDetect__testvideo.mp4"

_QUERIES = """
import json, shutil, statistics, tempfile, time
from pathlib import Path
from unitime import FeatureCache, UniTime
from unitime.suites import FIRST_SEED, asked, drawn

item = drawn(FIRST_SEED + 5)  # 20 s and eight queries
path = Path(tempfile.mkdtemp()) / "clip.mp4"
item.video.save(path)
eight = [query.query for query in asked(item)]
assert len(set(eight)) == 8
model = UniTime.from_pretrained("MODEL")

def timed(queries, cache=None, path=path):
    own = UniTime(model.model, cache)
    begun, worked = time.perf_counter(), time.process_time()
    own.ground(own.encode(path), queries)
    return time.perf_counter() - begun, time.process_time() - worked

def median(calls):
    return [statistics.median(part) for part in zip(*calls)]

def twice(path):
    first, again = [], []
    for k in range(5):
        folder = Path(tempfile.mkdtemp())
        clip = Path(shutil.copy(path, folder))
        first.append(timed(eight[:1], FeatureCache(folder), clip))
        again.append(timed(eight[:1], FeatureCache(folder), clip))
    return median(first), median(again)

timed(eight[:1])
one = median(timed([text]) for text in eight)
all_of_them = median(timed(eight) for _ in range(5))
print(json.dumps({"one": one, "eight": all_of_them, "calls": [twice(each) for each in [path, *REAL]]}))
"""


def grounding(limit: int | None = None) -> list[Row]:
    """Every figure of the held-out videos."""
    from unitime import UniTime
    from unitime.suites import evaluate_stage

    found = evaluate_stage(UniTime.from_pretrained(MODEL), limit)

    def figures(name: str) -> str:
        row = found[name]
        return (
            f"{row['R1@0.5']:.0f} / {row['R1@0.7']:.0f} / {row['mIoU']:.0f} % of {row['queries']} queries "
            f"(ceiling {row['ceiling_R1@0.5']:.0f} / {row['ceiling_R1@0.7']:.0f} / {row['ceiling_mIoU']:.0f})"
        )

    def hits(name: str) -> str:
        return f"{found[name]['R1@0.5']:.0f} %"

    absent, repeated, asked = found["absent"], found["repeated"], found["video_qa"]
    kept = 100 * found["shifted"]["R1@0.5"] / max(found["short"]["R1@0.5"], 1e-9)
    return [
        ("grounding, 5-30 s: R1@0.5 / R1@0.7 / mIoU", figures("short"), ">= 80 / 60 / 65 %"),
        ("grounding, 2-10 min, coarse to fine", figures("long"), "R1@0.5 >= 60 %"),
        ("the same in a single pass: R1@0.5", hits("long_single_pass"), "15 points below"),
        ("grey frames: R1@0.5", hits("grey"), "<= 15 %"),
        ("the same events 4 s later: R1@0.5, share kept", f"{hits('shifted')}, {kept:.0f} %", ">= 80 % kept"),
        ("events that repeat: mAP@0.5; mAP over IoU 0.5-0.95", f"{repeated['mAP@0.5']:.0f} %; {repeated['mAP']:.0f} %",
         ">= 55 %"),
        ("absent events: `not_found` recall / precision", f"{absent['recall']:.0f} / {absent['precision']:.0f} %",
         ">= 85 / 85 %"),
        ("calibration error of scores", f"{found['calibration_error']:.2f}", "<= 0.1"),
        ("grounding, held-out wordings", figures("heldout_wordings"), "within 10 points"),
        ("grounding, held-out combinations", figures("heldout_combinations"), "within 10 points"),
        ("VideoQA, 2-10 min: grounded; uniform frames",
         f"{asked['grounded']:.0f} %; {asked['uniform']:.0f} % of {asked['questions']}", ">= 10 points better"),
    ]  # fmt: skip


def grounding_speed() -> list[Row]:
    """Eight queries against one; second calls with cached features on a small clip and, where it is, on a real one."""
    real = [str(path) for path in [REAL] if path.is_file()]
    took: dict[str, Any] = _python(_QUERIES.replace("MODEL", MODEL).replace("REAL", repr(real)))
    (one, one_work), (eight, eight_work) = took["one"], took["eight"]
    rows = [
        ("grounding: 8 queries on one video against 1",
         f"{eight / one:.2f} x ({eight:.2f} s and {one:.2f} s; {eight_work / one_work:.2f} x in processor time)",
         "<= 2 x"),
    ]  # fmt: skip
    for clip, ((first, first_work), (again, again_work)) in zip(
        ("20 s, 128 x 128", "24 s, 1280 x 720"), took["calls"], strict=False
    ):
        rows.append((
            f"grounding: second call on the same video, features cached: {clip}",
            f"{first / again:.1f} x faster ({first:.2f} s and {again:.2f} s; "
            f"{first_work / again_work:.1f} x in processor time)",
            ">= 3 x",
        ))  # fmt: skip
    return rows
