"""The studio's own components: cards of a script, moments on a time line, films in a row, the screen of a render.

Notable choices:

- Each is a ``gr.HTML`` whose value is plain JSON and whose JavaScript (``assets/``) builds the page's nodes itself:
  texts go in as text, never as HTML, and what is being typed keeps its focus while values come and go.
- Buttons are buttons and fields have labels, so that all of it can be reached by keyboard and read out.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # events that are the page's own
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
    words = html.escape(str(error))
    return gr.Error(f"{words[:1].upper()}{words[1:]}.", duration=20, title=what, print_exception=False)


def save_in_browser(kept: gr.BrowserState, names: Sequence[str], parts: Sequence[Any]) -> None:
    """Keeps the values of parts of the page in the browser, under names, whenever one of them changes.

    It happens in the browser alone, and without what can be made again (pictures of shots).
    """
    code = (
        f"(...values) => {{ const names = {json.dumps(list(names))};"
        "const said = Object.fromEntries(names.map((name, i) => [name, values[i]]));"
        "const bare = ({poster, ...shot}) => shot;"
        "if (said.cards?.shots) said.cards = {...said.cards, shots: said.cards.shots.map(bare)};"
        "return said; }"
    )
    changes = [part.change for part in parts] + [part.input for part in parts if isinstance(part, gr.HTML)]
    gr.on(changes, None, list(parts), kept, js=code, trigger_mode="always_last", queue=False, **QUIET)
