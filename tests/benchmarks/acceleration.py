"""What the savings save, and what they cost.

    python -m tests.benchmarks.acceleration --films 20                       # the cache on nano, read by the judge
    python -m tests.benchmarks.acceleration --geometry wan-tiny              # beside the stock pipeline
    python -m tests.benchmarks.acceleration --geometry wan-1.3b --device cuda
    python -m tests.benchmarks.acceleration --geometry wan-tiny --only decoding

The first renders films of the held-out suites with and without the cache, from the same seeds. The others build a Wan
of random weights on the device, from its configuration, and make one request with diffusers' stock pipeline, everything
in memory as it comes, then with ours: encoder gone, VAE streaming, and further savings one by one. One JSON object on
stdout; seconds are of the whole request after a short one that warms up, texts encoded before; on the CPU, those that
the processor spent, and there memory and MFU, which other processes blur, are left out.

With a geometry, its VAE also decodes 81 frames as stock diffusers does and streamed, in turns: seconds until the last
frame and until the first are bytes in main memory (the fastest of three), how far apart the two are, and the peak of
memory above weights and latents: the allocator's, on the CPU that of the tensors. `make bench ONLY=acceleration` takes
that row, of wan-1.3b on an accelerator and of wan-tiny on a CPU, and a second one of wan-1.3b's peaks whole, in tiles
and in bf16, counted without numbers; `--only counted` prints the latter alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from typing import Any

import numpy as np
import torch

from seedance.acceleration.counting import TensorMemory, count_decoding
from seedance.acceleration.decoding import Tiling, decode, open_step, whole_step
from seedance.acceleration.options import DEFAULT_CACHE, Acceleration
from shots.runtime.device import pick_device, pick_dtype
from tests.benchmarks.figures import Row

GEOMETRIES: dict[str, dict[str, Any]] = {
    "wan-tiny": {
        "transformer": {
            "num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 8, "ffn_dim": 512, "text_dim": 64,
        },
        "vae": {"base_dim": 16, "num_res_blocks": 1},
        "text": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 512},
        "size": (128, 128, 17), "decoded": (64, 64, 81), "steps": 12,
    },
    "wan-1.3b": {
        "transformer": {
            "num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960, "text_dim": 4096,
        },
        "vae": {},
        "text": {
            "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 256384,
        },
        "size": (480, 832, 81), "decoded": (480, 832, 81), "steps": 50,
    },
}  # fmt: skip
SAVINGS = {
    "ours": Acceleration(),
    "ours, compiled": Acceleration(compile=True),
    "ours, cached": Acceleration(cache=DEFAULT_CACHE),
    "ours, cached and compiled": Acceleration(cache=DEFAULT_CACHE, compile=True),
}


# ------------------------------------------------------------------------------------------------- the cache on nano


def cache_on_nano(films: int, thresholds: list[float], suites: list[str]) -> dict[str, Any]:
    """Shares of facts that the judge finds in held-out films, per type, without the cache and with it."""
    from seedance.pipeline import Seedance
    from shots.stage.following import evaluate_prompts
    from shots.stage.heldout import suite
    from shots.stage.judge import Judge

    model, judge = Seedance.from_pretrained("seedance-nano"), Judge.load()
    report: dict[str, Any] = {}
    for name in suites:
        items = suite(name)[:films]
        for threshold in [None, *thresholds]:
            model.acceleration = Acceleration(cache=threshold)
            skipped: list[float] = []
            spent: list[float] = []

            def renderer(
                script: Any, *, seed: int = 0, skipped: list[float] = skipped, spent: list[float] = spent
            ) -> Any:
                began = time.process_time()
                video = model(script, seed=seed)
                spent.append(time.process_time() - began)
                skipped.append((video.record or {}).get("acceleration", {}).get("skipped", 0.0))
                return video

            found = evaluate_prompts(renderer, items, judge)
            label = "none" if threshold is None else f"{threshold:g}"
            report.setdefault(name, {})[label] = {
                "films": len(items), "cpu_seconds_per_film": float(np.mean(spent)), "skipped": float(np.mean(skipped)),
                "following": found["following"], "sound": found["sound"], "consistency": found["consistency"],
            }  # fmt: skip
            _say(f"{name}, cache {label}: {json.dumps(report[name][label])}")
    return report


# --------------------------------------------------------------------------------------- beside the stock pipeline


def beside_stock(geometry: str, device: torch.device, dtype: torch.dtype, steps: int | None) -> dict[str, Any]:
    """Seconds, peak memory and MFU of one request, stock and ours, and how far apart their films are."""
    from seedance.acceleration.staged import fit_out
    from seedance.engines.families import Wan
    from shots.runtime.speed import peak_flops

    said = GEOMETRIES[geometry]
    height, width, frames = said["size"]
    count = steps or said["steps"]
    pipe = _pipeline(said, device, dtype, encoder=True)
    config = dict(pipe.transformer.config)
    tokens = (1 + (frames - 1) // 4) * (height // 16) * (width // 16)
    flops = 2 * count * Wan().flops(config, tokens, 512)
    peak = peak_flops(device, dtype)
    torch.manual_seed(0)
    words = {
        name: torch.randn(1, 512, config["text_dim"], device=device, dtype=dtype)
        for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    request = {**words, "height": height, "width": width, "num_frames": frames, "guidance_scale": 5.0}

    def drawn(pipe: Any, output: str, count: int) -> Any:
        generator = torch.Generator("cpu").manual_seed(0)
        return pipe(**request, num_inference_steps=count, generator=generator, output_type=output).frames

    def stock(count: int) -> tuple[Any, float, float]:
        began = _clock(device)
        pixels = drawn(pipe, "np", count)
        _settle(device)
        return pixels[0], _clock(device) - began, 0.0

    def ours(count: int) -> tuple[Any, float, float]:
        began = _clock(device)
        latents = drawn(pipe, "latent", count)
        _settle(device)
        sampled = _clock(device) - began
        vae = pipe.vae
        step, chunks = open_step(vae, latents.shape[2])
        shape = (1, -1, 1, 1, 1)
        std, mean = (
            torch.tensor(vae.config[key]).view(shape).to(device, vae.dtype) for key in ("latents_std", "latents_mean")
        )
        z = latents.to(vae.dtype) * std + mean
        pieces = [
            ((pixels[0].float() + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0).cpu().numpy()
            for pixels in decode(step, z, chunk=chunks, space=8)
        ]
        return np.concatenate(pieces), _clock(device) - began, sampled

    report: dict[str, Any] = {
        "geometry": geometry, "size": [height, width, frames], "steps": count, "device": _name(device),
        "dtype": str(dtype).removeprefix("torch."), "peak_tflops": peak / 1e12, "transformer_pflop": flops / 1e15,
    }  # fmt: skip
    reference: Any = None
    rows = {}
    for name, acceleration in [("stock", None), *SAVINGS.items()]:
        if name != "stock":
            del pipe
            gc.collect()
            pipe = _pipeline(said, device, dtype, encoder=False)
            for parameter in pipe.vae.parameters():
                if parameter.ndim == 5 and device.type == "cuda":  # as StagedSeedance has it
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
            fit_out(pipe.transformer, acceleration, device)
        run = stock if name == "stock" else ours
        try:
            run(2)  # warms up: kernels are chosen, blocks compiled
            _reset(device)
            pixels, seconds, sampled = run(count)
        except (RuntimeError, ImportError) as error:
            rows[name] = {"failed": str(error).splitlines()[0][:200]}
            _say(f"{name}: {rows[name]}")
            continue
        row: dict[str, Any] = {"seconds": round(seconds, 3)}
        if device.type == "cuda":
            row["peak_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
        if reference is None:
            reference = pixels
        else:
            row |= {
                "times_faster": round(rows["stock"]["seconds"] / seconds, 3),
                "decoding_seconds": round(seconds - sampled, 3),
                "relative_error": float(np.linalg.norm(pixels - reference) / np.linalg.norm(reference)),
            }
            if device.type == "cuda":
                row["memory_share"] = round(row["peak_gb"] / rows["stock"]["peak_gb"], 3)
                if (
                    acceleration is not None and acceleration.cache is None
                ):  # a cache leaves out part of what is counted
                    row["mfu"] = round(flops / sampled / peak, 3)
        rows[name] = row
        _say(f"{name}: {row}")
    return {**report, "rows": rows}


# ------------------------------------------------------------------------------------------------------- decoding


@torch.no_grad()
def decoding(geometry: str, device: torch.device) -> dict[str, Any]:
    """Seconds, seconds to the first frame and peak memory of decoding one shot in float32, stock and streamed."""
    from seedance.pipeline import to_uint8

    said = GEOMETRIES[geometry]
    height, width, frames = said["decoded"]
    stock, ours = _vae(said, device), _vae(said, device)
    if device.type == "cuda":  # as StagedSeedance has it
        for parameter in ours.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    count = 1 + (frames - 1) // 4
    z = torch.randn(1, 16, count, height // 8, width // 8, generator=torch.Generator().manual_seed(0)).to(device)
    streamed, chunks = open_step(ours, count)
    ways = {"stock": (whole_step(stock), None), "streamed": (streamed, chunks)}

    def run(way: str) -> tuple[np.ndarray, float, float]:
        """The frames, and seconds until all and until the first of them are there."""
        step, lengths = ways[way]
        pieces, first, began = [], 0.0, _clock(device)
        for pixels in decode(step, z, chunk=lengths, space=8, retry=False):
            pieces.append(to_uint8(pixels[0]))
            first = first or _clock(device) - began
        return np.concatenate(pieces), _clock(device) - began, first

    rows: dict[str, dict[str, float]] = {way: {"seconds": np.inf, "first_frame_seconds": np.inf} for way in ways}
    shown = {}
    for turn in range(4):
        for way, row in rows.items():
            shown[way], whole, first = run(way)
            if turn:  # the first one warms up
                row["seconds"] = min(row["seconds"], whole)
                row["first_frame_seconds"] = min(row["first_frame_seconds"], first)
    for way, row in rows.items():
        row["peak_gb"] = _peak(lambda way=way: run(way), device) / 1e9
    theirs, own = rows["stock"], rows["streamed"]
    difference = np.abs(shown["stock"].astype(int) - shown["streamed"].astype(int)).max()
    return {
        "geometry": geometry, "size": [height, width, len(shown["stock"])], "device": _name(device), "rows": rows,
        "times_faster": theirs["seconds"] / own["seconds"], "memory_share": own["peak_gb"] / theirs["peak_gb"],
        "largest_difference": int(difference),
    }  # fmt: skip


def _peak(run: Any, device: torch.device) -> int:
    """The most bytes that were held above those before."""
    if device.type != "cuda":
        with TensorMemory() as memory:
            run()
        return memory.peak
    _reset(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


@torch.no_grad()
def counted(geometry: str) -> dict[str, int]:
    """Bytes of the peak of decoding one shot, above the weights, counted without numbers: on no device and no device's
    allocator or workspaces in it. "parked" is what tiles keep in main memory."""
    said = GEOMETRIES[geometry]
    height, width, frames = said["decoded"]
    latents = (16, 1 + (frames - 1) // 4, height // 8, width // 8)
    with TensorMemory() as memory:
        _vae(said, torch.device("meta")).decode(torch.empty(1, *latents, device="meta"))
    found = {"stock": memory.peak}
    for name, dtype, tiling in (
        ("streamed", torch.float32, None), ("streamed, bf16", torch.bfloat16, None),
        ("in tiles", torch.float32, Tiling()), ("in tiles, bf16", torch.bfloat16, Tiling()),
    ):  # fmt: skip
        one = count_decoding("AutoencoderKLWan", said["vae"], latents, space=8, dtype=dtype, tiling=tiling)
        found |= {name: one.peak} | ({f"{name}, parked": one.parked} if tiling else {})
    return found


def acceleration() -> list[Row]:
    """The rows of decoding, for the table of figures."""
    device = pick_device(None)
    found = decoding("wan-1.3b" if device.type == "cuda" else "wan-tiny", device)
    own, (height, width, frames) = found["rows"]["streamed"], found["size"]
    what = f"{found['geometry']}: decode of {frames} frames, {width} x {height}, streamed beside stock diffusers"
    figure = (
        f"{found['times_faster']:.2f} x faster, peak {found['memory_share']:.1%}, first frame after "
        f"{own['first_frame_seconds'] / own['seconds']:.1%} of the time, largest difference "
        f"{found['largest_difference']} of 255"
    )
    peaks = {name: f"{count / 1e9:.2f} GB" for name, count in counted("wan-1.3b").items()}
    return [
        (what, figure, ">= 1.5 x, <= 50 %, from the first chunk on"),
        (
            "wan-1.3b: tensors at the peak of decoding 81 frames, 832 x 480, in tiles",
            f"{peaks['in tiles']}, in bf16 {peaks['in tiles, bf16']} ({peaks['in tiles, parked']} and "
            f"{peaks['in tiles, bf16, parked']} wait in main memory); whole {peaks['streamed']}, in bf16 "
            f"{peaks['streamed, bf16']}; stock {peaks['stock']}",
            "<= 25 % of whole",
        ),
    ]


def _vae(said: dict[str, Any], device: torch.device) -> Any:
    """diffusers' own Wan VAE with random weights in float32, the same every time."""
    from seedance.engines.folder import diffusers

    torch.manual_seed(0)
    with torch.device(device):
        made = diffusers().AutoencoderKLWan(**said["vae"])
    return made.eval().requires_grad_(False)


def _pipeline(said: dict[str, Any], device: torch.device, dtype: torch.dtype, encoder: bool) -> Any:
    """diffusers' own Wan pipeline with random weights, the same every time; its VAE in float32."""
    from seedance.engines.folder import diffusers
    from shots.runtime.vision import transformers

    library = diffusers()
    torch.manual_seed(0)
    with torch.device(device):
        transformer = library.WanTransformer3DModel(**said["transformer"])
        kept = transformer._keep_in_fp32_modules
        for name, parameter in transformer.named_parameters():  # as from_pretrained has it
            if not set(kept) & set(name.split(".")):
                parameter.data = parameter.data.to(dtype)
        vae = library.AutoencoderKLWan(**said["vae"])
        text = None
        if encoder:
            torch.set_default_dtype(dtype)
            try:
                text = transformers().UMT5EncoderModel(transformers().UMT5Config(**said["text"]))
            finally:
                torch.set_default_dtype(torch.float32)
    scheduler = library.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    pipe = library.WanPipeline(
        tokenizer=None, text_encoder=text, transformer=transformer.eval(), vae=vae.eval(), scheduler=scheduler
    )
    for part in (transformer, vae, *([text] if text is not None else [])):
        part.requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _clock(device: torch.device) -> float:
    """Seconds; on the CPU those that this process computed, whatever else the machine does."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=tuple(GEOMETRIES), help="beside the stock pipeline at this size")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--dtype", help="default: what the device multiplies fastest")
    parser.add_argument("--steps", type=int, help="default: the geometry's")
    parser.add_argument("--films", type=int, default=20, help="of each suite, for the cache on nano (default: 20)")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[DEFAULT_CACHE], help="of the cache on nano")
    parser.add_argument("--suites", nargs="+", default=["one_actor", "two_actors"], help="of the cache on nano")
    parser.add_argument("--only", choices=("request", "decoding", "counted"), help="of what is measured at a geometry")
    said = parser.parse_args()
    if said.geometry is None:
        found = cache_on_nano(said.films, said.thresholds, said.suites)
    else:
        device, found = pick_device(said.device), {}
        if said.only != "request":
            found["counted_bytes"] = counted(said.geometry)
        if said.only not in ("request", "counted"):
            found["decoding"] = decoding(said.geometry, device)
            _say(f"decoding: {json.dumps(found['decoding'])}")
        if said.only not in ("decoding", "counted"):
            found |= beside_stock(said.geometry, device, pick_dtype(device, said.dtype)[0], said.steps)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
