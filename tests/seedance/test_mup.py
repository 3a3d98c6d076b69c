"""Roles of all weights, rates per role, and the coordinate check with two planted faults."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seedance import mup
from seedance.coordinates import coordinate_check
from seedance.dit import DiTConfig, VideoDiT
from seedance.errors import SeedanceError


def wide(dim: int) -> VideoDiT:
    return VideoDiT(
        DiTConfig(
            channels=4,
            dim=dim,
            head_dim=16,
            spatial_layers=1,
            temporal_layers=1,
            text_dim=6,
            base_dim=64,
            aux_labels={"a": 2},
        )
    )


def test_roles_say_which_sides_of_each_weight_grow() -> None:
    small, large = dict(wide(64).named_parameters()), dict(wide(128).named_parameters())
    for name, parameter in small.items():
        grows = [a != b for a, b in zip(parameter.shape, large[name].shape, strict=True)]
        role = mup.role_of(name)[0]
        if len(grows) == 2 and grows == [True, True]:
            assert role == "hidden", name
        elif len(grows) == 2 and grows == [False, True] and "table" not in name:
            assert role == "output", name
        else:
            assert role == "input", name


def test_only_hidden_weights_change_rate_with_width() -> None:
    model = wide(128)
    groups = mup.param_groups(model, 1e-3, weight_decay=0.1, eps=1e-8)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    for group in groups:
        m = 2.0 if group["role"] == "hidden" else 1.0
        assert group["lr"] == 1e-3 / m and group["eps"] == 1e-8 / m
        if group["weight_decay"]:
            assert group["lr"] * group["weight_decay"] == pytest.approx(1e-4)
            assert all(p.ndim == 2 for p in group["params"])


def test_at_the_base_width_rates_are_plain() -> None:
    assert {(g["lr"], g["eps"]) for g in mup.param_groups(wide(64), 1e-3)} == {(1e-3, 1e-8)}
    nano = DiTConfig()
    assert nano.dim == nano.base_dim


def test_init_follows_the_table() -> None:
    torch.manual_seed(0)
    model = wide(128)
    for name, parameter in model.named_parameters():
        start = mup.role_of(name)[1]
        if start == "fan_in":
            assert parameter.std().item() == pytest.approx(parameter.shape[1] ** -0.5, rel=0.1), name
        elif start == "one":
            assert (parameter == 1).all()
        elif start == "gates":
            assert parameter.mean(1).tolist() == [0, 0, 1, 0, 0, 1]
        else:
            assert not parameter.any(), name


def test_a_weight_without_a_role_is_named() -> None:
    with pytest.raises(SeedanceError, match="parameter gamma has no role"):
        mup.init_weights(
            nn.Sequential(nn.Module(), nn.Module()).apply(
                lambda m: m.register_parameter("gamma", nn.Parameter(torch.ones(1)))
            )
        )


def test_activations_keep_their_size_from_width_64_to_512() -> None:
    check = coordinate_check(seeds=(0, 1))
    assert check.worst <= 0.3, check.slopes


def test_activations_keep_their_size_under_muon_and_a_fault_is_detected_there() -> None:
    check = coordinate_check((64, 256), seeds=(0,), optimizer="muon", lr=2**-6)
    assert check.worst <= 0.3, check.slopes
    fault = coordinate_check((64, 256), seeds=(0,), optimizer="muon", lr=2**-6, fault="hidden_lr")
    assert fault.worst > 0.3, fault.slopes


def test_an_unscaled_hidden_rate_is_detected() -> None:
    check = coordinate_check((64, 512), seeds=(0,), fault="hidden_lr")
    assert check.worst > 0.3 and check.slopes["layer 3 mlp_out"] > 0.6, check.slopes


def test_an_undivided_readout_is_detected() -> None:
    check = coordinate_check((64, 512), seeds=(0,), fault="readout")
    assert check.worst > 0.3 and max(check.slopes["output"], check.slopes["aux"]) > 0.3, check.slopes
