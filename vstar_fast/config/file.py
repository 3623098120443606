"""Dataclasses of settings <-> TOML: types checked, unknown keys refused with the nearest right one."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

from vstar_fast.errors import ConfigError


def need(ok: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `ok`."""
    if not ok:
        raise ConfigError(message)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`."""
    need(value in allowed, f"{name} = {value!r} is not one of {', '.join(allowed)}")


def read(path: Path) -> dict[str, Any]:
    """Nested plain values of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config file {path}; write one with `vstar-fast init`") from None
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def write(config: Any, *, comments: bool = False) -> str:
    """A dataclass of dataclasses as TOML; with `comments`, each field's documentation above it.

    Defaults are commented out then (`#samples = 4`), so that they stay defaults: a recipe may set them otherwise.
    """
    docs = field_docs(config.__class__) if comments else {}
    lines: list[str] = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if not dataclasses.is_dataclass(value):
            lines += [*_comment(docs.get(f.name, "")), f"{f.name} = {_toml_value(value)}"]
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            lines += ["", f"[{f.name}]", *_section(value, comments)]
    return "\n".join(lines) + "\n"


def _section(section: Any, comments: bool) -> list[str]:
    docs = field_docs(section.__class__) if comments else {}
    lines = []
    for f in dataclasses.fields(section):
        lines += _comment(docs.get(f.name, ""))
        value = getattr(section, f.name)
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        lines.append(f"{'#' if comments and value == default else ''}{f.name} = {_toml_value(value)}")
    return lines


def _comment(text: str) -> list[str]:
    return [f"# {line.strip()}" for line in text.splitlines()]


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring written under each field of a config dataclass."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    pairs = zip(body, body[1:], strict=False)
    return {
        a.target.id: b.value.value
        for a, b in pairs
        if isinstance(a, ast.AnnAssign)
        and isinstance(a.target, ast.Name)
        and isinstance(b, ast.Expr)
        and isinstance(b.value, ast.Constant)
        and isinstance(b.value.value, str)
    }


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        import json

        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_value(str(k))} = {_toml_value(v)}" for k, v in value.items()) + "}"
    raise ConfigError(f"cannot write {value!r} as TOML")


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, table by table."""
    merged = dict(base)
    for key, value in over.items():
        deep = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if deep else value
    return merged


def changes(before: dict[str, Any], after: dict[str, Any], where: str = "") -> list[str]:
    """What is set otherwise in `after`, as `section.key: old -> new`; settings that `before` lacks are left out."""
    found = []
    for key in sorted(before.keys() & after.keys()):
        old, new = before[key], after[key]
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, f"{where}{key}.")
        elif old != new:
            found.append(f"{where}{key}: {_toml_value(old)} -> {_toml_value(new)}")
    return found


def build(cls: type, values: Any, where: str) -> Any:
    """Dataclass `cls` from nested plain values; `where` names the table in errors."""
    if not isinstance(values, dict):
        raise ConfigError(f"[{where}] must be a table, got {values!r}")
    hints = typing.get_type_hints(cls)
    built = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(_unknown(key, where, list(hints)))
        name = f"{where}.{key}" if where else key
        nested = dataclasses.is_dataclass(hints[key])
        built[key] = build(hints[key], value, name) if nested else _typed(name, value, hints[key])
    return cls(**built)


def _unknown(key: str, where: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return f"unknown setting {key!r}{f' in [{where}]' if where else ''}; {hint}"


def _typed(name: str, value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        need(isinstance(value, (list, tuple)), f"{name} must be a list, got {value!r}")
        return tuple(_typed(name, v, typing.get_args(hint)[0]) for v in value)
    if origin is dict:
        need(isinstance(value, dict), f"{name} must be a table, got {value!r}")
        return {k: _typed(f"{name}.{k}", v, typing.get_args(hint)[1]) for k, v in value.items()}
    if origin in (types.UnionType, typing.Union):
        kinds = typing.get_args(hint)
        hint = next((kind for kind in kinds if type(value) is kind), kinds[0])
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    ok = isinstance(value, hint) and not (hint is not bool and isinstance(value, bool))
    need(ok, f"{name} must be {hint.__name__}, got {value!r}")
    return value
