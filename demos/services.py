"""What the studio's pages work with: the queue of films, who looks for moments, who describes, who verifies.

Notable choices:

- A page knows the queue (:class:`seedance.jobs.Jobs`) and a few functions, never a model. The shell and the server put
  the shipped models in, a test tiny ones; nothing is loaded before the first request that needs it.
- The queue is the only way to a film: pages that render at once wait in one line with the clients of the REST service,
  and a film goes on being made when its page is closed or loaded again.
- ``client`` says whose a page is, from its request; None sees the films of all, as it should be on one's own machine.
- A file that comes back from a browser is taken only if it was uploaded through the studio or is a film of the queue.
"""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from demos.passes import Passes, Stoppable
from shots.errors import ShotsError

if TYPE_CHECKING:
    from seedance.jobs import Job, Jobs
    from shots.evaluation import Report
    from shots.script import Script

MOST_HANDLES = 4  # films whose features are kept for further questions
MOST_REPORTS = 64  # on films, kept for pages that are loaded again
STUDIO = "studio"  # who asks for a film where nobody signs in

T = TypeVar("T")


class Once(Generic[T]):
    """Something that is made when it is first asked for, by one asker at a time; a failure is tried again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    def __call__(self) -> T:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


@dataclass(frozen=True)
class Verified:
    """A film held against its script: the script, the report as JSON has it, and the contact sheet."""

    script: Mapping[str, Any]
    report: dict[str, Any]
    sheet: Path


def _verified(film: Path, script: Script, grounder: Any) -> Report:
    from shots.evaluation import verify

    return verify(film, script, grounder)


def _captioned(film: Path, model: Any) -> Script:
    from shots.captions import caption_film

    return caption_film(film, model, model)


def _nobody(request: Any) -> str | None:
    return None


@dataclass(eq=False)
class Services:
    """What the pages are built over.

    Attributes:
        jobs: the queue of films; somebody else has it worked through (:mod:`seedance.workers`).
        grounder: gives the model that finds moments and answers questions, a ``unitime.UniTime``, when first needed.
        caption: ``caption(film, grounder)``: a film as a script.
        verify: ``verify(film, script, grounder)``: a report on whether a film shows its script.
        client: ``client(request)``: whose a page is; None is everybody's.
        upload_bytes: the largest file that may be uploaded.
        passes: the passes of the grounder that pages wait for now.
    """

    jobs: Jobs
    grounder: Callable[[], Any]
    caption: Callable[[Path, Any], Script] = _captioned
    verify: Callable[[Path, Script, Any], Report] = _verified
    client: Callable[[Any], str | None] = _nobody
    upload_bytes: int = 1 << 30
    passes: Passes = field(default_factory=Passes)
    scratch: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="studio-")))

    def __post_init__(self) -> None:
        atexit.register(shutil.rmtree, self.scratch, ignore_errors=True)
        self.grounder = Once(self.grounder)
        self._verified: OrderedDict[str, Verified] = OrderedDict()
        self._handles: OrderedDict[tuple[str, int, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def handle(self, film: Path) -> Any:
        """The grounder's handle on a film; that of a film asked about lately is ready."""
        try:
            about = film.stat()
        except OSError as error:
            raise ShotsError(f"film: {film.name} is no longer there; upload it again") from error
        key = str(film), about.st_mtime_ns, about.st_size
        with self._lock:
            if key not in self._handles:
                self._handles[key] = self.grounder().encode(film)
                while len(self._handles) > MOST_HANDLES:
                    self._handles.popitem(last=False)
            self._handles.move_to_end(key)
            return self._handles[key]

    def described(self, film: Path, cancelled: threading.Event) -> Script:
        """A film as a script, unless ``cancelled`` is set meanwhile."""
        return self.caption(film, Stoppable(self.grounder(), cancelled))

    def verified(self, id_: str, client: str | None, cancelled: threading.Event) -> Verified:
        """What the film of a job shows of its script, with the contact sheet; kept for a page that is loaded again.

        Raises SeedanceError where there is no film.
        """
        job, film = self.jobs.get(id_, client), self.jobs.film(id_, client)
        report = self.report(film, job.request["script"], cancelled)
        found = Verified(job.request["script"], report.to_dict(), self.sheet(film, report))
        with self._lock:
            self._verified[id_] = found
            while len(self._verified) > MOST_REPORTS:
                self._verified.popitem(last=False)
        return found

    def verified_before(self, id_: str) -> Verified | None:
        """What :meth:`verified` lately said of a job's film; None where it was not asked."""
        return self._verified.get(id_)

    def report(self, film: Path, script: Mapping[str, Any], cancelled: threading.Event) -> Report:
        """What a film shows of its script, unless ``cancelled`` is set meanwhile."""
        from shots.script import Script

        return self.verify(film, Script.from_dict(dict(script)), Stoppable(self.grounder(), cancelled))

    def sheet(self, film: Path, report: Report) -> Path:
        """The report as a picture."""
        from shots.sheet import report_sheet

        path = self.scratch / f"{film.parent.name}.sheet.png"
        report_sheet(film, report, path)
        return path

    def submit(
        self, request: Mapping[str, Any], client: str | None, pictures: Mapping[str, bytes] | None = None
    ) -> str:
        """Puts a film in line and gives its job's id."""
        return self.jobs.submit(request, client=STUDIO if client is None else client, pictures=pictures).id

    def given(self, file: Any) -> Path | None:
        """A file as a browser remembers it, if it is one the studio may read; else None."""
        from gradio.utils import get_upload_folder

        while isinstance(file, Mapping):  # a video is told as {"video": {"path": ...}}
            file = file.get("video") or file.get("path")
        name = file
        if not isinstance(name, str) or not name:
            return None
        path = Path(name).resolve()
        places = (Path(get_upload_folder()).resolve(), EXAMPLES.resolve())
        return path if path.is_file() and any(place in path.parents for place in places) else None

    def downloads(self, job: Job) -> tuple[Path, Path, Path]:
        """Film, record and script of a completed job. Raises SeedanceError where it was deleted meanwhile."""
        from seedance.errors import SeedanceError
        from shots.video import read_record

        film = self.jobs.film(job.id)
        try:
            return self.files(job.id, film, read_record(film) or {}, job.request["script"], job.prompt)
        except (OSError, ShotsError) as error:
            raise SeedanceError("id: that film is gone") from error

    def files(
        self, key: str, film: Path, record: Mapping[str, Any], script: Mapping[str, Any], title: str
    ) -> tuple[Path, Path, Path]:
        """Film, record and script to be taken away, under a name that says what is shown; ``key`` tells films apart."""
        from shots.script import Script

        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-") or "film"
        folder = self.scratch / key
        folder.mkdir(exist_ok=True)
        copies = folder / f"{name}.mp4", folder / f"{name}.json", folder / f"{name}.yaml"
        if not copies[0].exists():
            shutil.copyfile(film, copies[0])
        copies[1].write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        copies[2].write_text(Script.from_dict(dict(script)).to_yaml(), encoding="utf-8")
        return copies


EXAMPLES = Path(__file__).parent / "examples"


@contextmanager
def with_models(folder: Path, model: str, grounder: str) -> Iterator[Services]:
    """The studio's services over a queue of its own in ``folder``, worked through while the context lasts.

    model: shipped name, folder or hub id of what makes films. grounder: the same of what finds moments.
    """
    from seedance.jobs import Jobs
    from seedance.workers import Workers

    def load() -> Any:
        from unitime import UniTime

        return UniTime.from_pretrained(grounder)

    jobs = Jobs(folder, models=(model,))
    try:
        with Workers(jobs, load="demos.takes:load", options={"grounder": grounder}):
            yield Services(jobs, load)
    finally:
        jobs.close()
