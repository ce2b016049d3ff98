"""What modules that mypyc compiles may not do, since compiled it means something else."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = re.search(r'COMPILED = """(.*?)"""', (ROOT / "setup.py").read_text(), re.DOTALL)[1].split()


def awaits_in_finally(source: str) -> list[int]:
    """Lines. Where another exception is being handled, mypyc 2.4 raises that one after an await in a `finally`."""
    tries = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Try)]
    inside = [found for node in tries for step in node.finalbody for found in ast.walk(step)]
    return [node.lineno for node in inside if isinstance(node, ast.Await | ast.AsyncWith | ast.AsyncFor)]


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_module_awaits_nothing_in_a_finally(name):
    assert awaits_in_finally((ROOT / "service" / "sluice" / f"{name}.py").read_text()) == []


def test_an_await_in_a_finally_is_found():
    assert awaits_in_finally("async def f():\n    try:\n        pass\n    finally:\n        await g()\n") == [5]
