"""What stands in the fields of the *Direct* page, as a request for a film and back. No page, no model: plain functions.

Notable choices:

- A script of cards and a plain prompt are two ways to write one thing; going from one to the other loses nothing that
  the other can say, and seconds and cameras come back where the words stayed.
- A locked shot is a shot of an earlier take that stays bit for bit: the request re-takes that film's other shots.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from seedance.errors import SeedanceError
from shots.errors import ShotsError
from shots.script import Script

MODEL_SIZE = "default"
SIZES = (MODEL_SIZE, "128 × 128", "128 × 192", "192 × 128", "192 × 192", "256 × 256")
LARGEST_SEED = 2**31

Cards = dict[str, Any]


def empty_cards() -> Cards:
    """Cards with nothing written on them."""
    return {"shots": [{"caption": "", "seconds": None, "camera": ""}], "retakes": False}


def cards_of(script: Script | Mapping[str, Any]) -> Cards:
    """A script as cards."""
    rows = (script if isinstance(script, Script) else Script.from_dict(dict(script))).shots
    shots = [{"caption": row.caption, "seconds": row.seconds, "camera": row.camera or ""} for row in rows]
    return {"shots": shots, "retakes": False}


def with_take(cards: Mapping[str, Any], take: str, script: Mapping[str, Any], seeds: Sequence[int | None]) -> Cards:
    """Cards of which those that still say what a take shows can be locked to it and taken again.

    take: id of the job. script: what it shows. seeds: of its shots.
    """
    rows, shots = script.get("shots", ()), []
    same = len(rows) == len(cards.get("shots", ()))
    for number, card in enumerate(cards.get("shots", ()), start=1):
        card = {key: card.get(key) for key in ("caption", "seconds", "camera", "locked")}
        fits = same and rows[number - 1]["caption"] == " ".join(str(card["caption"] or "").split())
        if fits:
            card |= {"take": take, "shot": number, "seed": seeds[number - 1]}
        shots.append(card | {"locked": bool(fits and card["locked"])})
    return {"shots": shots, "retakes": any("take" in card for card in shots)}


def to_text(cards: Mapping[str, Any]) -> str:
    """Cards as a plain prompt; shots are parted by "[cut]", each on a line of its own."""
    captions = [str(shot.get("caption") or "").strip() for shot in cards.get("shots", ())]
    return " [cut]\n".join(caption for caption in captions if caption)


def to_cards(text: str, before: Mapping[str, Any] | None = None) -> Cards:
    """A plain prompt as cards. A shot whose words stand on one of the cards ``before`` keeps what else stood there."""
    if not text.strip():
        return empty_cards()
    known = [dict(shot) for shot in (before or {}).get("shots", ())]
    shots = []
    for card in cards_of(Script.parse(text))["shots"]:
        same = next((old for old in known if " ".join(str(old.get("caption")).split()) == card["caption"]), None)
        if same is not None:
            known.remove(same)
        shots.append(same or card)
    return {"shots": shots, "retakes": bool((before or {}).get("retakes"))}


def script_of(cards: Mapping[str, Any], title: str = "", style: str = "", caption: str = "") -> Script:
    """The script that the cards are. Raises ShotsError that names the shot where one cannot be used."""
    rows = list(cards.get("shots", ()))
    if not any(str(row.get("caption") or "").strip() for row in rows):
        raise ShotsError("nothing is written yet; say in the first shot what is to be seen")
    shots = [
        {"caption": row.get("caption") or "", "seconds": row.get("seconds"), "camera": row.get("camera") or None}
        for row in rows
    ]
    whole = {"title": title.strip() or None, "style": style.strip() or None, "caption": caption.strip() or None}
    return Script.from_dict({**whole, "shots": shots})


def locked(cards: Mapping[str, Any]) -> tuple[str, list[int]] | None:
    """The take that locked shots are held from and the numbers of the other shots, or None where none is locked.

    Raises SeedanceError where they cannot be held: from two takes, moved, or all of them.
    """
    rows = list(enumerate(cards.get("shots", ()), start=1))
    held = [(number, row) for number, row in rows if row.get("locked") and row.get("take")]
    if not held:
        return None
    if len({row["take"] for _, row in held}) > 1:
        raise SeedanceError("the locked shots are of different takes; unlock all but those of one")
    for number, row in held:
        if row["shot"] != number:
            raise SeedanceError(f"shot {number} is locked and was shot {row['shot']}; move it back, or unlock it")
    if len(held) == len(rows):
        raise SeedanceError("every shot is locked, so there is nothing to make; unlock those that are to change")
    return held[0][1]["take"], [number for number, row in rows if (number, row) not in held]


def request_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a film (see :meth:`seedance.jobs.Jobs.submit`) out of the fields' values, without the empty ones.

    fields: "mode" ("Prompt" or "Shots"), "prompt", "cards", "title", "style", "caption", "size" ("height × width"),
    "fps", "length" (seconds of a shot that says none), "steps", "guidance", "negative", "seed", "verify", "retakes".
    Raises ShotsError or SeedanceError that names what cannot be used.
    """
    said = {name: value for name, value in fields.items() if value not in (None, "", 0)}
    cards = to_cards(fields.get("prompt") or "") if fields.get("mode") == "Prompt" else fields.get("cards") or {}
    script = script_of(cards, *(str(said.get(name, "")) for name in ("title", "style", "caption")))
    request: dict[str, Any] = {"script": script.to_dict(), "seed": seed_of(fields.get("seed"))}
    for name, key, kind in (("fps", "fps", float), ("guidance", "guidance_scale", float), ("steps", "steps", int)):
        if str(said.get(name, "")).strip():
            request[key] = _number(name, said[name], kind)
    if str(said.get("negative", "")).strip():
        request["negative_prompt"] = said["negative"].strip()
    if said.get("verify"):
        request |= {"verify": True, "retakes": int(said.get("retakes", 0))}
    if "×" in str(said.get("size", "")):
        request["height"], request["width"] = (int(side) for side in said["size"].split("×"))
    if str(said.get("length", "")).strip():
        for shot in request["script"]["shots"]:
            shot.setdefault("seconds", _number("seconds a shot", said["length"], float))
    held = locked(cards)
    if held is not None:  # sizes are the take's
        request |= {"source": held[0], "shots": held[1]}
        for name in ("height", "width", "fps"):
            request.pop(name, None)
    return request


def seed_of(value: Any) -> int:
    """The seed that a field says; -1 or nothing draws one."""
    if value is None or str(value).strip() in ("", "-1"):
        return secrets.randbelow(LARGEST_SEED)
    seed = _number("seed", value, int)
    if seed < 0:
        raise SeedanceError(f"seed: {seed} is negative; give 0 or more, or leave the field empty to draw one")
    return int(seed)


def _number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    try:
        return kind(str(value).strip().replace(",", "."))
    except ValueError:
        whole = "whole number" if kind is int else "number"
        raise SeedanceError(f"{name}: {value!r} is not a {whole}; give one, or leave the field empty") from None


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def fields_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the fields that ask for a film again, from a job's request."""
    script = request["script"]
    size = f"{request['height']} × {request['width']}"
    cards = cards_of(script)
    return {
        "mode": "Shots", "prompt": to_text(cards), "cards": cards,
        "title": script.get("title", ""), "style": script.get("style", ""), "caption": script.get("caption", ""),
        "size": size, "fps": _text(request.get("fps")), "length": "", "steps": _text(request.get("steps")),
        "guidance": _text(request.get("guidance_scale")), "negative": request.get("negative_prompt", ""),
        "seed": _text(request.get("seed")), "verify": bool(request.get("verify")), "retakes": request.get("retakes", 0),
    }  # fmt: skip
