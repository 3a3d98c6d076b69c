"""The page *Loop*: a video becomes a script, the script a film, the film is held against the script, and what failed is
taken again.

Notable choices:

- Four numbered steps on one page, each usable alone: the script may be written by hand, the film may come from
  elsewhere in the queue.
- "Take failed shots again" asks for a new film in which the shots that passed stay bit for bit.
- The contact sheet is the report as a picture: frames of every shot, what was found below them, failures in red.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from demos import form, picker, verdict, widgets
from demos.follow import follow
from demos.services import Services
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
            describe = gr.Button(
                "Caption it into a script →",
                elem_id="loop-caption",
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
            check = gr.Button("Verify it →", elem_id="loop-verify", interactive=False)
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
    job = gr.BrowserState("", storage_key="seedance.loop.job", secret="studio")
    failed = gr.State([])
    report_parts = [said, bars, sheet, table, again, failed]

    def caption(path: str | None) -> Any:
        """A video as a script."""
        found = picker.need(path)
        try:
            return form.cards_of(services.caption(found, services.grounder()))
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
                path = str(services.jobs.film(id_, client)) if done else None
                told[film] = gr.update(value=path, visible=True)
            yield told

    def verify(id_: str, written: dict[str, Any], request: gr.Request) -> dict[Any, Any]:
        """Holds the film against its script."""
        client = services.client(request)
        try:
            made = services.jobs.get(id_, client)
            path = services.jobs.film(id_, client)
            found = services.report(path, made.request["script"])
            picture, report = services.sheet(path, found), found.to_dict()
        except ERRORS as error:
            raise refused("Not verified", error) from error
        numbers = [n for n in report["failed_shots"] if n <= len(made.request["script"]["shots"])]
        told: dict[Any, Any] = {
            said: f"**{verdict.words(report)}**", bars: verdict.timeline(report, "loop-film"),
            sheet: gr.update(value=str(picture), visible=True), failed: numbers,
            table: gr.update(value=verdict.rows(report), visible=True),
            again: gr.update(visible=0 < len(numbers) < len(report["shots"]) or numbers == [1]),
        }  # fmt: skip
        same = [row["caption"] for row in made.request["script"]["shots"]] == [
            " ".join(str(row["caption"]).split()) for row in written["shots"]
        ]
        return told | ({cards: verdict.marked(written, report)} if same else {})

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

    describe.click(
        caption, choice.player, cards, concurrency_limit=1, concurrency_id="grounder", show_progress_on=[describe],
        api_visibility="private",
    )  # fmt: skip
    show(go.click(put_in_line, cards, job, **QUIET))
    show(again.click(render_failed, [job, failed], job, **QUIET))
    stop.click(cancel, job, None, queue=False, **QUIET)
    check.click(
        verify, [job, cards], [*report_parts, cards], concurrency_limit=1, concurrency_id="grounder",
        show_progress_on=[check], api_visibility="private",
    )  # fmt: skip
    show(widgets.remember(page, "loop.script", {"cards": cards}, lambda said: said.get("cards") or gr.skip(), [cards]))
    return choice
