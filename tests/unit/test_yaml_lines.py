"""YAML with the line of every key: what is read, what is refused, and where the finger points."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, RootModel, model_validator

from sluice.yaml_lines import ConfigError, DuplicateKey, Mistake, load_with_lines, parse, read_text

HERE = Path("some.yaml")


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: str = "green"
    weight_kg: int = 1

    @model_validator(mode="after")
    def _is_light(self) -> "Leaf":
        if self.weight_kg > 100:
            raise Mistake("too heavy", "weight_kg")
        return self


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")

    leaves: tuple[Leaf, ...] = ()
    named: dict[str, Leaf] = {}
    crown: Leaf | None = None


class Forest(RootModel[list[Tree]]):
    pass


def refusal(text: str, model: type[BaseModel] = Tree) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(HERE, text, model)
    return str(caught.value)


def test_every_key_and_list_position_has_its_line():
    data, lines = load_with_lines("a: 1\n\nb:\n  - x\n  - c: 2\n")

    assert data == {"a": 1, "b": ["x", {"c": 2}]}
    assert lines == {("a",): 1, ("b",): 3, ("b", "0"): 4, ("b", "1"): 5, ("b", "1", "c"): 5}


def test_an_empty_document_is_nothing():
    assert load_with_lines("# only a comment\n") == (None, {})
    assert parse(HERE, "", Tree) == Tree()


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert load_with_lines("\ufeffa: 1\n")[0] == {"a": 1}


def test_anchors_and_merges_work():
    data, _ = load_with_lines("base: &base {a: 1}\nother: {<<: *base, b: 2}\n")

    assert data["other"] == {"a": 1, "b": 2}


def test_a_key_that_stands_twice_is_refused_with_its_second_line():
    with pytest.raises(DuplicateKey) as caught:
        load_with_lines("a:\n  b: 1\n  c: 2\n  b: 3\n")

    assert (str(caught.value), caught.value.line) == ("a.b: stands here twice", 4)
    assert refusal("crown: {}\ncrown: {}\n") == "some.yaml:2: crown: stands here twice"


@pytest.mark.parametrize("key", ["4", "yes", "1.5", "null", "2030-01-01", "[a]"])
def test_a_key_that_yaml_does_not_take_for_text_is_refused(key):
    assert refusal(f"named:\n  {key}: {{}}\n") == "some.yaml:2: a name must be text: write it in quotes"


def test_a_quoted_key_is_text():
    assert list(parse(HERE, 'named: {"4": {}}', Tree).named) == ["4"]


@pytest.mark.parametrize(
    "text, line", [("a: [1\nb: 2\n", 2), ("a: b: c\n", 1), ("x: 1\n\ty: 2\n", 2), ("a: 1\n---\nb: 2\n", 2)]
)
def test_what_is_not_yaml_is_refused_with_its_line(text, line):
    assert refusal(text).startswith(f"some.yaml:{line}: not YAML: ")
    assert "\n" not in refusal(text)


def test_what_yaml_cannot_hold_is_refused_without_a_line():
    assert refusal("a: \x00").startswith("some.yaml: not YAML: ")


def test_a_tag_that_would_run_code_is_refused():
    assert "could not determine a constructor" in refusal("a: !!python/object:os.system x")


def test_a_scalar_that_its_own_tag_cannot_read_is_refused_with_its_line():
    assert refusal("leaves:\n  - colour: 2026-02-30\n") == "some.yaml:2: day is out of range for month"


def test_nesting_that_would_overflow_the_parser_is_refused():
    assert refusal("a: " + "[" * 100_000) == "some.yaml:1: nested over 50 deep"


def test_many_siblings_are_not_deep():
    assert load_with_lines("[" + "[], {}, " * 200 + "[]]")[0][-1] == []


def test_an_alias_inside_what_it_stands_for_is_refused():
    assert refusal("a: &x\n  - *x\n") == "some.yaml:1: aliases make this endless"


def test_aliases_of_aliases_are_refused_before_they_fill_the_memory():
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))

    assert refusal(text).endswith("aliases make this endless")


def test_an_unknown_setting_says_what_may_have_been_meant():
    assert refusal("crown:\n  color: red\n") == "some.yaml:2: crown.color: no such setting; did you mean colour?"
    assert refusal("leaves:\n- colr: red\n") == "some.yaml:2: leaves.0.colr: no such setting; did you mean colour?"
    assert refusal("named: {a: {wait_kg: 1}}\n").endswith("named.a.wait_kg: no such setting; did you mean weight_kg?")
    assert refusal("- crwn: {}\n", Forest) == "some.yaml:1: 0.crwn: no such setting; did you mean crown?"
    assert refusal("zzz: 1\n") == "some.yaml:1: zzz: no such setting (see docs/configuration.md)"


def test_a_mistake_of_a_model_points_at_the_key_it_names():
    assert refusal("leaves:\n- colour: red\n  weight_kg: 101\n") == "some.yaml:3: leaves.0.weight_kg: too heavy"


def test_every_mistake_has_its_line():
    assert refusal("leaves:\n- weight_kg: heavy\n- wings: 2\n").splitlines() == [
        "some.yaml:2: leaves.0.weight_kg: Input should be a valid integer, unable to parse string as an integer",
        "some.yaml:3: leaves.1.wings: no such setting (see docs/configuration.md)",
    ]


def test_a_section_that_is_empty_or_no_section_is_said_to_be():
    assert refusal("named:\n") == "some.yaml:1: named: must hold settings (key: value), and is empty"
    assert refusal("leaves:\n- green\n") == "some.yaml:2: leaves.0: must hold settings (key: value)"
    assert refusal("leaves: green\n") == "some.yaml:1: leaves: must hold a list"
    assert refusal("- 1\n- 2\n") == "some.yaml: must hold settings (key: value)"


def test_what_stands_in_the_file_is_not_repeated():
    assert "sk-secret" not in refusal("leaves:\n- weight_kg: sk-secret\n")


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: 1\nb: gr\xfcn\n")

    with pytest.raises(ConfigError, match=r"latin.yaml:2: is not UTF-8 text"):
        read_text(path)


@pytest.mark.parametrize("name, reason", [("absent", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_says_why(tmp_path, name, reason):
    with pytest.raises(ConfigError, match=f"cannot be read: {reason}"):
        read_text(tmp_path / name)


def test_a_file_name_that_cannot_be_one_is_refused():
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        read_text(Path("a\0b"))
