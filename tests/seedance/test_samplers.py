"""Samplers against flows with a closed form, and guidance."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seedance import flow, samplers
from seedance.conditioning import Conditioning
from seedance.errors import SeedanceError

MEAN, STD = 1.5, 0.4  # of the data: x0 ~ N(MEAN, STD^2)


def gaussian(x: Tensor, t: Tensor) -> Tensor:
    """Exact velocity of the flow between N(MEAN, STD^2) and N(0, 1): E[eps - x0 | x_t = x]."""
    variance = ((1 - t) * STD) ** 2 + t**2
    x0 = MEAN + (1 - t) * STD**2 / variance * (x - (1 - t) * MEAN)
    eps = t / variance * (x - (1 - t) * MEAN)
    return eps - x0


def exact(x: Tensor) -> Tensor:
    """Where the exact flow carries noise x: quantiles keep their rank."""
    return MEAN + STD * x


def error(sampler: samplers.Sampler, steps: int) -> float:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    return float((sampler(gaussian, x, samplers.times(steps)) - exact(x)).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [(samplers.euler, 1.0), (samplers.multistep, 2.0)])
def test_samplers_converge_at_their_order(sampler: samplers.Sampler, order: float) -> None:
    slope = math.log2(error(sampler, 64) / error(sampler, 128))
    assert slope == pytest.approx(order, abs=0.1)
    assert error(sampler, 128) < 0.02


def test_the_second_order_sampler_is_better_at_few_steps() -> None:
    assert error(samplers.multistep, 16) < 0.2 * error(samplers.euler, 16)


@pytest.mark.parametrize("sampler", [samplers.euler, samplers.multistep])
def test_a_straight_flow_is_exact_in_any_number_of_steps(sampler: samplers.Sampler) -> None:
    x0, eps = torch.randn(2, 5, dtype=torch.float64)

    def straight(x: Tensor, t: Tensor) -> Tensor:
        return (x - x0) / t

    for steps in (1, 3):
        torch.testing.assert_close(sampler(straight, eps, samplers.times(steps, shift=3.0)), x0)


def test_sde_steps_keep_the_marginals_of_the_flow() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, generator=generator, dtype=torch.float64)
    made = samplers.sde(
        gaussian,
        x,
        samplers.times(250),
        noise=lambda i, like: torch.randn(like.shape, generator=generator, dtype=like.dtype),
        level=1.0,
    )
    assert made.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert made.std().item() == pytest.approx(STD, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([x, made]))[0, 1])) < 0.2  # the first noise is forgotten


def test_sde_without_noise_is_euler_and_its_density_is_gaussian() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    times = samplers.times(5)
    calm = samplers.sde(gaussian, x, times, noise=lambda i, like: torch.randn_like(like), level=0.0)
    assert torch.equal(calm, samplers.euler(gaussian, x, times))
    x0 = torch.randn(4, 6, dtype=torch.float64)
    spread = samplers.sde_spread(0.6, 0.4, 0.7)
    mean = samplers.step(x, x0, 0.6, 0.4, spread)
    fresh = torch.randn(4, 6, dtype=torch.float64)
    reached = samplers.step(x, x0, 0.6, 0.4, spread, fresh)
    wanted = torch.distributions.Normal(mean, spread).log_prob(reached).mean(1)
    torch.testing.assert_close(
        samplers.sde_log_prob(x, reached, x0, 0.6, 0.4, 0.7), wanted.float(), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(SeedanceError, match="deterministic"):
        samplers.sde_log_prob(x, reached, x0, 0.4, 0.0, 0.7)


def test_one_step_formula_keeps_noise_and_film_in_proportion() -> None:
    x0, eps, fresh = torch.randn(3, 1000, dtype=torch.float64)
    x = flow.interpolate(x0, eps, torch.tensor(0.8))
    torch.testing.assert_close(samplers.step(x, x0, 0.8, 0.3), flow.interpolate(x0, eps, torch.tensor(0.3)))
    noisy = samplers.step(x, x0, 0.8, 0.3, 0.18, fresh)
    torch.testing.assert_close(noisy - 0.7 * x0, 0.24 * eps + 0.18 * fresh)


def test_callbacks_see_every_step() -> None:
    seen: list[samplers.Step] = []
    made = samplers.multistep(gaussian, torch.zeros(3), samplers.times(4), seen.append)
    assert [(s.index, s.steps) for s in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1].time == 0.0 and torch.equal(seen[-1].x, made)


def test_times_fall_from_noise_to_film() -> None:
    times = samplers.times(4, shift=3.0)
    assert times[0] == 1 and times[-1] == 0 and times[2] == pytest.approx(0.75)
    with pytest.raises(SeedanceError, match="at least 1"):
        samplers.times(0)
    with pytest.raises(SeedanceError, match="fall strictly"):
        samplers.euler(gaussian, torch.zeros(1), torch.tensor([0.0, 1.0]))


# ------------------------------------------------------------------ guidance


def film() -> Conditioning:
    return Conditioning.text_to_video([torch.randn(2, 3)], [2], (2, 2), fps=12.0, channels=4)


class Spoken:
    """Velocity 2 where there is text, 1 where there is none; notes the batch sizes it was called with."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        self.batches.append(len(cond))
        return torch.ones_like(noisy) * (1 + cond.text_mask.any(1).to(noisy).reshape(-1, 1, 1, 1, 1))


def test_guidance_leads_away_from_the_unconditional_branch_in_one_batch() -> None:
    model, x = Spoken(), torch.randn(1, 4, 2, 2, 2)
    v = samplers.guided(model, film(), scale=3.0)(x, torch.tensor(0.5))
    assert torch.allclose(v, torch.full_like(v, 1 + 3.0 * (2 - 1))) and model.batches == [2]


def test_guidance_of_one_and_times_outside_the_interval_run_one_branch() -> None:
    model, x = Spoken(), torch.randn(1, 4, 2, 2, 2)
    assert (samplers.guided(model, film())(x, torch.tensor(0.5)) == 2).all()
    assert (samplers.guided(model, film(), scale=3.0, interval=(0.1, 0.4))(x, torch.tensor(0.5)) == 2).all()
    assert model.batches == [1, 1]


def test_a_negative_prompt_takes_the_place_of_no_text() -> None:
    x = torch.randn(1, 4, 2, 2, 2)
    v = samplers.guided(Spoken(), film(), scale=3.0, negative=film())(x, torch.tensor(0.5))
    assert (v == 2).all()


def test_rescaling_gives_back_the_spread_of_the_unguided_film() -> None:
    def wild(noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        return noisy * (1 + 3 * cond.text_mask.any(1).to(noisy).reshape(-1, 1, 1, 1, 1))

    x, t = torch.randn(1, 4, 2, 2, 2), torch.tensor(0.5)
    plain = flow.predict_x0(x, samplers.guided(wild, film())(x, t), t)
    tamed = flow.predict_x0(x, samplers.guided(wild, film(), scale=4.0, rescale=1.0)(x, t), t)
    assert tamed.std().item() == pytest.approx(plain.std().item(), rel=1e-4)


@pytest.mark.parametrize("sampler", [samplers.euler, samplers.multistep])
def test_given_frames_come_out_as_they_went_in(sampler: Callable[..., Tensor]) -> None:
    latent = torch.randn(4, 2, 2)
    cond = film().first_frame(latent)
    made = sampler(
        samplers.guided(Spoken(), cond, scale=3.0), flow.noise([0], cond.clean.shape[1:]), samplers.times(5, 2.0)
    )
    torch.testing.assert_close(made[0, :, 0], latent)
