"""The page *Ask*: a question about a film, answered from the moment that bears on it, which is played.

Notable choice: the evidence is drawn and played under the same player, so that an answer can be checked at a glance;
where nothing was found the answer says that it rests on the whole film.
"""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from demos import passes, picker, widgets
from demos.services import Services
from demos.widgets import refused
from shots.errors import ShotsError
from unitime.errors import UniTimeError


def build(services: Services, page: gr.Blocks, tab: gr.Tab) -> picker.Picker:
    """Makes this page inside the blocks of ``page``."""
    with gr.Row(equal_height=False, elem_classes="page"):
        with gr.Column(scale=5, min_width=300, elem_classes="left"):
            choice = picker.build(services, page, "ask", tab)
            moment = widgets.timeline("ask-timeline")
        with gr.Column(scale=6, min_width=300, elem_classes="right"):
            question = gr.Textbox(
                label="Question", elem_id="ask-question", lines=2, max_length=2000,
                placeholder="What does the red cube do?",
            )  # fmt: skip
            options = gr.Textbox(
                label="Options", lines=4, max_lines=26, elem_id="ask-options", max_length=20_000,
                info="One a line, 2 to 26; none for an open question.", placeholder="It jumps.\nIt falls.\nIt spins.",
            )  # fmt: skip
            with gr.Row(elem_classes="actions"):
                go = gr.Button("Ask", variant="primary", elem_id="ask-go", scale=3)
                stop = gr.Button("Cancel", variant="stop", elem_id="ask-cancel", interactive=False, scale=1)
            answer = widgets.answer("ask-answer")

    widgets.remember(
        page, "ask.question", {"question": question, "options": options},
        lambda said: (said.get("question") or gr.skip(), said.get("options") or gr.skip()), [question, options],
    )  # fmt: skip

    async def ask(film: str | None, asked: str, listed: str, request: gr.Request) -> tuple[Any, ...]:
        """Answers a question about a film; options one a line."""
        path = picker.need(film)
        choices = [line.strip() for line in (listed or "").splitlines() if line.strip()]

        def look(cancelled: threading.Event) -> tuple[Any, Any]:
            handle, model = services.handle(path), passes.Stoppable(services.grounder(), cancelled)
            return handle, model.ask(handle, asked, choices or None).to_dict()

        try:
            handle, said = await services.passes.make(look, request)
        except (UniTimeError, ShotsError) as error:
            raise refused("Not answered", error) from error
        told = shown(said, choices, handle.duration)
        return *told, told

    def again(told: Any) -> tuple[Any, Any]:
        """What was told before, without being played."""
        return (None, None) if told is None else (told[0], {**told[1], "play": None})

    latest = gr.State()
    event = widgets.offer(
        go, stop, ask, [choice.player, question, options], [answer, moment, latest], api_name="ask"
    )  # fmt: skip
    widgets.keep(page, "ask.told", choice.player, latest, event, again, [answer, moment])
    return choice


def shown(said: dict[str, Any], options: list[str], duration: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """An answer as the values of an Answer and of a Timeline."""
    scores = said["scores"] or [None] * len(options)
    rows = [{"text": text, "score": score} for text, score in zip(options, scores, strict=True)]
    evidence = said["evidence"]
    window = [evidence["start"], evidence["end"]] if evidence else said["window"]
    told = {"answer": said["answer"], "chosen": said["option"], "options": rows}
    seen = f"Seen from {window[0]:.2f} to {window[1]:.2f} s."
    told["basis"] = seen if evidence else "No single moment was found; the whole film was read."
    row = {"label": "Evidence", "status": "ok", "moments": [evidence] if evidence else [], "relevance": []}
    value = {"player": "ask-player", "duration": duration, "rows": [row]}
    return told, value | ({"play": window} if evidence else {})
