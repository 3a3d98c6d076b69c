"""What every model needs to run: device and dtype choice, guarded imports, weights, run log, time budget, checkpoints.

Nothing here reads or writes video.
"""
