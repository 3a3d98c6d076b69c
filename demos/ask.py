"""The page *Ask*: a question about a film, answered from the moment that bears on it, which is played.

Notable choice: the evidence is drawn and played under the same player, so that an answer can be checked at a glance;
where nothing was found the answer says that it rests on the whole film.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from demos import picker, widgets
from demos.services import Services
from demos.widgets import QUIET, refused
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
            go = gr.Button("Ask", variant="primary", elem_id="ask-go")
            answer = widgets.answer("ask-answer")

    widgets.remember(
        page, "ask.question", {"question": question, "options": options},
        lambda said: (said.get("question") or gr.skip(), said.get("options") or gr.skip()), [question, options],
    )  # fmt: skip

    def ask(film: str | None, asked: str, listed: str) -> tuple[Any, Any]:
        """Answers a question about a film; options one a line."""
        path = picker.need(film)
        choices = [line.strip() for line in (listed or "").splitlines() if line.strip()]
        try:
            handle = services.handle(path)
            said = services.grounder().ask(handle, asked, choices or None).to_dict()
        except (UniTimeError, ShotsError) as error:
            raise refused("Not answered", error) from error
        return shown(said, choices, handle.duration)

    go.click(
        ask, [choice.player, question, options], [answer, moment], api_name="ask", concurrency_limit=1,
        concurrency_id="grounder", show_progress_on=[go],
    )  # fmt: skip
    choice.player.change(lambda: (None, None), None, [answer, moment], **QUIET)
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
