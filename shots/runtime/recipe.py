"""Recipes: a YAML file and `key=value` overrides to one typed dataclass.

Notable choices:
- A recipe is a plain mapping that mirrors nested dataclasses; the dataclasses hold the defaults and the documentation.
- An unknown key, a missing one or a value of the wrong kind raises ShotsError with the dotted name and the keys
  there are.
- A recipe is found by path, or by the name of one that ships in a package's `recipes` folder.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from shots.errors import ShotsError

T = TypeVar("T")


def find_recipe(path: str | Path, shipped: Sequence[Path]) -> Path:
    """The file of a recipe: `path` itself, or the recipe of that name in one of the folders `shipped`."""
    file = Path(path)
    name = file.name if file.suffix else f"{file.name}.yaml"
    for candidate in (file, *(folder / name for folder in shipped)):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(known.stem for folder in shipped for known in folder.glob("*.yaml"))) or "none"
    raise ShotsError(f"recipe: {str(path)!r} is no file and no shipped recipe ({names})")


def load_recipe(path: str | Path, overrides: Iterable[str] = (), shipped: Sequence[Path] = ()) -> dict[str, Any]:
    """The mapping in a recipe file (see `find_recipe`), with `dotted.key=value` overrides applied (values are YAML)."""
    file = find_recipe(path, shipped)
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ShotsError(f"recipe: {file} is not YAML ({error})") from error
    if not isinstance(recipe, dict):
        raise ShotsError(f"recipe: {file} must hold keys and values, not a {type(recipe).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise ShotsError(f"override: {override!r} is not key=value, such as loop.steps=100")
        _put(recipe, key.strip().split("."), _parse(override, value))
    return recipe


def _parse(override: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ShotsError(f"override: the value of {override!r} is not YAML ({error})") from error


def _put(recipe: Any, keys: list[str], value: Any) -> None:
    """Set a nested value; a number in `keys` is a position in a list."""
    here = recipe
    for number, key in enumerate(keys):
        place: Any = key
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                raise ShotsError(f"override: {'.'.join(keys)}: {key!r} is no position in a list of {len(here)}")
            place = int(key)
        elif not isinstance(here, dict):
            raise ShotsError(f"override: {'.'.join(keys[:number])} is a single value and has no {key!r}")
        if number == len(keys) - 1:
            here[place] = value
        else:
            here = here[place] if isinstance(here, list) else here.setdefault(place, {})


def build(cls: type[T], values: Any, where: str = "") -> T:
    """An instance of dataclass `cls` from a mapping, nested dataclasses too. Raises ShotsError naming the key."""
    name = where or "recipe"
    if not isinstance(values, Mapping):
        raise ShotsError(f"{name}: must hold keys and values, not {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    unknown = [str(key) for key in values if key not in fields]
    if unknown:
        raise ShotsError(f"{name}: unknown key {', '.join(unknown)}; there are {', '.join(fields)}")
    hints = typing.get_type_hints(cls)
    prefix = f"{where}." if where else ""
    built = {key: _convert(hints[key], value, prefix + key) for key, value in values.items()}
    empty = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [
        key for key, field in fields.items() if key not in built and (field.default, field.default_factory) == empty
    ]
    if missing:
        raise ShotsError(f"{name}: missing key {', '.join(missing)}")
    return cls(**built)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        rest = [argument for argument in arguments if argument is not type(None)]
        return _convert(rest[0], value, where) if len(rest) == 1 else value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise ShotsError(f"{where}: {value!r} must be a list")
        if (
            origin is tuple
            and len(arguments) == 2
            and arguments[1] is not Ellipsis
            or origin is tuple
            and len(arguments) > 2
        ):
            if len(value) != len(arguments):
                raise ShotsError(f"{where}: {value!r} must have {len(arguments)} items")
            return tuple(_convert(kind, item, where) for kind, item in zip(arguments, value, strict=True))
        return origin(_convert(arguments[0], item, f"{where}.{number}") for number, item in enumerate(value))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if hint is Path and isinstance(value, str):
        return Path(value)
    if (
        hint is Any
        or origin is dict
        or isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    raise ShotsError(f"{where}: {value!r} is not a valid {getattr(hint, '__name__', hint)}")
