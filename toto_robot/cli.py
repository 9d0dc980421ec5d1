"""`key=value` on the command line into a dataclass; nothing more than that."""

import dataclasses
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from toto_robot.backbone.weights import nearest

T = TypeVar("T")
SWITCHES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def convert(text: str, kind: Any) -> Any:
    """Text as int, float, bool, str, Path, Literal, a tuple of these (`1,2,3`) or one of these | None.

    ValueError if it is not.
    """
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # the latter of Literal | None
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if text.lower() == "none" else convert(text, options[0])
    if typing.get_origin(kind) is tuple:
        return tuple(convert(word, typing.get_args(kind)[0]) for word in text.split(",") if word)
    if typing.get_origin(kind) is Literal:
        values = typing.get_args(kind)
        if text not in values:
            raise ValueError(f"one of {', '.join(values)}.{nearest(text, values)}")
        return text
    if kind is bool:
        if text.lower() not in SWITCHES:
            raise ValueError("true or false")
        return SWITCHES[text.lower()]
    try:
        return kind(text.replace("_", "") if kind in (int, float) else text)
    except ValueError:
        raise ValueError(f"of type {kind.__name__}") from None


def usage(config: type) -> str:
    lines = [config.__doc__ or "", "", "options (key=value):"]
    for field in dataclasses.fields(config):
        required = field.default is dataclasses.MISSING
        lines.append(f"  {field.name}={'<required>' if required else field.default}")
    return "\n".join(lines)


def split(config: type, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words for `config` and those for another configuration, which gets all that this one lacks."""
    own = {field.name for field in dataclasses.fields(config)}
    mine = [word for word in arguments if word.partition("=")[0] in own | {"--help", "-h"}]
    return mine, [word for word in arguments if word not in mine]


def parse(config: type[T], arguments: Sequence[str]) -> T:
    """Build `config` from words like `steps=100`; `--help` prints the fields and exits.

    A field may have a second name in its metadata: `field(default=..., metadata={"alias": ...})`.

    Raises:
        SystemExit: with a message naming the word, what was expected, and the nearest valid key.
    """
    if any(word in ("--help", "-h") for word in arguments):
        print(usage(config))
        sys.exit(0)
    kinds = typing.get_type_hints(config)
    aliases = {
        field.metadata["alias"]: field.name
        for field in dataclasses.fields(config)  # pyright: ignore[reportArgumentType]
        if "alias" in field.metadata
    }
    values: dict[str, Any] = {}
    for word in arguments:
        key, equals, text = word.partition("=")
        key = aliases.get(key, key)
        if not equals:
            raise SystemExit(f"{word!r} is not key=value; --help lists the keys")
        if key not in kinds:
            raise SystemExit(
                f"unknown option {key!r}.{nearest(key, kinds)} Known: {', '.join(kinds)}"
            )
        if key in values:
            raise SystemExit(f"option {key!r} was given twice")
        try:
            values[key] = convert(text, kinds[key])
        except ValueError as error:
            raise SystemExit(f"{key}={text}: expected {error}") from None
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        if field.default is dataclasses.MISSING and field.name not in values:
            raise SystemExit(f"option {field.name}= is required; --help lists all options")
    return config(**values)
