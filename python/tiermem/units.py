"""Quantities with units, read and written in one place.

Configuration files of devices carry the unit in the key and plain integers. Experiment files,
`--set` and Python arguments also take strings such as "1.5us", "64MiB" and "3GiB/s".
"""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from tiermem.errors import ConfigError

__all__ = [
    "format_bytes",
    "format_duration",
    "parse_bytes",
    "parse_bytes_per_s",
    "parse_duration_ns",
]

_BYTES: Mapping[str, int] = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_NANOSECONDS: Mapping[str, int] = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_BYTES_PER_S: Mapping[str, int] = {f"{unit}/s": factor for unit, factor in _BYTES.items()}
_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]+(?:/s)?)\s*")


def _parse(value: object, units: Mapping[str, int], what: str, example: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ConfigError(f"{value} is not {what}: it must not be negative")
        return value
    problem = f'{value!r} is not {what}; write an integer or a string such as "{example}"'
    if not isinstance(value, str):
        raise ConfigError(problem)
    match = _QUANTITY.fullmatch(value)
    if match is None or match[2] not in units:
        raise ConfigError(problem)
    try:
        number = Decimal(match[1].replace("_", ""))
    except InvalidOperation:
        raise ConfigError(problem) from None
    exact = number * units[match[2]]
    if exact != exact.to_integral_value():
        raise ConfigError(f"{value!r} is not a whole number of the base unit of {what}")
    return int(exact)


def parse_bytes(value: object) -> int:
    """Bytes from an integer or a string such as "64MiB".

    Raises:
        ConfigError: if it is neither, or negative, or not a whole number of bytes.

    Example:
        >>> parse_bytes("1.5KiB")
        1536
    """
    return _parse(value, _BYTES, "a size in bytes", "64MiB")


def parse_duration_ns(value: object) -> int:
    """Nanoseconds from an integer or a string such as "1.5us".

    Raises:
        ConfigError: if it is neither, or negative, or not a whole number of nanoseconds.

    Example:
        >>> parse_duration_ns("1.5us")
        1500
    """
    return _parse(value, _NANOSECONDS, "a duration in nanoseconds", "1.5us")


def parse_bytes_per_s(value: object) -> int:
    """Bytes per second from an integer or a string such as "3GiB/s".

    Raises:
        ConfigError: if it is neither, or negative, or not a whole number of bytes per second.

    Example:
        >>> parse_bytes_per_s("2GB/s")
        2000000000
    """
    return _parse(value, _BYTES_PER_S, "a bandwidth in bytes per second", "3GiB/s")


def format_bytes(nbytes: float) -> str:
    """Bytes for people, with binary units.

    Example:
        >>> format_bytes(1536)
        '1.5 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def format_duration(nanoseconds: float) -> str:
    """Nanoseconds for people.

    Example:
        >>> format_duration(1500)
        '1.5 us'
    """
    for unit, factor in (("ns", 1), ("us", 10**3), ("ms", 10**6)):
        if abs(nanoseconds) < 1000 * factor:
            return f"{nanoseconds / factor:.3g} {unit}"
    return f"{nanoseconds / 10**9:.3g} s"
