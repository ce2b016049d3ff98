"""A Qdrant's REST API as far as the adapter uses it, with the shapes of its answers recorded from the documentation of 1.15."""

from typing import Any

from tests.support import scripts
from tests.support.raw_server import RawServer, Request, Script

Json = dict[str, Any]


class QdrantServer(RawServer):
    """One collection in memory: exact scores, and filters as Qdrant evaluates them. `script` overrides every answer."""

    def __init__(self, collection: str = "passages", *, api_key: str | None = None) -> None:
        super().__init__()
        self.points: dict[str, Json] = {}
        self.script: Script | None = None
        self._path = f"/collections/{collection}"
        self._api_key = api_key

    def script_for(self, request: Request) -> Script:
        if self.script is not None:
            return self.script
        if self._api_key is not None and request.header("api-key") != self._api_key:
            return scripts.reply(401, b"Must provide an API key or an Authorization bearer token", content_type="text/plain")
        path = request.path.removeprefix(self._path)
        if request.method == "GET" and not path:
            return _ok({"status": "green", "points_count": len(self.points)})
        if path == "/points/batch":
            [operation] = request.json()["operations"]
            self.points |= {point["id"]: point for point in operation["upsert"]["points"]}
            return scripts.reply(200, {"result": [{"operation_id": 1, "status": "completed"}], "status": "ok", "time": 0.001})
        asked = request.json()
        found = [one for one in self.points.values() if _holds(asked["filter"], one["payload"])]
        if path == "/points/count":
            return _ok({"count": len(found)})
        if path == "/points/delete":
            self.points = {id: one for id, one in self.points.items() if one not in found}
            return _ok({"operation_id": 2, "status": "completed"})
        if path != "/points/query":
            return scripts.reply(404, {"status": {"error": f"Not found: {path}"}, "time": 0.0})
        using = asked.get("using", "")
        scored = [(_score(asked["query"], one["vector"][using]), one) for one in found if using in one["vector"]]
        is_dense = isinstance(asked["query"], list)  # of a sparse vector only those are scored that share an index
        scored = sorted([one for one in scored if is_dense or one[0] > 0], key=lambda pair: -pair[0])[: asked["limit"]]
        points = [{"id": one["id"], "version": 1, "score": score, "payload": one["payload"]} for score, one in scored]
        return _ok({"points": points})


def _ok(result: Json) -> Script:
    return scripts.reply(200, {"usage": None, "time": 0.001, "status": "ok", "result": result})


def _score(query: Any, vector: Any) -> float:
    if isinstance(query, list):
        dot = sum(a * b for a, b in zip(query, vector, strict=True))
        return float(dot / (sum(a * a for a in query) ** 0.5 * sum(b * b for b in vector) ** 0.5))
    weights = dict(zip(vector["indices"], vector["values"], strict=True))
    return float(sum(weights.get(i, 0.0) * v for i, v in zip(query["indices"], query["values"], strict=True)))


def _holds(condition: Json, payload: Json) -> bool:
    """Whether a condition is true of a payload: a filter of conditions, or one on a key."""
    if "key" in condition:
        value: Any = payload
        for step in condition["key"].split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if "range" in condition:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            tests = {"gt": lambda a, b: a > b, "gte": lambda a, b: a >= b, "lt": lambda a, b: a < b, "lte": lambda a, b: a <= b}
            return is_number and all(tests[name](value, bound) for name, bound in condition["range"].items())
        match = condition["match"]
        return value in match["any"] if "any" in match else type(value) is type(match["value"]) and value == match["value"]
    return (
        all(_holds(one, payload) for one in condition.get("must", ()))
        and (not condition.get("should") or any(_holds(one, payload) for one in condition["should"]))
        and not any(_holds(one, payload) for one in condition.get("must_not", ()))
    )
