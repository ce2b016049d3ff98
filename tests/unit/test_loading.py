"""Extension points by import string: what is found, and what is said when it is not."""

from pathlib import Path

import pytest

from sluice.loading import load
from sluice.yaml_lines import ConfigError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a module that can be imported under the name that is returned."""
    monkeypatch.syspath_prepend(tmp_path)

    def module(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return module


def refusal(target: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(target, setting="routes.a.policy")
    return str(caught.value)


def test_an_import_string_leads_to_what_it_names(module):
    name = module("extension_of_a_user", "class Box:\n    class Inner: pass\n")

    assert load(f"{name}:Box").__name__ == "Box"
    assert load(f"{name}:Box.Inner").__name__ == "Inner"
    assert load("os.path:join")


@pytest.mark.parametrize("target", ["", "fastest", "module:", ":name"])
def test_what_is_no_import_string_is_said_to_be_none(target):
    assert refusal(target) == f"routes.a.policy: {target!r} is neither built in nor of the form module:attribute"


@pytest.mark.parametrize("target, absent", [("no_such_module:x", "no_such_module"), ("os.nothing:x", "os.nothing")])
def test_a_module_that_is_absent_is_named(target, absent):
    assert refusal(target) == f"routes.a.policy: {target!r}: there is no module {absent!r} (is it installed here?)"


@pytest.mark.parametrize(
    "source, said",
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def", "SyntaxError: "),
    ],
)
def test_a_module_that_fails_while_it_is_imported_is_told_apart(module, source, said):
    name = module(f"broken_{len(source)}", source)

    assert refusal(f"{name}:x").startswith(f"routes.a.policy: '{name}:x': importing {name} failed: {said}")


def test_a_relative_name_is_refused():
    assert "importing .x failed: TypeError" in refusal(".x:y")


def test_an_attribute_that_is_absent_is_named():
    assert refusal("os:nothing") == "routes.a.policy: 'os:nothing': module 'os' has no attribute 'nothing'"
