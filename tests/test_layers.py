"""The import rule of docs/architecture.md, section 2, and the bans that go with it, read off the sources by `ast`.

A module imports only from lower layers. Modules of one folder may import each other, and so may those of the ground
layer and those of the top, as long as there is no circle. The checks are functions of sources, and are themselves tested
on small ones with a violation planted in them.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND, TOP = 0, 9
MAX_LINES = 400

# Each module of service/sluice, or the folder that it is in, has its layer here.
LAYERS = {
    **dict.fromkeys(["__init__", "asgi", "types", "errors", "yaml_lines", "config", "prefix", "outbox", "timers"], GROUND),
    **dict.fromkeys(["access_log", "keys_file", "loading", "metrics", "response_ids", "tracing", "upstream", "wire"], 1),
    **dict.fromkeys(["backlog", "ejection", "ledger_file"], 1),
    "discovery": 3,
    "fleet_metrics": GROUND,
    "limit_metrics": GROUND,
    "asking": 3,
    "orca": 3,
    "engine_metrics": 1,
    "scraper": 4,
    "kv_events": 4,
    "membership": 5,
    "fleet": 6,
    **dict.fromkeys(["bulk", "directory", "http_json", "retry_budget", "worker"], 2),
    **dict.fromkeys(["engines", "exchange", "keys", "limits", "placements", "policies", "retrieval", "usage"], 3),
    **dict.fromkeys(["admission", "channel", "hedge"], 5),
    **dict.fromkeys(["attempt", "ingest", "pool", "probes", "replay", "resume", "sharing"], 4),
    **dict.fromkeys(["gateway"], 6),
    **dict.fromkeys(["children", "middleware", "relay"], 7),
    **dict.fromkeys(["api", "server", "web"], 8),
    **dict.fromkeys(["app", "check", "cli", "limiting", "retrieval_app", "retrieving", "up", "usage_command", "__main__"], TOP),
}

# Who may import what is not for everybody: the library, and the modules, folders or layers that may.
ONLY_IN = {
    "fastapi": {7, 8, TOP},
    "starlette": {7, 8, TOP},
    "prometheus_client": {"metrics", "fleet_metrics", "limit_metrics", "api.ops"},
    "httpx": {"http_json"},
    "redis": {"limits.redis", "channel"},
    "psycopg": {"retrieval.adapters.pgvector"},
    "opentelemetry": {"tracing.otlp"},
}
MAY_IMPORT_APP = {"cli", "up", "__main__"}

Sources = Mapping[str, str]  # by module name below `sluice`: "api.ops", "wire" for wire/__init__.py


def sources_of(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def imported_names(module: str, source: str, is_package: bool) -> Iterator[str]:
    """The full names that a module imports, wherever in it: those of `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["sluice", *module.split(".")]
                above = here[: len(here) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(sources: Sources) -> dict[str, set[str]]:
    """Which modules of `sluice` each of them imports."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        is_package = any(other.startswith(f"{module}.") for other in sources)
        graph[module] = set()
        for name in imported_names(module, source, is_package):
            inner = name.removeprefix("sluice.") if name.startswith("sluice.") else "__init__" if name == "sluice" else ""
            while inner and inner not in sources:
                inner = inner.rpartition(".")[0] or "__init__" * (inner != "__init__")
            if inner and inner != module:
                graph[module].add(inner)
    return graph


def layer_of(module: str) -> int | None:
    return LAYERS.get(module, LAYERS.get(module.partition(".")[0]))


def unknown_modules(sources: Sources) -> list[str]:
    return [f"{module} has no layer in tests/test_layers.py" for module in sources if layer_of(module) is None]


def upward_imports(sources: Sources) -> list[str]:
    wrong = []
    for module, others in imports(sources).items():
        for other in sorted(others):
            here, there = layer_of(module), layer_of(other)
            are_neighbours = module.partition(".")[0] == other.partition(".")[0] or here == there in (GROUND, TOP)
            if here is not None and there is not None and there >= here and not are_neighbours:
                wrong.append(f"{module} (layer {here}) imports {other} (layer {there})")
    return wrong


def circles(sources: Sources) -> list[str]:
    graph, done, wrong = imports(sources), set[str](), []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            wrong.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for other in sorted(graph[module]):
                visit(other, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return wrong


def foreign_imports(sources: Sources) -> list[str]:
    """Libraries where they may not be."""
    wrong = []
    for module, source in sources.items():
        for name in imported_names(module, source, is_package=False):
            library = name.partition(".")[0]
            allowed = ONLY_IN.get(library, {module})
            if not {module, module.partition(".")[0], layer_of(module)} & allowed:
                wrong.append(f"{module} imports {library}")
    return sorted(set(wrong))


def imports_of_the_app(sources: Sources) -> list[str]:
    users = {module for module, others in imports(sources).items() if "app" in others}
    return [f"{module} imports app" for module in sorted(users - MAY_IMPORT_APP)]


def banned_constructs(sources: Sources) -> list[str]:
    wrong = []
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            names = {getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "name", "")}
            if isinstance(node, ast.Global):
                wrong.append(f"{module}:{node.lineno} has a `global`")
            elif "BaseHTTPMiddleware" in names:
                wrong.append(f"{module} uses BaseHTTPMiddleware")
    return wrong


def long_modules(sources: Sources) -> list[str]:
    lengths = {module: source.count("\n") for module, source in sources.items()}
    return [f"{module} has {length} lines" for module, length in lengths.items() if length > MAX_LINES]


def imports_of_sluice(sources: Sources) -> list[str]:
    """In load tests, which know the gateway from outside."""
    return [
        f"{module} imports {name}"
        for module, source in sources.items()
        for name in imported_names(module, source, is_package=False)
        if name.partition(".")[0] == "sluice"
    ]


CHECKS = [
    *(unknown_modules, upward_imports, circles, foreign_imports, imports_of_the_app),
    *(banned_constructs, long_modules),
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_gateway_keeps_the_rule(check):
    assert check(sources_of(ROOT / "service" / "sluice")) == []


def test_the_gateways_sources_are_found():
    found = sources_of(ROOT / "service" / "sluice")

    assert {"__init__", "__main__", "types", "config", "wire", "cli"} <= set(found)
    assert set(LAYERS) - {module.partition(".")[0] for module in found} <= {"web"}


@pytest.mark.parametrize("check", [imports_of_sluice, long_modules, banned_constructs])
def test_load_tests_keep_the_rule(check):
    found = sources_of(ROOT / "loadtest")

    assert found
    assert check(found) == []


# The checks themselves, on small sources with a violation in them


@pytest.mark.parametrize(
    "sources, said",
    [
        ({"errors": "import sluice.pool", "pool": ""}, "errors (layer 0) imports pool (layer 4)"),
        ({"errors": "from sluice import pool", "pool": ""}, "errors (layer 0) imports pool (layer 4)"),
        ({"errors": "from sluice.pool import Pool", "pool": ""}, "errors (layer 0) imports pool (layer 4)"),
        ({"errors": "def f():\n  import sluice.pool", "pool": ""}, "errors (layer 0) imports pool (layer 4)"),
        ({"errors": "from .pool import Pool", "pool": ""}, "errors (layer 0) imports pool (layer 4)"),
        ({"config": "from sluice.wire.requests import x", "wire.requests": ""}, "imports wire.requests (layer 1)"),
        ({"metrics": "from sluice.loading import x", "loading": ""}, "metrics (layer 1) imports loading (layer 1)"),
        ({"wire.requests": "from ..pool import Pool", "pool": "", "wire": ""}, "wire.requests (layer 1) imports pool"),
        ({"wire": "from ..pool import Pool", "wire.requests": "", "pool": ""}, "wire (layer 1) imports pool"),
        ({"probes": "from sluice.pool import Pool", "pool": ""}, "probes (layer 4) imports pool (layer 4)"),
    ],
)
def test_an_import_upward_or_sideways_is_found(sources, said):
    [wrong] = upward_imports(sources)

    assert said in wrong


def test_imports_downward_within_a_folder_on_the_ground_and_at_the_top_are_allowed():
    sources = {
        "pool": "from sluice.errors import X\nimport asyncio\nfrom sluice import __version__",
        **{
            "errors": "from sluice.types import X",
            "types": "",
            "__init__": "",
            "api.ops": "from sluice.api import access",
            "api.access": "",
            "api": "",
        },
        **{"__main__": "from sluice import cli", "cli": "from sluice.up import run", "up": ""},
    }

    assert upward_imports(sources) == [] and circles(sources) == [] and unknown_modules(sources) == []


def test_a_circle_is_found_even_within_a_folder():
    sources = {"wire.a": "import sluice.wire.b", "wire.b": "from sluice.wire import c", "wire.c": "from . import a"}

    assert circles(sources) == ["wire.a -> wire.b -> wire.c -> wire.a"]


def test_a_module_without_a_layer_is_found():
    assert unknown_modules({"surprise": "", "types": "", "wire.new": ""}) == ["surprise has no layer in tests/test_layers.py"]


@pytest.mark.parametrize(
    "module, source",
    [
        ("gateway", "from fastapi import FastAPI"),
        ("pool", "import starlette.requests"),
        ("gateway", "import prometheus_client"),
        ("api.openai", "from prometheus_client import Counter"),
        ("probes", "def f():\n  import httpx"),
        ("keys", "from redis.asyncio import Redis"),
    ],
)
def test_a_library_in_the_wrong_place_is_found(module, source):
    [wrong] = foreign_imports({module: source})

    assert wrong.startswith(f"{module} imports ")


@pytest.mark.parametrize(
    "module, source",
    [
        ("api.models", "import fastapi"),
        ("relay", "import starlette"),
        ("metrics", "import prometheus_client"),
        ("http_json", "import httpx"),
        ("limits.redis", "import redis"),
        ("pool", "import asyncio"),
    ],
)
def test_a_library_in_its_place_is_allowed(module, source):
    assert foreign_imports({module: source}) == []


def test_an_import_of_the_app_is_found():
    sources = {"app": "", "cli": "import sluice.app", "api.ops": "from sluice.app import App", "check": "import sluice.app"}

    assert imports_of_the_app(sources) == ["api.ops imports app", "check imports app"]


@pytest.mark.parametrize(
    "source, said",
    [
        ("def f():\n    global x\n", "pool:2 has a `global`"),
        ("from starlette.middleware.base import BaseHTTPMiddleware", "pool uses BaseHTTPMiddleware"),
        ("class A(base.BaseHTTPMiddleware): ...", "pool uses BaseHTTPMiddleware"),
    ],
)
def test_a_banned_construct_is_found(source, said):
    assert banned_constructs({"pool": source}) == [said]


def test_a_module_that_is_too_long_is_found():
    assert long_modules({"pool": "x\n" * 400, "keys": "x\n" * 401}) == ["keys has 401 lines"]


def test_a_load_test_that_knows_the_gateway_is_found():
    assert imports_of_sluice({"users": "import locust\nfrom sluice.types import Call"}) == ["users imports sluice.types.Call"]
