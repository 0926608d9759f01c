"""What every component's Options have in common: strict types and ranges, and which of them nothing reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import reduce
from itertools import accumulate
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from reverie.errors import ConfigError
from reverie.trees import find, join, show

OTHERS: Collection[str] = ()
"""In `Options.switches`: all others."""

LARGEST_NUMBER, LARGEST_COUNT = 1e9, 10**15
"""What no option needs to exceed: numbers are squared in single precision, and steps are added up."""


class Options(BaseModel):
    """What a user may choose about one component: frozen, typed, ranged; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    switches: ClassVar[Mapping[str, Collection[str]]] = {}
    """Options at whose default nothing reads some others, and these."""

    def __init__(self, **values: Any):
        """Raises ConfigError for the first mistake."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            key, value, message = mistake(error)
            path = join(type(self).__name__, key) if key else type(self).__name__
            raise ConfigError(f"{path} = {show(value)}: {message}") from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # so that pydantic builds sections as ever

    def unread(self) -> dict[str, tuple[str, ...]]:
        """Options and sections that nothing reads as the rest stands, by key, and the switches that could change it."""
        fields, found = type(self).model_fields, {}
        for switch, others in self.switches.items():
            if getattr(self, switch) == fields[switch].default:
                found = dict.fromkeys(others or fields.keys() - {switch}, (switch,)) | found
        return found


def mistake(error: ValidationError) -> tuple[str, Any, str]:
    """The first thing that is wrong: its dotted key, its value, and what is allowed."""
    first = error.errors()[0]
    message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
    for opening in ("Input ", "String ", "Value error, "):
        message = message.removeprefix(opening)
    return ".".join(map(str, first["loc"])), first["input"], message


def keys(options: type[Options], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all sections and options."""
    for name, field in options.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            yield from keys(field.annotation, f"{prefix}{name}.")


def refuse_immense(options: Options) -> None:
    """Raises ConfigError for the first number that is larger than any option needs."""
    for key in keys(type(options)):
        value = reduce(getattr, key.split("."), options)
        limit = LARGEST_NUMBER if isinstance(value, float) else LARGEST_COUNT
        if isinstance(value, float | int) and abs(value) > limit:
            raise ConfigError(f"{key} = {value}: should be at most {limit:g}")


def refuse_in_vain(options: Options, chosen: Mapping[str, Any] | None = None) -> None:
    """Raises ConfigError for an option that is not at its default though nothing reads it.

    Whoever writes a switch knows what it says, and may leave beside it what counts once it is turned: files do so, and
    every checkpoint. So without ``chosen`` only what stands there without its switch is refused, and with it, what is
    in these nested values.
    """
    for key, switches in _in_vain(options):
        forgotten = not all(_is_written(options, switch) for switch in switches)
        if forgotten if chosen is None else find(chosen, key) is not None:
            said = " and ".join(f"{switch} = {_shown(options, switch)}" for switch in switches)
            raise ConfigError(f"{key} = {_shown(options, key)}: is not used while {said}; change that, or leave it out")


def _in_vain(options: Options) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The keys of those that are not at their default though nothing reads them, and of their switches."""
    unread = _unread(options)
    for key in _changed(options, type(options).model_construct()):
        sections = accumulate(key.split("."), "{}.{}".format)
        if switches := next((unread[section] for section in sections if section in unread), ()):
            yield key, switches


def _unread(options: Options, path: str = "") -> dict[str, tuple[str, ...]]:
    """`Options.unread` of all sections, under their whole keys."""
    found = {path + key: tuple(path + switch for switch in switches) for key, switches in options.unread().items()}
    for name, value in options:
        if isinstance(value, Options):
            found |= _unread(value, f"{path}{name}.")
    return found


def _changed(options: Options, default: Options, path: str = "") -> Iterator[str]:
    """The keys of all that differ from their default."""
    for name, value in options:
        usual = getattr(default, name)
        if isinstance(value, Options):
            yield from _changed(value, usual, f"{path}{name}.")
        elif value != usual:
            yield path + name


def _is_written(options: Options, key: str) -> bool:
    *sections, name = key.split(".")
    return name in reduce(getattr, sections, options).model_fields_set


def _shown(options: Options, key: str) -> str:
    return show(reduce(getattr, key.split("."), options))
