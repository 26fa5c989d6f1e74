"""Exceptions of the package; the extension raises the same classes."""

__all__ = [
    "CapacityError",
    "ClosedError",
    "ConfigError",
    "CorruptionError",
    "DeviceError",
    "InputError",
    "TiermemError",
]


class TiermemError(Exception):
    """Base of all errors of this package."""


class ConfigError(TiermemError, ValueError):
    """A configuration value or an option is not allowed."""


class InputError(ConfigError):
    """An argument of a call is not allowed: an id out of range, offsets that do not ascend."""


class DeviceError(TiermemError, OSError):
    """The operating system or a device refused or failed; `errno` is set where it is known."""

    def __str__(self) -> str:
        # The sentence alone; the number stays in `errno`.
        return self.strerror or super().__str__()


class CapacityError(TiermemError):
    """A budget, a device or staging memory is too small; the message states the bytes needed."""


class CorruptionError(TiermemError):
    """Bytes that were read are not the bytes that were written or published."""


class ClosedError(TiermemError):
    """The object was closed, or an earlier failure made its state unusable."""
