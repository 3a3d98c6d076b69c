"""A film to look at: uploaded, or picked from those of the queue. Three pages begin with one.

Notable choices:

- The player is the upload field: what is looked at, and seeked by a time line, is the film that was given.
- The choice is kept in the browser. A film that is gone when the page is loaded again leaves an empty player.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from demos import widgets
from demos.direct import read_examples
from demos.services import Services
from demos.widgets import QUIET, refused
from seedance.errors import SeedanceError

EXAMPLE = "example:"


@dataclass
class Picker:
    """player: the film, as a path. choose: which film of the queue; its value is the id of a job."""

    player: gr.Video
    choose: gr.Dropdown


def build(services: Services, page: gr.Blocks, name: str, tab: gr.Tab) -> Picker:
    """Makes the picker of the page ``name`` on its tab."""
    player = gr.Video(
        label="Film", sources=["upload"], elem_id=f"{name}-player", height=340, buttons=[], interactive=True
    )
    choose = gr.Dropdown(
        [], label="or pick one of your films", elem_id=f"{name}-pick", value=None, allow_custom_value=False
    )

    def choices(request: gr.Request) -> Any:
        done = [job for job in services.jobs.list(services.client(request), limit=50) if job.status == "completed"]
        films = [(f"{job.prompt[:60]} · seed {job.request['seed']}", job.id) for job in done]
        films += [(f"{each['item']['title'][:60]} · example", EXAMPLE + each["item"]["id"]) for each in read_examples()]
        return gr.update(choices=films)

    def film(chosen: str | None, request: gr.Request) -> Any:
        if not chosen:
            return gr.skip()
        try:
            return str(path_of(services, chosen, services.client(request)))
        except (SeedanceError, StopIteration) as error:
            raise refused("That film is gone", error) from error

    def restore(said: Any, request: gr.Request) -> tuple[Any, Any]:
        fresh = choices(request)
        path, chosen = services.given(said.get("film")), said.get("chosen")
        if chosen and chosen in [value for _, value in fresh["choices"]]:
            return str(path_of(services, chosen, services.client(request))), fresh | {"value": chosen}
        return str(path) if path else gr.skip(), fresh

    gr.on([tab.select, choose.focus], choices, None, choose, **QUIET)
    choose.input(film, choose, player, show_progress="hidden", api_visibility="private")
    player.upload(lambda: None, None, choose, **QUIET)
    widgets.remember(page, f"{name}.film", {"film": player, "chosen": choose}, restore, [player, choose])
    return Picker(player, choose)


def path_of(services: Services, chosen: str, client: str | None) -> Path:
    """The file of a film that was picked. Raises SeedanceError or StopIteration where it is gone."""
    if chosen.startswith(EXAMPLE):
        return Path(next(e["item"]["film"] for e in read_examples() if EXAMPLE + e["item"]["id"] == chosen))
    return services.jobs.film(chosen, client)


def need(film: str | None) -> Path:
    """The film as a path; an error to read where there is none."""
    if not film:
        raise refused("No film", SeedanceError("upload a film, or pick one of yours, first"))
    return Path(film)
