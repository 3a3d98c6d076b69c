"""Passes of a model over a film, for those who wait at a page: one at a time, with a way out.

Notable choices:

- Gradio ends an event by cancelling its task, and the thread that works for it would go on. Here the task then sets an
  event that the model looks at between batches of frames and passes, and is over only when the thread is: who asks
  next has the model to himself.
- A page that is closed or loaded again stops its passes too: nobody would see what they find.
- No page and no model is imported here, so that a renderer's process can use it too.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Passes:
    """The passes that are made now, by the page that waits for them."""

    def __init__(self) -> None:
        self._made: dict[str, set[threading.Event]] = {}

    async def make(self, work: Callable[[threading.Event], T], request: Any) -> T:
        """What ``work(cancelled)`` gives, in a thread; ``cancelled`` is set when nobody waits for it any more.

        request: the page's ``gr.Request``.
        """
        session = str(getattr(request, "session_hash", None))
        cancelled = threading.Event()
        self._made.setdefault(session, set()).add(cancelled)
        working = asyncio.ensure_future(asyncio.to_thread(work, cancelled))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.wait([working])
            working.cancelled() or working.exception()  # nobody is told, not even the log
            raise
        finally:
            self._made[session].discard(cancelled)
            if not self._made[session]:
                del self._made[session]

    def leave(self, request: Any) -> None:
        """The page is gone: stop what is made for it."""
        for cancelled in list(self._made.get(str(request.session_hash), ())):
            cancelled.set()


class Stoppable:
    """A model whose methods stop once ``cancelled`` is set, as far as they can be told, for those who only call them.

    It has what the model has; its methods that take ``cancelled`` are given it.
    """

    def __init__(self, model: Any, cancelled: threading.Event) -> None:
        self._model = model
        for name in ("encode", "ground", "ask", "caption"):  # as attributes, for those who look what a model can do
            method = getattr(model, name, None)
            if method is not None:
                takes = "cancelled" in inspect.signature(method).parameters
                setattr(self, name, partial(method, cancelled=cancelled) if takes else method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
