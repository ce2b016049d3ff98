"""docs/configuration.md says of every setting what the code does, and of nothing else."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import pytest
import yaml
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from sluice.cli import Exit
from sluice.config import Settings
from sluice.keys_file import KeyEntry, KeysFile
from sluice.yaml_lines import parse

DOC = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
HEADING = re.compile(r"^#{2,3} (.+)$", re.MULTILINE)
ROW = re.compile(r"^\| `?(?P<name>\w+)`? \| (?P<rest>.+) \|$", re.MULTILINE)
EXAMPLE = re.compile(r"```yaml\n(.*?)```", re.DOTALL)

Row = tuple[str, str, str]  # name, type, default


def sections() -> dict[str, str]:
    """The text below each heading; `server` for the heading "`server`"."""
    titles = [(found.start(), found.end(), found[1].strip("`")) for found in HEADING.finditer(DOC)]
    ends = [start for start, _, _ in titles[1:]] + [len(DOC)]
    return {title: DOC[after:end] for (_, after, title), end in zip(titles, ends, strict=True)}


def documented(section: str) -> dict[str, Row]:
    rows = {}
    for found in ROW.finditer(sections()[section]):
        if found["name"] not in ("setting", "member", "code"):
            type_, default, meaning = found["rest"].split(" | ")
            assert meaning[0] in meaning[0].upper() + "`" and meaning.endswith("."), f"{found['name']}: no sentence"
            rows[found["name"]] = (found["name"], type_, default.strip("`"))
    return rows


def models(
    model: type[BaseModel] = Settings, title: str = "", told: set[type[BaseModel]] | None = None
) -> Iterator[tuple[str, type[BaseModel]]]:
    """Each section of the configuration with its heading; one that stands in several places is told where it stands first."""
    told = {model} if told is None else told
    yield title or "Top level", model
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None and inner not in told:
            told.add(inner)
            step = f"{name}.NAME" if get_origin(field.annotation) is dict else name
            yield from models(inner, f"{title}.{step}".removeprefix("."), told)


def section_of(annotation: Any) -> type[BaseModel] | None:
    kind = get_args(annotation)[-1] if get_origin(annotation) is dict else annotation
    if get_origin(kind) in (Union, UnionType) and type(None) in get_args(kind):
        [kind] = [part for part in get_args(kind) if part is not type(None)] if len(get_args(kind)) == 2 else [None]
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def in_code(model: type[BaseModel], *, is_top: bool) -> dict[str, Row]:
    """The rows as the code would have them. A section of the top level needs no row: its heading is its row."""
    return {
        name: (name, type_of(field.annotation, field.metadata), default_of(field))
        for name, field in model.model_fields.items()
        if not (is_top and section_of(field.annotation) and get_origin(field.annotation) is not dict)
    }


def type_of(kind: Any, metadata: list[Any]) -> str:
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        metadata = [*metadata, *(part for one in more for part in getattr(one, "metadata", None) or [one])]
        return type_of(inner, metadata)
    if get_origin(kind) in (Union, UnionType):
        said = ["null" if part is type(None) else type_of(part, metadata) for part in get_args(kind)]
        return ", or ".join(said)
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) in (tuple, frozenset):
        inner = type_of(get_args(kind)[0], [])
        return "list of " + ("URLs" if inner == "URL" else inner.replace(" or ", ", "))
    if section_of(kind):
        return "settings by name" if get_origin(kind) is dict else "settings"
    if kind is str and any(isinstance(one, AfterValidator) and "url" in one.func.__name__ for one in metadata):
        return "URL"
    names = {str: "text", bool: "true or false", Path: "path", datetime: "date", int: "integer", float: "seconds"}
    if kind is float and any(isinstance(one, annotated_types.Le) and one.le == 1 for one in metadata):
        return "share, 0 to 1"
    if kind is float and any(isinstance(one, annotated_types.Ge) for one in metadata):
        return "number" + bounds_of(metadata)
    return names[kind] + (bounds_of(metadata) if kind in (int, float) else "")


def bounds_of(metadata: list[Any]) -> str:
    low = next((one.ge for one in metadata if isinstance(one, annotated_types.Ge)), None)
    over = next((one.gt for one in metadata if isinstance(one, annotated_types.Gt)), None)
    high = next((one.le for one in metadata if isinstance(one, annotated_types.Le)), None)
    if over is not None:
        return f", over {over} to {high}"
    return f", {low} to {high}" if high is not None else f", at least {low}"


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "as below"
    if field.default is None or isinstance(field.default, bool):
        return {None: "null", True: "true", False: "false"}[field.default]
    if isinstance(field.default, tuple | frozenset):
        return f"[{', '.join(sorted(field.default))}]"
    return str(field.default)


@pytest.mark.parametrize("title, model", [*models()], ids=lambda value: value if isinstance(value, str) else "")
def test_every_setting_stands_there_with_its_type_and_default_and_nothing_else_does(title, model):
    assert documented(title) == in_code(model, is_top=model is Settings)


def test_every_section_has_its_heading_and_no_other_does():
    documented_titles = [title for title, text in sections().items() if "| setting |" in text]

    assert documented_titles == [title for title, _ in models()]


def test_every_member_of_the_keys_file_stands_there():
    assert documented("The keys file") == in_code(KeyEntry, is_top=False)


def test_the_complete_example_is_complete_and_good():
    [example] = EXAMPLE.findall(sections()["A complete example"])
    data = yaml.safe_load(example)

    settings = parse(Path("example.yaml"), example, Settings)

    assert settings.routes["llama"].served_model == "meta-llama/Llama-3.1-8B-Instruct"
    for title, model in models():
        places = [data]  # of the section: what excludes itself in one route stands in another
        for step in title.split(".") if title != "Top level" else []:
            places = [one for inner in places for one in (inner.values() if step == "NAME" else [inner.get(step)]) if one]
        assert set().union(*places) == set(model.model_fields), title


def test_every_other_example_is_good():
    small, _, keys = EXAMPLE.findall(DOC)

    assert parse(Path("small.yaml"), small, Settings).routes["smollm2"].workers.static
    [entry] = parse(Path("keys.yaml"), keys, KeysFile).root
    assert set(yaml.safe_load(keys)[0]) == set(KeyEntry.model_fields) and entry.tenant == "research"


def test_every_exit_code_stands_there():
    codes = [int(found["name"]) for found in ROW.finditer(sections()["Exit codes"]) if found["name"].isdigit()]

    assert codes == [*Exit, 130]


def test_every_link_within_the_page_leads_to_a_heading():
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in sections()}

    links = re.findall(r"\]\(#([^)]+)\)", DOC)

    assert links and set(links) <= anchors
