"""Finds hard cuts: which pairs of neighbouring frames do not belong to one shot.

Notable choices:

- Classical difference measures (pixels, best-matching blocks, colour histogram), each beside the same measure at the
  neighbouring pairs, weighed by a very small network fitted on the stage: a fast move changes many pairs, a cut one.
- Dissolves and fades are no hard cuts and are not reported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 32
MEASURES = 4
FEATURES = 3 * MEASURES


def _measures(small: Tensor) -> Tensor:
    """(T, 3, 32, 32) in [0, 1] to (T - 1, 4): mean change, change after matching blocks within 3 pixels, largest such
    change of a block, change of the colour histogram."""
    before, after = small[:-1], small[1:]
    direct = (after - before).abs().mean(1)  # (P, 32, 32)
    windows = F.unfold(F.pad(before, (3, 3, 3, 3), mode="replicate"), SIDE)  # (P, 3 * 32 * 32, 49)
    windows = windows.view(len(before), 3, SIDE, SIDE, 49)
    moved = (after[..., None] - windows).abs().mean(1)  # (P, 32, 32, 49)
    blocks = moved.view(len(before), 8, 4, 8, 4, 49).mean((2, 4)).amin(-1)  # (P, 8, 8)
    bins = (small * 3.999).long()  # (T, 3, 32, 32)
    code = (bins[:, 0] * 16 + bins[:, 1] * 4 + bins[:, 2]).flatten(1)  # (T, 1024)
    histogram = F.one_hot(code, 64).float().mean(1)  # (T, 64)
    colours = (histogram[1:] - histogram[:-1]).abs().sum(1) / 2  # (P,)
    return torch.stack([direct.mean((1, 2)), blocks.mean((1, 2)), blocks.flatten(1).amax(1), colours], dim=1)


def cut_features(frames: Tensor, chunk: int = 64) -> Tensor:
    """uint8 (T, H, W, 3) to (T - 1, 12): logarithms of each measure at a pair, at its larger neighbour, and the
    difference of the two."""
    if len(frames) < 2:
        return torch.zeros(0, FEATURES)
    parts = []
    for start in range(0, len(frames) - 1, chunk):
        x = frames[start : start + chunk + 1].permute(0, 3, 1, 2).float() / 255.0
        parts.append(_measures(F.adaptive_avg_pool2d(x, SIDE)))
    m = torch.cat(parts)  # (P, 4)
    edge = torch.zeros(1, MEASURES)
    around = torch.maximum(torch.cat([edge, m[:-1]]), torch.cat([m[1:], edge]))
    log, log_around = (m + 0.003).log(), (around + 0.003).log()
    return torch.cat([log, log_around, log - log_around], dim=1)


class CutHead(nn.Module):
    """Logit that a pair of frames is a hard cut."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers((features + 3.0) * 0.5)[..., 0]  # (P,)


def fit_cuts(head: CutHead, features: Tensor, is_cut: Tensor, steps: int = 600, seed: int = 0) -> float:
    """Fits the head to pairs (P, 12) with labels (P,); returns the final loss. Cuts and other pairs weigh the same."""
    torch.manual_seed(seed)
    share = is_cut.float().mean().clamp(1e-4, 1.0 - 1e-4)
    weight = torch.where(is_cut, 0.5 / share, 0.5 / (1.0 - share))
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02, weight_decay=1e-3)
    loss = torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1.0 - step / steps)
        loss = (F.binary_cross_entropy_with_logits(head(features), is_cut.float(), reduction="none") * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
