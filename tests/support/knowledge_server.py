"""A service with Dify's external-knowledge contract: gives the records it holds for a knowledge, or plays a script."""

from typing import Any

from tests.support import scripts
from tests.support.raw_server import RawServer, Request, Script

Json = dict[str, Any]


class KnowledgeServer(RawServer):
    """A fake on a free loopback port. `records` are those of each knowledge, best first; `script` overrides the answer."""

    def __init__(self, records: dict[str, list[Json]]) -> None:
        super().__init__()
        self.records = records
        self.script: Script | None = None

    def asked(self) -> list[Json]:
        return [request.json() for request in self.requests]

    def script_for(self, request: Request) -> Script:
        if self.script is not None:
            return self.script
        asked = request.json()
        found = self.records.get(asked["knowledge_id"])
        if found is None:
            return scripts.reply(404, {"error_code": 2001, "error_msg": "The knowledge does not exist"})
        return scripts.reply(200, {"records": found[: asked["retrieval_setting"]["top_k"]]})


def record(text: str, title: str, score: float = 0.9, **metadata: Any) -> Json:
    return {"content": text, "title": title, "score": score, "metadata": metadata}
