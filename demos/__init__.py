"""Demos: what people look at. The studio and the ASGI application that serves it beside the REST routers.

`studio` is the page; `direct`, `ground`, `ask`, `loop` and `gallery` are its tabs, over `services` (the queue and the
models); `picker` chooses a film, `follow` shows one being made, `passes` has one looked into until nobody waits, `form`
turns fields into requests, `verdict` shows reports, `widgets` holds the components that Gradio lacks. `examples`
renders the films that the page begins with, `screenshot` takes the page's picture. `app` is the server: the page beside
the REST services, behind one lock; its films are made by `takes`.

Notable choice: this package and `cli.py` are the only places that put models of `seedance` and `unitime` into what
`shots` describes by protocols.
"""
