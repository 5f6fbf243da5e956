"""Options of a command from a YAML file."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

import typer
import yaml

LARGEST = 64 * 2**10
"""Bytes of a file that is read."""
DEEPEST = 4
"""Levels of a file that are looked at; no option takes more than two."""
_BEGIN = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_END = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
_NOT_IN_A_FILE = {"config", "help"}

_KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
}
"""By what an option becomes: what a reader is told of it, and what YAML makes of it. All else is text."""


def options_from(file: str | os.PathLike[str], context: typer.Context) -> dict[str, Any]:
    """The options in a file, as click's `default_map` takes them: what stands on the command line comes first.

    Args:
        file: YAML; a mapping of the command's option names, with underscores or hyphens, to values. What may be given
            several times is a list.
        context: of the command.

    Raises:
        ValueError: the file is too large or no such mapping, or holds a key or a value that the command does not take.
        OSError: it cannot be read.
    """
    path = Path(file)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"`config` must be a file of at most {LARGEST} bytes; got {path}, of {path.stat().st_size}.")
    known = {spelling: parameter.name for parameter in context.command.params for spelling in _spellings(parameter)}
    hints = get_type_hints(inspect.unwrap(cast(Callable[..., Any], context.command.callback)), include_extras=True)
    found: dict[str, Any] = {}
    for key, value in _mapping(path).items():
        name = known.get(key.replace("-", "_"))
        if name is None:
            raise ValueError(
                f"`{key}` in {path} must be an option of `{context.info_name}`: {', '.join(sorted(known))}."
            )
        if name in found:
            raise ValueError(f"`{key}` in {path} must be given once; there is another spelling of it.")
        found[name] = _checked(f"`{key}` in {path}", value, hints[name])
    return found


def _spellings(parameter: Any) -> set[str]:
    given = parameter.opts if parameter.param_type_name == "option" else [parameter.name]
    return {spelling.lstrip("-").replace("-", "_") for spelling in given} - {"config", "help"}


def _mapping(path: Path) -> dict[str, Any]:
    text = path.read_bytes()
    try:
        depth = 0
        for token in yaml.scan(text, yaml.SafeLoader):
            depth += isinstance(token, _BEGIN) - isinstance(token, _END)
            if isinstance(token, yaml.AliasToken):
                raise ValueError(f"`config` must hold no aliases; got {path}. Write out what `*...` stands for.")
            if depth > DEEPEST:
                raise ValueError(f"`config` must hold values and lists of them; got {path}, which nests them deeper.")
        node = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"`config` must hold options, as `name: value` lines; got {path}, which does not.")
        keys = [key.value for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise ValueError(f"`{twice[0]}` in {path} must be given once; it is there {keys.count(twice[0])} times.")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"`config` must be YAML without tags; got {path}: {' '.join(str(error).split())}") from error
    if any(not isinstance(key, str) for key in values):
        key = next(key for key in values if not isinstance(key, str))
        raise ValueError(f"`{key}` in {path} must be the name of an option. Put it in quotes if it is one.")
    return values


def _checked(what: str, value: Any, hint: Any) -> Any:
    """The value, if it is what the option becomes, within the option's range."""
    kind, (option, *_) = get_args(hint)[0], hint.__metadata__
    if isinstance(kind, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    several = get_origin(kind) is list
    if several:
        (kind,) = get_args(kind)
        if not isinstance(value, list):
            raise ValueError(f"{what} must be a list, as the option may be given several times; got {value!r}.")
    told, accepted = _KINDS.get(kind, ("text", (str,)))
    for one in value if several else [value]:
        if not isinstance(one, accepted) or (isinstance(one, bool) and kind is not bool):
            quotes = " Put it in quotes." if told == "text" and isinstance(one, (bool, int, float)) else ""
            raise ValueError(f"{what} must be {told}; got {one!r}.{quotes}")
        if issubclass(kind, Enum) and one not in [member.value for member in kind]:
            raise ValueError(f"{what} must be one of {', '.join(member.value for member in kind)}; got {one!r}.")
        if (option.min is not None and one < option.min) or (option.max is not None and one > option.max):
            raise ValueError(f"{what} must be {_range(option.min, option.max)}; got {one!r}.")
    return value


def _range(least: float | None, most: float | None) -> str:
    if most is None:
        return f"at least {least}"
    return f"at most {most}" if least is None else f"from {least} to {most}"
