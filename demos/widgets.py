"""The studio's own components: cards of a script, moments on a time line, films in a row, the screen of a render.

Notable choices:

- Each is a ``gr.HTML`` whose value is plain JSON and whose JavaScript (``assets/``) builds the page's nodes itself:
  texts go in as text, never as HTML, and what is being typed keeps its focus while values come and go.
- Buttons are buttons and fields have labels, so that all of it can be reached by keyboard and read out.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import get_render_context, set_render_context

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # events that are the page's own
MOST_KEPT = 500_000  # letters of what was found, of the five million that a browser keeps
ASSETS = Path(__file__).parent / "assets"
CAMERAS = (
    "static shot", "slow pan left", "slow pan right", "tilt up", "tilt down", "zoom in", "zoom out", "dolly in",
    "dolly out", "orbit left", "orbit right", "wide shot", "medium shot", "close-up", "low angle", "high angle",
)  # fmt: skip


@cache
def _script(name: str) -> str:
    return (ASSETS / "dom.js").read_text(encoding="utf-8") + (ASSETS / name).read_text(encoding="utf-8")


def _widget(script: str, value: Any, elem_id: str, visible: Any = True, **props: Any) -> gr.HTML:
    # A subclass would be neater, but Gradio writes a stub file beside the source of every subclass.
    return gr.HTML(
        value,
        html_template='<div class="body"></div>',
        js_on_load=_script(script),
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes=["widget"],
        visible=visible,
        **props,
    )


def cards(value: Any, elem_id: str, visible: Any = True) -> gr.HTML:
    """A script as a row of cards; see ``assets/cards.js`` for the value. Events: ``input``, ``select`` ({shot})."""
    return _widget("cards.js", value, elem_id, visible, cameras=list(CAMERAS))


def timeline(elem_id: str) -> gr.HTML:
    """Moments under the player with the element id ``value["player"]``; see ``assets/timeline.js``."""
    return _widget("timeline.js", None, elem_id)


def strip(value: Any, elem_id: str) -> gr.HTML:
    """Films to choose from; see ``assets/strip.js``. Event: ``select`` ({id})."""
    return _widget("strip.js", value, elem_id)


def screen(elem_id: str) -> gr.HTML:
    """What a render is doing; see ``assets/screen.js``."""
    return _widget("screen.js", None, elem_id)


def answer(elem_id: str) -> gr.HTML:
    """An answer with its options; see ``assets/answer.js``."""
    return _widget("answer.js", None, elem_id)


def refused(what: str, error: Exception) -> gr.Error:
    """An error to raise: what was not done, and why, in words. What a person wrote is told as text, not as HTML."""
    told = re.sub(r"(?<!\S)/(?:[^\s/]+/)+([^\s/]+)", r"\1", str(error))  # where files lie is the server's own affair
    words = html.escape(told)
    return gr.Error(f"{words[:1].upper()}{words[1:]}.", duration=20, title=what, print_exception=False)


def browser_state(page: gr.Blocks, name: str, default: Any) -> gr.BrowserState:
    """A value that this browser keeps. It stands on the page itself: in a tab that is not yet looked at it would be
    empty when the page is loaded."""
    inside = get_render_context()
    set_render_context(page)
    try:
        return gr.BrowserState(default, storage_key=f"seedance.{name}", secret="studio")
    finally:
        set_render_context(inside)


def remember(
    page: gr.Blocks, name: str, parts: Mapping[str, Any], restore: Callable[..., Any], outputs: Sequence[Any]
) -> Any:
    """Keeps the values of parts of the page in the browser and has them put back when the page is loaded.

    parts: by the names under which their values are kept. restore: gets what was kept ({} the first time), and a
    ``gr.Request`` where it asks for one; sets ``outputs``. Returns the event, to be followed by others.

    Keeping happens in the browser alone, and not before what was kept is put back: on a slow connection somebody may be
    writing by then. Pictures of shots are not kept, as they can be made again.
    """
    kept = browser_state(page, name, {})
    names, flag = json.dumps(list(parts)), json.dumps(f"studio {name} restored")
    save = (
        f"const kept = values.pop(), names = {names};"
        f"if (!window[{flag}]) return kept;"
        "const said = Object.fromEntries(names.map((name, i) => [name, values[i] ?? null]));"
        "const bare = ({poster, verdict, ...shot}) => shot;"
        "if (said.cards?.shots) said.cards = {...said.cards, shots: said.cards.shots.map(bare)};"
        "return said;"
    )
    values = [*parts.values(), kept]
    changes = [part.change for part in parts.values()]
    changes += [part.input for part in parts.values() if isinstance(part, gr.HTML)]
    event = page.load(restore, kept, list(outputs), **QUIET)
    event.then(None, values, kept, js=f"(...values) => {{ window[{flag}] = true; {save} }}", queue=False, **QUIET)
    gr.on(
        changes, None, values, kept, js=f"(...values) => {{ {save} }}", trigger_mode="always_last", queue=False, **QUIET
    )
    return event


def keep(
    page: gr.Blocks,
    name: str,
    player: gr.Video,
    found: gr.State,
    event: Any,
    show: Callable[[Any], Any],
    outputs: Sequence[Any],
) -> None:
    """Keeps in the browser what ``event`` left in ``found``, and has it shown again when its film is back.

    show: what was found, as values of ``outputs``; None is nothing, for a film that was not looked into.
    """
    kept = browser_state(page, name, {})

    def keeping(film: str | None, value: Any) -> dict[str, Any]:
        fits = len(json.dumps(value)) < MOST_KEPT  # else the browser would keep nothing at all any more
        return {"film": film, "value": value} if fits else {}

    def back(film: str | None, was: Any) -> Any:
        same = isinstance(was, dict) and film is not None and was.get("film") == film
        return show(was["value"] if same else None)

    event.success(keeping, [player, found], kept, **QUIET)
    player.change(back, [player, kept], list(outputs), **QUIET)


def offer(
    go: gr.Button, stop: gr.Button, work: Callable[..., Any], inputs: list[Any], outputs: list[Any], **options: Any
) -> Any:
    """Has ``go`` do ``work`` with the model that all pages share, and ``stop`` end it. Returns the event.

    ``stop`` can be pressed, or where it begins hidden is seen, only while there is something to stop; ``go`` can be
    pressed only while there is not.
    """
    shows = "interactive" if stop.visible else "visible"

    def buttons(busy: bool) -> Callable[[], tuple[Any, Any]]:
        return lambda: (gr.update(interactive=not busy), gr.update(**{shows: busy}))

    said = go.click(buttons(True), None, [go, stop], queue=False, **QUIET)
    event = said.then(
        work, inputs, outputs, concurrency_limit=1, concurrency_id="grounder", show_progress_on=[go], **options
    )
    for after in (event.success, event.failure):  # `then` alone leaves the buttons as they are when the work is refused
        after(buttons(False), None, [go, stop], queue=False, **QUIET)
    stop.click(buttons(False), None, [go, stop], cancels=[event], queue=False, **QUIET)
    return event
