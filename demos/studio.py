"""The studio: one page to write films, watch them come, find moments in them, ask about them, and take them again.

    python -m demos.studio            the studio alone, on this machine, with the shipped weights
    seedance serve                    the same beside the REST services

Notable choices:

- :func:`build` makes the page over :class:`demos.services.Services`; nothing is loaded by it, and the page is up before
  any model is.
- One file a page, one component a file of JavaScript, one style sheet; colours come from Gradio's variables, so that
  light and dark need no second sheet.
- What a page remembers lies in the browser, what is made lies in the queue.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from demos import ask, direct, form, gallery, ground, loop
from demos.services import EXAMPLES, Services
from demos.widgets import ASSETS, refused
from seedance.errors import SeedanceError

FONT = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
ACCENT = gr.themes.Color(
    "#fdf3ef", "#fbe3da", "#f6c5b4", "#ee9f85", "#e4754f", "#cb4a24", "#b13e1c", "#96351b", "#772d1a", "#5f2718",
    "#34130b", name="ember",
)  # fmt: skip


def build(services: Services) -> gr.Blocks:
    """The studio's page over what it works with. Serve it with :func:`page_options`."""
    with gr.Blocks(
        title="Seedance studio", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as page:
        gr.HTML(
            '<header class="masthead"><span class="mark" aria-hidden="true"><i></i><i></i><i></i></span>'
            "<h1>Seedance studio</h1><p>Write a film, watch it come, find every moment in it.</p></header>",
            elem_id="masthead", apply_default_css=False,
        )  # fmt: skip
        with gr.Tabs(selected="direct", elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab("Direct", id="direct", elem_id="tab-direct"):
                writing = direct.build(services, page)
            pickers = {}
            with gr.Tab("Ground", id="ground", elem_id="tab-ground") as tab:
                pickers["ground"] = ground.build(services, page, tab)
            with gr.Tab("Ask", id="ask", elem_id="tab-ask") as tab:
                pickers["ask"] = ask.build(services, page, tab)
            with gr.Tab("Loop", id="loop", elem_id="tab-loop") as tab:
                pickers["loop"] = loop.build(services, page, tab)
            with gr.Tab("Gallery", id="gallery", elem_id="tab-gallery") as tab:
                gallery.build(services, page, tab, tabs, writing, pickers)
        page.unload(_leaver(services))
        gr.api(_renderer(services), api_name="render", concurrency_limit=4)
    page.queue(max_size=200, default_concurrency_limit=8)
    return page


def _renderer(services: Services) -> Callable[..., Any]:
    """The page's way to a film for ``gradio_client``; whoever builds on it rather takes the REST service."""

    def render(script: str, seed: int = -1, request: gr.Request = None) -> dict[str, Any]:
        """Makes a film of a prompt or a script and waits for it.

        Parameters:
            script: what is to be seen, in any of the forms of a script.
            seed: the same gives the same film; -1 draws one.
        """
        client = services.client(request)
        try:
            job_id = services.submit({"prompt": script, "seed": form.seed_of(seed)}, client)
            job = list(services.jobs.follow(job_id, client))[-1]
        except SeedanceError as error:
            raise refused("Not rendered", error) from error
        if job.status != "completed":
            raise refused("Not rendered", SeedanceError(job.error_message or job.status))
        return {"id": job.id, "request": job.request, "film": str(services.jobs.film(job.id))}

    return render


def _leaver(services: Services) -> Callable[[gr.Request], None]:
    # Gradio hands over the request where it is asked for as such, which a method that knows no page does not.
    def leave(request: gr.Request) -> None:
        services.passes.leave(request)

    return leave


def page_options(services: Services) -> dict[str, Any]:
    """What the page has to be served with, by ``Blocks.launch`` and by ``gradio.mount_gradio_app`` alike."""
    theme = gr.themes.Base(
        primary_hue=ACCENT, secondary_hue=ACCENT, neutral_hue="stone", font=FONT, font_mono=MONO, radius_size="md"
    ).set(
        body_background_fill="#faf8f5", body_background_fill_dark="#141210",
        block_background_fill="#ffffff", block_background_fill_dark="#1d1a17",
        block_border_color="#e7e2da", block_border_color_dark="#322d27",
        border_color_primary="#e0dad0", border_color_primary_dark="#3a342d",
        input_border_width="1px", input_border_width_dark="1px", input_border_color="#e0dad0",
        input_border_color_dark="#3a342d", checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="#3a2018", checkbox_label_background_fill="#f4f1ec",
        checkbox_label_background_fill_dark="#26221e", checkbox_label_text_color_selected="*primary_700",
        checkbox_label_text_color_selected_dark="*primary_300", button_secondary_background_fill="#efebe4",
        button_secondary_background_fill_hover="#e6e0d6", button_secondary_background_fill_dark="#2c2722",
        input_background_fill="#ffffff", input_background_fill_dark="#171512",
        button_primary_background_fill="*primary_500", button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="*primary_500", button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color="#ffffff", button_large_radius="*radius_md",
        block_label_background_fill="transparent", block_shadow="0 1px 2px rgba(40, 30, 20, .05)",
    )  # fmt: skip
    return {
        "theme": theme,
        "css_paths": [ASSETS / "style.css"],
        "allowed_paths": [str(services.jobs.folder.resolve() / "films"), str(services.scratch), str(EXAMPLES)],
        "max_file_size": services.upload_bytes,
        "footer_links": ["api"],
        "ssr_mode": False,
    }


def main() -> None:
    """Serves the studio alone until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m demos.studio", description="The studio alone, on this machine.")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--data", type=Path, default=Path("outputs/studio"), help="folder of films (outputs/studio)")
    parser.add_argument("--model", default="seedance-nano", help="makes films (default: seedance-nano)")
    parser.add_argument("--grounder", default="unitime-nano", help="finds moments (default: unitime-nano)")
    said = parser.parse_args()
    from demos.services import with_models

    with with_models(said.data, said.model, said.grounder) as services:
        sys.stdout.write(f"The studio is at http://{said.host}:{said.port}; stop it with Ctrl-C.\n")
        build(services).launch(
            server_name=said.host, server_port=said.port, quiet=True, share=False, **page_options(services)
        )


if __name__ == "__main__":
    main()
