"""The page *Ground*: when does each of some things happen in a film? Moments on a time line under the player.

Notable choices:

- The export is the object that ``seedance ground --json`` prints, and the same as rows of a table.
- A film that was asked about lately keeps its features, so further queries cost a pass over the text alone.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import gradio as gr

from demos import passes, picker, widgets
from demos.services import Services
from demos.widgets import refused
from shots.errors import ShotsError
from unitime.errors import UniTimeError

COLUMNS = ("query", "status", "start", "end", "score")


def build(services: Services, page: gr.Blocks, tab: gr.Tab) -> picker.Picker:
    """Makes this page inside the blocks of ``page``."""
    with gr.Row(equal_height=False, elem_classes="page"):
        with gr.Column(scale=5, min_width=300, elem_classes="left"):
            choice = picker.build(services, page, "ground", tab)
        with gr.Column(scale=6, min_width=300, elem_classes="right"):
            queries = gr.Textbox(
                label="What to look for", lines=3, max_lines=12, elem_id="ground-queries", max_length=20_000,
                placeholder="a red cube jumps\nthe blue cone moves to the right", info="One query a line.",
            )  # fmt: skip
            with gr.Row(elem_classes="actions"):
                go = gr.Button("Find", variant="primary", elem_id="ground-find", scale=3)
                stop = gr.Button("Cancel", variant="stop", elem_id="ground-cancel", interactive=False, scale=1)
            top = gr.Dropdown(
                [("the best one", 1), ("up to 3", 3), ("up to 5", 5)], value=1, label="Moments of each",
                elem_id="ground-top",
            )  # fmt: skip
            doubt = gr.Checkbox(
                False, label="Show moments that the model doubts", elem_id="ground-doubt",
                info="otherwise it says not found where it thinks so",
            )  # fmt: skip
    moments = widgets.timeline("ground-timeline")
    table = gr.Dataframe(
        headers=["Query", "Answer", "From (s)", "To (s)", "Score"], datatype=["str", "str", *["number"] * 3],
        interactive=False, visible=False, wrap=True, label="Moments", elem_id="ground-table",
    )  # fmt: skip
    with gr.Row(elem_classes="downloads", visible=False) as exports:
        as_json = gr.DownloadButton("↓ JSON", size="sm", elem_id="ground-json", min_width=80)
        as_csv = gr.DownloadButton("↓ CSV", size="sm", elem_id="ground-csv", min_width=80)

    widgets.remember(page, "ground.queries", {"text": queries}, lambda said: said.get("text") or gr.skip(), [queries])

    async def find(film: str | None, text: str, top_k: int, doubtful: bool, request: gr.Request) -> tuple[Any, ...]:
        """Finds the moments of queries, one a line, in a film."""
        path = picker.need(film)
        asked = [line.strip() for line in (text or "").splitlines() if line.strip()]

        def look(cancelled: threading.Event) -> tuple[Any, Any]:
            handle, model = services.handle(path), passes.Stoppable(services.grounder(), cancelled)
            threshold = 1.0 if doubtful else None
            return handle, model.ground(handle, asked, top_k=int(top_k), threshold=threshold)

        try:
            handle, found = await services.passes.make(look, request)
        except (UniTimeError, ShotsError) as error:
            raise refused("Not looked for", error) from error
        result = {"video": path.name, "duration": handle.duration, "groundings": [each.to_dict() for each in found]}
        return (*shown(result), result)

    parts, latest = [moments, table, exports, as_json, as_csv], gr.State()
    event = widgets.offer(
        go, stop, find, [choice.player, queries, top, doubt], [*parts, latest], api_name="ground"
    )  # fmt: skip
    widgets.keep(page, "ground.found", choice.player, latest, event, shown, parts)
    return choice


def shown(result: dict[str, Any] | None) -> tuple[Any, ...]:
    """A result as the values of time line, table, and the exports' row, JSON and CSV; None is none."""
    if result is None:
        return None, gr.update(visible=False), gr.update(visible=False), None, None
    files = exported(result, Path(result["video"]).stem)
    rows = [list({**row, "status": row["status"].replace("ok", "found")}.values()) for row in table_rows(result)]
    return timeline(result), gr.update(value=rows, visible=True), gr.update(visible=True), *map(str, files)


def timeline(result: dict[str, Any], player: str = "ground-player") -> dict[str, Any]:
    """What ``seedance ground --json`` prints as the value of a Timeline under a player."""
    rows = [
        {
            "label": each["query"], "status": each["status"], "moments": each["moments"],
            "relevance": [point for point in each.get("relevance", ()) if 0 <= point[0] <= result["duration"]],
        }
        for each in result["groundings"]
    ]  # fmt: skip
    return {"player": player, "duration": result["duration"], "rows": rows}


def table_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a moment, and one for a query that has none."""
    rows = []
    for each in result["groundings"]:
        status = each["status"].replace("_", " ")
        for moment in each["moments"] or [dict.fromkeys(COLUMNS[2:])]:
            times = {key: None if moment[key] is None else round(moment[key], 3) for key in COLUMNS[2:]}
            rows.append({"query": each["query"], "status": status, **times})
    return rows


def exported(result: dict[str, Any], stem: str) -> tuple[Path, Path]:
    """The result as files: JSON and CSV."""
    folder = Path(tempfile.mkdtemp(prefix="moments-"))
    stem = stem[:60]  # a name as long as a file system takes would be too long with these endings
    files = folder / f"{stem}.moments.json", folder / f"{stem}.moments.csv"
    files[0].write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({key: defused(value) for key, value in row.items()} for row in table_rows(result))
    files[1].write_text(text.getvalue(), encoding="utf-8")
    return files


def defused(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
