"""Demos: what people look at. The studio and the ASGI application that serves it beside the REST routers.

Notable choice: this package and `cli.py` are the only places that put models of `seedance` and `unitime` into what
`shots` describes by protocols.
"""
