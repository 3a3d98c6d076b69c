"""A picture of the studio with a film that it has just made, for the README.

    python -m demos.screenshot -o demos/studio.png

Starts the studio with the shipped weights, writes a script into its cards in a headless Chromium, renders it, and takes
the picture when the film is there. Needs playwright and Chromium.

Notable choice: nothing is staged; what is seen is what a visitor would see after the same clicks, so the picture is
taken again with every release.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from demos.services import with_models
from shots.errors import ShotsError

SCRIPT = "A red cube jumps beside a blue cone. [cut] A blue cone moves to the right on the grass."
SEED = "5"
MOST_BYTES = 300_000
WAIT = 600_000  # milliseconds for a film on a slow machine


def screenshot(path: Path, model: str = "seedance-nano", dark: bool = False, width: int = 1280) -> Path:
    """Renders a film in the studio and writes a picture of the page to ``path``.

    Raises ShotsError where Chromium is missing or the film was not made.
    """
    from playwright.sync_api import sync_playwright

    from demos.studio import build, page_options

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise ShotsError("screenshot: Chromium is not installed; install it, as by apt install chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        tempfile.TemporaryDirectory() as folder,
        with_models(Path(folder) / "films", model, "unitime-nano") as services,
    ):
        studio = build(services)
        studio.launch(
            server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True, **page_options(services)
        )  # fmt: skip
        try:
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
                page = browser.new_page(
                    viewport={"width": width, "height": 860}, color_scheme="dark" if dark else "light"
                )
                page.set_default_timeout(WAIT)
                page.goto(f"http://127.0.0.1:{port}/{'?__theme=dark' if dark else ''}")
                page.fill("#direct-prompt textarea", SCRIPT)
                page.fill("#direct-seed input", SEED)
                page.get_by_label("Shots", exact=True).check()
                page.wait_for_selector("#direct-cards .card")
                page.click("#direct-render")
                page.wait_for_selector("#direct-screen .screen.done, #direct-screen .screen.failed")
                if page.query_selector("#direct-screen .screen.failed"):
                    raise ShotsError(f"screenshot: {page.inner_text('#direct-screen')}")
                page.wait_for_selector("#direct-cards .card img.poster")
                page.evaluate(
                    "() => { const film = document.querySelector('#direct-film video');"
                    " film.pause(); film.currentTime = 1.2; document.activeElement?.blur(); }"
                )
                page.mouse.move(0, 0)
                page.wait_for_timeout(1500)
                page.screenshot(path=path)
                browser.close()
        finally:
            studio.close()
    _shrink(path)
    return path


def _shrink(path: Path) -> None:
    """Fewer colours where the picture is larger than it may be."""
    from PIL import Image

    if path.stat().st_size > MOST_BYTES:
        with Image.open(path) as picture:
            fewer = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        fewer.save(path, optimize=True)


def main() -> None:
    """Takes the picture that the command line asks for, and says where it lies."""
    parser = argparse.ArgumentParser(prog="python -m demos.screenshot", description="A picture of the studio.")
    parser.add_argument("-o", "--output", type=Path, default=Path("studio.png"), help="picture (default: studio.png)")
    parser.add_argument("--model", default="seedance-nano", help="makes the film (default: seedance-nano)")
    parser.add_argument("--dark", action="store_true", help="in the dark theme")
    parser.add_argument("--width", type=int, default=1280, help="of the window, pixels (default: 1280)")
    said = parser.parse_args()
    try:
        path = screenshot(said.output, said.model, said.dark, said.width)
    except ShotsError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{path}  {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
