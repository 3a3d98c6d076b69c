"""The studio in a headless browser: each page's main path, uploads, cancels, a reload, two tabs at once, a phone's
width, and what careless and careful people do to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: the studio is not looked at", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300_000  # milliseconds: machines that test are busy
TWO_SHOTS = "A red cube jumps. [cut] A blue <b>sphere</b> spins."
EXAMPLE = ROOT / "demos" / "examples" / "jump.mp4"
HTML = '<img src=x onerror="window.struck=1">A red cube <i>jumps</i>.'
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@dataclass
class Studio:
    url: str
    cpu_seconds: float  # of the process until the page was up
    seconds: float


@pytest.fixture(scope="module")
def studio(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """`python -m demos.studio` with a tiny model of films and the shipped grounder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("studio")
    command = [sys.executable, "-m", "demos.studio", "--port", str(port), "--data", str(folder / "data")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--model", str(tiny_model)], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                urllib.request.urlopen(url, timeout=10).read()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() - started < 300
                time.sleep(0.1)
        ticks = Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        spent = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        yield Studio(url, spent, time.monotonic() - started)
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(request: pytest.FixtureRequest, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the studio in a browser that was never there before, or in one more tab of a page's; errors on its console
    fail the test."""
    contexts, wrong = [], []

    def make(width: int = 1280, height: int = 900, *, url: str | None = None, beside: Any = None) -> Any:
        if beside is None:
            contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = (contexts[-1] if beside is None else beside.context).new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url or request.getfixturevalue("studio").url)
        page.wait_for_selector("#direct-render")
        page.wait_for_timeout(700)  # values kept in the browser are put back
        return page

    yield make
    for context in contexts:
        context.close()
    assert wrong == []


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    page.wait_for_selector(f"#tab-{name.lower()}", state="visible")


def render(page: Any, prompt: str) -> None:
    page.fill("#direct-prompt textarea", prompt)
    page.click("#direct-render")


def done(page: Any, where: str = "#direct-screen") -> None:
    page.wait_for_selector(f"{where} .screen.done, {where} .screen.failed")
    assert page.query_selector(f"{where} .screen.done"), page.inner_text(where)


def upload(page: Any, name: str, film: Path) -> None:
    """Gives a film to a page's player, as its upload field does."""
    page.set_input_files(f"#{name}-player input[type=file]", film)
    playing(page, f"#{name}-player")


def pick(page: Any, name: str) -> None:
    """Takes the first example as a page's film."""
    page.click(f"#{name}-pick input")
    page.get_by_role("option", name=re.compile("example")).first.click()
    playing(page, f"#{name}-player")


def playing(page: Any, player: str) -> str:
    """The address of the film in a player, once it can be played."""
    page.wait_for_function(f"document.querySelector('{player} video')?.readyState >= 1")
    return str(page.get_attribute(f"{player} video", "src"))


def test_the_page_is_up_in_five_seconds_and_without_a_model(studio: Studio) -> None:
    # Of its own process, so that it says the same on a machine that does other things besides.
    assert studio.cpu_seconds <= 5.0


def test_what_is_open_to_programs_is_named_and_no_more(studio: Studio) -> None:
    info = json.loads(urllib.request.urlopen(f"{studio.url}/gradio_api/info", timeout=60).read())
    assert sorted(info["named_endpoints"]) == ["/ask", "/ground", "/render"]


def test_a_film_comes_from_a_prompt_and_one_shot_of_it_is_taken_again(opened: Callable[..., Any]) -> None:
    page = opened()
    render(page, TWO_SHOTS)
    done(page)
    first = playing(page, "#direct-film")
    page.get_by_label("Shots", exact=True).check()
    page.wait_for_selector("#direct-cards .card .foot")
    cards = page.locator("#direct-cards .card")
    assert cards.count() == 2 and cards.nth(1).locator("img.poster").is_visible()
    assert cards.nth(1).locator("textarea").input_value() == "A blue <b>sphere</b> spins."
    seeds = page.locator("#direct-cards .lock small").all_inner_texts()
    cards.nth(1).get_by_role("button", name="Re-take shot 2").click()
    page.wait_for_function(
        "s => document.querySelectorAll('#direct-cards .lock small')[1].innerText != s", arg=seeds[1]
    )
    again = page.locator("#direct-cards .lock small").all_inner_texts()
    assert again[0] == seeds[0] and again[1] != seeds[1]
    assert playing(page, "#direct-film") != first

    cards.nth(0).get_by_role("checkbox").check()  # locked: the film is rendered again, shot 1 as it is
    page.click("#direct-render")
    page.wait_for_function(
        "s => document.querySelectorAll('#direct-cards .lock small')[1].innerText != s", arg=again[1]
    )
    assert page.locator("#direct-cards .lock small").all_inner_texts()[0] == seeds[0]


def test_cards_are_added_moved_and_removed_by_keyboard(opened: Callable[..., Any]) -> None:
    page = opened()
    page.get_by_label("Shots", exact=True).check()
    page.get_by_label("What is seen").fill("One.")
    page.get_by_role("button", name="Add a shot").press("Enter")
    page.keyboard.type("Two.")  # the new card has the focus
    page.get_by_role("button", name="Shot 2: move earlier").press("Enter")
    words = page.get_by_label("What is seen")
    assert [words.nth(i).input_value() for i in range(words.count())] == ["Two.", "One."]
    page.get_by_role("button", name="Shot 1: remove").press("Enter")
    assert words.count() == 1 and words.first.input_value() == "One."


def test_a_reload_keeps_what_was_written_and_what_was_made(opened: Callable[..., Any]) -> None:
    page = opened()
    page.get_by_label("Shots", exact=True).check()
    page.get_by_label("What is seen").fill("A red cube jumps.")
    page.get_by_label("Camera", exact=True).fill("zoom in")
    page.click("#direct-render")
    page.wait_for_selector("#direct-screen .screen")
    page.reload()  # while it is made, or just after
    done(page)
    playing(page, "#direct-film")
    assert page.get_by_label("What is seen").input_value() == "A red cube jumps."
    assert page.get_by_label("Camera", exact=True).input_value() == "zoom in"
    page.wait_for_selector("#direct-cards .card .foot")


def test_a_film_is_cancelled_while_it_is_made(opened: Callable[..., Any]) -> None:
    page = opened()
    page.click("#direct-advanced button")
    page.fill("#direct-steps input", "1000")
    render(page, "A red cube jumps.")
    page.wait_for_selector("#direct-screen .screen.running")
    page.click("#direct-cancel")
    page.wait_for_selector("#direct-screen .screen.cancelled")
    assert page.is_enabled("#direct-render")


def test_nothing_written_is_said_and_not_rendered(opened: Callable[..., Any]) -> None:
    page = opened()
    page.click("#direct-render")
    page.get_by_text("Nothing is written yet").wait_for()
    assert page.query_selector("#direct-screen .screen") is None


def test_cards_are_dragged_to_another_place(opened: Callable[..., Any]) -> None:
    page = opened()
    page.get_by_label("Shots", exact=True).check()
    for number, caption in enumerate(("One.", "Two.", "Three.")):
        if number:
            page.get_by_role("button", name="Add a shot").click()
        page.get_by_label("What is seen").nth(number).fill(caption)
    cards = page.locator("#direct-cards .card")
    cards.nth(0).locator(".grip").drag_to(cards.nth(2))
    words = page.get_by_label("What is seen")
    assert [words.nth(i).input_value() for i in range(3)] == ["Two.", "Three.", "One."]
    page.get_by_label("Prompt", exact=True).first.check()  # the form has them in this order too
    page.wait_for_selector("#direct-prompt textarea", state="visible")
    assert page.input_value("#direct-prompt textarea") == "Two. [cut]\nThree. [cut]\nOne."


def test_a_film_begins_with_the_picture_that_was_given(opened: Callable[..., Any], tmp_path: Path) -> None:
    Image.new("RGB", (48, 32), (200, 40, 30)).save(tmp_path / "first.png")
    page = opened()
    page.get_by_role("button", name="First frame").click()
    page.set_input_files("#direct-image input[type=file]", tmp_path / "first.png")
    page.wait_for_selector("#direct-image img")
    render(page, "A red cube jumps.")
    done(page)
    page.wait_for_selector("#direct-get-record:not([disabled])")
    with page.expect_download() as taken:
        page.click("#direct-get-record")
    assert json.loads(Path(taken.value.path()).read_text())["task"] == "first frame"
    page.reload()
    page.wait_for_selector("#direct-render")
    page.get_by_role("button", name="First frame").click()
    page.wait_for_selector("#direct-image img")  # the picture is still in the form


def test_two_tabs_that_render_at_once_both_get_their_films(opened: Callable[..., Any]) -> None:
    pages = [first := opened(), opened(beside=first)]
    for number, page in enumerate(pages):
        render(page, f"A {'red' if number else 'blue'} cube spins.")
    films = []
    for page in pages:
        done(page)
        films.append(playing(page, "#direct-film"))
    assert films[0] != films[1]


def test_moments_are_found_drawn_and_seek_the_player(opened: Callable[..., Any]) -> None:
    page = opened()
    tab(page, "Ground")
    pick(page, "ground")
    page.fill("#ground-queries textarea", "a red cube jumps\na <i>blue</i> cone falls")
    page.check("#ground-doubt input")
    page.click("#ground-find")
    page.wait_for_selector("#ground-timeline .moment")
    assert page.locator("#ground-timeline .label").nth(1).inner_text() == "a <i>blue</i> cone falls"
    assert page.locator("#ground-timeline path.line").count() == 2
    moment = page.locator("#ground-timeline .moment").first
    start = float(re.search(r"from ([\d.]+) to", moment.get_attribute("aria-label"))[1])
    moment.press("Enter")
    at = page.evaluate("document.querySelector('#ground-player video').currentTime")
    assert start - 0.01 <= at <= start + 2.0
    with page.expect_download() as taken:
        page.click("#ground-json")
    assert '"groundings"' in Path(taken.value.path()).read_text()


def test_a_question_is_answered_with_its_options(opened: Callable[..., Any]) -> None:
    page = opened()
    tab(page, "Ask")
    pick(page, "ask")
    page.fill("#ask-question textarea", "What does the red cube do?")
    page.fill("#ask-options textarea", "It jumps.\nIt falls.")
    page.click("#ask-go")
    page.wait_for_selector("#ask-answer .answer")
    assert page.inner_text("#ask-answer .said") in ("It jumps.", "It falls.")
    assert page.locator("#ask-answer .options li").count() == 2


def test_a_video_becomes_a_script_that_is_edited_rendered_and_held_against_the_film(
    opened: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copyfile(EXAMPLE, tmp_path / "прыжок 🎬 <b>1.mp4")
    page = opened()
    tab(page, "Loop")
    upload(page, "loop", next(tmp_path.iterdir()))
    page.click("#loop-caption")
    words = page.locator("#loop-cards").get_by_label("What is seen")
    page.wait_for_function("[...document.querySelectorAll('#loop-cards textarea')].some(text => text.value)")
    assert all(words.nth(i).input_value().strip() for i in range(words.count()))
    for number in range(words.count(), 1, -1):
        page.get_by_role("button", name=f"Shot {number}: remove").click()
    words.fill(HTML)
    page.locator("#loop-cards").get_by_label("Seconds").fill("0.5")
    page.click("#loop-render")
    done(page, "#loop-screen")
    page.click("#loop-verify")
    page.wait_for_selector("#loop-timeline .moment")
    assert page.wait_for_selector("#loop-sheet img").is_visible()
    assert "the script says" in page.inner_text("#loop-said")
    assert page.locator("#loop-cards .head .badge").count() == 1
    page.wait_for_function("document.querySelector('#loop-table').innerText.includes('<i>jumps</i>')")  # as written
    assert page.locator("#tab-loop img[src=x]").count() == 0 and page.evaluate("window.struck") is None
    page.reload()
    tab(page, "Loop")
    page.wait_for_selector("#loop-sheet img")  # what was found is still there
    assert words.input_value() == HTML


def test_html_in_a_caption_is_shown_as_text_wherever_it_stands(opened: Callable[..., Any]) -> None:
    page = opened()
    render(page, HTML)
    done(page)
    page.wait_for_selector("#direct-get-film:not([disabled])")
    page.get_by_label("Shots", exact=True).check()
    page.wait_for_selector("#direct-cards .card .foot")
    tab(page, "Gallery")
    assert page.locator("#gallery-films .title").first.inner_text() == HTML
    page.locator("#gallery-films button").first.click()
    playing(page, "#gallery-film")
    page.locator("#tab-gallery").get_by_text("onerror").first.wait_for()  # in the record
    tab(page, "Ground")
    page.click("#ground-pick input")
    page.get_by_role("option", name=HTML[:40]).first.wait_for()
    assert page.locator("img[src=x]").count() == 0 and page.evaluate("window.struck") is None


def test_an_upload_that_was_cut_off_is_said_and_the_page_goes_on(opened: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "half.mp4").write_bytes(EXAMPLE.read_bytes()[:900])
    page = opened()
    tab(page, "Ground")
    page.set_input_files("#ground-player input[type=file]", tmp_path / "half.mp4")
    page.wait_for_selector("#ground-player video", state="attached")
    page.fill("#ground-queries textarea", "a red cube jumps")
    page.click("#ground-find")
    page.get_by_text("half.mp4 is not a video that can be read").first.wait_for()
    page.wait_for_selector("#ground-find:not([disabled])")
    assert page.query_selector("#ground-timeline .moment") is None
    pick(page, "ground")
    page.click("#ground-find")
    page.wait_for_selector("#ground-timeline .moment")


def test_a_film_of_the_gallery_goes_back_to_the_form(opened: Callable[..., Any]) -> None:
    page = opened()
    render(page, "A red sphere spins.")
    done(page)
    page.fill("#direct-prompt textarea", "Something else.")
    tab(page, "Gallery")
    page.get_by_role("button", name="A red sphere spins.").first.click()
    playing(page, "#gallery-film")
    page.click("#gallery-back")
    page.wait_for_selector("#direct-cards", state="visible")
    assert page.locator("#direct-cards").get_by_label("What is seen").input_value() == "A red sphere spins."
    done(page)


def test_a_film_is_deleted_only_where_that_is_meant(opened: Callable[..., Any]) -> None:
    page = opened()
    render(page, "A blue sphere jumps.")
    done(page)
    tab(page, "Gallery")
    film = page.get_by_role("button", name="A blue sphere jumps.")
    film.first.click()
    playing(page, "#gallery-film")
    count = film.count()
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#gallery-delete")
    page.wait_for_timeout(1000)
    assert film.count() == count and page.get_by_text("Not deleted").count() == 0
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#gallery-delete")
    page.wait_for_selector("#gallery-film", state="hidden")
    assert film.count() == count - 1


class Patient:
    """A grounder that works until it is told to stop; quick where a query says so."""

    def __init__(self) -> None:
        self.begun, self.stopped = threading.Event(), threading.Event()

    def encode(self, film: Path) -> Any:
        return SimpleNamespace(duration=3.0)

    def _work(self, cancelled: threading.Event) -> None:
        from unitime.errors import UniTimeError

        self.begun.set()
        if cancelled.wait(PATIENCE / 1000):
            self.stopped.set()
        raise UniTimeError("cancelled: nobody waits for the answer any more")

    def ground(
        self, film: Any, queries: list[str], top_k: int, threshold: Any, cancelled: threading.Event
    ) -> list[Any]:
        from unitime import Grounding, Moment

        if queries != ["quick"]:
            self._work(cancelled)
        return [Grounding("quick", (Moment(0.5, 1.5, 0.9),), "ok", (), 0.1, "")]

    def ask(self, film: Any, question: str, options: Any, *, cancelled: threading.Event) -> Any:
        return self._work(cancelled)

    def caption(self, film: Any, *, window: Any = None, cancelled: threading.Event) -> str:
        self._work(cancelled)
        return ""


@pytest.fixture(scope="module")
def patient(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Patient]]:
    """A studio in this process whose grounder is a Patient."""
    from demos.services import Services
    from demos.studio import build, page_options
    from seedance.jobs import Jobs

    folder, grounder = tmp_path_factory.mktemp("patient"), Patient()
    jobs = Jobs(folder / "data", models=(str(tiny_model),))
    services = Services(jobs, lambda: grounder, upload_bytes=1_000_000)
    page = build(services)
    page.launch(server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, **page_options(services))
    yield str(page.local_url), grounder
    page.close()
    jobs.close()


@pytest.mark.parametrize(("name", "go"), [("Ground", "find"), ("Ask", "go"), ("Loop", "caption")])
def test_a_look_into_a_film_is_cancelled_and_stops_at_once(
    opened: Callable[..., Any], patient: tuple[str, Patient], name: str, go: str
) -> None:
    url, grounder = patient
    page, place = opened(url=url), name.lower()
    tab(page, name)
    upload(page, place, EXAMPLE)
    for field, words in (("#ground-queries", "a red cube jumps"), ("#ask-question", "What jumps?")):
        if page.is_visible(f"{field} textarea"):
            page.fill(f"{field} textarea", words)
    grounder.begun.clear(), grounder.stopped.clear()
    page.click(f"#{place}-{go}")
    assert grounder.begun.wait(60)
    stop = f"#{place}-caption-cancel" if name == "Loop" else f"#{place}-cancel"
    page.click(stop)
    assert grounder.stopped.wait(20)
    page.wait_for_selector(f"#{place}-{go}:not([disabled])")
    assert not page.is_visible(stop) or page.is_disabled(stop)
    assert page.get_by_text("nobody waits").count() == 0  # it was asked for, so it is no error
    if name == "Ground":  # and the model is free for the next question
        page.fill("#ground-queries textarea", "quick")
        page.click("#ground-find")
        page.wait_for_selector("#ground-timeline .moment")
        for _ in range(2):  # the second time from a page on which this tab was not looked at
            page.wait_for_timeout(700)
            page.reload()
            page.wait_for_selector("#direct-render")
        tab(page, "Ground")
        page.wait_for_selector("#ground-timeline .moment")  # what was found is still there


def test_a_page_that_is_closed_stops_the_look_that_was_made_for_it(
    opened: Callable[..., Any], patient: tuple[str, Patient]
) -> None:
    url, grounder = patient
    page = opened(url=url)
    tab(page, "Ground")
    upload(page, "ground", EXAMPLE)
    page.fill("#ground-queries textarea", "a red cube jumps")
    grounder.begun.clear(), grounder.stopped.clear()
    page.click("#ground-find")
    assert grounder.begun.wait(60)
    page.close()
    assert grounder.stopped.wait(20)


def test_an_upload_that_is_too_large_is_refused_in_words(
    opened: Callable[..., Any], patient: tuple[str, Patient], tmp_path: Path
) -> None:
    (tmp_path / "large.mp4").write_bytes(EXAMPLE.read_bytes() + bytes(1_000_000))
    page = opened(url=patient[0])
    tab(page, "Ask")
    page.set_input_files("#ask-player input[type=file]", tmp_path / "large.mp4")
    page.get_by_text("exceed the maximum allowed size").wait_for()
    page.fill("#ask-question textarea", "What jumps?")
    page.click("#ask-go")
    page.get_by_text("upload a film, or pick one").wait_for()


def test_nothing_overflows_at_a_phones_width(opened: Callable[..., Any]) -> None:
    page = opened(390, 844)
    page.get_by_label("Shots", exact=True).check()
    page.get_by_role("button", name="Add a shot").click()
    cards = [page.locator("#direct-cards .card").nth(i).bounding_box() for i in range(2)]
    assert cards[1]["y"] >= cards[0]["y"] + cards[0]["height"]  # they stack
    for name in ("Direct", "Ground", "Ask", "Loop", "Gallery"):
        tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
