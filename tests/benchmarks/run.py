"""`make bench`: measures everything and rewrites the table of figures in the README.

    python -m tests.benchmarks.run [--only NAME ...] [--model MODEL] [--limit N] [--dry-run]

Rows that are not measured this time keep their old figures.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from shots.runtime.environment import describe
from tests.benchmarks import (
    acceleration,
    captions,
    cuts,
    drift,
    figures,
    grounding,
    grounding_io,
    open_training,
    open_weights,
    retakes,
    serving,
    verification,
)

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
LIMITED = {
    "following": figures.following,
    "reconstruction": figures.reconstruction,
    "grounding": grounding.grounding,
    "captions": captions.captions,
    "cuts": cuts.cuts,
    "verification": verification.verification,
    "retakes": retakes.retakes,
    "drift": drift.drift,
}
PLAIN = {
    "render_speed": figures.render_speed,
    "decode_memory": figures.decode_memory,
    "tokens_time": figures.tokens_time,
    "stage_speed": figures.stage_speed,
    "coordinates": figures.coordinates,
    "grounding_speed": grounding.grounding_speed,
    "grounding_io": grounding_io.grounding_io,
    "open_weights": open_weights.open_weights,
    "open_training": open_training.open_training,
    "acceleration": acceleration.acceleration,
    "serving": serving.serving,
}
_ROW = re.compile(
    r"^\| (?P<what>.+?) \| (?P<figure>.+?) \| (?P<reach>.+?) \| `(?P<command>.+?)` \| (?P<machine>.+?) \|$"
)


def old_rows(text: str) -> dict[str, str]:
    """The rows of the table that stands in the README, by what they measure."""
    found = (_ROW.match(line) for line in text.splitlines())
    return {match["what"]: match[0] for match in found if match and match["what"] != "what"}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*LIMITED, *PLAIN], default=[*PLAIN, *LIMITED])
    parser.add_argument("--model", default=figures.MODEL, help="shipped name, folder or hub id")
    parser.add_argument("--limit", type=int, help="films and clips of each evaluation set, for a quick look")
    parser.add_argument("--dry-run", action="store_true", help="print the rows and leave the README as it is")
    arguments = parser.parse_args()
    figures.MODEL = arguments.model
    machine = describe()
    where = machine["device_name"] or f"{machine['processor']}, {machine['cores']} cores, {machine['dtype']}"
    rows = {}
    for name in arguments.only:
        found = LIMITED[name](arguments.limit) if name in LIMITED else PLAIN[name]()
        for what, figure, reach in found:
            rows[what] = f"| {what} | {figure} | {reach} | `make bench ONLY={name}` | {where} |"
            print(rows[what], flush=True)
    if arguments.dry_run:
        return
    if arguments.limit is not None:
        print("figures of a quick look (--limit) are not written to the README")
        return
    text = README.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"README.md has no table of figures: it needs the lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    head = "| what | measured | reach | command | machine |\n|---|---|---|---|---|\n"
    lines = "\n".join({**old_rows(table), **rows}.values())
    README.write_text(f"{before}{BEGIN}\n{head}{lines}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
