"""What is measured: each function gives the rows of one measurement, (what, figure, what to reach).

Notable choices:
- Speed and memory are taken in processes of their own, so that one measurement does not warm or fill another.
- Memory is the highest resident size over what was resident when the model was loaded, as Linux counts it.
- Quality is what `seedance evaluate` prints, on the sets kept in the packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODEL = "seedance-nano"
PROMPT = "A red cube jumps on a wooden floor."

Row = tuple[str, str, str]


def _python(code: str) -> dict[str, Any]:
    """What a process of its own prints, one JSON object, after running `code`."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a measurement failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


_WARM = """
import json, tempfile, time
from pathlib import Path
from seedance import Seedance

def memory(field):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(field))  # MB

model = Seedance.from_pretrained({model!r})
loaded = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the highest size is counted from here on
folder = Path(tempfile.mkdtemp())
model.render_to(folder / "a.mp4", {prompt!r}, seed=1)
peak = memory("VmHWM") - loaded
begun = time.perf_counter()
model.render_to(folder / "b.mp4", {prompt!r}, seed=2)
print(json.dumps({{"seconds": time.perf_counter() - begun, "peak": peak}}))
"""

_DECODE = """
import json, sys, tempfile
from pathlib import Path
import torch
from seedance import Seedance
from seedance.pipeline import LatentFilm

def memory(field):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(field))  # MB

model = Seedance.from_pretrained({model!r})
plan = model.plan("a cube", num_frames={frames})
film = LatentFilm(torch.randn(48, *plan.latent_shape), plan)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model.write(film, Path(tempfile.mkdtemp()) / "f.mp4")
print(json.dumps({{"peak": memory("VmHWM"), "over": memory("VmHWM") - before}}))
"""


def render_speed() -> list[Row]:
    """One shot of 3 s at 12 fps, 128 x 128, warm and from a cold shell, and the memory it takes."""
    warm = _python(_WARM.format(model=MODEL, prompt=PROMPT))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        command = [
            str(Path(sys.executable).with_name("seedance")),
            "render",
            PROMPT,
            "--model",
            MODEL,
            "-o",
            f"{folder}/f.mp4",
        ]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        cold = time.perf_counter() - begun
    return [
        ("one shot of 3 s, 128 x 128, process warm", f"{warm['seconds']:.1f} s", "<= 8 s"),
        ("the same from a cold shell", f"{cold:.1f} s", "<= 14 s"),
        ("peak memory of it above the loaded model", f"{warm['peak'] / 1024:.2f} GB", "<= 1 GB"),
    ]


def decode_memory() -> list[Row]:
    """Peak memory of decoding 37 and 370 frames into a file."""
    short, long = _python(_DECODE.format(model=MODEL, frames=37)), _python(_DECODE.format(model=MODEL, frames=370))
    figure = f"{long['peak'] / short['peak']:.2f} x ({short['over']:.0f} and {long['over']:.0f} MB above the model)"
    return [("peak memory of decoding a clip ten times longer", figure, "<= 1.2 x")]


def tokens_time() -> list[Row]:
    """A pass of the DiT over 128 x 128 and over 256 x 256 pixels, ten latent frames."""
    import torch

    from seedance import Seedance
    from seedance.conditioning import Conditioning

    model = Seedance.from_pretrained(MODEL)
    words = model.text_encoder.encode_list([PROMPT])
    took = []
    for side in (8, 16):
        cond = Conditioning.text_to_video(words, (10,), (side, side), fps=12.0)
        cond = cond.to(model.device, model.dtype)
        noisy = torch.randn(1, 48, 10, side, side).to(model.device, model.dtype)
        times = torch.full((1, 10), 0.5, device=model.device)
        with torch.no_grad():
            took.append(_best(lambda n=noisy, t=times, c=cond: model.transformer(n, t, c)))
    return [("four times the tokens in the DiT", f"{took[1] / took[0]:.2f} x the time", "<= 5 x")]


def _best(call: Callable[[], object], repeats: int = 7) -> float:
    """Seconds of the fastest of several calls."""
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)


def stage_speed() -> list[Row]:
    """Clips of 37 frames at 128 x 128, rendered with their labels."""
    from shots import stage

    stage.sample(0)
    begun = time.perf_counter()
    for seed in range(1, 21):
        stage.sample(seed)
    return [("stage: clips of 37 frames, 128 x 128, per second", f"{20 / (time.perf_counter() - begun):.1f}", ">= 5")]


def coordinates() -> list[Row]:
    """muP's coordinate check over widths 64-512, and with its two planted faults."""
    from seedance.coordinates import coordinate_check

    steepest = {fault: coordinate_check(fault=fault).worst for fault in (None, "hidden_lr", "readout")}
    figure = f"steepest {steepest[None]:.2f}; planted faults {steepest['hidden_lr']:.2f}, {steepest['readout']:.2f}"
    return [("coordinate check over widths 64-512", figure, "within 0.3, faults beyond")]


def _evaluated(suite: str, limit: int | None) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("seedance")), "evaluate", suite, "--model", MODEL, "--json"]
    command += [] if limit is None else ["--limit", str(limit)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def following(limit: int | None = None) -> list[Row]:
    """Prompt following on the suites, beside the same renders against shuffled prompts."""
    found = _evaluated("prompts", limit)
    reach = {
        "one_actor": ">= 90 %; >= 70 %",
        "two_actors": ">= 80 %; >= 45 %",
        "three_shots": ">= 80 %",
        "heldout_wordings": ">= 80 %",
        "heldout_combinations": ">= 80 %",
    }
    rows = []
    for name, target in reach.items():
        straight, shuffled = found[name]["following"], found[name]["shuffled"]
        figure = (
            f"{_share(straight['facts_per_type'])}; {_share(straight['all_core_facts'])} "
            f"(shuffled {_share(shuffled['facts_per_type'])}; {_share(shuffled['all_core_facts'])})"
        )
        rows.append((f"prompt following, {name.replace('_', ' ')}: facts per type; all core facts", figure, target))
    films, first = found["three_shots"], found["first_frame"]
    cuts = f"{_share(films['cuts_found'])}; {sum(found[name]['false_cuts'] for name in reach)}"
    jumps = f"{first['first_jump']:.1f} and {first['later_jump']:.1f}"
    return rows + [
        ("the same actor over the shots of a script", _share(films["consistency"]), ">= 90 %"),
        ("cuts at the script's times; inside shots", cuts, "100 %; 0"),
        ("first frame: below the VAE's own picture", f"{first['below_autoencoder_db']:.2f} dB", "<= 1 dB"),
        ("first frame: first and later jumps", jumps, "first no larger"),
        ("first frame: action facts", _share(first["action_facts"]), ">= 85 %"),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def reconstruction(limit: int | None = None) -> list[Row]:
    """The VAE on held-out clips of the stage and of the world."""
    found = _evaluated("vae", limit)
    rows = [_quality("VAE, held-out stage clips", found["stage"], ">= 32 dB")]
    if isinstance(found["real"], dict):
        rows.append(_quality("VAE, held-out real clips", found["real"], ">= 27.5 dB, p10 >= 22, PCA + 2 dB"))
    return rows


def _quality(what: str, found: dict[str, Any], target: str) -> Row:
    vae, pca = found["vae"], found["pca"]
    return what, f"{vae['mean']:.1f} dB, p10 {vae['p10']:.1f} (PCA {pca['mean']:.1f})", target
