"""Training of nano where the model is not beside the data: every tensor that meets another must lie on one device.

No accelerator is at hand in most test runs, so one is played: tensors that say they lie on another device, hold their
numbers on the CPU all the same, and refuse to be computed with tensors that do not say so.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from shots.runtime.loop import LoopConfig
from unitime.training import nano, scenes, vision
from unitime.training.text import Asker, PackedObjective, TextRecipe, collate

DEVICE = torch.device("meta")  # what is said; nothing is a meta tensor
_INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


class Away(Tensor):
    """A tensor on the other device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Away:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE, requires_grad=False
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What `func` gives on the device that its tensors lie on. Raises RuntimeError where they lie on two."""
    held: dict[int, Away] = {}
    here: list[Tensor] = []

    def opened(x: Any) -> Any:
        if isinstance(x, Away):
            held[id(x.inner)] = x
            return x.inner
        if isinstance(x, Tensor) and x.dim():
            here.append(x)
        return x

    plain, named = tree_map(opened, args), tree_map(opened, kwargs)
    moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    indexes = func in _INDEXED and isinstance(args[0], Away)  # numbers of places may come from the CPU
    if held and here and not moves and not indexes:
        raise RuntimeError(f"{func}: tensors on two devices, shapes {[tuple(x.shape) for x in here]} on the CPU")
    target = named.get("device")
    away = bool(held) if target is None else torch.device(target) == DEVICE
    if target is not None:
        named["device"] = torch.device("cpu")
    if func is torch.ops.aten.copy_.default:
        away = isinstance(args[0], Away)

    def closed(x: Any) -> Any:
        if not isinstance(x, Tensor) or not away:
            return x
        return held.get(id(x)) if id(x) in held else Away(x)

    return tree_map(closed, func(*plain, **named))


class _Factories(TorchDispatchMode):
    """Has what is made on, or moved to, the other device lie there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """The same for `torch.tensor`, whose numbers would be lost before the other mode sees them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is torch.tensor and named.get("device") is not None and torch.device(named["device"]) == DEVICE:
            return Away(func(*args, **{**named, "device": "cpu"}))
        return func(*args, **named)


@contextmanager
def elsewhere(module: nn.Module) -> Iterator[nn.Module]:
    """The module on the other device."""
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(Away(parameter.detach()), parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = Away(buffer)
    with _Factories(), _Literals():
        yield module


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of two scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    scenes.save_scenes(scenes.shard_path(folder, 0), [scenes.draw(seed) for seed in (1, 2)])
    return folder


def test_the_other_device_refuses_tensors_of_two_devices() -> None:
    with elsewhere(nn.Linear(3, 2)) as layer:
        there = torch.ones(4, 3).to(DEVICE)
        assert isinstance(layer(there), Away) and not isinstance(layer(there).cpu(), Away)
        assert layer(there).sum().item() == pytest.approx(layer(there).cpu().sum().item())
        with pytest.raises(RuntimeError, match="two devices"):
            layer(torch.ones(4, 3))
        layer(there).sum().backward()
        assert isinstance(layer.weight.grad, Away)


def test_the_vision_tower_is_trained_and_looked_at_on_another_device(drawn: Path) -> None:
    config = {**nano.VISION, "depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32}
    torch.manual_seed(0)
    model = vision.DenseVision(vision.build_tower(config), 32)
    units = vision.Units(drawn, held_out=1)
    batch = units.batch(units.free[:8])
    wanted, _ = model(batch, torch.Generator().manual_seed(1))
    held = vision.evaluate(model, units, most=8)
    with elsewhere(model):
        loss, _ = model({name: x.to(DEVICE) for name, x in batch.items()}, torch.Generator().manual_seed(1))
        loss.backward()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
        assert vision.evaluate(model, units, most=8) == pytest.approx(held, rel=1e-3, nan_ok=True)


def test_the_language_model_is_trained_and_looked_at_on_another_device(drawn: Path, tmp_path: Path) -> None:
    tokenizer = nano.fit_tokenizer(["From 12.5 to 113.0, Not found. Describe the red cube jumps"], 300)
    net = nano.build_model(
        tokenizer,
        {"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 64, "num_attention_heads": 2,
         "num_key_value_heads": 1},
        {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2},
    )  # fmt: skip
    recipe = TextRecipe("text", tmp_path, tmp_path, tmp_path, loop=LoopConfig(steps=1))
    found = scenes.load_scenes(scenes.shard_path(drawn, 0))
    first = [0, *torch.tensor([len(scene.frames) - scenes.GAP for scene in found]).cumsum(0).tolist()]
    features = torch.randn(first[-1], 4, 64)
    asker = Asker([scene.told for scene in found], features, first, tokenizer, nano.PROMPTS, recipe)
    rng = random.Random(0)
    items = [asker.fine(rng, 0, 0.0, 4.0), asker.coarse(rng, 0.0, range(2))]
    batch = collate(items, tokenizer.pad_token_id)
    objective = PackedObjective(net, recipe)
    wanted, _ = objective(batch, torch.Generator())
    held = nano.evaluate(objective, [batch])
    with elsewhere(objective):
        loss, _ = objective(batch.to(DEVICE), torch.Generator())
        loss.backward()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
        assert nano.evaluate(objective, [batch]) == pytest.approx(held, rel=1e-3, nan_ok=True)
