"""The queue of films: order, limits, whose is what, what a killed process leaves, and the processes that make them."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seedance.errors import SeedanceError
from seedance.jobs import Job, Jobs, Limits, NoSuchJob, QueueFull
from seedance.workers import Workers
from shots.errors import ShotsFailure
from shots.video import read_record, read_video

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def jobs(tiny_model: Path, tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path / "data", models=(str(tiny_model),))
    yield made
    made.close()


def opened(jobs: Jobs, tiny_model: Path, **limits: Any) -> Jobs:
    """The queue as the next process finds it when the first was killed: its lock is free, nothing else was tidied."""
    jobs._lock.close()
    return Jobs(jobs.folder, Limits(**limits), models=(str(tiny_model),))


def made(jobs: Jobs, size: int = 100) -> Job:
    """The next job as a renderer leaves it that makes its film at once."""
    job = jobs.claim(0)
    assert job is not None
    (jobs.place(job.id) / "film.mp4").write_bytes(b"f" * size)
    jobs.report(job.id, 0.5, "rendering", 1, 2)
    jobs.finish(job.id, {"warnings": ["one"]})
    return jobs.get(job.id)


# --------------------------------------------------------------------------------------------------------- requests


def test_a_request_is_settled_as_the_renderer_will_read_it(jobs: Jobs) -> None:
    job = jobs.submit({"prompt": "A red cube. [cut] A blue sphere.", "seconds": 2, "width": 50, "fps": 10, "seed": 3})
    assert [shot["seconds"] for shot in job.request["script"]["shots"]] == [1.0, 1.0]
    assert (job.width, job.height, job.seconds, job.request["seed"]) == (48, 32, 2.0, 3)
    assert (job.status, job.model, job.prompt) == ("queued", job.model, "A red cube. [cut] A blue sphere.")


def test_shots_that_say_their_seconds_leave_the_rest_to_the_others(jobs: Jobs) -> None:
    script = {"shots": [{"caption": "A red cube.", "seconds": 0.5}, {"caption": "A cone."}, {"caption": "A cube."}]}
    job = jobs.submit({"script": script, "seconds": 2.5, "fps": 8})
    assert [shot["seconds"] for shot in job.request["script"]["shots"]] == [0.5, 1.0, 1.0]


def test_a_seed_that_is_not_given_is_drawn_and_told(jobs: Jobs) -> None:
    assert len({jobs.submit({"prompt": "A red cube."}).request["seed"] for _ in range(3)}) == 3


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "a" * 20_001}, "20000 letters"),
        ({"script": {"shots": []}}, "shots"),
        ({"script": [1]}, "script"),
        ({"prompt": "a", "colour": 1}, "colour"),
        ({"prompt": "a", "model": "sora-9"}, "sora-9"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": True}, "seed"),
        ({"prompt": "a", "steps": 1.5}, "steps"),
        ({"prompt": "a", "steps": 1001}, "steps"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale"),
        ({"prompt": "a", "sampler": "best"}, "sampler"),
        ({"prompt": "a", "width": 1 << 20}, "width"),
        ({"prompt": "a", "seconds": 0}, "seconds"),
        ({"prompt": "a", "seconds": 1, "num_frames": 3}, "num_frames"),
        ({"script": {"shots": [{"caption": "a", "seconds": 3}]}, "seconds": 2}, "seconds"),
        ({"prompt": "a", "seconds": 60, "width": 1024, "height": 1024}, "latent cells"),
        ({"prompt": "a", "retakes": 2, "verify": False}, "retakes"),
        ({"prompt": "a", "shots": [1]}, "source"),
    ],
)
def test_what_cannot_be_used_is_named_and_takes_no_place(jobs: Jobs, request_: dict[str, Any], named: str) -> None:
    with pytest.raises(SeedanceError, match=named):
        jobs.submit(request_)
    assert sum(jobs.counts().values()) == 0 and not list((jobs.folder / "films").iterdir())


def test_a_retake_keeps_all_but_its_shots_words_and_noise(jobs: Jobs) -> None:
    first = jobs.submit({"prompt": "A red cube. [cut] A blue sphere.", "seconds": 2, "seed": 5, "steps": 3})
    with pytest.raises(SeedanceError, match="queued"):
        jobs.submit({"source": first.id, "shots": [2]})
    made(jobs)
    with pytest.raises(SeedanceError, match="latents"):
        jobs.submit({"source": first.id, "shots": [2]})
    (jobs.place(first.id) / "film.state.safetensors").write_bytes(b"state")
    again = jobs.submit({"source": first.id, "shots": [2], "prompt": "A red cube. [cut] A blue cone."})
    assert (again.source, again.request["shots"], again.request["seed"], again.request["steps"]) == (
        first.id,
        [2],
        6,
        3,
    )
    assert again.request["script"]["shots"][1] == {"caption": "A blue cone.", "seconds": 1.0}
    wrongs = [({"shots": [3]}, "shots"), ({"shots": [1], "fps": 3}, "fps"), ({"shots": "1"}, "shots"),
              ({"shots": [1], "prompt": "A red cube."}, "one caption per shot")]  # fmt: skip
    for wrong, named in wrongs:
        with pytest.raises(SeedanceError, match=named):
            jobs.submit({"source": first.id, **wrong})
    jobs.delete(first.id)
    with pytest.raises(NoSuchJob):
        jobs.submit({"source": first.id})
    assert (jobs.place(again.id) / "source.safetensors").read_bytes() == b"state"  # its own copy


# ----------------------------------------------------------------------------------------------------- order, limits


def test_jobs_are_made_in_the_order_in_which_they_were_asked_for_whoever_asks(jobs: Jobs) -> None:
    asked = [jobs.submit({"prompt": "a"}, client=name).id for name in ("one", "two", "one", "three")]
    assert [jobs.progress(id_).position for id_ in asked] == [0, 1, 2, 3]
    assert [made(jobs).id for _ in asked] == asked
    assert jobs.claim(0) is None


def test_one_job_is_never_made_twice(jobs: Jobs) -> None:
    asked = {jobs.submit({"prompt": "a"}).id for _ in range(12)}
    taken: list[str] = []

    def take() -> None:
        while (job := jobs.claim(0)) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 12 and set(taken) == asked


def test_a_full_queue_says_when_to_try_again(tiny_model: Path, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "data", Limits(queue=3, per_client=2), models=(str(tiny_model),))
    for name in ("one", "one", "two"):
        jobs.submit({"prompt": "a"}, client=name)
    with pytest.raises(QueueFull, match="queue is full") as full:
        jobs.submit({"prompt": "a"}, client="three")
    assert 1 <= full.value.retry_after <= 600
    made(jobs)
    jobs.submit({"prompt": "a"}, client="two")
    made(jobs)
    with pytest.raises(QueueFull, match="your films"):
        jobs.submit({"prompt": "a"}, client="two")
        jobs.submit({"prompt": "a"}, client="two")
    jobs.close()


def test_a_client_sees_its_own_jobs_and_no_others(jobs: Jobs) -> None:
    mine, theirs = (jobs.submit({"prompt": "a"}, client=name) for name in ("me", "them"))
    assert [job.id for job in jobs.list("me")] == [mine.id] and len(jobs.list()) == 2
    for ask in (jobs.get, jobs.progress, jobs.cancel, jobs.delete, jobs.film, lambda *x: next(jobs.follow(*x))):
        with pytest.raises(NoSuchJob):
            ask(theirs.id, "me")
    with pytest.raises(NoSuchJob):
        jobs.list("me", after=theirs.id)
    with pytest.raises(NoSuchJob):
        jobs.submit({"source": theirs.id}, client="me", sees="me")
    assert jobs.get(theirs.id).status == "queued"
    with pytest.raises(NoSuchJob):
        jobs.place("../../etc")


def test_pages_follow_on_one_another_both_ways(jobs: Jobs) -> None:
    asked = [jobs.submit({"prompt": "a"}).id for _ in range(5)]
    for newest_first in (True, False):
        seen: list[str] = []
        while page := jobs.list(limit=2, after=seen[-1] if seen else None, newest_first=newest_first):
            seen += [job.id for job in page]
        assert seen == (asked[::-1] if newest_first else asked)


def test_progress_tells_the_time_left_also_to_those_in_line(jobs: Jobs) -> None:
    first, second, third = (jobs.submit({"prompt": "a"}) for _ in range(3))
    assert jobs.progress(first.id).eta_seconds is None  # nothing was made yet
    made(jobs)
    assert jobs.claim(0) is not None
    jobs.report(second.id, 0.25, "rendering", 1, 4, [b"jpeg"])
    time.sleep(0.05)
    jobs.report(second.id, 0.5, "rendering", 2, 4)
    now = jobs.progress(second.id)
    assert (now.percent, now.stage, now.step, now.steps, now.previews) == (50, "rendering", 2, 4, (b"jpeg",))
    assert now.eta_seconds == pytest.approx(0.05, abs=0.04)
    waits = jobs.progress(third.id)
    assert waits.position == 1 and waits.eta_seconds is not None and waits.eta_seconds > 0.01
    jobs.report(second.id, 1.0, "writing")
    assert jobs.progress(second.id).percent == 99  # 100 is for what is there
    assert jobs.progress(first.id).percent == 100


def test_following_a_job_tells_of_every_change_and_ends_with_it(jobs: Jobs) -> None:
    job = jobs.submit({"prompt": "a"})
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.extend(state.status for state in jobs.follow(job.id)))
    thread.start()
    time.sleep(0.05)
    made(jobs)
    thread.join(5)
    assert not thread.is_alive() and seen[0] == "queued" and seen[-1] == "completed"
    gone = jobs.submit({"prompt": "a"})
    threading.Timer(0.05, jobs.delete, (gone.id,)).start()
    assert {state.status for state in jobs.follow(gone.id, timeout=5)} <= {"queued", "cancelled"}


def test_a_job_in_line_is_cancelled_at_once_and_one_being_made_is_told(jobs: Jobs) -> None:
    first, second = (jobs.submit({"prompt": "a"}) for _ in range(2))
    assert jobs.claim(0) is not None
    told = threading.Event()
    jobs.on_cancel(first.id, told.set)
    assert jobs.cancel(second.id).status == "cancelled" and jobs.claim(0) is None
    assert jobs.cancel(first.id).status == "in_progress" and told.is_set()
    assert jobs.progress(first.id).stage == "cancelling"
    jobs.fail(first.id, "cancelled", "it was cancelled")
    assert jobs.get(first.id).status == "cancelled" and jobs.cancel(first.id).status == "cancelled"


def test_a_deleted_job_leaves_nothing_even_when_its_film_comes_later(jobs: Jobs) -> None:
    job = jobs.submit({"prompt": "a"}, pictures={"image": b"png"})
    folder = jobs.place(job.id)
    assert (folder / "image.png").read_bytes() == b"png"
    assert jobs.claim(0) is not None
    jobs.delete(job.id)
    assert folder.exists()  # its renderer may still write there
    (folder / "film.mp4").write_bytes(b"film")
    jobs.finish(job.id, {})
    assert not folder.exists() and sum(jobs.counts().values()) == 0


# ------------------------------------------------------------------------------------------------------ what is kept


def test_old_films_go_and_then_the_oldest_while_there_is_no_room(tiny_model: Path, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "data", Limits(disk_bytes=250, keep_seconds=3600), models=(str(tiny_model),))
    asked = [jobs.submit({"prompt": "a"}).id for _ in range(4)]
    for _ in asked[:3]:
        made(jobs, 100)
    assert [job.id for job in jobs.list(newest_first=False)] == asked[1:]
    assert not (jobs.folder / "films" / asked[0]).exists()
    made(jobs, 1000)  # more than there is room for: it stays alone
    assert [job.id for job in jobs.list()] == asked[3:] and jobs.film(asked[3]).stat().st_size == 1000
    jobs._table.execute("UPDATE jobs SET completed_at = completed_at - 3601")
    jobs.sweep()
    assert jobs.list() == [] and not list((jobs.folder / "films").iterdir())
    jobs.close()


def test_one_process_owns_a_folder(jobs: Jobs, tiny_model: Path) -> None:
    with pytest.raises(ShotsFailure, match="another server"):
        Jobs(jobs.folder)
    jobs.close()
    Jobs(jobs.folder).close()
    with sqlite3.connect(jobs.folder / "jobs.sqlite") as table:
        table.execute("PRAGMA user_version = 99")
    with pytest.raises(SeedanceError, match="later version"):
        Jobs(jobs.folder)


def test_a_killed_process_loses_no_job_and_no_film(jobs: Jobs, tiny_model: Path) -> None:
    done, filmed, cut, waits = (jobs.submit({"prompt": "a"}).id for _ in range(4))
    made(jobs)
    for _ in range(2):
        assert jobs.claim(0) is not None
    (jobs.place(filmed) / "film.mp4").write_bytes(b"whole")  # renamed, and killed before its row was written
    (jobs.place(cut) / ".film.mp4.x.part").write_bytes(b"half")
    (jobs.folder / "films" / f"video_{'0' * 32}").mkdir()  # of a job that was deleted
    again = opened(jobs, tiny_model)
    assert [again.get(id_).status for id_ in (done, filmed, cut, waits)] == [
        "completed", "completed", "interrupted", "queued",
    ]  # fmt: skip
    assert again.get(cut).error_code == "interrupted" and again.film(filmed).read_bytes() == b"whole"
    assert sorted(path.name for path in (again.folder / "films").iterdir()) == sorted((done, filmed, cut, waits))
    assert not list(again.place(cut).iterdir())
    assert (taken := again.claim(0)) is not None and taken.id == waits
    again.close()


def test_a_job_that_was_being_made_is_made_anew_where_that_is_wished(jobs: Jobs, tiny_model: Path) -> None:
    first, second = (jobs.submit({"prompt": "a"}).id for _ in range(2))
    assert jobs.claim(0) is not None
    again = opened(jobs, tiny_model, requeue=True)
    assert [(job := again.claim(0)) and job.id for _ in range(2)] == [first, second]
    again.close()


# ---------------------------------------------------------------------------------------------------------- renderers


def test_films_are_made_cancelled_retaken_and_outlive_their_renderer(jobs: Jobs) -> None:
    ended: list[str] = []
    with Workers(jobs, threads=1, on_done=lambda job, seconds: ended.append(job.id)) as workers:
        job = jobs.submit({"prompt": "A red cube. [cut] A blue sphere.", "seed": 1, "steps": 40})
        previews = [jobs.progress(state.id).previews for state in jobs.follow(job.id, timeout=120)]
        job = jobs.get(job.id)
        assert job.status == "completed", job.error_message
        video, record = read_video(jobs.film(job.id)), read_record(jobs.film(job.id))
        assert video.frames.shape == (12, 32, 32, 3) and record is not None and record["seed"] == 1
        assert job.result["frames"] == [6, 6] and all(len(pictures) in (0, 4) for pictures in previews)

        again = jobs.submit({"source": job.id, "shots": [2], "prompt": "A red cube. [cut] A red sphere."})
        assert [*jobs.follow(again.id, timeout=60)][-1].status == "completed"
        retaken = read_video(jobs.film(again.id)).frames
        assert (retaken[:6] == video.frames[:6]).all() and (retaken[6:] != video.frames[6:]).any()

        long = {"prompt": "A red cube.", "steps": 1000, "width": 64, "height": 64, "seconds": 4}
        for end in ("cancel", "kill"):
            job = jobs.submit(long)
            for state in jobs.follow(job.id, timeout=60):
                if state.status == "in_progress" and jobs.progress(job.id).step > 1:
                    break
            if end == "cancel":
                jobs.cancel(job.id)
            else:
                os.kill(workers.pids()[0], signal.SIGKILL)
            last = [*jobs.follow(job.id, timeout=60)][-1]
            assert last.status == ("cancelled" if end == "cancel" else "failed")
            assert last.error_code == ("cancelled" if end == "cancel" else "worker_died")
            assert list(jobs.place(job.id).glob("*film*")) == []

        many = jobs.submit({"prompt": "A red cube.", "steps": 1, "width": 16, "height": 16, "seconds": 300})
        for state in jobs.follow(many.id, timeout=60):
            now = jobs.progress(many.id)
            if now.stage == "writing" and now.step:
                assert state.status == "in_progress" and now.step < now.steps == 3600
                break
        jobs.cancel(many.id)
        assert [*jobs.follow(many.id, timeout=60)][-1].status == "cancelled"  # in the midst of being decoded
        assert list(jobs.place(many.id).glob("*film*")) == []

        last_job = jobs.submit({"prompt": "A red cube.", "verify": True})  # in the renderer started anew
        assert [*jobs.follow(last_job.id, timeout=120)][-1].error_code == "invalid_request"
        running = jobs.submit(long)
        while jobs.progress(running.id).stage != "rendering":
            time.sleep(0.02)
        pid = workers.pids()[0]
    assert jobs.get(running.id).status == "interrupted" and len(ended) == 7
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_renderer_goes_with_its_server(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "seedance.renderer", "--threads", "1"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as renderer:
        assert renderer.stdin is not None and renderer.stdout is not None
        script = {"shots": [{"caption": "A red cube.", "seconds": 4}]}
        request = {"script": script, "model": str(tiny_model), "seed": 1, "steps": 1000, "height": 64, "width": 64}
        line = {"make": "video_1", "request": {**request, "fps": 12.0}, "folder": str(tmp_path)}
        renderer.stdin.write(json.dumps(line) + "\n")
        renderer.stdin.flush()
        assert json.loads(renderer.stdout.readline())["stage"] == "rendering"
        renderer.stdin.close()  # as the system closes it when the server is killed
        assert renderer.wait(20) == 1
    assert not (tmp_path / "film.mp4").exists()
