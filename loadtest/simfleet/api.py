"""The endpoints of a worker, and what its faults do to them."""

import time
from collections.abc import Callable
from typing import Any

from loadtest.simfleet import checks, embeddings, metrics
from loadtest.simfleet.config import VERSION
from loadtest.simfleet.errors import ApiError, Detail, WireError, invalid, queue_full
from loadtest.simfleet.http_server import Reply, Request
from loadtest.simfleet.scheduler import Paused
from loadtest.simfleet.wire import usage
from loadtest.simfleet.worker import State, Worker

Endpoint = Callable[[Worker, Request, Reply], None]

_KEY_GUARDED = ("/v1", "/v2", "/inference", "/cohere")
_JUNK = b"\x15\x03\x03\x00\x02\x02\x16 SSH-2.0-not-http\r\n"


def handle(worker: Worker, request: Request, reply: Reply) -> None:
    """Answer one request."""
    try:
        if worker.config.api_key is not None and request.path.startswith(_KEY_GUARDED):
            _check_key(worker.config.api_key, request)
        endpoints = _ROUTES.get(request.path)
        if endpoints is None:
            raise Detail(404, "Not Found")
        endpoint = endpoints.get(request.method)
        if endpoint is None:
            raise Detail(405, "Method Not Allowed", [("allow", ", ".join(endpoints))])
        endpoint(worker, request, reply)
    except WireError as error:
        reply.json(error.status, error.body, headers=error.headers)


def _check_key(api_key: str, request: Request) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or given != api_key:
        raise WireError(401, {"error": "Unauthorized"})


def _is_stopped_by_fault(worker: Worker, reply: Reply) -> bool:
    """Faults that concern every request for work."""
    worker.num_asked += 1
    suffering = worker.suffering
    slow_start = suffering.orders.get("slow_start")
    if slow_start is not None and slow_start.how == "unhealthy":
        reply.send(503, b"", None)
    elif suffering.hits("storm") is not None:
        raise queue_full("max_num_queued_reqs")
    elif (garbage := suffering.orders.get("garbage")) is not None and garbage.how == "not_http":
        if suffering.hits("garbage") is None:
            return False
        reply.raw(_JUNK)
        reply.cut(reset=False)
    else:
        return False
    return True


def _body(worker: Worker, request: Request) -> dict[str, Any]:
    return worker.reader.body(request.body, request.headers.get("content-type", ""))


def _chat(worker: Worker, request: Request, reply: Reply) -> None:
    if not _is_stopped_by_fault(worker, reply):
        worker.generate(worker.reader.chat(_body(worker, request)), request, reply)


def _completions(worker: Worker, request: Request, reply: Reply) -> None:
    if not _is_stopped_by_fault(worker, reply):
        worker.generate(worker.reader.completion(_body(worker, request)), request, reply)


def _embeddings(worker: Worker, request: Request, reply: Reply) -> None:
    if _is_stopped_by_fault(worker, reply):
        return
    body = _body(worker, request)
    model, _ = worker.reader.model(body)
    given = body.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise invalid("body.input", "missing", "Field required", body)
    if body.get("dimensions") is not None:
        message = f'Model "{model}" does not support matryoshka representation, changing output dimensions will lead'
        raise ApiError(f"{message} to poor results.", param="dimensions")
    ids = [worker.reader.encode(one, True) if isinstance(one, str) else list(one) for one in given]
    vectors = [embeddings.embed(one, worker.config.embedding_dimensions) for one in ids]
    as_base64 = body.get("encoding_format") == "base64"
    data = [
        {"index": at, "object": "embedding", "embedding": embeddings.as_base64(one) if as_base64 else one}
        for at, one in enumerate(vectors)
    ]
    counted = {**usage((sum(map(len, ids)), 0)), "prompt_tokens_details": None, "completion_tokens_details": None}
    created = int(time.time())
    reply_id = f"embd-{request.headers.get('x-request-id', f'{created:032x}')}"
    head = {"id": reply_id, "object": "list", "created": created, "model": model}
    reply.json(200, {**head, "data": data, "usage": counted})


def _tokenize(worker: Worker, request: Request, reply: Reply) -> None:
    body = _body(worker, request)
    worker.reader.model(body)
    tokenizer = worker.author.tokenizer
    if "prompt" in body:
        if not isinstance(body["prompt"], str):
            raise invalid("body.prompt", "string_type", "Input should be a valid string", body["prompt"])
        ids = worker.reader.encode(body["prompt"], bool(body.get("add_special_tokens", True)))
    elif "messages" not in body:
        raise invalid("body.prompt", "missing", "Field required", body)
    else:
        messages = checks.check_messages(body)
        checks.check_tools(body, auto_is_enabled=True)
        ids = worker.reader.encode(worker.reader.render(body, messages), bool(body.get("add_special_tokens", False)))
    strings = tokenizer.token_strs(ids) if body.get("return_token_strs") else None
    length = worker.config.profile.max_model_len
    reply.json(200, {"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": strings})


def _detokenize(worker: Worker, request: Request, reply: Reply) -> None:
    body = _body(worker, request)
    worker.reader.model(body)
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
        raise invalid("body.tokens", "list_type", "Input should be a valid list", tokens)
    reply.json(200, {"prompt": worker.author.tokenizer.decode(tokens, skip_special=False)})


def _models(worker: Worker, request: Request, reply: Reply) -> None:
    created, config = worker.started_at, worker.config

    def card(name: str, root: str, parent: str | None, length: int | None) -> dict[str, Any]:
        allowed = ("allow_create_engine", "allow_sampling", "allow_logprobs", "allow_search_indices", "allow_view")
        permission = {
            "id": f"modelperm-{worker.index:04x}{worker.num_starts:028x}",
            "object": "model_permission",
            "created": created,
            **{right: right not in ("allow_create_engine", "allow_search_indices") for right in allowed},
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        head = {"id": name, "object": "model", "created": created, "owned_by": "vllm", "root": root, "parent": parent}
        return {**head, "max_model_len": length, "permission": [permission]}

    cards = [card(name, config.model_name, None, config.profile.max_model_len) for name in config.served_model_name]
    cards += [card(name, path, config.model_name, None) for name, path in worker.adapters.items()]
    reply.json(200, {"object": "list", "data": cards})


def _health(worker: Worker, request: Request, reply: Reply) -> None:
    slow_start = worker.suffering.orders.get("slow_start")
    is_ill = slow_start is not None and slow_start.how == "unhealthy"
    reply.send(503 if is_ill or worker.state is State.ENGINE_DEAD else 200, b"", None)


def _load(worker: Worker, request: Request, reply: Reply) -> None:
    tracked = len(worker.replies) if worker.config.enable_server_load_tracking else 0
    reply.json(200, {"server_load": tracked})


def _metrics(worker: Worker, request: Request, reply: Reply) -> None:
    if not worker.suffering.has("hanging_metrics"):
        reply.send(200, worker.metrics_page(), metrics.CONTENT_TYPE)


def _some_metrics(worker: Worker, request: Request, reply: Reply) -> None:
    """Below this path vLLM has prometheus_client's own application, which gives the metrics that are asked for."""
    if not worker.suffering.has("hanging_metrics"):
        reply.send(200, worker.metrics_page(request.query.get("name[]")), metrics.CONTENT_TYPE)


def _sleep(worker: Worker, request: Request, reply: Reply) -> None:
    level = request.query.get("level", ["1"])[0]
    if level not in ("0", "1", "2"):
        raise invalid("query.level", "less_than_equal", "Input should be less than or equal to 2", level, le=2)
    worker.sleep(int(level), _mode(request), lambda: reply.json(200, {"status": "sleeping", "level": int(level)}))


def _mode(request: Request) -> str:
    mode = request.query.get("mode", ["abort"])[0]
    if mode not in ("abort", "wait", "keep"):
        raise invalid("query.mode", "literal_error", "Input should be 'abort', 'wait' or 'keep'", mode)
    return mode


def _wake_up(worker: Worker, request: Request, reply: Reply) -> None:
    tags = request.query.get("tags")
    # Weights alone wake nobody: the KV cache has to come back too.
    if tags is None or "kv_cache" in tags or "scheduling" in tags:
        worker.wake()
    status = "awake" if worker.sleep_level is None else "sleeping"
    reply.json(200, {"status": status, "tags": tags})


def _is_sleeping(worker: Worker, request: Request, reply: Reply) -> None:
    reply.json(200, {"is_sleeping": worker.sleep_level is not None})


def _pause(worker: Worker, request: Request, reply: Reply) -> None:
    worker.pause(_mode(request), lambda: reply.json(200, {"status": "paused"}))


def _resume(worker: Worker, request: Request, reply: Reply) -> None:
    worker.wake()
    reply.json(200, {"status": "resumed"})


def _is_paused(worker: Worker, request: Request, reply: Reply) -> None:
    reply.json(200, {"is_paused": worker.engine.scheduler.paused is not Paused.NO})


def _kv_event_sources(worker: Worker, request: Request, reply: Reply) -> None:
    publisher = worker.publisher
    sources = {} if publisher is None else {"0": publisher.describe()}
    reply.json(200, sources)


def _reset_prefix_cache(worker: Worker, request: Request, reply: Reply) -> None:
    reply.json(200, {"success": worker.reset_cache()})


def _load_lora(worker: Worker, request: Request, reply: Reply) -> None:
    body = _body(worker, request)
    name, path = _text(body, "lora_name"), _text(body, "lora_path")
    if not name or not path:
        raise ApiError("Both 'lora_name' and 'lora_path' must be provided.", type_="InvalidUserInput")
    if name in worker.config.served_model_name:
        message = f"The lora adapter '{name}' conflicts with a served base model."
        raise ApiError(message, type_="InvalidUserInput")
    if name in worker.adapters and not body.get("load_inplace"):
        message = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
        raise ApiError(f"{message} 'load_inplace' to True.", type_="InvalidUserInput")
    worker.adapters[name] = path
    worker.adapter_ids.setdefault(name, len(worker.adapter_ids) + 1)
    reply.send(200, f"Success: LoRA adapter '{name}' added successfully.".encode(), None)


def _unload_lora(worker: Worker, request: Request, reply: Reply) -> None:
    name = _text(_body(worker, request), "lora_name")
    if not name:
        message = "'lora_name' needs to be provided to unload a LoRA adapter."
        raise ApiError(message, type_="InvalidUserInput")
    if worker.adapters.pop(name, None) is None:
        message = f"The lora adapter '{name}' cannot be found."
        raise ApiError(message, status=404, type_="NotFoundError")
    reply.send(200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), None)


def _text(body: dict[str, Any], name: str) -> str:
    if name not in body:
        raise invalid(f"body.{name}", "missing", "Field required", body)
    if not isinstance(body[name], str):
        raise invalid(f"body.{name}", "string_type", "Input should be a valid string", body[name])
    return str(body[name])


def _version(worker: Worker, request: Request, reply: Reply) -> None:
    reply.json(200, {"version": VERSION})


_ROUTES: dict[str, dict[str, Endpoint]] = {
    "/v1/chat/completions": {"POST": _chat},
    "/v1/completions": {"POST": _completions},
    "/v1/embeddings": {"POST": _embeddings},
    "/v1/models": {"GET": _models},
    "/v1/load_lora_adapter": {"POST": _load_lora},
    "/v1/unload_lora_adapter": {"POST": _unload_lora},
    "/tokenize": {"POST": _tokenize},
    "/detokenize": {"POST": _detokenize},
    "/health": {"GET": _health},
    "/load": {"GET": _load},
    "/version": {"GET": _version},
    "/metrics": {"GET": _metrics},
    "/metrics/": {"GET": _some_metrics},
    "/sleep": {"POST": _sleep},
    "/wake_up": {"POST": _wake_up},
    "/is_sleeping": {"GET": _is_sleeping},
    "/pause": {"POST": _pause},
    "/resume": {"POST": _resume},
    "/is_paused": {"GET": _is_paused},
    "/kv_event_sources": {"GET": _kv_event_sources},
    "/reset_prefix_cache": {"POST": _reset_prefix_cache},
}
