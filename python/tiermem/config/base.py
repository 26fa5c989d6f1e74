"""The base of all configuration classes, and how a TOML file becomes one."""

import difflib
import tomllib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from tiermem.errors import ConfigError
from tiermem.units import parse_bytes, parse_bytes_per_s, parse_duration_ns

__all__ = [
    "ByteCount",
    "BytesPerSecond",
    "Config",
    "DurationNs",
    "check_sources",
    "leaves",
    "load_toml",
    "merge_overrides",
]

ByteCount = Annotated[int, BeforeValidator(parse_bytes)]
"""An integer of bytes, or a string such as "64MiB"."""
BytesPerSecond = Annotated[int, BeforeValidator(parse_bytes_per_s)]
"""An integer of bytes per second, or a string such as "3GiB/s"."""
DurationNs = Annotated[int, BeforeValidator(parse_duration_ns)]
"""An integer of nanoseconds, or a string such as "1.5us"."""


class Config(BaseModel):
    """A frozen set of values; an unknown key is an error that names it and the nearest known key."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 (pydantic checks each value)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _readable(error, type(self), "") from None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """Builds and validates; `where` names the file in errors.

        Raises:
            ConfigError: names the key, what is wrong with it, and the nearest known key.
        """
        try:
            return cls.model_validate(_tuples(values))
        except ValidationError as error:
            raise _readable(error, cls, where) from None
        except _PlacedError as problem:
            raise _PlacedError(problem.path, problem.render, where) from None

    def replace(self, **changes: Any) -> Self:  # noqa: ANN401
        """A copy with some values changed, validated again."""
        return type(self).from_mapping({**self.model_dump(), **changes})


def _tuples(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


class _PlacedError(ConfigError):
    """An error of one key, which a class around it can still place: `render` takes the whole path."""

    def __init__(self, path: Sequence[str], render: Callable[[str], str], where: str) -> None:
        super().__init__(f"{where}: {render('.'.join(path))}" if where else render(".".join(path)))
        self.path = list(path)
        self.render = render


def _walk(model: type[BaseModel], places: Sequence[int | str]) -> tuple[list[str], set[str]]:
    """The keys among `places`, without the tags of choices, and the keys that exist where they end."""
    models, path, is_mapping = [model], [], False
    for place in places:
        fields = [each.model_fields[str(place)] for each in models if str(place) in each.model_fields]
        if fields or is_mapping or isinstance(place, int):
            path.append(str(place))
        # A key of a mapping is part of the path, too.
        is_mapping = any(get_origin(field.annotation) is dict for field in fields)
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)]
    return path, {name for each in models for name in each.model_fields}


def _readable(error: ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    problems = error.errors(include_url=False)
    # A misspelt key is both unknown and missing; what was written helps more than what was not.
    problem = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
    places = problem["loc"]
    inner = problem.get("ctx", {}).get("error")
    if isinstance(inner, _PlacedError):
        return _PlacedError([*_walk(model, places)[0], *inner.path], inner.render, where)
    if problem["type"] == "extra_forbidden":
        path, known = _walk(model, places[:-1])
        near = difflib.get_close_matches(str(places[-1]), known, n=1, cutoff=0.0)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        return _PlacedError([*path, str(places[-1])], lambda at: f'unknown key "{at}"{hint}', where)
    if problem["type"] == "missing":
        path = [*_walk(model, places[:-1])[0], str(places[-1])]
        return _PlacedError(path, lambda at: f'missing key "{at}"', where)
    text = problem["msg"].removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    if problem["type"] != "value_error":
        text = f"{text} (got {problem['input']!r})"
    return _PlacedError(_walk(model, places)[0], lambda at: f"{at}: {text}" if at else text, where)


def load_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        ConfigError: if it cannot be read or is not TOML; the message names the file.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def merge_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Applies `path.to.key=value` strings; a value that is not TOML is taken as a string.

    Raises:
        ConfigError: if an override has no "=", or goes through something that is not a table.

    Example:
        >>> merge_overrides({"a": {"b": 1}}, ["a.b=2", "a.c=1.5us"])
        {'a': {'b': 2, 'c': '1.5us'}}
    """
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise ConfigError(f'"{override}" is not an override; write path.to.key=value')
        try:
            value: Any = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        table = values
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f'"{path}" goes through "{key}", which is not a table')
        table[keys[-1]] = value
    return values


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a table, with its dotted path."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_sources(stated: Mapping[str, Any], sources: Container[str], where: str) -> list[str]:
    """The dotted paths of all numbers of a file, each of which has a source.

    Raises:
        ConfigError: names the file and a number without one.
    """
    numbers = [path for path, value in leaves(stated) if not isinstance(value, str | bool)]
    for key in numbers:
        if key not in sources:
            raise ConfigError(
                f'{where}: {key} has no source; add [source."{key}"]'
                " of kind datasheet, measured, derived or assumed"
            )
    return numbers
