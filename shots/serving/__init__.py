"""What every REST surface of the project shares: one form of error, a guarded door for videos, a queue per device.

`errors` gives every failure one shape, `access` says who may ask, `metrics` counts, `uploads` takes files in, `store`
keeps them, `videos` says which files are let near a decoder, `fetch` downloads from allowed hosts and never from inside
the network, `workers` runs one job at a time per device.

Notable choice: nothing here imports torch or a video library before a request needs it; fastapi is needed by whoever
imports any of them but `workers` (the `serve` extra).
"""
