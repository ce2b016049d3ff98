"""Every query of every dashboard finds something in a real Prometheus that scrapes a real gateway and simulated workers."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import yaml

from loadtest.bench.processes import free_port
from loadtest.stack import MODEL, Gateway, Workers, fleet, gateway, routes
from tests.deploy.tools import CHART, ROOT, default, process, run, tool, until

DASHBOARDS = sorted(CHART.glob("files/dashboards/*.json"))
FILLED_IN = {"$__rate_interval": "20s", "$namespace": ".*", "$route": ".*", "$tenant": ".*"}
TRAFFIC_S = 15
NUM_CLIENTS = 6


def panels() -> Iterator[tuple[str, str]]:
    """Where it stands, and the query with its variables filled in."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"]
                for variable, value in FILLED_IN.items():
                    expression = expression.replace(variable, value)
                yield f"{path.stem}: {panel['title']} {target['refId']}", expression


QUERIES = list(panels())


def scrape_config(gateway_: Gateway, workers: Workers) -> dict[str, Any]:
    jobs = {"sluice": [gateway_.metrics_url.split("/")[2]], "sluice-worker": [url.split("/")[2] for url in workers.urls]}
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": targets}]} for job, targets in jobs.items()],
    }


def send_traffic(to: Gateway, workers: Workers) -> None:
    """Some of everything that a gateway counts, at once from several clients, so that calls wait and some are shed."""
    until_s = time.monotonic() + TRAFFIC_S
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        for done in [clients.submit(one_client, to, until_s) for _ in range(NUM_CLIENTS)]:
            while not done.done():
                workers.order(kind="storm", share=0.5, for_s=1, worker=0)
                workers.order(kind="cut", events=3, share=0.5, for_s=1, worker=1)
                time.sleep(0.5)
            done.result()


def one_client(to: Gateway, until_s: float) -> None:
    """Good calls and bad ones, streams, a shared prefix, a tenant over its limit, a bad key, a question to documents."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "again and again " * 60}], "max_tokens": 8}
    asking = {"retrieval": {"vector_store_ids": ["handbook"], "on_error": "open"}}
    with httpx.Client(base_url=f"{to.url}/v1", timeout=60) as client:
        while time.monotonic() < until_s:
            for key, more in (
                (to.keys["people"], {"stream": True}),
                (to.keys["people"], {"messages": []}),
                (to.keys["people"], asking),
                (to.keys["guests"], {}),
                ("sk-wrong", {}),
            ):
                client.post("/chat/completions", json=body | more, headers={"authorization": f"Bearer {key}"})


class Handbook(BaseHTTPRequestHandler):
    """A search by Dify's contract that knows one sentence."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        record = {"content": "The gateway listens on port 8000.", "score": 0.9, "title": "handbook", "metadata": {}}
        body = json.dumps({"records": [record]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def handbook() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handbook) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/retrieval"
        server.shutdown()


@pytest.fixture(scope="module")
def prometheus(handbook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL, when it has scraped enough."""
    folder = tmp_path_factory.mktemp("prometheus")
    port = free_port()
    with (
        fleet(folder, "-n", "2") as workers,
        gateway(folder, settings(workers, handbook, folder), keys={"people": (), "guests": ()}) as ours,
    ):
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(scrape_config(ours, workers)))
        options = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
        with process(folder / "prometheus.log", tool("prometheus"), *options, f"--web.listen-address=127.0.0.1:{port}"):
            url = f"http://127.0.0.1:{port}"
            until(lambda: len(found(url, "up == 1")) == 3, "three targets", (folder / "prometheus.log").read_text)
            send_traffic(ours, workers)
            yield url


def settings(workers: Workers, retriever: str, folder: Path) -> dict[str, Any]:
    """So narrow that calls wait, and some are shed; and a second route whose workers are discovered."""
    (folder / "found.json").write_text(json.dumps({"found": dict.fromkeys(workers.urls, "1")}))
    given = routes(workers, queue={"max_in_flight": 2, "max_waiting": 1})["routes"]
    return {
        "routes": given | {"found": {"workers": {"managed": str(folder / "found.json")}, "served_model": MODEL}},
        "limits": {"tenants": {"guests": {"rpm": 5}}},
        "retrieval": {"retrievers": {"handbook": {"type": "http", "url": retriever}}},
    }


def found(url: str, query: str) -> list[Any]:
    try:
        reply = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=10)
    except httpx.TransportError:
        return []
    assert reply.status_code in (200, 503), reply.text
    return list(reply.json()["data"]["result"]) if reply.status_code == 200 else []


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_finds_a_series(prometheus: str, where: str, query: str) -> None:
    series = found(prometheus, query)
    assert series, query
    assert any(one["value"][1] != "NaN" for one in series), f"only NaN: {query}"


def test_there_is_a_dashboard_for_each_question() -> None:
    assert {path.stem for path in DASHBOARDS} >= {"sluice-overview", "sluice-model", "sluice-workers"}


def test_dashboards_are_whole_and_told_apart() -> None:
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(boards)
    for board in boards:
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        assert {variable["name"] for variable in board["templating"]["list"]} >= {"datasource", "namespace"}
        for panel in board["panels"]:
            assert panel["type"] == "row" or panel["targets"], panel["title"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", []))


def test_panels_do_not_lie_upon_each_other() -> None:
    for path in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text())["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert at["x"] + at["w"] <= 24 and not cells & taken, f"{path.stem}: {panel['title']}"
            taken |= cells


def test_the_chart_carries_the_same_dashboards() -> None:
    [config] = [
        each
        for each in default("--set=monitoring.dashboards.enabled=true")
        if each["kind"] == "ConfigMap" and each["metadata"]["name"] == "r-dashboards"
    ]
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {name: json.loads(text) for name, text in config["data"].items()} == {
        path.name: json.loads(path.read_text()) for path in DASHBOARDS
    }


def test_our_own_metrics_follow_prometheus_conventions(tmp_path: Path) -> None:
    with fleet(tmp_path) as workers, gateway(tmp_path, routes(workers)) as ours:
        text = httpx.get(ours.metrics_url).text
    done = run(tool("promtool"), "check", "metrics", input=text)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_dashboards_name_only_metrics_that_there_are(prometheus: str) -> None:
    text = (CHART / "files/alerts.yaml").read_text() + "".join(path.read_text() for path in DASHBOARDS)
    named = set(re.findall(r"\bsluice_[a-z_]+", text))
    names = set(httpx.get(f"{prometheus}/api/v1/label/__name__/values").json()["data"])
    assert named - names == set()


def test_prometheus_and_alertmanager_accept_the_files_of_compose() -> None:
    monitoring = ROOT / "deploy/compose"
    done = run(tool("promtool"), "check", "config", "--syntax-only", monitoring / "prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(tool("amtool"), "check-config", monitoring / "alertmanager.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
