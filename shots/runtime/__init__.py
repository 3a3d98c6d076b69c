"""What every model needs to run.

`recipe` reads recipes, `loop` runs training by the clock (checkpoints, resume, log, several processes), `shard` spreads
a module over them, `optim` holds rates and averages. `device` chooses device and dtype and says why, `speed` times the
device, `environment` describes the installation; `vision` is the one way to torchvision and transformers; `weights`
saves, finds and checks weights, `hub` fetches those of a hub id, small files first, `shipped` lists those that ship,
`checkpoint` keeps runs, `runlog` logs them, `budget` holds their clock, and `cards` is what model cards share.

Nothing here reads or writes video.
"""
