"""Checks of the values of a configuration, used in `__post_init__`."""

import typing
from typing import Literal, get_args, get_origin

from mesaopt.errors import ConfigError, suggest


def require(condition: bool, config: object, name: str, wanted: str) -> None:
    """Raise a ConfigError with the name, value and wanted range of a setting, unless a condition holds."""
    if not condition:
        raise ConfigError(f"{name}={getattr(config, name)!r}: must be {wanted}")


def require_positive(config: object, *names: str) -> None:
    """Check that settings are greater than 0."""
    for name in names:
        require(getattr(config, name) > 0, config, name, "greater than 0")


def require_not_negative(config: object, *names: str) -> None:
    """Check that settings are 0 or greater."""
    for name in names:
        require(getattr(config, name) >= 0, config, name, "0 or greater")


def require_choices(config: object) -> None:
    """Check the values of all ``Literal`` fields, which Python does not check."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ConfigError(f"{name}={value!r}: {suggest(str(value), get_args(hint))}")
