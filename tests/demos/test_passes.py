"""Passes of a model for those who wait at a page: ended when nobody does, and over only when they are."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from demos import takes
from demos.passes import Passes, Stoppable
from seedance.renderer import Cancelled, Report, Task
from shots.evaluation import verify
from shots.protocols import Answerer
from shots.script import Script
from shots.video import Video
from unitime.errors import UniTimeError

PAGE = SimpleNamespace(session_hash="a page")
SOON = 20.0  # seconds, on a machine that does other things besides


class Patient:
    """A pass that lasts until it is told to stop."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, cancelled: threading.Event) -> None:
        self.begun.set()
        assert cancelled.wait(SOON)
        self.ended.set()
        raise UniTimeError("cancelled: nobody waits")


def test_a_pass_whose_event_is_ended_is_told_and_waited_for() -> None:
    async def run() -> None:
        work = Patient()
        event = asyncio.ensure_future(Passes().make(work, PAGE))
        await asyncio.to_thread(work.begun.wait, SOON)
        event.cancel()
        with pytest.raises(asyncio.CancelledError):
            await event
        assert work.ended.is_set()

    asyncio.run(run())


def test_a_page_that_is_left_stops_its_own_passes_and_no_others() -> None:
    async def run() -> None:
        passes, mine, other = Passes(), Patient(), Patient()
        events = [asyncio.ensure_future(passes.make(mine, PAGE))]
        events += [asyncio.ensure_future(passes.make(other, SimpleNamespace(session_hash="another")))]
        for work in (mine, other):
            await asyncio.to_thread(work.begun.wait, SOON)
        passes.leave(PAGE)
        with pytest.raises(UniTimeError, match="nobody waits"):
            await events[0]
        assert not events[1].done()
        passes.leave(SimpleNamespace(session_hash="another"))
        await asyncio.gather(*events, return_exceptions=True)
        assert passes._made == {}

    asyncio.run(run())


class Model:
    """Finds everything, and stops where it is told to."""

    name = "a model"

    def __init__(self) -> None:
        self.asked: list[threading.Event | None] = []

    def encode(self, video: Any) -> Any:
        return video

    def ground(
        self, video: Any, queries: Any, top_k: int = 1, *, window: Any = None, cancelled: threading.Event | None = None
    ) -> list[Any]:
        self.asked.append(cancelled)
        if cancelled is not None and cancelled.is_set():
            raise UniTimeError("cancelled: nobody waits")
        moment = SimpleNamespace(start=0.0, end=1.0, score=0.9)
        return [SimpleNamespace(query=query, moments=(moment,), status="ok", not_found=0.1) for query in queries]


def test_what_only_calls_a_model_stops_with_it_and_sees_all_it_can_do() -> None:
    model, cancelled = Model(), threading.Event()
    stoppable = Stoppable(model, cancelled)
    assert stoppable.name == "a model" and not isinstance(stoppable, Answerer)
    film = Video(frames=np.zeros((12, 32, 32, 3), np.uint8), fps=12.0, times=np.arange(12) / 12)
    script = Script.from_dict({"shots": [{"caption": "A red cube jumps.", "seconds": 1.0}]})
    verify(film, script, stoppable, measures=False)
    assert model.asked and set(map(id, model.asked)) == {id(cancelled)}
    cancelled.set()
    with pytest.raises(UniTimeError):
        verify(film, script, stoppable, measures=False)


@pytest.mark.parametrize("when", ["while it is decoded", "while it is looked at"])
def test_a_film_to_be_verified_is_cancelled_at_any_time(when: str, tmp_path: Path, tiny_model: Path) -> None:
    from seedance.pipeline import Seedance

    pipe, model, cancelled = Seedance.from_pretrained(tiny_model, device="cpu"), Model(), threading.Event()
    said: list[str] = []

    def say(line: dict[str, Any]) -> None:
        said.append(line["stage"])
        if when == "while it is decoded" and line["stage"] == "decoding":
            cancelled.set()

    if when == "while it is looked at":
        encode = model.encode
        model.encode = lambda video: (cancelled.set(), encode(video))[1]  # type: ignore[method-assign]
    script = {"shots": [{"caption": "A red cube.", "seconds": 1.0}]}
    request = {"script": script, "seed": 1, "steps": 1, "height": 32, "width": 32, "fps": 12.0, "verify": True}
    with pytest.raises(Cancelled):
        takes.verified(pipe, model, Task("video_1", request, tmp_path), Report(say, cancelled))
    assert "decoding" in said and bool(model.asked) == (when == "while it is looked at")
    assert list(tmp_path.iterdir()) == []
