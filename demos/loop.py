"""The page *Loop*: a video becomes a script, the script a film, the film is held against the script, and what failed is
taken again.

Notable choices:

- Four numbered steps on one page, each usable alone: the script may be written by hand, the film may come from
  elsewhere in the queue.
- "Take failed shots again" asks for a new film in which the shots that passed stay bit for bit.
- The contact sheet is the report as a picture: frames of every shot, what was found below them, failures in red.
"""

from __future__ import annotations

import html
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from demos import form, picker, verdict, widgets
from demos.follow import IDLE, follow
from demos.services import Services, Verified
from demos.widgets import QUIET, refused
from seedance.errors import SeedanceError
from shots.errors import ShotsError
from unitime.errors import UniTimeError

ERRORS = (SeedanceError, ShotsError, UniTimeError)


def build(services: Services, page: gr.Blocks, tab: gr.Tab) -> picker.Picker:
    """Makes this page inside the blocks of ``page``."""
    with gr.Row(equal_height=False, elem_classes="page"):
        with gr.Column(scale=4, min_width=280, elem_classes="left"):
            gr.Markdown("### 1 · A video", elem_classes="step")
            choice = picker.build(services, page, "loop", tab)
            with gr.Row(elem_classes="actions"):
                describe = gr.Button("Caption it into a script →", elem_id="loop-caption", scale=3, min_width=180)
                leave_caption = gr.Button(
                    "Cancel", variant="stop", elem_id="loop-caption-cancel", visible=False, scale=1, min_width=80
                )
        with gr.Column(scale=7, min_width=300, elem_classes="right"):
            gr.Markdown("### 2 · Its script, to be edited", elem_classes="step")
            cards = widgets.cards(form.empty_cards(), "loop-cards")
            with gr.Row(elem_classes="actions"):
                go = gr.Button("Render it", variant="primary", elem_id="loop-render", scale=3)
                stop = gr.Button("Cancel", variant="stop", elem_id="loop-cancel", interactive=False, scale=1)
    with gr.Row(equal_height=False, elem_classes="page"):
        with gr.Column(scale=4, min_width=280, elem_classes="left"):
            gr.Markdown("### 3 · The film", elem_classes="step")
            screen = widgets.screen("loop-screen")
            film = gr.Video(
                label="Film", autoplay=True, loop=True, interactive=False, height=320, buttons=[], elem_id="loop-film"
            )
            with gr.Row(elem_classes="actions"):
                check = gr.Button("Verify it →", elem_id="loop-verify", interactive=False, scale=3, min_width=180)
                leave_verify = gr.Button(
                    "Cancel", variant="stop", elem_id="loop-verify-cancel", visible=False, scale=1, min_width=80
                )
        with gr.Column(scale=7, min_width=300, elem_classes="right"):
            gr.Markdown("### 4 · Does it show the script?", elem_classes="step")
            said = gr.Markdown("Not verified yet.", elem_id="loop-said")
            bars = widgets.timeline("loop-timeline")
            sheet = gr.Image(
                label="Contact sheet", interactive=False, visible=False, elem_id="loop-sheet",
                buttons=["download", "fullscreen"], alt_text="Frames of every shot with what was found in it",
            )  # fmt: skip
            table = gr.Dataframe(
                headers=["Shot", "Verdict", "Score", "Caption", "Defects"], interactive=False, visible=False, wrap=True,
                datatype=["number", "str", "number", "str", "str"], elem_id="loop-table", label="Report",
            )  # fmt: skip
            again = gr.Button("↻ Take failed shots again", elem_id="loop-again", visible=False)
    job = widgets.browser_state(page, "loop.job", "")
    failed = gr.State([])
    report_parts = [said, bars, sheet, table, again, failed]

    async def caption(path: str | None, request: gr.Request) -> Any:
        """A video as a script."""
        found = picker.need(path)
        try:
            return form.cards_of(await services.passes.make(partial(services.described, found), request))
        except ERRORS as error:
            raise refused("Not captioned", error) from error

    def put_in_line(written: dict[str, Any], request: gr.Request) -> str:
        try:
            return services.submit({"script": form.script_of(written).to_dict()}, services.client(request))
        except ERRORS as error:
            raise refused("Not rendered", error) from error

    def render_failed(id_: str, numbers: list[int], request: gr.Request) -> str:
        try:
            return services.submit({"source": id_, "shots": numbers}, services.client(request))
        except ERRORS as error:
            raise refused("Not taken again", error) from error

    async def watch(id_: str, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        """The screen while the film is made, then the film."""
        client = services.client(request)
        fresh: dict[Any, Any] = {said: "Not verified yet.", bars: None, failed: []}
        fresh |= {part: gr.update(visible=False) for part in (sheet, table, again)}
        yield fresh
        async for now, value in follow(services, id_, client):
            busy, done = now is not None and not now.done, now is not None and now.status == "completed"
            told: dict[Any, Any] = {
                screen: value, go: gr.update(interactive=not busy), stop: gr.update(interactive=busy),
                check: gr.update(interactive=done),
                film: gr.update(visible=not value.get("previews")),
            }  # fmt: skip
            if now is None or done:
                before = services.verified_before(id_) if done else None
                told |= reported(before) if before else {}
                try:
                    path = str(services.jobs.film(id_, client)) if done else None
                except SeedanceError:  # deleted since
                    told |= {screen: IDLE, check: gr.update(interactive=False)}
                    path = None
                told[film] = gr.update(value=path, visible=True)
            yield told

    async def verify(id_: str, written: dict[str, Any], request: gr.Request) -> dict[Any, Any]:
        """Holds the film against its script."""
        client = services.client(request)
        try:
            found = await services.passes.make(partial(services.verified, id_, client), request)
        except ERRORS as error:
            raise refused("Not verified", error) from error
        same = [row["caption"] for row in found.script["shots"]] == [
            " ".join(str(row["caption"]).split()) for row in written["shots"]
        ]
        return reported(found) | ({cards: verdict.marked(written, found.report)} if same else {})

    def reported(found: Verified) -> dict[Any, Any]:
        """What the page shows of a report."""
        report = found.report
        numbers = [n for n in report["failed_shots"] if n <= len(found.script["shots"])]
        return {
            said: f"**{html.escape(verdict.words(report))}**", bars: verdict.timeline(report, "loop-film"),
            sheet: gr.update(value=str(found.sheet), visible=True), failed: numbers,
            table: gr.update(value=verdict.rows(report), visible=True),
            again: gr.update(visible=0 < len(numbers) < len(report["shots"]) or numbers == [1]),
        }  # fmt: skip

    def cancel(id_: str, request: gr.Request) -> None:
        try:
            services.jobs.cancel(id_, services.client(request))
        except ERRORS as error:
            raise refused("Not cancelled", error) from error

    def show(event: Any) -> None:
        event.success(
            watch, job, [screen, go, stop, film, check, *report_parts], concurrency_limit=None,
            trigger_mode="multiple", **QUIET,
        )  # fmt: skip

    widgets.offer(describe, leave_caption, caption, [choice.player], [cards], api_visibility="private")
    show(go.click(put_in_line, cards, job, **QUIET))
    show(again.click(render_failed, [job, failed], job, **QUIET))
    stop.click(cancel, job, None, queue=False, **QUIET)
    widgets.offer(check, leave_verify, verify, [job, cards], [*report_parts, cards], api_visibility="private")
    show(widgets.remember(page, "loop.script", {"cards": cards}, lambda said: said.get("cards") or gr.skip(), [cards]))
    return choice
