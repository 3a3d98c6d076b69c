"""The flow's identities, its training times, its noise and its loss."""

from __future__ import annotations

import pytest
import torch

from seedance import flow
from seedance.errors import SeedanceError


def test_velocity_leads_from_any_time_back_to_film_and_noise() -> None:
    x0, eps = torch.randn(2, 2, 3, 4, 2, 2, dtype=torch.float64)
    t = torch.rand(2, 4, dtype=torch.float64)
    x, v = flow.interpolate(x0, eps, t), flow.velocity(x0, eps)
    torch.testing.assert_close(flow.predict_x0(x, v, t), x0)
    torch.testing.assert_close(flow.predict_eps(x, v, t), eps)
    h = 1e-6
    torch.testing.assert_close((flow.interpolate(x0, eps, t + h) - x) / h, v, rtol=1e-4, atol=1e-6)


def test_times_apply_to_latent_frames() -> None:
    x0, eps = torch.zeros(1, 1, 2, 1, 1), torch.ones(1, 1, 2, 1, 1)
    assert flow.interpolate(x0, eps, torch.tensor([[0.25, 0.75]])).flatten().tolist() == [0.25, 0.75]
    assert flow.interpolate(x0, eps, torch.tensor(0.5)).flatten().tolist() == [0.5, 0.5]


def test_shift_moves_the_middle_and_keeps_the_ends() -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    assert flow.shift(t, 3.0).tolist() == pytest.approx([0.0, 0.75, 1.0])
    assert torch.equal(flow.shift(t, 1.0), t)


def test_shift_grows_with_the_root_of_the_tokens_between_one_and_twelve() -> None:
    assert flow.shift_for(320, base_tokens=80) == pytest.approx(2.0)
    assert flow.shift_for(10, base_tokens=80) == 1.0
    assert flow.shift_for(10**9) == 12.0


def test_times_are_logit_normal_and_one_per_film_shot_or_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    t = flow.sample_times(20_000, 1, generator=generator, mean=0.3, std=0.8)
    logit = torch.logit(t)
    assert logit.mean().item() == pytest.approx(0.3, abs=0.03) and logit.std().item() == pytest.approx(0.8, abs=0.03)
    assert (flow.sample_times(4, 6).std(1) == 0).all()
    shot = torch.tensor([[1, 1, 2, 2, 2]])
    by_shot = flow.sample_times(1, 5, per="shot", shot=shot)[0]
    assert by_shot[0] == by_shot[1] != by_shot[2] == by_shot[3] == by_shot[4]
    assert flow.sample_times(1, 6, per="frame").unique().numel() == 6
    with pytest.raises(SeedanceError, match="per 'day'"):
        flow.sample_times(1, 1, per="day")  # type: ignore[arg-type]
    with pytest.raises(SeedanceError, match="shot ids"):
        flow.sample_times(1, 1, per="shot")


def test_a_seed_is_the_same_noise_alone_and_in_a_batch() -> None:
    batch = flow.noise([3, 4, 5], (2, 3, 4, 4))
    assert torch.equal(flow.noise([4], (2, 3, 4, 4))[0], batch[1])
    assert batch.dtype == torch.float32 and not torch.equal(batch[0], batch[1])


def test_given_frames_teach_nothing() -> None:
    x0, eps = torch.randn(2, 2, 3, 3, 2, 2)
    v = flow.velocity(x0, eps)
    given = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    wrong = v.clone()
    wrong[0, :, 0] += 100
    assert flow.flow_loss(wrong, x0, eps, given).item() == pytest.approx(0.0, abs=1e-10)
    wrong[1, :, 1] += 1
    assert flow.flow_loss(wrong, x0, eps, given).item() == pytest.approx(1 / 5)
    weight = torch.ones(2, 3)
    weight[1, 1] = 0
    assert flow.flow_loss(wrong, x0, eps, given, weight).item() == pytest.approx(0.0, abs=1e-10)
    assert flow.flow_loss(wrong, x0, eps, torch.ones(2, 3)).item() == 0.0
