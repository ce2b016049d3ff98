"""Write the chart's README.md and values.schema.json from the comments of its values.yaml: `python3 helm/generate.py`.

Above a value stand `# -- what it is for` and, where its default's type does not say it, `# @ what it may be` in JSON Schema
(draft 7, which Helm 3 and 4 both know). A value without a `# --` belongs to the default of the one it is in. Exit code 1
with `--check` where a file is not what it would be.
"""

import json
import re
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).parent / "sluice"
KEY = re.compile(r"( *)([A-Za-z][\w-]*):(\s|$)")
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
COUNT_OR_PERCENT = {"type": ["integer", "string"], "minimum": 0, "pattern": "^(100|[1-9]?[0-9])%$"}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
SENTENCE = "redis: limits in memory are those of one gateway, and need gateway.replicaCount 1 and gateway.autoscaling.type none"


def closed(**properties):
    return {"type": "object", "additionalProperties": False, "properties": properties}


AMOUNTS = {"type": "object", "additionalProperties": {"$ref": "#/definitions/quantity"}}
COUNT = {"type": "integer", "minimum": 0}
DEFINITIONS = {
    "countOrPercent": COUNT_OR_PERCENT,
    "env": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}},
    "named": {**closed(name={"type": "string", "minLength": 1}), "required": ["name"]},
    "peer": closed(podSelector={"type": "object"}, namespaceSelector={"type": "object"}, ipBlock={"type": "object"}),
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "probe": closed(periodSeconds=COUNT, timeoutSeconds=COUNT, failureThreshold=COUNT, successThreshold=COUNT),
    "quantity": {"type": ["string", "integer", "number"], "pattern": QUANTITY},
    "resources": closed(requests=AMOUNTS, limits=AMOUNTS),
    "rule": closed(
        enabled={"type": "boolean"},
        expr={"type": "string"},
        labels=STRINGS,
        **{"for": {"type": "string", "pattern": "^[0-9]+[smh]$"}},
    ),
    "strings": STRINGS,
}
MANY_GATEWAYS = {
    "anyOf": [
        {"properties": {"replicaCount": {"minimum": 2}, "autoscaling": {"properties": {"type": {"const": "none"}}}}},
        {"properties": {"autoscaling": {"properties": {"type": {"enum": ["hpa", "keda"]}}}}},
    ]
}
IN_MEMORY = {"properties": {"gateway": MANY_GATEWAYS, "limits": {"properties": {"store": {"const": "memory"}}}}}
RULES = [{"if": IN_MEMORY, "then": {"properties": {"limits": {"properties": {"store": {"const": SENTENCE}}}}}}]


def entries(text):
    """Each key of the file: path, what it is for (or None), what it may be beyond its type."""
    path, purpose, keywords = [], [], []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            purpose = [stripped[5:]]
        elif stripped.startswith("# @ "):
            keywords.append(stripped[4:])
        elif stripped.startswith("# ") and purpose:
            purpose.append(stripped[2:])
        elif key := KEY.match(line):
            path[len(key[1]) // 2 :] = [key[2]]
            yield tuple(path), " ".join(purpose) or None, yaml.safe_load(keywords[0]) if keywords else {}
            purpose, keywords = [], []
        elif not stripped:
            purpose, keywords = [], []


def at(values, path):
    for part in path:
        values = values[part]
    return values


def table(values, found):
    """A row for each value, under a heading for each top-level member."""
    lines, section = [], None
    for path, purpose, _ in found:
        if purpose is None:
            continue
        if path[0] != section:
            section = path[0]
            lines += ["", f"### `{section}`", "", "| value | default | meaning |", "|---|---|---|"]
        default = json.dumps(at(values, path), ensure_ascii=False).replace("|", "\\|")
        purpose = purpose.replace("|", "\\|")
        lines.append(f"| `{'.'.join(path)}` | `{default}` | {purpose} |")
    return "\n".join(lines).strip()


def schema_of(value, path, keywords, purposes):
    """Strict: an object with commented members has these and no others."""
    own = dict(keywords.get(path, {}))
    if "$ref" in own:
        return own
    if "type" not in own:
        own = {"type": TYPES[type(value)], **own}
    if isinstance(value, dict) and any(other[: len(path)] == path and other != path for other in purposes):
        members = {name: schema_of(value[name], (*path, name), keywords, purposes) for name in value}
        own |= {"additionalProperties": False, "properties": members}
    return own


def schema(values, found):
    keywords = {path: words for path, _, words in found if words}
    purposes = {path for path, purpose, _ in found if purpose}
    whole = schema_of(values, (), keywords, purposes)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **whole, "allOf": RULES, "definitions": DEFINITIONS}


def main():
    text = (CHART / "values.yaml").read_text()
    values, found = yaml.safe_load(text), list(entries(text))
    readme = CHART / "README.md"
    before = readme.read_text().split("## Values\n")[0]
    wanted = {
        readme: f"{before}## Values\n\n{table(values, found)}\n",
        CHART / "values.schema.json": json.dumps(schema(values, found), indent=2) + "\n",
    }
    stale = [path for path, content in wanted.items() if not path.exists() or path.read_text() != content]
    if "--check" in sys.argv[1:]:
        sys.exit("".join(f"{path} is stale: run `python3 helm/generate.py`\n" for path in stale) or 0)
    for path in stale:
        path.write_text(wanted[path])
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
