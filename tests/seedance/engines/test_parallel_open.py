"""A film of an open checkpoint drawn by two processes is the film that one draws."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from seedance import SeedanceError
from seedance.acceleration.options import Acceleration
from seedance.acceleration.parallel_open import Spread, _Branches
from seedance.engines.folder import open_checkpoint
from seedance.pipeline import Seedance

WORDS = "a red cube jumps"
GUIDANCE, SEQUENCE = ((2,), ("guidance",)), ((2,), ("sequence",))
# Checkpoint, mesh, frames of the shot, whether it begins with a picture, what is asked for.
CASES: tuple[tuple[str, Any, int, bool, dict[str, Any] | None], ...] = (
    ("wan-t2v", GUIDANCE, 5, False, None),
    ("wan-t2v", GUIDANCE, 5, False, {"cache": 0.1}),  # in stages, and each branch with a cache of its own
    ("wan-t2v", SEQUENCE, 5, False, None),
    ("wan-t2v", ((1, 2), ("guidance", "sequence")), 9, False, {}),
    ("wan-t2v", ((1, 2), ("sequence", "guidance")), 5, False, None),
    ("wan-i2v-a14b", GUIDANCE, 5, True, None),  # two experts
    ("wan-ti2v", SEQUENCE, 9, True, None),  # every token has its time
    ("ltx", GUIDANCE, 17, True, None),
    ("ltx", SEQUENCE, 17, True, None),
    ("ltx-condition", GUIDANCE, 17, True, None),
    ("cogvideox-t2v", GUIDANCE, 5, False, None),
    ("hunyuan", GUIDANCE, 5, False, None),
)


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)


def _drawn(pipe: Any, frames: int, picture: bool, scale: float = 4.0) -> torch.Tensor:
    side = max(2 * pipe.defaults.ratio.side, 32)
    plan = pipe.plan(WORDS, seed=3, num_frames=frames, height=side, width=side)
    steps = 6 if getattr(pipe, "acceleration", Acceleration()).cache else 2
    image = _picture() if picture else None
    latents: torch.Tensor = pipe.sample([plan], image=image, steps=steps, guidance_scale=scale)[0].latents
    return latents


def _opened(folder: str, options: dict[str, Any] | None) -> Any:
    saving = None if options is None else Acceleration(offload="none", **options)
    return Seedance.from_pretrained(folder, dtype="fp32", device="cpu", acceleration=saving)


def _member(rank: int, where: str, into: str, folders: dict[str, str]) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=2)
    try:
        for number, (name, (shape, names), frames, picture, options) in enumerate(CASES):
            pipe = _opened(folders[name], options)
            pipe.spread(init_device_mesh("cpu", shape, mesh_dim_names=names))
            found = [_drawn(pipe, frames, picture)]
            if number == 0:
                found.append(_drawn(pipe, frames, picture, scale=1.0))  # nothing to share, and then guidance again
                found.append(_drawn(pipe, frames, picture))
            torch.save(found, f"{into}.{number}.{rank}")
    finally:
        dist.destroy_process_group()


def test_two_processes_draw_the_film_of_an_open_checkpoint_that_one_draws(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEDANCE_CACHE", str(tmp_path / "cache"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    into, folders = str(tmp_path / "film"), {name: str(checkpoint(name)) for name, *_ in CASES}
    mp.spawn(_member, (str(tmp_path / "meet"), into, folders), nprocs=2)
    for number, (name, mesh, frames, picture, options) in enumerate(CASES):
        alone = _opened(folders[name], options)
        wanted = [_drawn(alone, frames, picture)]
        if number == 0:
            wanted += [_drawn(alone, frames, picture, scale=1.0), wanted[0]]
        for rank in range(2):
            found = torch.load(f"{into}.{number}.{rank}")
            assert len(found) == len(wanted)
            for ours, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=lambda m: f"{name}, {mesh}: {m}")  # noqa: B023


class _Mesh:
    """A mesh that nobody has to meet for."""

    def __init__(self, **dimensions: int) -> None:
        self.mesh_dim_names, self.shape = tuple(dimensions), tuple(dimensions.values())

    def size(self, index: int) -> int:
        return self.shape[index]


@pytest.mark.parametrize(
    ("dimensions", "name", "said"),
    [
        ({}, "wan-t2v", "without names"),
        ({"time": 2}, "wan-t2v", "has dimensions time"),
        ({"guidance": 3}, "wan-t2v", "two branches for 3 processes"),
        ({"sequence": 5}, "wan-t2v", "2 heads do not divide among 5"),
        ({"sequence": 2}, "hunyuan", "no sequence of HunyuanVideo15Pipeline"),
        ({"sequence": 2}, "ltx-condition", "no sequence of LTXConditionPipeline"),
    ],
)
def test_meshes_that_do_not_fit_are_refused_with_the_reason(
    dimensions: dict[str, int], name: str, said: str, checkpoint: Callable[[str], Path]
) -> None:
    with pytest.raises(SeedanceError, match=said):
        Spread(_Mesh(**dimensions), open_checkpoint(checkpoint(name)))  # type: ignore[arg-type]


def test_a_cache_goes_with_guidance_but_not_with_a_sequence(checkpoint: Callable[[str], Path]) -> None:
    pipe = _opened(str(checkpoint("wan-t2v")), {"cache": 0.1})
    with pytest.raises(SeedanceError, match="^cache: "):
        pipe.spread(_Mesh(sequence=2))


def test_a_sequence_is_shared_in_equal_parts(opened: Callable[[str], Seedance]) -> None:
    pipe: Any = opened("wan-t2v")
    pipe.spread_over = Spread(_Mesh(sequence=1), pipe.checkpoint)  # type: ignore[arg-type]
    pipe.spread_over.parts = 5
    try:
        with pytest.raises(SeedanceError, match="^sequence: 8 tokens do not divide among 5"):
            _drawn(pipe, 5, picture=False)
    finally:
        del pipe.spread_over


def test_a_step_that_left_guidance_out_is_no_film(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 1)
    spread = Spread(_Mesh(sequence=1), open_checkpoint(checkpoint("wan-t2v")))  # type: ignore[arg-type]
    branches = _Branches(lambda **said: (said["hidden_states"],), SimpleNamespace(), 3)  # type: ignore[arg-type]
    spread._branches.append(branches)
    spread.begin(8, guided=True)
    (left,) = branches(hidden_states=torch.zeros(1, 4, 2, 2, 2))
    assert left.shape == (1, 3, 2, 2, 2)  # to be filled in
    with pytest.raises(SeedanceError, match="left guidance out at a step"):
        spread.check_step("wan")
    spread.begin(8, guided=False)
    spread.check_step("wan")
    (own,) = branches(hidden_states=torch.ones(1, 4, 2, 2, 2))
    assert torch.equal(own, torch.ones(1, 4, 2, 2, 2))
