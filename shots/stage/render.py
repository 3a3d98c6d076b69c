"""The stage's renderer: a small signed-distance ray tracer in torch that runs on CPU and GPU and agrees between them
to rounding.

Notable choices:

- Only the pixels inside an actor's projected box are traced. All frames and actors of one shape form one flat list of
  rays, so cost follows the pixels covered, not the picture, and a GPU sees a few long vectors.
- Silhouettes are anti-aliased from the ray's closest approach (one ray per pixel); floor patterns are box-filtered
  analytically over the pixel's footprint; a static camera draws its background once per shot.
- Actors are composited far to near by the depth of their centres; they stand apart, so this order is exact in practice.
- Shadows fall on the floor only (no actor shades another); soft edges come from the closest approach along the light
  ray.
- Returned beside the frames: the actor of every pixel, and per actor the share of the picture that is seen and the
  share that would be seen were nobody in front, from which observability follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .motion import HALF_EXTENT, ActorTrack, CameraTrack, actor_tracks, camera_track
from .scene import SHAPES, SURFACES, Film, ShotSpec

_MARCH_STEPS = 16
_SHADOW_STEPS = 10
_PART_PIXELS = 2**21  # of a stretch of a long shot, at least


@dataclass
class Rendered:
    """A rendered film. T frames of H x W pixels, N = len(film.cast).

    frames (T, H, W, 3) uint8 sRGB; times (T,) seconds; shot_index (T,) from 0; instance (T, H, W) uint8, 0 for the
    background, 1 + i for cast member i; visible and full (T, N): share of the picture's pixels seen of the actor, and
    the share it would cover inside the frame with nobody in front; box (T, N, 4): x0, y0, x1, y1 in [0, 1]
    of its projected bounding box, which may leave the frame (NaN where not placed); boundaries: frames at
    which a later shot starts.
    """

    frames: Tensor
    times: Tensor
    shot_index: Tensor
    instance: Tensor
    visible: Tensor
    full: Tensor
    box: Tensor
    boundaries: list[int]
    fps: float

    def without_pictures(self) -> Rendered:
        """The same with no frames and no instances in it: a few numbers a frame, for films of any length."""
        # Copies: views would hold on to all of the pictures.
        return replace(self, frames=self.frames[:0].clone(), instance=self.instance[:0].clone())


def shot_frames(seconds: float, fps: float) -> int:
    """Frames of a shot of `seconds` at `fps`: round(s * fps), never fewer than one."""
    return max(1, round(seconds * fps))


def render_film(
    film: Film,
    height: int = 128,
    width: int = 128,
    fps: float = 12.0,
    *,
    times: list[Tensor] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Rendered:
    """Renders every shot of `film`.

    Args:
        height, width: pixels. fps: frames per second. times: per shot the seconds (T_k,) to draw instead of the regular
        grid k / fps. dtype: float32, or float64 to check rounding.
    """
    return joined(film, _parts(film, height, width, fps, times, torch.device(device or "cpu"), dtype, None), fps)


def render_parts(
    film: Film,
    height: int = 128,
    width: int = 128,
    fps: float = 12.0,
    *,
    device: torch.device | str | None = None,
) -> Iterator[Rendered]:
    """`render_film` part after part, so that memory does not grow with the film: a shot at a time, a long shot in
    stretches. Arguments as there; the parts hold the film's times and shots, and no boundaries."""
    fading = max(shot_frames(shot.transition_seconds, fps) + 1 for shot in film.shots)
    least = max(fading, _PART_PIXELS // (height * width))  # a transition lies within one part on either side of it
    yield from _parts(film, height, width, fps, None, torch.device(device or "cpu"), torch.float32, least)


def joined(film: Film, parts: Iterable[Rendered], fps: float) -> Rendered:
    """One film of its parts. Parts `without_pictures` give what is needed to observe and to annotate it."""
    every = list(parts)
    index = torch.cat([p.shot_index for p in every])
    lengths = torch.bincount(index, minlength=len(film.shots))
    return Rendered(
        frames=torch.cat([p.frames for p in every]),
        times=torch.cat([p.times for p in every]),
        shot_index=index,
        instance=torch.cat([p.instance for p in every]),
        visible=torch.cat([p.visible for p in every]),
        full=torch.cat([p.full for p in every]),
        box=torch.cat([p.box for p in every]),
        boundaries=lengths.cumsum(0)[:-1].tolist(),
        fps=fps,
    )


def _parts(
    film: Film,
    height: int,
    width: int,
    fps: float,
    times: list[Tensor] | None,
    device: torch.device,
    dtype: torch.dtype,
    least: int | None,
) -> Iterator[Rendered]:
    """The film's shots, each whole or in stretches of `least` frames and more. One part is held back, as the start of
    the next shot may darken its end."""
    start, held = 0.0, None
    for k, shot in enumerate(film.shots):
        t = times[k] if times is not None else torch.arange(shot_frames(shot.seconds, fps), dtype=torch.float64) / fps
        t = t.to(device=device, dtype=dtype)
        for number, stretch in enumerate(t.tensor_split(max(1, len(t) // least) if least else 1)):
            part = _render_shot(film, shot, stretch, height, width, fps)
            if held is not None:
                if number == 0 and shot.transition != "cut" and shot.transition_seconds > 0:
                    _transition(film, k, part, held, stretch, height, width, fps)
                yield held
            held = replace(part, times=part.times + start, shot_index=torch.full((len(stretch),), k, dtype=torch.long))
        start += len(t) / fps
    if held is not None:
        yield held


def _transition(
    film: Film, k: int, part: Rendered, previous: Rendered, t: Tensor, height: int, width: int, fps: float
) -> None:
    """Blends the start of shot k in place: a dissolve over the still running previous shot, or a fade through black."""
    shot = film.shots[k]
    count = min(int((t < shot.transition_seconds).sum()), len(t))
    alpha = ((t[:count] + 0.5 / fps) / shot.transition_seconds).clamp(0, 1)[:, None, None, None]
    if shot.transition == "dissolve":
        last = film.shots[k - 1]
        under = _render_shot(film, last, t[:count] + last.seconds, height, width, fps)
        before, new = under.frames.to(alpha.dtype), part.frames[:count].to(alpha.dtype)
        part.frames[:count] = (before + (new - before) * alpha).round().to(torch.uint8)
        old = (alpha[:, 0, 0, 0] < 0.5).to(part.instance.device)
        part.instance[:count][old] = under.instance[old]
        part.visible[:count][old] = under.visible[old]
    else:
        part.frames[:count] = (part.frames[:count] * alpha).round().to(torch.uint8)
        tail = min(count, len(previous.frames))
        previous.frames[-tail:] = (previous.frames[-tail:] * alpha.flip(0)[-tail:]).round().to(torch.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Light and colour of the set
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Light:
    direction: tuple[float, float, float]  # toward the light
    sun: tuple[float, float, float]
    ambient: tuple[float, float, float]
    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    shadow: float  # how dark the shadow is, 0 none .. 1


def _light(film: Film) -> _Light:
    turn = math.radians(film.set.sun)
    heights = {"clear": 48.0, "cloudy": 65.0, "sunset": 24.0, "night": 42.0, "studio": 58.0}
    up = math.radians(heights[film.set.sky])
    direction = (math.sin(turn) * math.cos(up), math.sin(up), math.cos(turn) * math.cos(up))
    if film.set.style == "neon":
        return _Light(direction, (0.25, 0.2, 0.45), (0.05, 0.04, 0.10), (0.010, 0.004, 0.035), (0.10, 0.010, 0.16), 0.3)
    table = {
        "clear": ((1.25, 1.18, 1.02), (0.40, 0.47, 0.60), (0.10, 0.26, 0.68), (0.56, 0.72, 0.90), 0.68),
        "cloudy": ((0.55, 0.56, 0.58), (0.66, 0.68, 0.72), (0.42, 0.45, 0.50), (0.70, 0.72, 0.74), 0.40),
        "sunset": ((1.35, 0.72, 0.34), (0.42, 0.34, 0.42), (0.16, 0.12, 0.38), (1.00, 0.42, 0.14), 0.62),
        "night": ((0.50, 0.56, 0.78), (0.24, 0.27, 0.38), (0.004, 0.008, 0.030), (0.035, 0.055, 0.13), 0.50),
        "studio": ((0.85, 0.84, 0.82), (0.52, 0.52, 0.53), (0.30, 0.30, 0.31), (0.62, 0.62, 0.62), 0.50),
    }
    sun, ambient, zenith, horizon, shadow = table[film.set.sky]
    return _Light(direction, sun, ambient, zenith, horizon, shadow)


def _vec(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _hash(x: Tensor, y: Tensor) -> Tensor:
    """Pseudo-random values in [0, 1) of integer lattice points, alike on every device (integers, no sine of large
    numbers)."""
    n = x.to(torch.int64) * 374761393 + y.to(torch.int64) * 668265263
    n = ((n ^ (n >> 13)) * 1274126177) & 0x7FFFFFFF
    n = n ^ (n >> 16)
    return (n & 0xFFFF).to(x.dtype) / 65536.0


def _noise(x: Tensor, y: Tensor) -> Tensor:
    """Value noise in [0, 1] with unit lattice."""
    xi, yi = torch.floor(x), torch.floor(y)
    fx, fy = x - xi, y - yi
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    a, b = _hash(xi, yi), _hash(xi + 1, yi)
    c, d = _hash(xi, yi + 1), _hash(xi + 1, yi + 1)
    return torch.lerp(torch.lerp(a, b, fx), torch.lerp(c, d, fx), fy)


def _square_wave(x: Tensor, width: Tensor) -> Tensor:
    """Box-filtered square wave of period 2 in [-1, 1]; `width` is the footprint in x."""

    def ramp(v: Tensor) -> Tensor:  # integral of the wave: a triangle wave
        f = v - 2.0 * torch.floor(v * 0.5)
        return 1.0 - (f - 1.0).abs()

    w = width.clamp_min(1e-4)
    return ((ramp(x + w * 0.5) - ramp(x - w * 0.5)) / w).clamp(-1, 1)


def _lines(x: Tensor, width: Tensor, thick: float) -> Tensor:
    """Box-filtered share in [0, 1] of the footprint covered by lines `thick` wide at every integer x."""

    def ramp(v: Tensor) -> Tensor:  # integral of the indicator of [-thick/2, thick/2] around integers
        f = v + thick * 0.5
        n = torch.floor(f)
        return n * thick + (f - n).clamp_max(thick)

    w = width.clamp_min(1e-4)
    return ((ramp(x + w * 0.5) - ramp(x - w * 0.5)) / w).clamp(0, 1)


def _floor_colour(film: Film, x: Tensor, z: Tensor, foot: Tensor, foot_z: Tensor) -> tuple[Tensor, Tensor]:
    """Albedo (..., 3) and emission (..., 3) of floor points (x, z); footprints in world units along x and z."""
    s, tint = film.set, film.set.tint
    kind = s.floor
    toon = s.style == "toon"
    fade = (1.0 - (foot_z * 0.7)).clamp(0, 1)  # noise finer than the footprint averages out
    if s.style == "neon":
        lines = torch.maximum(_lines(x, foot, 0.06), _lines(z, foot_z, 0.06)) * (0.35 + 0.65 * fade)
        hue = _vec((0.05, 0.55, 0.75) if tint >= 0 else (0.70, 0.06, 0.55), x)
        return torch.zeros_like(x)[..., None] + _vec((0.03, 0.02, 0.05), x), lines[..., None] * hue
    if kind == "checker":
        wave = _square_wave(x, foot) * _square_wave(z, foot_z)
        a, b = _vec((0.62, 0.60, 0.56 + 0.06 * tint), x), _vec((0.20, 0.21, 0.24 + 0.05 * tint), x)
        colour = b + (a - b) * (0.5 + 0.5 * wave)[..., None]
    elif kind == "tiles":
        grout = torch.maximum(_lines(x * 1.6, foot * 1.6, 0.12), _lines(z * 1.6, foot_z * 1.6, 0.12))
        a, b = _vec((0.34, 0.46 + 0.04 * tint, 0.50), x), _vec((0.75, 0.75, 0.73), x)
        colour = a + (b - a) * grout[..., None]
    elif kind == "planks":
        row = torch.floor(x * 1.5)
        shade = _hash(row, row * 0 + 7) * 0.5 + _noise(x * 9.0, z * 0.8) * 0.35 * fade + 0.15
        gap = torch.maximum(
            _lines(x * 1.5, foot * 1.5, 0.06), _lines(z * 0.4 + _hash(row, row * 0 + 3), foot_z * 0.4, 0.02)
        )
        a, b = _vec((0.20, 0.105, 0.05), x), _vec((0.44, 0.26 + 0.03 * tint, 0.13), x)
        colour = (a + (b - a) * shade[..., None]) * (1.0 - 0.8 * gap)[..., None]
    elif kind == "sand":
        ripple = 0.5 + 0.5 * torch.sin(z * 5.0 + 3.0 * _noise(x * 0.9, z * 0.9)) * (1 - foot_z).clamp(0, 1)
        shade = 0.75 * ripple + 0.25 * _noise(x * 7, z * 7) * fade
        a, b = _vec((0.50, 0.37, 0.20), x), _vec((0.70, 0.56 + 0.03 * tint, 0.34), x)
        colour = a + (b - a) * shade[..., None]
    elif kind == "grass":
        shade = 0.55 * _noise(x * 1.3, z * 1.3) + 0.45 * (_noise(x * 11, z * 6) - 0.5) * fade + 0.2
        a, b = _vec((0.045, 0.15, 0.02), x), _vec((0.17, 0.31 + 0.03 * tint, 0.05), x)
        colour = a + (b - a) * shade.clamp(0, 1)[..., None]
    elif kind == "snow":
        shade = 0.7 * _noise(x * 0.8, z * 0.8) + 0.3 * _noise(x * 3, z * 3) * fade
        a, b = _vec((0.66, 0.72, 0.82), x), _vec((0.88, 0.89, 0.90), x)
        colour = a + (b - a) * shade[..., None]
    else:  # concrete
        slab = torch.maximum(_lines(x * 0.5, foot * 0.5, 0.025), _lines(z * 0.5, foot_z * 0.5, 0.025))
        shade = 0.6 * _noise(x * 1.7, z * 1.7) + 0.4 * _noise(x * 8, z * 8) * fade
        a, b = _vec((0.27, 0.27, 0.27), x), _vec((0.40, 0.40 + 0.01 * tint, 0.39), x)
        colour = (a + (b - a) * shade[..., None]) * (1 - 0.6 * slab)[..., None]
    if toon:
        level = colour.amax(-1, keepdim=True).clamp_min(1e-4)  # few flat tones, hue kept
        colour = colour * ((level * 7.0).round().clamp_min(1.0) / 7.0 / level) + 0.03
    return colour, torch.zeros_like(colour)


def _sky_colour(film: Film, direction: Tensor, light: _Light) -> Tensor:
    """Radiance (..., 3) of the sky along unit `direction` (..., 3)."""
    y = direction[..., 1].clamp_min(0.0)
    mix = (1.0 - y).clamp(0, 1) ** (7.0 if film.set.sky == "sunset" else 4.0)
    zenith, horizon = _vec(light.zenith, direction), _vec(light.horizon, direction)
    colour = zenith + (horizon - zenith) * mix[..., None]
    if film.set.style == "neon":
        return colour
    sky = film.set.sky
    u, v = direction[..., 0] / (y + 0.35), direction[..., 2] / (y + 0.35)
    if sky in ("clear", "cloudy"):
        cloud = 0.65 * _noise(u * 2.3 + 11, v * 2.3) + 0.35 * _noise(u * 5.1, v * 5.1 + 5)
        cover = ((cloud - (0.56 if sky == "clear" else 0.36)) * 3.2).clamp(0, 1) * (y * 7).clamp(0, 1)
        white = _vec((0.92, 0.93, 0.95) if sky == "clear" else (0.82, 0.83, 0.85), direction)
        colour = colour + (white - colour) * (cover * (0.8 if sky == "clear" else 0.6))[..., None]
    elif sky == "sunset":
        sun = _vec((-0.35, 0.10, -0.93), direction)
        glow = (direction * sun).sum(-1).clamp_min(0)
        colour = (
            colour
            + (glow**24)[..., None] * _vec((0.9, 0.42, 0.12), direction)
            + ((glow - 0.992).clamp_min(0) * 300).clamp(0, 1)[..., None]
        )
    elif sky == "night":
        gx, gy = direction[..., 0] * 34 / (y + 0.6), y * 34
        cell = _hash(torch.floor(gx), torch.floor(gy))
        near = (gx - torch.floor(gx) - 0.5) ** 2 + (gy - torch.floor(gy) - 0.5) ** 2
        star = ((cell > 0.86).to(y.dtype) * (1.0 - near * 7.0).clamp_min(0)) * (y * 12).clamp(0, 1)
        moon = _vec((0.42, 0.34, -0.84), direction)
        disc = (((direction * moon).sum(-1) - 0.9965) * 900).clamp(0, 1)
        colour = colour + (star * 0.8)[..., None] + disc[..., None] * _vec((0.85, 0.87, 0.80), direction)
    return colour


def _shade_floor(film: Film, light: _Light, albedo: Tensor, emission: Tensor) -> Tensor:
    level = _vec(light.ambient, albedo) + _vec(light.sun, albedo) * light.direction[1]
    return albedo * level + emission


def _fog(film: Film, colour: Tensor, distance: Tensor, light: _Light) -> Tensor:
    density = 0.115 if film.set.fog else 0.016
    keep = torch.exp(-density * (distance - (2.5 if film.set.fog else 4.0)).clamp_min(0.0))
    return colour * keep[..., None] + _vec(light.horizon, colour) * (1.0 - keep)[..., None]


def _tone(colour: Tensor) -> Tensor:
    """Linear radiance to sRGB in [0, 1]: a soft shoulder, then gamma."""
    colour = colour.clamp_min(0.0)
    colour = torch.where(colour < 0.7, colour, 0.7 + 0.3 * (1.0 - torch.exp(-(colour - 0.7) / 0.3)))
    return colour.clamp(0, 1) ** (1 / 2.2)


# ---------------------------------------------------------------------------------------------------------------------
# Distance functions: unit shapes of height one, base on the floor, in object space (..., 3) -> (...)
# ---------------------------------------------------------------------------------------------------------------------


def _distance(shape: str, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    y = y - 0.5
    if shape == "sphere":
        return (x * x + y * y + z * z).sqrt() - 0.5
    if shape == "cube":
        qx, qy, qz = x.abs() - 0.40, y.abs() - 0.44, z.abs() - 0.40  # rounded by 0.06
        out = (qx.clamp_min(0) ** 2 + qy.clamp_min(0) ** 2 + qz.clamp_min(0) ** 2).sqrt()
        return out + torch.maximum(qx, torch.maximum(qy, qz)).clamp_max(0) - 0.06
    if shape == "cylinder":
        r, h = (x * x + z * z).sqrt() - 0.34, y.abs() - 0.46  # rounded by 0.04
        return (r.clamp_min(0) ** 2 + h.clamp_min(0) ** 2).sqrt() + torch.maximum(r, h).clamp_max(0) - 0.04
    if shape == "cone":
        r = (x * x + z * z).sqrt()  # side: plane through (0.46, -0.46) and (0, 0.46); rounded by 0.03
        side = (r - (0.46 - y) * 0.5) * 0.894427
        return torch.maximum(side, -y - 0.46) - 0.035
    if shape == "torus":
        ring = (x * x + y * y).sqrt() - 0.345
        return (ring * ring + z * z).sqrt() - 0.155
    return (x * x + (y - y.clamp(-0.23, 0.23)) ** 2 + z * z).sqrt() - 0.27  # capsule


@dataclass
class _Rays:
    """Flat rays of one shape: object-space origin and unit direction (N, 3), instance row (N,), angular width of a
    pixel (N,)."""

    origin: Tensor
    direction: Tensor
    row: Tensor
    stretch: Tensor  # object-space length per world length along the ray


def _to_object(point: Tensor, direction: Tensor, inst: _Instances, row: Tensor) -> _Rays:
    """World rays (N, 3) into the object spaces of their instances."""
    c, s = inst.cos[row], inst.sin[row]
    scale = inst.scale[row]
    p, d = point - inst.base[row], direction
    origin = torch.stack([c * p[:, 0] - s * p[:, 2], p[:, 1], s * p[:, 0] + c * p[:, 2]], -1) / scale
    local = torch.stack([c * d[:, 0] - s * d[:, 2], d[:, 1], s * d[:, 0] + c * d[:, 2]], -1) / scale
    stretch = local.norm(dim=-1)
    return _Rays(origin, local / stretch[:, None], row, stretch)


def _bound(rays: _Rays) -> tuple[Tensor, Tensor]:
    """Object-space distances (N,) at which a ray enters and leaves the bounding sphere (grown by a tenth)."""
    ox, oy, oz = rays.origin[:, 0], rays.origin[:, 1] - 0.5, rays.origin[:, 2]
    dx, dy, dz = rays.direction.unbind(-1)
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 0.80**2
    root = (b * b - c).clamp_min(0).sqrt()
    return (-b - root).clamp_min(0.0), -b + root


def _march(shape: str, rays: _Rays, pixel: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Sphere tracing. Returns distance along the ray at its closest approach (N,) and the pixel's coverage there (N,)
    in [0, 1]."""
    t, far = _bound(rays)
    ox, oy, oz = rays.origin.unbind(-1)
    dx, dy, dz = rays.direction.unbind(-1)
    best, where = torch.full_like(t, 1e3), t
    for _ in range(steps):
        gap = _distance(shape, ox + t * dx, oy + t * dy, oz + t * dz)
        near = gap / (pixel * t).clamp_min(1e-5)  # in pixels
        closer = near < best
        best = torch.where(closer, near, best)
        where = torch.where(closer, t, where)
        t = torch.minimum(t + gap.clamp_min(0.0), far)
    return where, (1.0 - best).clamp(0, 1)


@dataclass
class _Instances:
    """Actors over frames, flattened: I rows."""

    frame: Tensor  # (I,)
    cast: Tensor  # (I,)
    shape: list[str]  # per row
    surface: Tensor  # (I,)
    base: Tensor
    cos: Tensor
    sin: Tensor
    scale: Tensor
    rgb: Tensor
    depth: Tensor


def _instances(film: Film, tracks: dict[str, ActorTrack], camera: CameraTrack) -> _Instances:
    names = [a.name for a in film.cast]
    count = len(camera.eye)
    frame, cast, shape, surface = [], [], [], []
    fields: dict[str, list[Tensor]] = {"base": [], "yaw": [], "scale": [], "rgb": []}
    device = camera.eye.device
    for name, track in tracks.items():
        i = names.index(name)
        frame.append(torch.arange(count, device=device))
        cast.append(torch.full((count,), i, device=device))
        shape += [film.cast[i].shape] * count
        surface.append(torch.full((count,), SURFACES.index(film.cast[i].surface), device=device))
        for key, values in fields.items():
            values.append(getattr(track, key))
    base, yaw, scale, rgb = (torch.cat(fields[k]) for k in ("base", "yaw", "scale", "rgb"))
    frames = torch.cat(frame)
    centre = base + torch.stack([torch.zeros_like(yaw), 0.5 * scale[:, 1], torch.zeros_like(yaw)], -1)
    depth = ((centre - camera.eye[frames]) * camera.rotation[frames, 2]).sum(-1)
    return _Instances(
        frames, torch.cat(cast), shape, torch.cat(surface), base, torch.cos(yaw), torch.sin(yaw), scale, rgb, depth
    )


def _corners(inst: _Instances) -> Tensor:
    """Corners (I, 8, 3) of the actors' bounding boxes in the world."""
    half = (
        torch.tensor([HALF_EXTENT[s] for s in inst.shape], dtype=inst.base.dtype, device=inst.base.device) * inst.scale
    )
    sign = torch.tensor(
        [[a, b, c] for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)], dtype=half.dtype, device=half.device
    )
    local = half[:, None] * sign + torch.stack([half[:, 0] * 0, 0.5 * inst.scale[:, 1], half[:, 0] * 0], -1)[:, None]
    c, s = inst.cos[:, None], inst.sin[:, None]
    x, y, z = local.unbind(-1)
    return torch.stack([c * x + s * z, y, c * z - s * x], -1) + inst.base[:, None]


def _project(points: Tensor, frame: Tensor, camera: CameraTrack, height: int, width: int) -> tuple[Tensor, Tensor]:
    """World points (I, P, 3) to pixel coordinates x, y (I, P), clipped in depth."""
    rel = points - camera.eye[frame][:, None]
    cam = torch.einsum("ipc,irc->ipr", rel, camera.rotation[frame])
    depth = cam[..., 2].clamp_min(0.15)
    f = camera.focal[frame][:, None] * (height / 2)
    return width / 2 + f * cam[..., 0] / depth, height / 2 - f * cam[..., 1] / depth


def _patches(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integer pixels of the boxes, clipped to the picture: row (N,), py (N,), px (N,)."""
    left, right = x0.floor().clamp(0, width).long(), x1.ceil().clamp(0, width).long()
    top, bottom = y0.floor().clamp(0, height).long(), y1.ceil().clamp(0, height).long()
    w, h = (right - left).clamp_min(0), (bottom - top).clamp_min(0)
    area = w * h
    row = torch.repeat_interleave(torch.arange(len(area), device=area.device), area)
    within = torch.arange(len(row), device=area.device) - torch.repeat_interleave(area.cumsum(0) - area, area)
    py = top[row] + torch.div(within, w[row], rounding_mode="floor")
    px = left[row] + within % w[row]
    return row, py, px


def _pixel_rays(frame: Tensor, py: Tensor, px: Tensor, camera: CameraTrack, height: int, width: int) -> Tensor:
    """Unit world directions (N, 3) through the centres of pixels."""
    f = camera.focal[frame] * (height / 2)
    u, v = (px + 0.5 - width / 2) / f, (height / 2 - py - 0.5) / f
    rot = camera.rotation[frame]
    d = rot[:, 0] * u[:, None] + rot[:, 1] * v[:, None] + rot[:, 2]
    return d / d.norm(dim=-1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------------
# One shot
# ---------------------------------------------------------------------------------------------------------------------


def _render_shot(film: Film, shot: ShotSpec, times: Tensor, height: int, width: int, fps: float) -> Rendered:
    count, cast = len(times), len(film.cast)
    light = _light(film)
    camera = camera_track(shot.camera, shot.seconds, times)
    tracks = actor_tracks(film, shot, times)
    static = shot.camera.move == "static"
    background = CameraTrack(camera.eye[:1], camera.rotation[:1], camera.focal[:1]) if static else camera
    albedo_lit, distance, floor = _background(film, light, background, height, width)
    instance = torch.zeros(count, height, width, dtype=torch.uint8, device=times.device)
    visible = torch.zeros(count, cast, dtype=times.dtype, device=times.device)
    full = torch.zeros_like(visible)
    box = torch.full((count, cast, 4), float("nan"), dtype=times.dtype, device=times.device)
    canvas = albedo_lit.expand(count, -1, -1, -1).reshape(-1, 3).clone()  # (T H W, 3) linear light
    if tracks:
        inst = _instances(film, tracks, camera)
        _shadows(film, light, inst, camera, canvas, floor.expand(count, -1, -1).reshape(-1), height, width)
    canvas = (
        _fog(film, canvas, distance.expand(count, -1, -1).reshape(-1), light) if film.set.style != "neon" else canvas
    )
    if tracks:
        _actors(film, light, inst, camera, canvas, instance.view(-1), full, box, height, width)
        for i in range(cast):
            visible[:, i] = (instance == i + 1).sum((1, 2)).to(times.dtype) / (height * width)
    frames = (_tone(canvas) * 255.0).round().to(torch.uint8).view(count, height, width, 3)
    index = torch.zeros(count, dtype=torch.long)
    return Rendered(frames, times, index, instance, visible, full, box, [], fps)


def _background(
    film: Film, light: _Light, camera: CameraTrack, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lit floor and sky without fog (F, H, W, 3), distance along the ray (F, H, W), and where the floor is (F, H,
    W)."""
    count = len(camera.eye)
    frame = torch.arange(count, device=camera.eye.device).repeat_interleave(height * width)
    py = torch.arange(height, device=frame.device).repeat_interleave(width).repeat(count)
    px = torch.arange(width, device=frame.device).repeat(height * count)
    d = _pixel_rays(frame, py, px, camera, height, width)
    eye = camera.eye[frame]
    pixel = 2.0 / (camera.focal[frame] * height)
    down = (-d[:, 1]).clamp_min(1e-4)
    t = (eye[:, 1] / down).clamp_max(60.0)
    x, z = eye[:, 0] + t * d[:, 0], eye[:, 2] + t * d[:, 2]
    foot = pixel * t
    albedo, emission = _floor_colour(film, x, z, foot, foot / down.clamp_min(0.02))
    ground = _shade_floor(film, light, albedo, emission)
    sky = _sky_colour(film, d, light)
    cover = ((-d[:, 1]) / pixel + 0.5).clamp(0, 1)  # the horizon, anti-aliased
    colour = sky + (ground - sky) * cover[:, None]
    distance = torch.where(cover > 0, t, torch.zeros_like(t))
    shape = (count, height, width)
    return colour.view(*shape, 3), distance.view(shape), cover.view(shape)


def _shadows(
    film: Film,
    light: _Light,
    inst: _Instances,
    camera: CameraTrack,
    canvas: Tensor,
    floor: Tensor,
    height: int,
    width: int,
) -> None:
    """Darkens the floor of `canvas` (T H W, 3) under and behind the actors, in place; neon actors light it instead."""
    neon = film.set.style == "neon"
    towards = _vec(light.direction, inst.base)
    corners = _corners(inst)
    reach = corners - towards * (corners[..., 1:2].clamp_min(0.0) / towards[1])  # on the floor, away from the light
    low = corners * _vec((1.0, 0.0, 1.0), corners)
    grow = 1.9 if neon else 1.25
    middle = low.mean(1, keepdim=True)
    points = torch.cat([reach, middle + (low - middle) * grow], 1)
    x, y = _project(points, inst.frame, camera, height, width)
    row, py, px = _patches(x.amin(1), y.amin(1), x.amax(1), y.amax(1), height, width)
    if not len(row):
        return
    frame = inst.frame[row]
    where = (frame * height + py) * width + px
    on_floor = floor[where] > 0.02
    row, py, px, frame, where = (v[on_floor] for v in (row, py, px, frame, where))
    d = _pixel_rays(frame, py, px, camera, height, width)
    eye = camera.eye[frame]
    point = eye + d * (eye[:, 1] / (-d[:, 1]).clamp_min(1e-3)).clamp_max(60.0)[:, None]
    offset = (point - inst.base[row]) * _vec((1.0, 0.0, 1.0), point)
    extent = inst.scale[row].amax(-1) * 0.5
    lift = inst.base[row, 1]
    near = (offset.norm(dim=-1) / extent).clamp_max(4.0)
    if neon:
        glow = torch.exp(-0.9 * near * near) / (1.0 + 1.5 * lift)
        canvas.index_add_(0, where, inst.rgb[row] * (glow * 0.55)[:, None])
        return
    lit = torch.ones_like(near)
    shapes = torch.tensor([SHAPES.index(s) for s in inst.shape], device=row.device)
    softness = torch.full_like(near, 0.10 if film.set.sky == "cloudy" else 0.045)
    for kind in sorted(set(inst.shape)):
        pick = (shapes[row] == SHAPES.index(kind)).nonzero()[:, 0]
        rays = _to_object(point[pick], towards.expand(len(pick), 3), inst, row[pick])
        _, cover = _march(kind, rays, softness[pick], _SHADOW_STEPS)
        lit[pick] = 1.0 - cover * light.shadow
    contact = 1.0 - 0.45 * torch.exp(-2.2 * near * near) * torch.exp(-3.0 * lift)
    log = torch.log((lit * contact).clamp_min(0.05))
    total = torch.zeros(len(canvas), dtype=canvas.dtype, device=canvas.device).index_add_(0, where, log)
    canvas *= torch.exp(total.clamp_min(-2.5))[:, None]


def _actors(
    film: Film,
    light: _Light,
    inst: _Instances,
    camera: CameraTrack,
    canvas: Tensor,
    instance: Tensor,
    full: Tensor,
    box: Tensor,
    height: int,
    width: int,
) -> None:
    """Draws the actors over `canvas` (T H W, 3) far to near, in place, and fills the label tensors."""
    x, y = _project(_corners(inst), inst.frame, camera, height, width)
    x0, y0, x1, y1 = x.amin(1), y.amin(1), x.amax(1), y.amax(1)
    box[inst.frame, inst.cast] = torch.stack([x0 / width, y0 / height, x1 / width, y1 / height], -1)
    seen = inst.depth > 0.4
    zero = torch.zeros_like(x0)
    row, py, px = _patches(
        torch.where(seen, x0 - 1, zero),
        torch.where(seen, y0 - 1, zero),
        torch.where(seen, x1 + 1, zero),
        torch.where(seen, y1 + 1, zero),
        height,
        width,
    )
    if not len(row):
        return
    frame = inst.frame[row]
    d = _pixel_rays(frame, py, px, camera, height, width)
    pixel = 2.0 / (camera.focal[frame] * height)
    shapes = torch.tensor([SHAPES.index(s) for s in inst.shape], device=row.device)
    cover = torch.zeros(len(row), dtype=canvas.dtype, device=canvas.device)
    colour = torch.zeros(len(row), 3, dtype=canvas.dtype, device=canvas.device)
    for kind in sorted(set(inst.shape)):
        pick = (shapes[row] == SHAPES.index(kind)).nonzero()[:, 0]
        rays = _to_object(camera.eye[frame[pick]], d[pick], inst, row[pick])
        t, c = _march(kind, rays, pixel[pick], _MARCH_STEPS)
        touched = (c > 0.004).nonzero()[:, 0]
        pick, t, c = pick[touched], t[touched], c[touched]
        rays = _Rays(rays.origin[touched], rays.direction[touched], rays.row[touched], rays.stretch[touched])
        cover[pick] = c
        colour[pick] = _shade(film, light, kind, inst, rays, t, d[pick])
    share = torch.zeros(full.numel(), dtype=full.dtype, device=full.device)
    share.index_add_(0, frame * full.shape[1] + inst.cast[row], cover / (height * width))
    full += share.view_as(full)
    # Far to near: within one rank no two patches share a frame, so plain indexed writes do not collide.
    order = _rank(inst)
    where = (frame * height + py) * width + px
    for k in range(int(order.max()) + 1):
        pick = ((order[row] == k) & (cover > 0.004)).nonzero()[:, 0]
        spot, alpha = where[pick], cover[pick][:, None]
        canvas[spot] = canvas[spot] * (1.0 - alpha) + colour[pick] * alpha
        solid = pick[cover[pick] > 0.5]
        instance[where[solid]] = (inst.cast[row[solid]] + 1).to(torch.uint8)


def _rank(inst: _Instances) -> Tensor:
    """Per row its place from far to near among the rows of its frame (I,)."""
    frames = int(inst.frame.max()) + 1
    actors = len(inst.frame) // frames
    depth = inst.depth.view(actors, frames)
    return (-depth).argsort(dim=0, stable=True).argsort(dim=0, stable=True).reshape(-1)


def _shade(film: Film, light: _Light, kind: str, inst: _Instances, rays: _Rays, t: Tensor, view: Tensor) -> Tensor:
    """Radiance (N, 3) of actor points at distance `t` along object-space rays; `view` is the world direction of the
    ray."""
    p = rays.origin + rays.direction * t[:, None]
    row = rays.row
    x, y, z = p.unbind(-1)
    e = 0.004
    gradient = torch.zeros_like(p)
    for sx, sy, sz in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):  # tetrahedron differences
        value = _distance(kind, x + e * sx, y + e * sy, z + e * sz)
        gradient += value[:, None] * _vec((float(sx), float(sy), float(sz)), p)
    g = gradient / inst.scale[row]
    c, s = inst.cos[row], inst.sin[row]
    normal = torch.stack([c * g[:, 0] + s * g[:, 2], g[:, 1], c * g[:, 2] - s * g[:, 0]], -1)
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    albedo = inst.rgb[row]
    surface = inst.surface[row]
    width = 2.0 * 0.03 * torch.ones_like(x)
    band = 0.5 + 0.5 * _square_wave((x + 0.55 * y) * 5.2 + 0.5, width)
    pale = albedo.mean(-1, keepdim=True) > 0.7
    other = torch.where(pale, torch.full_like(albedo, 0.18), torch.full_like(albedo, 0.85))
    striped = (surface == SURFACES.index("striped"))[:, None].to(albedo.dtype)
    albedo = albedo + (other - albedo) * (striped * (band > 0.5).to(albedo.dtype)[:, None] * 0.9)
    towards = _vec(light.direction, normal)
    diffuse = (normal * towards).sum(-1).clamp_min(0.0)
    facing = -(normal * view).sum(-1)
    world_y = inst.base[row, 1] + y * inst.scale[row, 1]
    occlusion = 0.55 + 0.45 * (world_y / 0.5).clamp(0, 1)
    sky_light = (0.62 + 0.38 * normal[:, 1]) * occlusion
    shiny = (surface == SURFACES.index("shiny")).to(albedo.dtype)
    rim = (1.0 - facing.clamp(0, 1)) ** 3
    if film.set.style == "toon":
        bands = torch.where(diffuse > 0.62, 1.0, torch.where(diffuse > 0.22, 0.72, 0.42)).to(albedo.dtype)
        colour = albedo * (0.35 + bands)[:, None] * 0.95
        half = torch.nn.functional.normalize(towards - view, dim=-1)
        spot = ((normal * half).sum(-1) > 0.955).to(albedo.dtype) * shiny
        colour = colour + (0.95 - colour).clamp_min(0) * spot[:, None]
        return colour * (1.0 - 0.85 * (facing < 0.30).to(albedo.dtype))[:, None]
    if film.set.style == "neon":
        core = 0.35 + 0.35 * facing.clamp(0, 1)
        colour = albedo * (core + 1.1 * rim)[:, None] + _vec((0.02, 0.02, 0.03), albedo)
        colour = colour + rim[:, None] * 0.10
    else:
        colour = albedo * (
            _vec(light.sun, albedo) * diffuse[:, None] + _vec(light.ambient, albedo) * sky_light[:, None]
        )
        colour = colour + (rim * 0.10 * occlusion)[:, None] * _vec(light.horizon, albedo)
    bounce = view - 2.0 * (normal * view).sum(-1, keepdim=True) * normal
    mirror = (bounce * towards).sum(-1).clamp_min(0)
    upward = (bounce[:, 1] * 6.0).clamp(-1, 1) * 0.5 + 0.5
    sky = _vec(light.horizon, albedo) * upward[:, None] * 0.85 + 0.03
    fresnel = (0.10 + 0.75 * rim) * shiny
    colour = colour * (1.0 - 0.6 * fresnel)[:, None] + sky * fresnel[:, None]
    strength = _vec(light.sun, albedo).amax() * 1.6 + (0.8 if film.set.style == "neon" else 0.0)
    colour = colour + (mirror**48 * strength * shiny)[:, None]
    if film.set.style != "neon":
        distance = t / rays.stretch
        colour = _fog(film, colour, distance, light)
    return colour
