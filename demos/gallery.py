"""The page *Gallery*: films made before, each with its record, to be sent back to the form or looked into.

Notable choice: the gallery is the queue's own list, so that a film asked for by a REST client of the same name stands
there too, and one that waits or failed is seen with its reason.
"""

from __future__ import annotations

import json
import time
from typing import Any

import gradio as gr

from demos import form, picker, widgets
from demos.direct import Direct
from demos.follow import screen
from demos.services import Services
from demos.widgets import QUIET, refused
from seedance.errors import SeedanceError

EMPTY = "No films yet. Write one under Direct; it will stand here when it is made."


def build(
    services: Services, page: gr.Blocks, tab: gr.Tab, tabs: gr.Tabs, direct: Direct, pickers: dict[str, picker.Picker]
) -> None:
    """Makes this page inside the blocks of ``page``; it fills the form of *Direct* and the film of other pages."""
    with gr.Row(equal_height=False, elem_classes="page"):
        with gr.Column(scale=5, min_width=300, elem_classes="left"):
            shelf = widgets.strip({"items": [], "empty": EMPTY}, "gallery-films")
        with gr.Column(scale=6, min_width=300, elem_classes="right", visible=False) as detail:
            state = widgets.screen("gallery-state")
            film = gr.Video(label="Film", loop=True, interactive=False, height=360, elem_id="gallery-film", buttons=[])
            with gr.Row(elem_classes="downloads"):
                back = gr.Button("← Send back to the form", size="sm", elem_id="gallery-back", min_width=150)
                looks = {
                    name: gr.Button(words, size="sm", elem_id=f"gallery-{name}", min_width=110)
                    for name, words in (("ground", "Find moments"), ("ask", "Ask about it"), ("loop", "Caption it"))
                }
                gone = gr.Button("Delete", size="sm", variant="stop", elem_id="gallery-delete", min_width=80)
            with gr.Row(elem_classes="downloads"):
                downloads = [
                    gr.DownloadButton(f"↓ {what}", size="sm", min_width=80, elem_id=f"gallery-get-{what}")
                    for what in ("film", "record", "script")
                ]
            with gr.Accordion("Record", open=True):
                record = gr.JSON(show_label=False, max_height=420)
    chosen = gr.State("")
    sure = gr.Checkbox(visible=False)  # the browser's answer; a State's value cannot come from there

    def films(chosen: str, request: gr.Request) -> dict[str, Any]:
        items = []
        for job in services.jobs.list(services.client(request), limit=60):
            done = job.status == "completed"
            words = job.prompt.replace(" [cut] ", " · ")
            made = time.strftime("%d %b, %H:%M", time.localtime(job.created_at))
            items.append({
                "id": job.id, "title": words if len(words) < 90 else words[:88] + "…",
                "detail": f"{made} · {job.seconds:g} s · seed {job.request['seed']}",
                "film": str(services.jobs.film(job.id)) if done else None,
                "badge": None if done else job.status.replace("_", " "),
            })  # fmt: skip
        return {"items": items, "chosen": chosen, "empty": EMPTY}

    def choose(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        id_, client = str(event._data["id"]), services.client(request)
        try:
            job = services.jobs.get(id_, client)
            value = screen(job, services.jobs.progress(id_, client))
            files = list(services.downloads(job)) if job.status == "completed" else []
        except SeedanceError:  # gone since the list was made
            return {detail: gr.update(visible=False), chosen: "", shelf: films("", request)}
        done = bool(files)
        told: dict[Any, Any] = {
            chosen: id_, detail: gr.update(visible=True), state: value, shelf: films(id_, request),
            film: gr.update(value=None, visible=done), record: dict(job.request),
        }  # fmt: skip
        told |= {button: gr.update(interactive=done) for button in (*looks.values(), *downloads)}
        if done:
            told[film] = gr.update(value=str(files[0]), visible=True)
            told[record] = json.loads(files[1].read_text(encoding="utf-8"))
            told |= {
                button: gr.update(value=str(file), interactive=True)
                for button, file in zip(downloads, files, strict=True)
            }
        return told

    def send_back(id_: str, request: gr.Request) -> dict[Any, Any]:
        try:
            job = services.jobs.get(id_, services.client(request))
        except SeedanceError as error:
            raise refused("That film is gone", error) from error
        told = direct.filled({**form.fields_of(job.request), "image": None, "last_image": None})
        pictures = {name: services.jobs.place(id_) / f"{name}.png" for name in ("image", "last_image")}
        told |= {direct.fields[name]: str(path) for name, path in pictures.items() if path.is_file()}
        return told | {direct.job: id_, tabs: gr.update(selected="direct")}

    def delete(id_: str, sure: bool, request: gr.Request) -> tuple[Any, Any, Any]:
        if not id_ or not sure:  # thought better of
            return gr.skip(), gr.skip(), gr.skip()
        try:
            services.jobs.delete(id_, services.client(request))
        except SeedanceError as error:
            raise refused("Not deleted", error) from error
        return gr.update(visible=False), "", films("", request)

    gr.on([tab.select, page.load], films, chosen, shelf, **QUIET)
    shelf.select(choose, None, [chosen, detail, state, shelf, film, record, *looks.values(), *downloads], **QUIET)
    direct.show(back.click(send_back, chosen, [*direct.fields.values(), direct.job, tabs], **QUIET))
    gone.click(
        delete, [chosen, sure], [detail, chosen, shelf],
        js="(id) => [id, confirm('Delete this film for good?')]", **QUIET,
    )  # fmt: skip
    for name, button in looks.items():
        choice = pickers[name]

        def look(id_: str, request: gr.Request, name: str = name) -> tuple[Any, Any, Any]:
            try:
                path = services.jobs.film(id_, services.client(request))
            except SeedanceError as error:
                raise refused("That film is gone", error) from error
            return str(path), gr.update(value=None), gr.update(selected=name)

        button.click(look, chosen, [choice.player, choice.choose, tabs], **QUIET)
