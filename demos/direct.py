"""The page *Direct*: write a prompt or a row of shots, watch the film come, take single shots again.

Notable choices:

- What is written is kept in the browser as it is typed, and the job in the page's keeping by its id: a page that is
  loaded again shows the same words, and the film that is being made, or was.
- A film is asked for in two steps: one event puts it in line, another follows it. The second is also what a page does
  when it is loaded, so there is one way to see a film come.
- After a film is there, its shots' cards know their takes: "Lock seed" holds one when the film is rendered again,
  "Re-take" makes that one anew and holds all others.
"""

from __future__ import annotations

import asyncio
import html
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from demos import form, verdict, widgets
from demos.follow import IDLE, follow, posters, shot_seeds
from demos.services import EXAMPLES, Services
from demos.widgets import QUIET, refused
from seedance.errors import SeedanceError
from shots.errors import ShotsError
from unitime.errors import UniTimeError

PROMPT, SHOTS = "Prompt", "Shots"
NAMES = (
    "mode", "prompt", "cards", "title", "style", "caption", "image", "last_image", "size", "fps", "length", "steps",
    "guidance", "negative", "seed", "verify", "retakes",
)  # fmt: skip


@dataclass
class Direct:
    """The page's parts that others write to.

    fields: the form, by the names of :data:`NAMES`. job: the id of the job that is shown, kept in the browser.
    filled: the updates that put values into fields. show: has the page show the job that an event left in ``job``.
    """

    fields: dict[str, Any]
    job: gr.BrowserState
    filled: Callable[[dict[str, Any]], dict[Any, Any]]
    show: Callable[[Any], None]


def build(services: Services, page: gr.Blocks) -> Direct:
    """Makes this page inside the blocks of ``page``."""
    fields: dict[str, Any] = {}
    with gr.Row(equal_height=False, elem_classes="page"):
        with gr.Column(scale=7, min_width=300, elem_classes="left"):
            fields["mode"] = gr.Radio(
                [PROMPT, SHOTS], value=PROMPT, label="Write as", elem_id="direct-mode", elem_classes="segmented"
            )
            fields["prompt"] = gr.Textbox(
                label="Prompt", lines=3, max_lines=12, elem_id="direct-prompt", autofocus=True, max_length=20_000,
                placeholder="A red cube jumps beside a blue cone. [cut] The blue cone moves to the right.",
                info="[cut] begins the next shot.",
            )  # fmt: skip
            fields["cards"] = widgets.cards(form.empty_cards(), elem_id="direct-cards", visible="hidden")
            with gr.Row(elem_classes="actions"):
                go = gr.Button("Render", variant="primary", elem_id="direct-render", scale=3)
                stop = gr.Button("Cancel", variant="stop", elem_id="direct-cancel", interactive=False, scale=1)
            with gr.Row(elem_classes="basic"):
                fields["size"] = gr.Dropdown(
                    list(form.SIZES), value=form.MODEL_SIZE, label="Height × width", min_width=150,
                    allow_custom_value=False,
                )  # fmt: skip
                fields["length"] = _number("Seconds a shot", "default")
                fields["seed"] = _number("Seed", "drawn", elem_id="direct-seed")
                with gr.Column(min_width=96, scale=0, elem_classes="dice"):
                    dice = gr.Button("⚄ New seed", size="sm", elem_id="direct-dice")
                    reuse = gr.Button("↺ Reuse", size="sm", elem_id="direct-reuse")
            with gr.Accordion("First frame", open=False):
                fields["image"] = gr.Image(
                    type="filepath", label="The film starts with this picture", sources=["upload", "clipboard"],
                    height=180, elem_id="direct-image",
                )  # fmt: skip
            with gr.Accordion("Advanced", open=False, elem_id="direct-advanced"):
                with gr.Row():
                    fields["steps"] = _number("Steps", "default", elem_id="direct-steps")
                    fields["guidance"] = _number("Guidance", "default")
                    fields["fps"] = _number("Frames a second", "default")
                fields["negative"] = gr.Textbox(label="Negative prompt", info="what the film should not be like")
                with gr.Row():
                    fields["title"] = gr.Textbox(label="Title", min_width=140)
                    fields["style"] = gr.Textbox(label="Style", min_width=140)
                fields["caption"] = gr.Textbox(label="Caption of the whole film")
                with gr.Row():
                    fields["verify"] = gr.Checkbox(
                        False, label="Verify each shot", info="as the grounder sees it", min_width=160,
                    )  # fmt: skip
                    fields["retakes"] = gr.Slider(
                        0, 5, value=0, step=1, label="Re-takes of failed shots",
                        min_width=160,
                    )  # fmt: skip
                fields["last_image"] = gr.Image(
                    type="filepath", label="The film ends with this picture", sources=["upload", "clipboard"],
                    height=180,
                )  # fmt: skip
        with gr.Column(scale=5, min_width=300, elem_classes="right"):
            screen = widgets.screen("direct-screen")
            film = gr.Video(
                label="Film", autoplay=True, loop=True, interactive=False, elem_id="direct-film", height=420, buttons=[]
            )
            bars = widgets.timeline("direct-verdict")
            with gr.Row(elem_classes="downloads"):
                downloads = [
                    gr.DownloadButton(
                        f"↓ {what}", size="sm", interactive=False, min_width=80, elem_id=f"direct-get-{what}"
                    )
                    for what in ("film", "record", "script")
                ]
                check = gr.Button(
                    "✓ Verify", size="sm", interactive=False, min_width=80, elem_id="direct-verify",
                )  # fmt: skip
                leave = gr.Button(
                    "Cancel", size="sm", variant="stop", visible=False, min_width=80, elem_id="direct-verify-cancel"
                )
            with gr.Accordion("Record", open=False):
                record = gr.JSON(label="How this film was made", show_label=False, elem_id="direct-record")
    examples = read_examples()
    if examples:
        gr.Markdown("### Examples\nReally made by the shipped weights. Choose one to have its film and its script.")
        shelf = widgets.strip({"items": [example["item"] for example in examples]}, elem_id="direct-examples")

    job = widgets.browser_state(page, "direct.job", "")
    form_parts = [fields[name] for name in NAMES]

    # What is written.

    def switch(mode: str, prompt: str, cards: dict[str, Any]) -> tuple[Any, Any, Any]:
        """From a prompt to cards and back."""
        if mode == SHOTS:
            try:
                cards = form.to_cards(prompt, cards)
            except ShotsError as error:
                gr.Warning(html.escape(str(error)))
            return gr.update(visible=False), gr.update(visible=True, value=cards), SHOTS
        return gr.update(visible=True, value=form.to_text(cards)), gr.update(visible="hidden"), PROMPT

    fields["mode"].input(
        switch,
        [fields["mode"], fields["prompt"], fields["cards"]],
        [fields["prompt"], fields["cards"], fields["mode"]],
        **QUIET,
    )
    dice.click(lambda: str(form.seed_of(None)), None, fields["seed"], **QUIET)

    def last_seed(job_id: str, request: gr.Request) -> Any:
        try:
            return str(services.jobs.get(job_id, services.client(request)).request["seed"])
        except SeedanceError:
            gr.Info("There is no film yet whose seed could be used again.")
            return gr.skip()

    reuse.click(last_seed, job, fields["seed"], **QUIET)

    # Asking for a film.

    def put_in_line(request: gr.Request, *values: Any) -> str:
        said = dict(zip(NAMES, values, strict=True))
        try:
            wanted = form.request_of(said)
            return services.submit(wanted, services.client(request), pictures_of(said))
        except (SeedanceError, ShotsError) as error:
            raise refused("Not rendered", error) from error

    def again(job_id: str, cards: dict[str, Any], event: gr.EventData, request: gr.Request) -> str:
        """One shot anew, as its card now says it, all others held."""
        shot, client = int(event._data["shot"]), services.client(request)
        try:
            source = services.jobs.get(cards["shots"][shot - 1].get("take") or job_id, client)
            made = source.request["script"]
            rows = form.script_of(cards).to_dict()["shots"]
            wanted = {"source": source.id, "shots": [shot], "script": {**made, "shots": rows}}
            return services.submit(wanted, client)
        except (SeedanceError, ShotsError) as error:
            raise refused("Not taken again", error) from error

    def cancel(job_id: str, request: gr.Request) -> None:
        try:
            services.jobs.cancel(job_id, services.client(request))
        except SeedanceError as error:
            raise refused("Not cancelled", error) from error

    # Seeing it come.

    resting = {"interactive": False}

    async def watch(job_id: str, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        """The screen while the film is made, then the film."""
        async for now, value in follow(services, job_id, services.client(request)):
            busy = now is not None and not now.done
            told: dict[Any, Any] = {
                screen: value, go: gr.update(interactive=not busy), stop: gr.update(interactive=busy),
                film: gr.update(visible=not value.get("previews")),
            }  # fmt: skip
            if now is None:
                told |= {film: gr.update(value=None, visible=True), record: None, check: gr.update(**resting)}
                told |= {button: gr.update(value=None, **resting) for button in downloads}
            elif now.status == "completed":
                try:
                    files, report = await asyncio.to_thread(services.downloads, now), verdict.of_job(now.result)
                except SeedanceError:  # deleted since
                    yield told | {screen: IDLE}
                    return
                told |= {
                    film: gr.update(value=str(files[0]), visible=True),
                    record: json.loads(files[1].read_text(encoding="utf-8")),
                    check: gr.update(interactive=True),
                    bars: verdict.timeline(report, "direct-film") if report else None,
                    screen: value | ({"text": f"{value['text']} {verdict.words(report)}"} if report else {}),
                }  # fmt: skip
                told |= {
                    button: gr.update(value=str(file), interactive=True)
                    for button, file in zip(downloads, files, strict=True)
                }
            yield told

    def taken(job_id: str, mode: str, prompt: str, cards: dict[str, Any], request: gr.Request) -> Any:
        """The cards, which know their takes once the film is there."""
        client = services.client(request)
        try:
            job_ = services.jobs.get(job_id, client)
            if job_.status != "completed":
                return gr.skip()
            cards = form.to_cards(prompt, cards) if mode == PROMPT else cards
            made = job_.request["script"]
            cards = form.with_take(cards, job_id, made, shot_seeds(services, job_, client))
            pictures = posters(services.jobs.film(job_id, client), made)
            for card in cards["shots"]:
                card |= {"poster": pictures[card["shot"] - 1]} if "take" in card else {}
            report = verdict.of_job(job_.result)
            return verdict.marked(cards, report) if report and all("take" in card for card in cards["shots"]) else cards
        except (SeedanceError, ShotsError):  # the film is gone, or the words are no script any more
            return gr.skip()

    def show(event: Any) -> None:
        """Has the page show the job that ``event`` left in ``job``, as it is made and when it is there."""
        event.success(
            watch, job, [screen, go, stop, film, record, check, bars, *downloads],
            concurrency_limit=None, trigger_mode="multiple", **QUIET,
        ).then(
            taken, [job, fields["mode"], fields["prompt"], fields["cards"]], fields["cards"], **QUIET
        )  # fmt: skip

    async def verify(job_id: str, mode: str, cards: dict[str, Any], request: gr.Request) -> dict[Any, Any]:
        """Holds the film against its script."""
        client = services.client(request)

        def look(cancelled: threading.Event) -> dict[str, Any]:
            made = services.jobs.get(job_id, client)
            return services.report(services.jobs.film(job_id, client), made.request["script"], cancelled).to_dict()

        try:
            report = await services.passes.make(look, request)
        except (SeedanceError, ShotsError, UniTimeError) as error:
            raise refused("Not verified", error) from error
        told = {screen: {"state": "done", "text": verdict.words(report)}, bars: verdict.timeline(report, "direct-film")}
        fits = len(report["shots"]) == len(cards["shots"]) and all("take" in card for card in cards["shots"])
        return told | ({fields["cards"]: verdict.marked(cards, report)} if fits else {})

    widgets.offer(
        check, leave, verify, [job, fields["mode"], fields["cards"]], [screen, bars, fields["cards"]],
        api_visibility="private",
    )  # fmt: skip
    show(go.click(put_in_line, form_parts, job, **QUIET))
    show(fields["cards"].select(again, [job, fields["cards"]], job, **QUIET))
    stop.click(cancel, job, None, queue=False, **QUIET)

    # What was there before.

    def restore(said: dict[str, Any]) -> dict[Any, Any]:
        """The form as the browser remembers it."""
        if not isinstance(said, dict) or not said:
            return {fields["mode"]: gr.skip()}  # somebody may be writing already
        pictures = {name: services.given(said.get(name)) for name in ("image", "last_image")}
        said = {**said, **{name: path and str(path) for name, path in pictures.items()}}
        return filled({name: said[name] for name in NAMES if name in said})

    def filled(said: dict[str, Any]) -> dict[Any, Any]:
        """Updates that put values into the fields."""
        updates = {fields[name]: gr.update(value=value) for name, value in said.items()}
        by_cards = said.get("mode") == SHOTS
        updates[fields["prompt"]] = gr.update(value=said.get("prompt", ""), visible=not by_cards)
        if "size" in said:  # a film of the REST service may have any
            sizes = form.SIZES if said["size"] in form.SIZES else (*form.SIZES, said["size"])
            updates[fields["size"]] = gr.update(value=said["size"], choices=list(sizes))
        updates[fields["cards"]] = gr.update(
            value=said.get("cards") or form.empty_cards(), visible=True if by_cards else "hidden"
        )
        return updates

    show(widgets.remember(page, "direct.form", fields, restore, form_parts))

    if examples:

        def example(event: gr.EventData) -> dict[Any, Any]:
            chosen = next(each for each in examples if each["item"]["id"] == event._data["id"])
            told = filled({**form.fields_of(chosen["request"]), "image": None, "last_image": None})
            request, path = chosen["request"], Path(chosen["item"]["film"])
            files = services.files(path.stem, path, chosen["record"], request["script"], chosen["item"]["title"])
            told |= {
                button: gr.update(value=str(file), interactive=True)
                for button, file in zip(downloads, files, strict=True)
            }
            return told | {
                job: "", screen: IDLE, record: chosen["record"], film: gr.update(value=str(path), visible=True),
                check: gr.update(interactive=False), bars: None, stop: gr.update(interactive=False),
                go: gr.update(interactive=True),
            }  # fmt: skip

        shelf.select(
            example, None, [*form_parts, job, screen, film, record, check, bars, stop, go, *downloads], **QUIET
        )  # fmt: skip
    return Direct(fields, job, filled, show)


def _number(label: str, otherwise: str, **options: Any) -> gr.Textbox:
    # A gr.Number that holds nothing shows a 0, which would be a seed.
    return gr.Textbox(label=label, placeholder=otherwise, max_length=20, max_lines=1, min_width=110, **options)


def pictures_of(said: dict[str, Any]) -> dict[str, bytes]:
    """The pictures of a form, as they were uploaded. Raises SeedanceError where one is no longer there."""
    try:
        return {name: Path(said[name]).read_bytes() for name in ("image", "last_image") if said[name]}
    except OSError as error:
        raise SeedanceError("image: a picture is no longer there; upload it again") from error


def read_examples() -> list[dict[str, Any]]:
    """The films kept in the package with their requests and records: what ``python -m demos.examples`` made."""
    index = EXAMPLES / "examples.json"
    if not index.is_file():
        return []
    found = json.loads(index.read_text(encoding="utf-8"))
    for each in found:
        each["item"]["film"] = str(EXAMPLES / each["item"]["film"])
    return list(found)
