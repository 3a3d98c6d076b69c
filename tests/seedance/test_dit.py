"""The DiT against naive references: windows, masks, routing, both attention kernels, dtypes, gradients, batches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seedance import dit
from seedance.conditioning import Conditioning, collate
from seedance.dit import DiTConfig, Keys, SpatialLayer, TemporalLayer, VideoDiT, attend
from seedance.errors import SeedanceError

DOUBLE = torch.float64


def tiny(**options: Any) -> DiTConfig:
    small = {
        "channels": 4,
        "dim": 32,
        "head_dim": 16,
        "spatial_layers": 2,
        "temporal_layers": 2,
        "dual_layers": 1,
        "text_dim": 6,
    }
    return DiTConfig(**{**small, "base_dim": 32, **options})


def model(config: DiTConfig, dtype: torch.dtype = DOUBLE) -> VideoDiT:
    """A DiT whose every weight is away from zero, so that nothing hides behind the zero start."""
    torch.manual_seed(0)
    made = VideoDiT(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.to(dtype)


def film(
    tokens: tuple[int, ...] = (3, 2), frames: tuple[int, ...] = (2, 1), grid: tuple[int, int] = (2, 3), seed: int = 0
) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(n, 6, generator=generator) for n in tokens]
    whole = torch.randn(2, 6, generator=generator)
    made = Conditioning.text_to_video(states, frames, grid, fps=12.0, channels=4, caption=whole)
    return made.to(dtype=DOUBLE)


def noisy(cond: Conditioning, seed: int = 1) -> Tensor:
    return torch.randn(cond.clean.shape, generator=torch.Generator().manual_seed(seed)).to(cond.clean.dtype)


# ------------------------------------------------------------------ attention


def naive(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Softmax attention one query at a time: q (B, H, M, d), k and v (B, H, L, d), allowed (B, M, L)."""
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for m in range(q.shape[2]):
                seen = allowed[b, m].nonzero()[:, 0]
                weights = (k[b, h, seen] @ q[b, h, m]).softmax(0)
                out[b, h, m] = weights @ v[b, h, seen]
    return out


@pytest.mark.parametrize("materialise", [True, False])
def test_both_kernels_equal_the_naive_attention_over_own_and_shared_keys(materialise: bool) -> None:
    b, h, g, m, own, shared, d = 2, 2, 3, 4, 5, 6, 8
    q, k, v = (torch.randn(b, h, g, n, d, dtype=DOUBLE) for n in (m, own, own))
    k2, v2 = torch.randn(2, b, h, 1, shared, d, dtype=DOUBLE)
    seen = torch.rand(b, 1, g, 1, shared) < 0.6
    out = attend(q, Keys(k, v), Keys(k2, v2, dit.hidden(seen, DOUBLE)), materialise=materialise)
    for group in range(g):
        keys = torch.cat([k[:, :, group], k2[:, :, 0]], 2)
        values = torch.cat([v[:, :, group], v2[:, :, 0]], 2)
        allowed = torch.cat([torch.ones(b, m, own, dtype=torch.bool), seen[:, 0, group].expand(b, m, shared)], -1)
        torch.testing.assert_close(out[:, :, group], naive(q[:, :, group], keys, values, allowed))


def test_both_kernels_agree_on_a_bias_per_query() -> None:
    q, k, v = torch.randn(3, 2, 2, 1, 5, 8, dtype=DOUBLE)
    bias = dit.hidden(torch.rand(2, 1, 1, 5, 5) < 0.7, DOUBLE)
    extra = Keys(k[:, :, :, :2], v[:, :, :, :2])
    torch.testing.assert_close(
        attend(q, Keys(k, v, bias), extra, materialise=True), attend(q, Keys(k, v, bias), extra, materialise=False)
    )


def spatial_setup(routing: str) -> tuple[VideoDiT, SpatialLayer, Tensor, Tensor, dit.Context, Conditioning]:
    net = model(tiny(text_routing=routing))
    cond = collate([film(), film((1, 1), seed=3)])
    x = torch.randn(2, 3, 6, 32, dtype=DOUBLE)
    text = torch.randn(2, 1, cond.text.shape[1], 32, dtype=DOUBLE)
    times = torch.rand(2, 3)
    layer = net.layers[0]
    assert isinstance(layer, SpatialLayer)
    return net, layer, x, text, net._context(*net._time_embedding(times, cond, cond.text), cond, (2, 3)), cond


@pytest.mark.parametrize("routing", ["all", "global+own"])
def test_spatial_layer_equals_joint_attention_under_the_written_out_mask(routing: str) -> None:
    _, layer, x, text, ctx, cond = spatial_setup(routing)
    made, made_text = layer(x, text, ctx)

    assert layer.text is not None
    scale, shift, *rest = layer.visual.modulation(ctx.visual_mod)
    text_scale, text_shift, *text_rest = layer.text.modulation(ctx.text_mod)
    visual = layer.visual.heads_of(x, scale, shift, ctx.visual_tables)
    words = layer.text.heads_of(text, text_scale, text_shift, ctx.text_tables)
    q, k, v = (torch.cat(pair, 2) for pair in zip(visual, words, strict=True))
    cells, n = 18, text.shape[2]
    allowed = torch.zeros(2, cells + n, cells + n, dtype=torch.bool)
    for b in range(2):
        for i in range(cells + n):
            for j in range(cells + n):
                frame_i, frame_j = i // 6, j // 6
                if i < cells and j < cells:
                    allowed[b, i, j] = frame_i == frame_j
                elif i < cells:
                    owner = cond.text_shot[b, j - cells]
                    allowed[b, i, j] = owner >= 0 and (routing == "all" or owner in (0, cond.shot[b, frame_i]))
                elif j < cells:
                    owner = cond.text_shot[b, i - cells]
                    allowed[b, i, j] = routing == "all" or owner <= 0 or owner == cond.shot[b, frame_j]
                else:
                    a, c = cond.text_shot[b, i - cells], cond.text_shot[b, j - cells]
                    allowed[b, i, j] = c >= 0 and (routing == "all" or a <= 0 or c in (0, a))
    attended = naive(q, k, v, allowed)
    torch.testing.assert_close(made, layer.visual.finish(x, attended[:, :, :cells], *rest))
    torch.testing.assert_close(made_text, layer.text.finish(text, attended[:, :, cells:], *text_rest))


@pytest.mark.parametrize("window", [(2, 2), (2, 3), (3, 8)])
def test_temporal_windows_equal_attention_masked_to_the_window(window: tuple[int, int]) -> None:
    grid, t = (5, 6), 2
    net = model(tiny(window=window))
    cond = film(frames=(1, 1), grid=grid)
    x = torch.randn(1, t, 30, 32, dtype=DOUBLE)
    ctx = net._context(*net._time_embedding(torch.rand(1, t), cond, cond.text), cond, grid)
    layer = net.layers[1]
    assert isinstance(layer, TemporalLayer)
    scale, shift, *rest = layer.visual.modulation(ctx.visual_mod)
    q, k, v = layer.visual.heads_of(x, scale, shift, ctx.visual_tables)
    rows, columns = dit.window_size(grid, window)
    assert rows <= window[0] and columns <= window[1]
    cell = torch.arange(30).repeat(t)
    owner = (cell // 6 // rows) * 10 + cell % 6 // columns
    allowed = (owner[:, None] == owner[None])[None]
    torch.testing.assert_close(layer(x, ctx), layer.visual.finish(x, naive(q, k, v, allowed), *rest))


def test_windows_are_as_even_as_can_be_and_absent_where_one_fits() -> None:
    assert dit.window_size((8, 8), (8, 8)) == (8, 8)
    assert dit.window_size((30, 54), (8, 8)) == (8, 8)
    assert dit.window_size((9, 9), (8, 8)) == (5, 5)
    assert dit.window_size((9, 9), None) == (9, 9)


# ------------------------------------------------------------------ hand-written gradients


@pytest.mark.parametrize("name", ["norm", "heads", "swiglu"])
def test_fused_operations_have_the_gradient_of_their_value(name: str) -> None:
    torch.manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=DOUBLE, requires_grad=True)

    if name == "norm":
        assert torch.autograd.gradcheck(
            dit._ModulatedNorm.apply, (leaf(2, 2, 3, 4), leaf(2, 2, 1, 4), leaf(2, 2, 1, 4))
        )
    elif name == "heads":
        tables = dit.rope.rotation(torch.randn(2, 1, 3, 3), 16, 10.0, DOUBLE)
        assert torch.autograd.gradcheck(
            lambda qkv, gain: dit._HeadsNormRotate.apply(qkv, gain, *tables),
            (leaf(2, 3, 3, 2, 16), leaf(2, 1, 1, 1, 16)),
        )
    else:
        assert torch.autograd.gradcheck(dit._SwiGLU.apply, (leaf(3, 8),))


def test_normalised_heads_are_what_they_say() -> None:
    qkv, gain = torch.randn(1, 3, 3, 2, 16, dtype=DOUBLE), torch.rand(2, 1, 1, 1, 16, dtype=DOUBLE)
    tables = dit.rope.rotation(torch.randn(1, 1, 3, 3), 16, 10.0, DOUBLE)
    qk, v = dit._HeadsNormRotate.apply(qkv, gain, *tables)
    for index in range(2):
        x = qkv[:, :, index].transpose(1, 2)
        wanted = dit.rope.rotate(torch.nn.functional.rms_norm(x, (16,)) * gain[index], *tables)
        torch.testing.assert_close(qk[index], wanted)
    torch.testing.assert_close(v, qkv[:, :, 2].transpose(1, 2))


def test_every_parameter_learns() -> None:
    net = model(tiny(aux_labels={"actor": 3}), torch.float32)
    cond = collate([film(), film(seed=5)]).to(dtype=torch.float32)
    v, logits = net(noisy(cond), torch.rand(2, 3), cond, labels_out=True)
    (v.square().mean() + logits["actor"].square().mean()).backward()
    idle = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert not idle


def test_checkpointing_changes_no_gradient() -> None:
    cond = film()
    gradients = []
    for checkpointing in (False, True):
        net = model(tiny())
        net.checkpointing = checkpointing
        net(noisy(cond), torch.tensor(0.4), cond).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


# ------------------------------------------------------------------ the whole model


def test_a_film_is_the_same_alone_and_in_a_batch() -> None:
    net = model(tiny())
    films = [film(), film((1, 1), seed=3), film((4, 6), seed=4)]
    batch = collate(films)
    x, t = noisy(batch), torch.rand(3, 3)
    together = net(x, t, batch)
    for i, one in enumerate(films):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], one), together[i : i + 1])


def test_float32_and_bfloat16_agree_with_float64() -> None:
    cond, t = film(), torch.full((1, 3), 0.6)
    x = noisy(cond)
    wanted = model(tiny())(x, t, cond)
    single = model(tiny(), torch.float32)(x.float(), t, cond.to(dtype=torch.float32))
    torch.testing.assert_close(single.double(), wanted, rtol=1e-4, atol=1e-5)
    masters = model(tiny(), torch.float32)(x.bfloat16(), t, cond.to(dtype=torch.bfloat16))
    assert masters.dtype == torch.bfloat16
    assert (masters.double() - wanted).norm() < 0.05 * wanted.norm()


def test_the_fused_kernel_gives_the_same_film(monkeypatch: pytest.MonkeyPatch) -> None:
    net, cond = model(tiny(window=(2, 2))), collate([film(grid=(3, 3)), film(grid=(3, 3), seed=2)])
    wanted = net(noisy(cond), torch.tensor(0.3), cond)
    monkeypatch.setattr(dit, "_attend_products", dit._attend_fused)
    torch.testing.assert_close(net(noisy(cond), torch.tensor(0.3), cond), wanted)


def test_given_frames_are_read_from_the_condition_at_time_zero() -> None:
    net = model(tiny())
    plain = film()
    cond = plain.first_frame(torch.randn(4, 2, 3))
    x, t = noisy(cond), torch.full((1, 3), 0.5)
    changed, later = x.clone(), t.clone()
    changed[:, :, 0] += 10
    later[:, 0] = 0.9
    wanted = net(x, t, cond)
    assert torch.equal(net(changed, later, cond), wanted)
    assert not torch.allclose(net(x, t, plain), wanted)


def test_hidden_text_has_no_effect_and_shown_text_has() -> None:
    net, cond = model(tiny()), film()
    x, t = noisy(cond), torch.tensor(0.5)
    other = replace(cond, text=cond.text + 1)
    torch.testing.assert_close(net(x, t, cond.drop_text()), net(x, t, other.drop_text()))
    assert not torch.allclose(net(x, t, cond), net(x, t, other))


@pytest.mark.parametrize(("routing", "leaks"), [("all", True), ("global+own", False)])
def test_a_shot_reads_other_shots_captions_only_if_routing_says_so(routing: str, leaks: bool) -> None:
    net = model(tiny(text_routing=routing, temporal_layers=0, spatial_layers=1))  # no temporal path between shots
    cond = film()
    second = (cond.text_shot == 2)[..., None]
    other = replace(cond, text=cond.text + second * 3.0)
    before, after = (net(noisy(cond), torch.tensor(0.5), c) for c in (cond, other))
    assert torch.allclose(before[:, :, :2], after[:, :, :2]) != leaks
    assert not torch.allclose(before[:, :, 2], after[:, :, 2])


def test_frames_reach_each_other_through_temporal_layers_only() -> None:
    cond = film().drop_text()
    x = noisy(cond)
    moved = x.clone()
    moved[:, :, 2] += 1
    # Text is a path between frames too: with words to carry it, one spatial layer writes them and the next reads them.
    apart = model(tiny(temporal_layers=0, spatial_layers=2))
    joined = model(tiny())
    t = torch.tensor(0.5)
    torch.testing.assert_close(apart(x, t, cond)[:, :, :2], apart(moved, t, cond)[:, :, :2])
    assert not torch.allclose(joined(x, t, cond)[:, :, :2], joined(moved, t, cond)[:, :, :2])


def test_auxiliary_logits_lie_on_the_grid_and_cost_the_velocity_nothing() -> None:
    net = model(tiny(aux_labels={"actor": 3, "colour": 5}))
    cond = film()
    v, logits = net(noisy(cond), torch.tensor(0.5), cond, labels_out=True)
    assert {name: tuple(x.shape) for name, x in logits.items()} == {"actor": (1, 3, 2, 3, 3), "colour": (1, 3, 2, 3, 5)}
    assert torch.equal(v, net(noisy(cond), torch.tensor(0.5), cond))


def test_layers_alternate_and_the_rarer_kind_is_spread() -> None:
    assert dit.layer_order(2, 2) == ["spatial", "temporal", "spatial", "temporal"]
    assert dit.layer_order(4, 2) == ["spatial", "temporal", "spatial", "spatial", "temporal", "spatial"]
    assert dit.layer_order(1, 0) == ["spatial"]


def test_nano_has_about_twelve_million_weights_and_starts_at_zero_velocity() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in VideoDiT(DiTConfig()).parameters())
    assert 11e6 < count < 12.5e6
    cond = film().to(dtype=torch.float32)
    assert not VideoDiT(tiny())(noisy(cond), torch.tensor(0.5), cond).any()


def test_a_large_model_is_shape_checked_without_memory() -> None:
    config = DiTConfig(dim=2048, head_dim=128, spatial_layers=12, temporal_layers=12, window=(6, 9))
    with torch.device("meta"):
        net = VideoDiT(config)
        cond = Conditioning.text_to_video([torch.zeros(60, 1152), torch.zeros(60, 1152)], (16, 16), (30, 54), fps=24.0)
        v, _ = net(cond.clean, torch.zeros(1, 32), cond, labels_out=True)
    assert v.shape == (1, 48, 32, 30, 54) and 1e9 < sum(p.numel() for p in net.parameters()) < 2e9


def test_reported_flops_are_those_of_the_matrix_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny(window=(2, 2), dim=64, aux_labels={"actor": 3})
    net, cond = model(config), film((4, 3), frames=(2, 2), grid=(4, 4))
    x = noisy(cond)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x, torch.rand(1, 4), cond)
    reported = net.flops((4, 4, 4), cond.text.shape[1])
    assert abs(reported - counter.get_total_flops()) < 0.03 * counter.get_total_flops()


def test_configurations_survive_a_dictionary_and_reject_what_they_do_not_know() -> None:
    config = tiny(aux_labels={"actor": 3}, window=(4, 2))
    assert DiTConfig.from_dict({**config.to_dict(), "window": [4, 2]}) == config
    with pytest.raises(SeedanceError, match="DiTConfig has no depth"):
        DiTConfig.from_dict({"depth": 3})
    with pytest.raises(SeedanceError, match="multiple of head_dim"):
        tiny(dim=40)
    with pytest.raises(SeedanceError, match="text_routing 'own'"):
        tiny(text_routing="own")
    with pytest.raises(SeedanceError, match="cond was made for"):
        model(tiny())(torch.randn(1, 4, 3, 4, 4, dtype=DOUBLE), torch.tensor(0.5), film())


def test_time_features_and_places_tell_times_and_cells_apart() -> None:
    features = dit.time_features(torch.tensor([0.0, 0.001, 0.5, 1.0]), 64, torch.float32)
    assert torch.cdist(features, features)[~torch.eye(4, dtype=torch.bool)].min() > 0.5
    cond = film(frames=(2, 2), grid=(4, 4))
    places = dit.place_features(cond.shot, cond.seconds, (4, 4), 4, torch.float32).flatten(0, 2)
    distance = torch.cdist(places[:32], places[:32])
    assert distance[~torch.eye(32, dtype=torch.bool)].min() > 0.1
    torch.testing.assert_close(places[:16], places[32:48])  # each shot starts its clock anew
    assert math.isclose(float(places.abs().max()), 1.0, abs_tol=0.1)
