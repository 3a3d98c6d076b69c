"""Patch discriminators for the VAE's adversarial term: one of pictures, one of clips.

Notable choices:
- Appearance and motion are judged apart and together help more than either (Seaweed-7B, section 3.1); PatchGAN logits;
  no norm layers, spectral norm on every convolution.
- `adversarial_terms` gives both sides' hinge losses in one pass: the discriminators' own term sees a detached picture,
  the VAE's term runs through detached discriminator weights. One backward pass and one optimizer train both, and
  checkpoints and resume need nothing special.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Pixels (B, 3, T, H, W) to logits of patches. With `motion` convolutions also reach over time."""

    def __init__(self, width: int = 32, motion: bool = False) -> None:
        super().__init__()
        reach = 3 if motion else 1
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            conv = nn.Conv3d(before, after, (reach, 4, 4), (1, 2, 2), (reach // 2, 1, 1))
            layers += [spectral_norm(conv), nn.LeakyReLU(0.2)]
        layers.append(spectral_norm(nn.Conv3d(widths[-1], 1, (reach, 3, 3), 1, (reach // 2, 1, 1))))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)  # (B, 1, T, H/8, W/8)
        return logits


class Discriminators(nn.Module):
    """The picture and the clip discriminator."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.picture = PatchDiscriminator(width)
        self.motion = PatchDiscriminator(width, motion=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.picture(x), self.motion(x)]


def adversarial_terms(judges: Discriminators, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """(what the VAE pays, what the discriminators pay): hinge losses for pixels (B, 3, T, H, W).

    The first has gradients for `made` alone, the second for the discriminators alone.
    """
    own = [
        F.relu(1 - yes).mean() + F.relu(1 + no).mean()
        for yes, no in zip(judges(real), judges(made.detach()), strict=True)
    ]
    frozen = {name: tensor.detach() for name, tensor in judges.named_parameters()}
    paid = [-logits.mean() for logits in functional_call(judges, frozen, (made,))]
    return torch.stack(paid).mean(), torch.stack(own).mean()
