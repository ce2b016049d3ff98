"""The configuration file: what it fills in, and that every mistake names file, line and key."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from sluice.config import ConfigError, Settings, load

SMALL = """\
routes:
  smollm2:
    workers:
      static: ["http://127.0.0.1:8101"]
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "sluice.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def refusal(write):
    """What is said of a bad file, one list item a mistake, without the folder."""

    def refusal(text: str, environment: dict[str, str] | None = None) -> list[str]:
        path = write(text)
        with pytest.raises(ConfigError) as caught:
            load(path, environment or {})
        return [line.removeprefix(f"{path.parent}/") for line in str(caught.value).splitlines()]

    return refusal


def test_a_route_with_a_worker_is_enough(write):
    settings = load(write(SMALL))

    assert settings.server.port == 8000
    assert settings.auth.mode == "keys"
    assert settings.routes["smollm2"].served_model == "smollm2"
    assert settings.routes["smollm2"].policy == "prefix_affinity"
    assert settings.routes["smollm2"].workers.static == ("http://127.0.0.1:8101",)


def test_relative_paths_are_taken_from_the_folder_of_the_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")

    settings = load(write(SMALL + "      ca_file: ca.pem\nauth: {keys_file: /etc/keys.yaml}\n"))

    assert settings.auth.keys_file == Path("/etc/keys.yaml")
    assert settings.routes["smollm2"].workers.ca_file == tmp_path / "ca.pem"
    assert load(write(SMALL)).auth.keys_file == tmp_path / "keys.yaml"


def test_settings_cannot_be_changed(write):
    settings = load(write(SMALL))

    with pytest.raises(ValidationError):
        settings.drain_timeout_s = 1


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "server: {port: 8000}\n"])
def test_missing_routes_are_named(refusal, text):
    assert refusal(text) == ["sluice.yaml: routes: is missing"]


def test_a_route_without_workers_is_named_with_its_line(refusal):
    assert refusal("server: {}\nroutes:\n  a: {}\n") == ["sluice.yaml:3: routes.a.workers: is missing"]


def test_empty_routes_and_empty_workers_are_named(refusal):
    assert refusal("routes:\n") == ["sluice.yaml:1: routes: must hold settings (key: value), and is empty"]
    assert refusal("routes: {}\n")[0].startswith("sluice.yaml:1: routes: Dictionary should have at least 1 item")
    [said] = refusal("routes:\n  a:\n    workers:\n      static: []\n")
    assert said.startswith("sluice.yaml:4: routes.a.workers.static: Tuple should have at least 1 item")


def test_an_unknown_key_is_named_with_its_line_and_the_likely_one(refusal):
    assert refusal(SMALL + "server:\n  prot: 80\n") == ["sluice.yaml:6: server.prot: no such setting; did you mean port?"]
    assert refusal(SMALL + "    polcy: round_robin\n") == [
        "sluice.yaml:5: routes.smollm2.polcy: no such setting; did you mean policy?"
    ]
    assert refusal(SMALL + "telemetry: true\n") == ["sluice.yaml:5: telemetry: no such setting (see docs/configuration.md)"]


def test_a_wrong_type_is_named_with_its_line(refusal):
    [said] = refusal(SMALL + "server:\n  host: localhost\n  port: http\n")

    assert said.startswith("sluice.yaml:7: server.port: Input should be a valid integer")


@pytest.mark.parametrize(
    "line, key",
    [
        ("server: {port: 65536}", "server.port"),
        ("server: {body_limit_bytes: 1}", "server.body_limit_bytes"),
        ("server: {max_connections: 0}", "server.max_connections"),
        ("auth: {mode: none}", "auth.mode"),
        ("auth: {max_failures_per_minute: 0}", "auth.max_failures_per_minute"),
        ("probes: {timeout_s: 0}", "probes.timeout_s"),
        ("probes: {timeout_s: .nan}", "probes.timeout_s"),
        ("probes: {timeout_s: .inf}", "probes.timeout_s"),
        ("drain_timeout_s: -1", "drain_timeout_s"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_line(refusal, line, key):
    [said] = refusal(SMALL + line + "\n")

    assert said.startswith(f"sluice.yaml:5: {key}: ")


def test_every_mistake_of_a_file_is_told_at_once(refusal):
    said = refusal(SMALL + "server: {port: x}\nauth: {mode: x}\nx: 1\n")

    assert [line.split(": ")[0] for line in said] == ["sluice.yaml:5", "sluice.yaml:6", "sluice.yaml:7"]


def test_a_key_that_stands_twice_is_named_with_its_line(refusal):
    assert refusal(SMALL + "  smollm2: {}\n") == ["sluice.yaml:5: routes.smollm2: stands here twice"]


TWO_ROUTES = """\
routes:
  a:
    aliases: [{a}]
    workers: {{static: ["http://127.0.0.1:1"]}}
  b:
    adapters: [{b}]
    workers: {{static: ["http://127.0.0.1:2"]}}
"""


@pytest.mark.parametrize("a, b, name", [("gpt", "gpt", "gpt"), ("x", "a", "a"), ("x", "b", "b")])
def test_a_name_of_two_routes_is_named_with_its_line(refusal, a, b, name):
    [said] = refusal(TWO_ROUTES.format(a=a, b=b))

    owner = "b" if name == "b" else "a"
    assert said == f"sluice.yaml:5: routes.b: the name {name!r} belongs to route {owner!r} already"


@pytest.mark.parametrize("name", ["''", '"a\\nb"', "x" * 257])
def test_a_model_name_that_no_client_could_send_is_refused(refusal, name):
    [said] = refusal(TWO_ROUTES.format(a="fine", b=name))

    assert said.startswith("sluice.yaml:5: routes.b: a model name is 1 to 256 printable characters")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example"])
def test_open_mode_beyond_loopback_is_refused_with_its_line(refusal, host):
    [said] = refusal(SMALL + f'server: {{host: "{host}"}}\nauth:\n  mode: open\n')

    assert said.startswith(f"sluice.yaml:7: auth.mode: open lets everybody in, and server.host {host} is not loopback")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_open_mode_on_loopback_is_allowed(write, host):
    assert load(write(SMALL + f'server: {{host: "{host}"}}\nauth: {{mode: open}}\n')).auth.mode == "open"


def test_open_mode_beyond_loopback_can_be_forced(write):
    forced = SMALL + "server: {host: 0.0.0.0}\nauth: {mode: open, open_beyond_loopback: true}\n"

    assert load(write(forced)).auth.open_beyond_loopback


def test_a_variable_that_is_not_set_is_named_with_its_line(refusal):
    text = SMALL + "      api_key_env: WORKER_KEY\nserver:\n  secret_env: GATEWAY_SECRET\n"

    [first] = refusal(text, {"WORKER_KEY": "x"})
    [second] = refusal(text, {"GATEWAY_SECRET": "x", "WORKER_KEY": ""})

    assert first == "sluice.yaml:7: server.secret_env: the environment variable GATEWAY_SECRET is not set"
    said = "routes.smollm2.workers.api_key_env: the environment variable WORKER_KEY is not set"
    assert second == f"sluice.yaml:5: {said}"


def test_variables_are_taken_from_the_process_unless_others_are_given(write, monkeypatch):
    path = write(SMALL + "      api_key_env: WORKER_KEY\n")
    monkeypatch.setenv("WORKER_KEY", "x")

    assert load(path).routes["smollm2"].workers.api_key_env == "WORKER_KEY"
    assert load(path, environment=None) == load(path)


def test_without_an_environment_variables_are_not_asked_for(write, monkeypatch):
    monkeypatch.delenv("WORKER_KEY", raising=False)

    assert load(write(SMALL + "      api_key_env: WORKER_KEY\n"), environment=None)


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8101", "ftp://127.0.0.1", "http://", "http://:80", "http://a:0", "http://a:65536", "http://a:x"),
        *(
            "http://a/v1",
            "http://a?x=1",
            "http://a#x",
            "http://user:password@a",
            "http://a b",
            "http://\u00e4",
            "http://[::1",
        ),
        *("http://a//", "HTTP://a", "unix:/run/vllm.sock", "http://a:80\\n"),
    ],
)
def test_a_worker_that_is_no_plain_url_is_named_with_its_line(refusal, url):
    [said] = refusal(f'routes:\n  a:\n    workers:\n      static:\n      - "http://b:1"\n      - "{url}"\n')

    assert said.startswith("sluice.yaml:6: routes.a.workers.static.1: a worker is http://HOST:PORT")
    assert "password@" not in said


@pytest.mark.parametrize("url", ["http://a", "https://vllm-0.vllm:8000", "http://[::1]:8101", "http://10.0.0.1:80/"])
def test_a_plain_url_is_a_worker(write, url):
    settings = load(write(f'routes: {{a: {{workers: {{static: ["{url}"]}}}}}}'))

    assert settings.routes["a"].workers.static == (url.rstrip("/"),)


def test_a_worker_that_stands_twice_in_a_route_is_named_with_its_line(refusal):
    said = refusal('routes:\n  a:\n    workers:\n      static:\n      - "http://b:1"\n      - "http://b:1/"\n')

    assert said == ["sluice.yaml:6: routes.a.workers.static.1: this worker stands here twice"]


def test_one_port_for_both_listeners_is_refused_with_its_line(refusal):
    said = refusal(SMALL + "server:\n  port: 9000\n  metrics_port: 9000\n")

    assert said == ["sluice.yaml:7: server.metrics_port: is server.port already; take another, or null for no metrics port"]


@pytest.mark.parametrize("ports", ["port: 0, metrics_port: 0", "metrics_port: null", "port: 1, metrics_port: 2"])
def test_ports_may_be_free_ones_or_none(write, ports):
    assert load(write(SMALL + f"server: {{{ports}}}\n"))


def test_a_file_that_is_not_yaml_is_refused_with_its_line(refusal):
    [said] = refusal(SMALL + "server: {port: 8000\n")

    assert said.startswith("sluice.yaml:") and "not YAML" in said


def test_a_file_that_is_a_list_is_refused(refusal):
    assert refusal("- routes\n") == ["sluice.yaml: must hold settings (key: value)"]


def test_a_file_that_is_absent_unreadable_or_not_utf8_is_refused(tmp_path):
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"# gr\xfcn\n")
    for path, said in [(tmp_path / "no.yaml", "No such file"), (tmp_path, "Is a directory"), (latin, "not UTF-8")]:
        with pytest.raises(ConfigError, match=said):
            load(path)


def test_settings_made_in_code_are_not_asked_for_variables():
    settings = Settings.model_validate({"routes": {"a": {"workers": {"static": ["http://b"], "api_key_env": "X"}}}})

    assert settings.routes["a"].workers.api_key_env == "X"


# Where the workers are


def workers(text: str) -> str:
    return f"routes:\n  a:\n    workers: {text}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "routes.a.workers: say where the workers are: static, dns, kubernetes or managed"),
        (
            '{static: ["http://x:1"], managed: w.json}',
            "routes.a.workers.managed: workers are found in one way, and here stand static and managed",
        ),
        ("{dns: {name: x}}", "routes.a.workers.dns.port: SRV records have a port of their own, a and aaaa need one here"),
        ("{kubernetes: {service: a b}}", "routes.a.workers.kubernetes.service: a name in Kubernetes is"),
        ("{kubernetes: {service: x, port: 1, port_name: y}}", "routes.a.workers.kubernetes.port: port and port_name are two"),
        ("{kubernetes: {service: x, api_server: http://y}}", "routes.a.workers.kubernetes.api_server: an API server is https"),
        ("{managed: w.json, server_name: 'a/b'}", "routes.a.workers.server_name: a host name is"),
    ],
)
def test_workers_that_cannot_be_found_are_named(refusal, text, said):
    [line] = refusal(workers(text))
    assert line.startswith(f"sluice.yaml:3: {said}")


def test_files_of_workers_are_taken_from_the_folder_of_the_file(write, tmp_path):
    settings = load(write(workers("{managed: w.json}")))
    assert settings.routes["a"].workers.managed == tmp_path / "w.json"
    kubernetes = load(write(workers("{kubernetes: {service: x, token_file: token}}"))).routes["a"].workers.kubernetes
    assert kubernetes is not None
    assert (kubernetes.token_file, kubernetes.ca_file.name) == (tmp_path / "token", "ca.crt")
    assert kubernetes.ca_file.is_relative_to("/var/run/secrets")


@pytest.mark.parametrize(("adapters", "named"), [("discover", ()), ("[x, y]", ("x", "y"))])
def test_adapters_are_named_or_discovered(write, adapters, named):
    route = load(write(SMALL + f"    adapters: {adapters}\n")).routes["smollm2"]
    assert route.named_adapters == named and (route.adapters == "discover") is (not named)


@pytest.mark.parametrize("adapters", ["find", "7", "{a: b}"])
def test_adapters_that_are_neither_are_refused(refusal, adapters):
    assert refusal(SMALL + f"    adapters: {adapters}\n") == [
        "sluice.yaml:5: routes.smollm2.adapters: adapters is a list of names, or the word discover"
    ]
