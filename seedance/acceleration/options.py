"""What is asked for to save time and memory, checked against the model before anything is loaded.

    Acceleration(cache=0.12, guidance_interval=(0.2, 0.9), offload="model").check(native=False)

====================  ======================================================================  =======================
option                what it does                                                            changes the film
====================  ======================================================================  =======================
cache                 leaves out most of a pass while its first layer says little changed     a little; measured
guidance_interval     times of the flow (1 noise, 0 film) at which guidance acts              a little
compile               compiles each repeated block, the first film waits for it               rounding
attention             another attention kernel, where it is installed (open checkpoints)      rounding; "sage" a little
quantization          the transformer's matrices in int8 or fp8 (open checkpoints)            a little
offload               where weights wait: none, model, group, disk; auto takes what fits      no
tiling                decodes in tiles from the start; otherwise when memory runs out         at seams, a little
vae_dtype             numbers the VAE computes in; bf16 takes about half the memory of fp32   a little: bands in skies
====================  ======================================================================  =======================

Notable choice: our own models are small, so what only moves or shrinks weights is refused for them, with the reason,
rather than taken and ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seedance.errors import SeedanceError

if TYPE_CHECKING:
    import torch

    from seedance.dit import VideoDiT
    from seedance.samplers import Denoiser

DEFAULT_CACHE = 0.15  # threshold of the first-block cache; `python -m tests.benchmarks.acceleration` measures its cost
OFFLOAD = ("auto", "none", "model", "group", "disk")
QUANTIZATION = ("int8", "fp8")
VAE_DTYPES = ("fp32", "bf16")  # fp16 has not the range of float32, as these have
# Ours -> diffusers'; "sdpa" is torch's own, which picks the best kernel it has.
ATTENTION = {
    "sdpa": "native", "cudnn": "_native_cudnn", "flash": "flash", "flash3": "_flash_3", "sage": "sage",
    "xformers": "xformers",
}  # fmt: skip
_NEEDS = {"flash": "flash_attn", "flash3": "flash_attn_interface", "sage": "sageattention", "xformers": "xformers"}


@dataclass(frozen=True)
class Acceleration:
    """Options as in the table above.

    Attributes:
        cache: threshold of the first-block cache; None is off. Ours: `seedance.acceleration.cache`; open checkpoints:
            diffusers' own, whose threshold means the same.
        guidance_interval: from and to.
        compile: whether to compile.
        attention: one of `ATTENTION`.
        quantization: one of `QUANTIZATION`, None keeps the number format.
        offload: one of `OFFLOAD`.
        tiling: whether to decode in tiles from the start.
        vae_dtype: one of `VAE_DTYPES`, None takes what the family asks for.
    """

    cache: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    compile: bool = False
    attention: str = "sdpa"
    quantization: str | None = None
    offload: str = "auto"
    tiling: bool = False
    vae_dtype: str | None = None

    def check(self, native: bool) -> None:
        """Raises SeedanceError for a word that is none, for what is not installed and for what the model cannot use."""
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise SeedanceError(f"guidance_interval: {low:g} to {high:g}; give two times from 0 (film) to 1 (noise)")
        if self.cache is not None and not 0 < self.cache < 1:
            raise SeedanceError(f"cache: threshold {self.cache:g} is not between 0 and 1; leave it out for the default")
        for name, value, known in (
            ("offload", self.offload, OFFLOAD), ("quantization", self.quantization, (None, *QUANTIZATION)),
            ("attention_backend", self.attention, tuple(ATTENTION)), ("vae_dtype", self.vae_dtype, (None, *VAE_DTYPES)),
        ):  # fmt: skip
            if value not in known:
                raise SeedanceError(f"{name}: {value!r} is not one of {', '.join(word for word in known if word)}")
        if native:
            for name, said, why in (
                ("offload", self.offload in ("model", "group", "disk"), "its weights are a few megabytes"),
                ("quantization", self.quantization is not None, "its weights are a few megabytes"),
                ("attention_backend", self.attention != "sdpa", "its attention has biases, which others do not take"),
                ("vae_dtype", self.vae_dtype is not None, "its VAE takes a few megabytes"),
            ):
                if said:
                    raise SeedanceError(f"{name}: of no use to this package's own model: {why}; leave it out")
            return
        from importlib.util import find_spec

        needs = _NEEDS.get(self.attention)
        if needs is not None and find_spec(needs) is None:
            raise SeedanceError(
                f"attention_backend: {self.attention} needs the package {needs}, which is not installed; leave it out, "
                "torch's own is used then"
            )
        if self.quantization is not None and self.offload in ("group", "disk"):
            raise SeedanceError(
                f"offload: {self.offload} does not go with quantization; take model, or leave one of the two out"
            )

    def cached(self, model: Denoiser, films: int) -> Denoiser:
        """Our own transformer with its cache for one draw of ``films``; as it is where none is asked for."""
        if self.cache is None:
            return model
        from seedance.acceleration.cache import FirstBlockCache
        from seedance.dit import VideoDiT

        if not isinstance(model, VideoDiT):
            raise SeedanceError("cache: does not go with several devices; leave it out")
        return FirstBlockCache(model, films, self.cache)

    def vae_format(self, fp32: bool, dtype: torch.dtype) -> torch.dtype:
        """Numbers of the VAE: those asked for, else float32 where its family wants that, else the model's."""
        import torch

        if self.vae_dtype is not None:
            return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.vae_dtype]
        return torch.float32 if fp32 else dtype

    def branches(self, times: Any) -> list[bool]:
        """For each step of ``times`` (steps + 1, falling), whether guidance acts."""
        low, high = self.guidance_interval
        return [low <= float(t) <= high for t in times[:-1]]

    def used(self) -> dict[str, Any]:
        """What differs from a plain render, for its record."""
        plain = Acceleration(offload=self.offload)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if value != getattr(plain, name)
        }


def compile_layers(model: VideoDiT) -> None:
    """Compiles our own transformer layer by layer, in place: two kinds of layer are compiled instead of a whole pass.

    The cache, several devices and films of other sizes then work on compiled layers too.
    """
    for layer in model.layers:
        layer.compile(dynamic=True)
