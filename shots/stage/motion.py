"""Kinematics of the stage: where every actor and the camera are at given times of one shot.

All functions are closed forms of time, vectorised over frames; nothing is simulated step by step, so any frame rate
sees the same film. Actions of one actor compose in order of their starts and leave their end state behind (a moved
actor stays where it went, a grown one stays grown; a jump or a full circle comes back by itself).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scene import COLOUR_RGB, SIZE_SCALE, Action, Camera, Film, ShotSpec

# Half extents of each unit shape (height 1, base on the floor) along its own x, y, z; the renderer and the writer
# share them.
HALF_EXTENT: dict[str, tuple[float, float, float]] = {
    "sphere": (0.50, 0.50, 0.50),
    "cube": (0.46, 0.50, 0.46),
    "cylinder": (0.38, 0.50, 0.38),
    "cone": (0.48, 0.50, 0.48),
    "torus": (0.50, 0.50, 0.16),
    "capsule": (0.27, 0.50, 0.27),
}
FIELD_OF_VIEW = 38.0  # degrees, vertical
CAMERA_DISTANCE = {"wide": 8.6, "medium": 6.0, "close-up": 4.1}
CAMERA_ELEVATION = {"eye-level": 11.0, "low": -1.5, "high": 32.0}


def ease(p: Tensor) -> Tensor:
    """Smoothstep of progress `p`, clamped to [0, 1]."""
    p = p.clamp(0.0, 1.0)
    return p * p * (3.0 - 2.0 * p)


@dataclass
class ActorTrack:
    """One actor over T frames: `base` (T, 3) floor point below it plus height, `yaw` (T,) radians, `scale` (T, 3),
    `rgb` (T, 3)."""

    base: Tensor
    yaw: Tensor
    scale: Tensor
    rgb: Tensor


@dataclass
class CameraTrack:
    """The camera over T frames: `eye` (T, 3), `rotation` (T, 3, 3) with rows right, up, forward, `focal` (T,) = 1 /
    tan(fov / 2)."""

    eye: Tensor
    rotation: Tensor
    focal: Tensor


def actor_radius(shape: str, size: str) -> float:
    """Half width on the floor of an actor at rest, in world units."""
    half = HALF_EXTENT[shape]
    return max(half[0], half[2]) * SIZE_SCALE[size]


def camera_track(camera: Camera, seconds: float, times: Tensor) -> CameraTrack:
    """The camera's poses at `times` (T,) seconds of a shot that lasts `seconds`. Pan right turns the camera to its
    right."""
    t = times
    p = ease(t / seconds) * 0.35 + (t / seconds).clamp(0, 1) * 0.65  # nearly linear, soft ends
    zero = torch.zeros_like(t)
    azimuth, yaw, pitch, focal, distance = zero, zero, zero, torch.ones_like(t), torch.ones_like(t)
    rad = torch.pi / 180.0
    swing = (p - 0.5) * camera.amount
    kind = camera.move
    if kind == "pan_right":
        yaw = swing * rad
    elif kind == "pan_left":
        yaw = -swing * rad
    elif kind == "tilt_up":
        pitch = swing * rad
    elif kind == "tilt_down":
        pitch = -swing * rad
    elif kind == "orbit_right":
        azimuth = swing * rad
    elif kind == "orbit_left":
        azimuth = -swing * rad
    elif kind in ("zoom_in", "zoom_out", "dolly_in", "dolly_out"):
        sign = 1.0 if kind.endswith("_in") else -1.0
        ratio = torch.full_like(t, max(camera.amount, 1.0)) ** (sign * (p - 0.5))
        if kind.startswith("zoom"):
            focal = ratio
        else:
            distance = 1.0 / ratio
    elevation = CAMERA_ELEVATION[camera.angle] * rad
    distance = distance * CAMERA_DISTANCE[camera.size]
    focus = torch.tensor(camera.focus, dtype=t.dtype, device=t.device)
    ce, se = torch.cos(zero + elevation), torch.sin(zero + elevation)
    away = torch.stack([torch.sin(azimuth) * ce, se, torch.cos(azimuth) * ce], -1)  # (T, 3) focus -> eye
    eye = focus + away * distance[:, None]
    eye = torch.cat([eye[:, :1], eye[:, 1:2].clamp_min(0.18), eye[:, 2:]], -1)
    forward = torch.nn.functional.normalize(focus - eye, dim=-1)
    up0 = torch.tensor([0.0, 1.0, 0.0], dtype=t.dtype, device=t.device).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up0), dim=-1)
    forward = forward * torch.cos(yaw)[:, None] + right * torch.sin(yaw)[:, None]
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up0), dim=-1)
    up = torch.linalg.cross(right, forward)
    forward, up = (
        forward * torch.cos(pitch)[:, None] + up * torch.sin(pitch)[:, None],
        up * torch.cos(pitch)[:, None] - forward * torch.sin(pitch)[:, None],
    )
    half_tan = torch.tan(torch.tensor(FIELD_OF_VIEW / 2 * rad, dtype=t.dtype, device=t.device))
    return CameraTrack(eye, torch.stack([right, up, forward], dim=1), focal / half_tan)


def actor_tracks(film: Film, shot: ShotSpec, times: Tensor) -> dict[str, ActorTrack]:
    """Tracks of the actors placed in `shot` at `times` (T,) seconds of the shot, by name."""
    actions = sorted(shot.actions, key=lambda a: (a.start, a.actor))
    count = len(times)
    # Pair actions start from where both actors are at that moment: those moments ride along as extra frames.
    times = torch.cat([times, torch.tensor([a.start for a in actions], dtype=times.dtype, device=times.device)])
    tracks: dict[str, ActorTrack] = {}
    ones = torch.ones_like(times)
    for place in shot.placements:
        actor = film.actor(place.actor)
        size = SIZE_SCALE[actor.size]
        rgb = torch.tensor(COLOUR_RGB[actor.colour], dtype=times.dtype, device=times.device)
        tracks[place.actor] = ActorTrack(
            base=torch.stack([ones * place.x, ones * 0.0, ones * place.z], -1),
            yaw=ones * (place.heading * torch.pi / 180.0),
            scale=(ones * size)[:, None].repeat(1, 3),
            rgb=rgb.repeat(len(times), 1),
        )
    for index, action in enumerate(actions):
        _apply(film, action, tracks, times, count + index)
    return {
        name: ActorTrack(t.base[:count], t.yaw[:count], t.scale[:count], t.rgb[:count]) for name, t in tracks.items()
    }


def _apply(film: Film, action: Action, tracks: dict[str, ActorTrack], times: Tensor, first: int) -> None:
    track = tracks[action.actor]
    p = ((times - action.start) / (action.end - action.start)).clamp(0.0, 1.0)
    q = ease(p)
    base = track.base.clone()
    kind, amount, sign = action.kind, action.amount, float(action.direction)
    if kind == "still":
        return
    if kind in ("move_left", "move_right"):
        base[:, 0] += (amount if kind == "move_right" else -amount) * q
    elif kind in ("move_toward", "move_away"):
        base[:, 2] += (amount if kind == "move_toward" else -amount) * q
    elif kind == "jump":
        hops = max(1, round((action.end - action.start) / 0.95))
        phase = (p * hops) % 1.0
        base[:, 1] += torch.where(p < 1.0, amount * 4.0 * phase * (1.0 - phase), torch.zeros_like(p))
    elif kind == "spin":
        track.yaw = track.yaw + sign * 2 * torch.pi * amount * (0.3 * q + 0.7 * p)
    elif kind in ("grow", "shrink"):
        track.scale = track.scale * (torch.full_like(q, amount) ** q)[:, None]
    elif kind in ("stretch", "squash"):
        tall = torch.full_like(q, amount) ** q
        track.scale = track.scale * torch.stack([tall**-0.5, tall, tall**-0.5], -1)
    elif kind == "fall":
        drop = amount * (1.0 - (p / 0.7) ** 2)
        bounce = 0.5 * amount * ((p - 0.7) / 0.3) * (1.0 - p) / 0.3
        base[:, 1] += torch.where(p < 0.7, drop, bounce * 0.45).clamp_min(0.0)
    elif kind == "change_colour":
        new = torch.tensor(COLOUR_RGB[action.colour or "white"], dtype=times.dtype, device=times.device)
        track.rgb = track.rgb + (new - track.rgb) * q[:, None]
    else:
        other = tracks[action.other or ""]
        start, target = base[first].clone(), other.base[first].clone()
        if kind == "circle":
            offset = start - target
            angle = sign * 2 * torch.pi * amount * q
            c, s = torch.cos(angle), torch.sin(angle)
            base[:, 0] += target[0] + offset[0] * c + offset[2] * s - start[0]
            base[:, 2] += target[2] - offset[0] * s + offset[2] * c - start[2]
        elif kind == "push":
            me, it = film.actor(action.actor), film.actor(action.other or "")
            reach = actor_radius(me.shape, me.size) + actor_radius(it.shape, it.size)
            gap = ((target[0] - start[0]).abs() - reach * 0.96).clamp_min(0.0)
            way = (gap + amount) * q
            pushed = other.base.clone()
            pushed[:, 0] += sign * (way - gap).clamp_min(0.0)
            other.base = pushed
            base[:, 0] += sign * way
        elif kind == "jump_over":
            base[:, 0] += 2.0 * (target[0] - start[0]) * q
            base[:, 1] += amount * 4.0 * q * (1.0 - q)
        elif kind == "hide_behind":
            # Behind, as seen from the default camera: a little further out on the line from the camera through the
            # other.
            eye = torch.tensor([0.0, 0.0, 6.0], dtype=times.dtype, device=times.device)
            line = torch.nn.functional.normalize(
                (target - eye) * torch.tensor([1.0, 0.0, 1.0], dtype=times.dtype, device=times.device), dim=0
            )
            base += (target + line * amount - start) * q[:, None]
    track.base = base
