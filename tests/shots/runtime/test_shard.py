"""Weights spread over processes train as whole ones do, and any number of processes goes on with their checkpoints."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shots.errors import ShotsError
from shots.runtime.loop import LoopConfig, run_loop
from shots.runtime.shard import gathered, load_whole, placed

RUN = """
import sys
from pathlib import Path
import torch
from torch import nn
from shots.runtime.loop import LoopConfig, run_loop

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6)) for _ in range(2))
        self.out = nn.Linear(6, 3)
        self.register_buffer("seen", torch.ones(2))

    def forward(self, x, generator):
        noise = torch.randn(x.shape, generator=generator)
        for block in self.blocks:
            x = x + block(x)
        return (self.out(x) - noise[..., :3]).square().mean(), {}

def work(out, steps, accumulate):
    net = Net()
    config = LoopConfig(steps=int(steps), accumulate=int(accumulate), fsdp=True, dtype="fp32", device="cpu",
                        warmup_steps=1, decay=0, learning_rate=0.01, ema=0.9, log_every=1)
    batches = lambda n: torch.randn(4, 6, generator=torch.Generator().manual_seed(n))
    run_loop(config, net, net, batches, Path(out), units=list(net.blocks))
    return sum(p.numel() if not hasattr(p, "to_local") else p.to_local().numel() for p in net.parameters())

if __name__ == "__main__":
    print(work(*sys.argv[1:]))
"""


def run(count: int, out: Path, steps: int) -> list[int]:
    """Trains in `count` processes, the same clips a step whatever their number; the numbers each of them held."""
    if count == 1:
        here: dict[str, Any] = {"__name__": "here"}
        exec(RUN, here)  # what the processes run
        return [here["work"](out, steps, 2)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(count):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in told.items()}}
        words = [sys.executable, "-c", RUN, str(out), str(steps), "1"]
        started.append(subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    held = []
    for process in started:
        printed, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        held.append(int(printed.split()[-1]))
    return held


def saved(out: Path, step: int) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / f"step-{step:08d}.pt", weights_only=True)
    return state


def same(one: dict[str, Any], two: dict[str, Any]) -> None:
    for part in ("objective", "ema"):
        assert one[part].keys() == two[part].keys()
        for name in one[part]:
            torch.testing.assert_close(one[part][name], two[part][name], atol=1e-6, rtol=1e-5)
    for key, state in one["optimizer"]["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(value, two["optimizer"]["state"][key][name], atol=1e-6, rtol=1e-5)


def test_spread_weights_learn_what_whole_ones_learn_and_either_goes_on_from_the_others_checkpoint(
    tmp_path: Path,
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    [whole] = run(1, one, 2)
    parts = run(2, two, 2)
    assert max(parts) < 0.7 * whole  # each holds a part
    assert sum(parts) >= whole
    same(saved(one, 2), saved(two, 2))
    run(2, one, 4)
    run(1, two, 4)
    same(saved(one, 4), saved(two, 4))


def test_a_checkpoint_of_another_model_is_named_before_anything_is_loaded() -> None:
    line = nn.Linear(2, 2)
    before = line.weight.detach().clone()
    with pytest.raises(ShotsError, match=r"it fits another model \(bias, 1 names in all differ\)"):
        load_whole(line, {"weight": torch.zeros(2, 2)})
    assert torch.equal(line.weight, before)


def test_what_is_not_spread_stays_as_it_is() -> None:
    tensor = torch.ones(3)
    state = gathered({"a": [tensor, (1, "x")], "b": {}})
    assert state["a"][0] is tensor
    assert state["a"][1] == (1, "x")
    assert placed(tensor, torch.zeros(3)) is tensor


def test_spreading_is_nothing_for_one_process(tmp_path: Path) -> None:
    class Line(nn.Linear):
        def forward(self, x: Any, generator: Any) -> Any:  # type: ignore[override]
            return super().forward(x).square().mean(), {}

    line = Line(2, 1)
    progress, _ = run_loop(
        LoopConfig(steps=1, fsdp=True, device="cpu"), line, line, lambda number: torch.ones(1, 2), tmp_path
    )
    assert progress.finished
