"""YAML checked against a model, so that every mistake is said with its file, its line and its key.

The files are our operator's, but the gateway reads one of them again while it runs: nothing that stands in a file may
take the process down (libyaml's recursion ends in a crash), only ever raise `ConfigError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import ErrorDetails

MAX_DEPTH = 50
MAX_NODES = 300_000  # counted after aliases are followed
NAME_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")

M = TypeVar("M", bound=BaseModel)


class ConfigError(Exception):
    """The configuration cannot be used; the message has one line per mistake. The process exits with 3."""


class Refused(yaml.YAMLError):
    """Good YAML that no file of ours may hold."""

    def __init__(self, said: str, node: yaml.Node | yaml.Event) -> None:
        super().__init__(said)
        self.line = node.start_mark.line + 1 if node.start_mark else 1


class DuplicateKey(Refused):
    """A mapping names one key twice; YAML libraries would silently take the last one."""


class Mistake(ValueError):
    """For a model's own validators: what is wrong, and at which key of the file when it is not the model itself."""

    def __init__(self, said: str, *at: str | int) -> None:
        super().__init__(said)
        self.at = tuple(str(step) for step in at)


class _Loader(yaml.CSafeLoader):
    """The safe loader in C (ten times as fast), which says where a scalar is that its tag cannot read."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as exc:
            raise Refused(str(exc), node) from exc


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text") from exc
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ConfigError(f"{path}: cannot be read: {reason}") from exc


def parse(path: Path, text: str, model: type[M], context: Mapping[str, object] | None = None) -> M:
    """The document as a `model`; raises `ConfigError` with a line for each mistake. Nothing is an empty mapping."""
    try:
        data, lines = load_with_lines(text)
    except Refused as exc:
        raise ConfigError(f"{path}:{exc.line}: {exc}") from exc
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        said = getattr(exc, "problem", None) or str(exc).splitlines()[0]
        raise ConfigError(f"{where}: not YAML: {said}") from exc
    try:
        return model.model_validate({} if data is None else data, context=dict(context or {}))
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        raise ConfigError("\n".join(_explain(path, lines, model, error) for error in errors)) from exc


def load_with_lines(text: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    """The document, and the line (from 1) of each path of keys and list positions in it.

    Raises `yaml.YAMLError` where the text is no YAML, and its child `DuplicateKey` where a mapping repeats a key.
    """
    _refuse_deep_nesting(text)
    lines: dict[tuple[str, ...], int] = {}
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _walk(node, (), lines)
        return loader.construct_document(node), lines
    finally:
        loader.dispose()


def _refuse_deep_nesting(text: str) -> None:
    """Composing recurses in C, where too deep is a crash; events do not."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise Refused(f"nested over {MAX_DEPTH} deep", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _walk(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    if len(path) > MAX_DEPTH or len(lines) > MAX_NODES:  # an alias inside what it stands for, or aliases of aliases
        raise Refused("aliases make this endless", node)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in NAME_TAGS:  # `4:`, `yes:`, `1.5:`, `[a]:`
                raise Refused("a name must be text: write it in quotes", key)
            inner = (*path, str(key.value))
            if inner in lines:
                raise DuplicateKey(f"{'.'.join(inner)}: stands here twice", key)
            lines[inner] = key.start_mark.line + 1
            _walk(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            inner = (*path, str(position))
            lines[inner] = value.start_mark.line + 1
            _walk(value, inner, lines)


def _explain(path: Path, lines: dict[tuple[str, ...], int], model: type[BaseModel], error: ErrorDetails) -> str:
    """One mistake as `file:line: key: what is wrong`. What stands in the file is not repeated: it may be a secret."""
    cause = error.get("ctx", {}).get("error")
    at = cause.at if isinstance(cause, Mistake) else ()
    loc = tuple(str(part) for part in error["loc"]) + at
    said = _said(error, model, loc)
    known = loc
    while known and known not in lines:
        known = known[:-1]
    where = f"{path}:{lines[known]}" if known in lines else str(path)
    return f"{where}: {'.'.join(loc)}: {said}" if loc else f"{where}: {said}"


def _said(error: ErrorDetails, model: type[BaseModel], loc: tuple[str, ...]) -> str:
    match error["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(loc[-1], _members_at(model, loc[:-1]), n=1)
            return "no such setting" + (f"; did you mean {near[0]}?" if near else " (see docs/configuration.md)")
        case "missing":
            return "is missing"
        case "model_type" | "dict_type" | "list_type" | "tuple_type" | "frozen_set_type":
            wanted = "settings (key: value)" if error["type"] in ("model_type", "dict_type") else "a list"
            return f"must hold {wanted}" + (", and is empty" if error["input"] is None else "")
    return error["msg"].removeprefix("Value error, ")


def _members_at(kind: Any, loc: tuple[str, ...]) -> list[str]:
    """The names that may stand at a place of a model; none where the place holds no model."""
    if get_origin(kind) in (Union, UnionType):
        return [name for part in get_args(kind) for name in _members_at(part, loc)]
    if isinstance(kind, type) and issubclass(kind, RootModel):
        return _members_at(kind.model_fields["root"].annotation, loc)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not loc:
            return list(kind.model_fields)
        field = kind.model_fields.get(loc[0])
        return _members_at(field.annotation, loc[1:]) if field else []
    inner = [part for part in get_args(kind) if part is not Ellipsis]
    return _members_at(inner[-1], loc[1:]) if inner and loc else []
