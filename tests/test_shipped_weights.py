"""The shipped weights compute what they computed when they were measured: fixed inputs, known outputs.

    python -m tests.test_shipped_weights     # after new weights: writes the outputs to tests/shipped_weights.json
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

EXPECTED = Path(__file__).with_suffix("").with_name("shipped_weights.json")
TOLERANCE = 2e-2  # relative to the largest figure of a fingerprint: bf16 weights, other processors, other kernels


def _figures(x: object) -> list[float]:
    """Mean, deviation and four probes of a tensor, as plain numbers."""
    import torch

    assert isinstance(x, torch.Tensor)
    flat = x.detach().float().flatten()
    probes = flat[torch.linspace(0, len(flat) - 1, 4).long()]
    return [round(float(v), 6) for v in (flat.mean(), flat.std(), *probes)]


def _wave(*shape: int) -> object:
    """Numbers in [-1, 1] that depend on nothing but their place."""
    import torch

    count = 1
    for side in shape:
        count *= side
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.7311 + 0.2).float().view(shape)


def fingerprints() -> dict[str, list[float]]:
    """Every shipped component on its fixed input, in float32 on the CPU."""
    import torch

    from seedance.conditioning import Conditioning
    from seedance.pipeline import SHIPPED, load_transformer, load_vae
    from shots.stage import render_film, write_film
    from shots.stage.judge import Judge
    from unitime.model import VisionLanguageModel

    folder = SHIPPED["seedance-nano"]
    vae, transformer = load_vae(folder).eval(), load_transformer(folder).eval()
    with torch.no_grad():
        latents = vae.normalize(vae.encode(_wave(1, 3, 5, 32, 48)))  # type: ignore[arg-type]
        pixels = vae.decode(vae.denormalize(latents))
        states = _wave(7, transformer.config.text_dim)
        cond = Conditioning.text_to_video([states], [2], (2, 3), fps=12.0, channels=48)  # type: ignore[list-item]
        velocity = transformer(_wave(1, 48, 2, 2, 3), torch.full((1, 2), 0.6), cond)
    film = render_film(write_film(1_900_000_000, actors=1), 96, 96)
    reading = Judge.load(device="cpu").read(film.frames.numpy(), 12.0)
    facts = [reading.sound, *(max(values.values()) for values in reading.shot.values())]
    grounder = VisionLanguageModel.from_pretrained("unitime-nano", dtype="fp32", device="cpu")
    frames = ((_wave(2, 2, 64, 64, 3) + 1) * 127.5).to(torch.uint8)  # type: ignore[operator]
    ids = torch.arange(40) * 7 % len(grounder.tokenizer)
    with torch.no_grad():
        hidden = grounder.run(grounder.embed(ids[None]), torch.arange(40).expand(3, 1, -1))
        words = grounder.net.lm_head(hidden)
    return {
        "vae.encoder": _figures(latents),
        "vae.decoder": _figures(pixels),
        "transformer": _figures(velocity),
        "judge": [round(v, 6) for v in facts],
        "unitime.vision": _figures(grounder.vision(frames).tokens),
        "unitime.language": _figures(words),
    }


@pytest.mark.parametrize(
    "component", ["vae.encoder", "vae.decoder", "transformer", "judge", "unitime.vision", "unitime.language"]
)
def test_a_shipped_component_still_computes_what_it_did(component: str, found: dict[str, list[float]]) -> None:
    expected = json.loads(EXPECTED.read_text())[component]
    largest = max(abs(v) for v in expected)
    assert found[component] == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE * largest)


def test_a_fingerprint_notices_one_changed_weight(found: dict[str, list[float]]) -> None:
    import torch

    from seedance.pipeline import SHIPPED, load_vae

    vae = load_vae(SHIPPED["seedance-nano"]).eval()
    with torch.no_grad():
        vae.encoder.head.weight[0] += 1.0
        changed = _figures(vae.normalize(vae.encode(_wave(1, 3, 5, 32, 48))))  # type: ignore[arg-type]
    largest = max(abs(v) for v in found["vae.encoder"])
    assert changed != pytest.approx(found["vae.encoder"], rel=TOLERANCE, abs=TOLERANCE * largest)


@pytest.fixture(scope="module")
def found() -> dict[str, list[float]]:
    return fingerprints()


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(fingerprints(), indent=1) + "\n")
