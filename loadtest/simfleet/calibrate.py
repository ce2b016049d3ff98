"""Measures a live vLLM worker and makes a profile of it: `python -m loadtest.simfleet.calibrate --url URL`.

`measure` asks the worker over HTTP alone, with prompts of token ids that nothing has cached; `fit` turns the figures
into a `Profile`; `compare` says how far a profile's own figures are from measured ones. A worker that is busy with
anything else is measured too slow. Without `--enable-per-request-metrics` the overhead of a request is counted as a
part of its first step.
"""

import argparse
import asyncio
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec

from loadtest.simfleet.engine import Engine
from loadtest.simfleet.job import Job
from loadtest.simfleet.profile import Profile, ProfileError, load

PROMPT_TOKENS = (16, 256, 1024, 2000, 4000)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
_LONG_CONTEXT = 4000
_DECODED_TOKENS = 48
_TOKEN_IDS = range(300, 20_000)


class Measurement(msgspec.Struct, frozen=True):
    """What was seen of one worker; milliseconds."""

    model: str
    block_size: int
    num_kv_blocks: int
    max_model_len: int
    overhead_ms: float  # of a request, before the engine
    first_token_ms: dict[int, float]  # by tokens of the prompt, nothing cached
    cached_first_token_ms: float  # the longest of these prompts again
    step_ms: dict[int, float]  # between tokens, by streams at once
    long_step_ms: float  # of one stream with `_LONG_CONTEXT` tokens before


@dataclass
class _Stream:
    sent_s: float
    event_s: list[float]
    engine_ms: float | None

    @property
    def first_ms(self) -> float:
        return (self.event_s[0] - self.sent_s) * 1e3

    def gap_ms(self, first: int) -> float:
        """The mean time between events from the given one on; events may come several at a time."""
        return (self.event_s[-1] - self.event_s[first]) * 1e3 / (len(self.event_s) - 1 - first)


class _Prober:
    def __init__(self, client: httpx.AsyncClient, model: str, seed: int) -> None:
        self._client = client
        self._model = model
        self._random = random.Random(seed)

    def prompt(self, num_tokens: int) -> list[int]:
        return self._random.choices(_TOKEN_IDS, k=num_tokens)

    async def stream(self, prompt: list[int], num_tokens: int) -> _Stream:
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        seen = _Stream(time.perf_counter(), [], None)
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode()
                raise ProfileError(f"the worker refuses a prompt of {len(prompt)} tokens: {text}")
            async for line in response.aiter_lines():
                now_s = time.perf_counter()
                if '"choices":[{' in line:
                    seen.event_s.append(now_s)
                elif '"metrics":{' in line:
                    timing = msgspec.json.decode(line.removeprefix("data: "))["metrics"]
                    seen.engine_ms = timing["time_to_first_token_ms"] + timing["queue_time_ms"]
        return seen


async def measure(url: str, *, seed: int | None = None, rounds: int = 3) -> Measurement:
    """Measure the worker at `url`; two minutes on a CPU. ProfileError if it is no vLLM worker."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        try:
            card = (await client.get("/v1/models")).json()["data"][0]
            page = (await client.get("/metrics")).text
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise ProfileError(f"{url} is not a vLLM worker that can be measured: {error!r}") from error
        info = re.search(r"^vllm:cache_config_info\{(.*)\}", page, re.MULTILINE)
        blocks = dict(re.findall(r'(\w+)="([^"]*)"', info.group(1))) if info else {}
        prober = _Prober(client, card["id"], time.time_ns() if seed is None else seed)
        await prober.stream(prober.prompt(64), 4)  # the first request pays for what is made on first use
        lengths = [n for n in PROMPT_TOKENS if n + _DECODED_TOKENS < card["max_model_len"]]
        firsts = [await _first_tokens(prober, lengths) for _ in range(rounds)]
        steps = {batch: min([await _step(prober, batch) for _ in range(rounds)]) for batch in BATCHES}
        again = prober.prompt(lengths[-1])
        await prober.stream(again, 1)
        return Measurement(
            model=card["id"],
            block_size=int(blocks.get("block_size", 16)),
            num_kv_blocks=int(blocks.get("num_gpu_blocks", 1)),
            max_model_len=card["max_model_len"],
            overhead_ms=statistics.median(min(round_[n][1] for round_ in firsts) for n in lengths),
            first_token_ms={n: min(round_[n][0] for round_ in firsts) for n in lengths},
            cached_first_token_ms=min([(await prober.stream(again, 1)).first_ms for _ in range(rounds)]),
            step_ms=steps,
            long_step_ms=min([await _long_step(prober, min(_LONG_CONTEXT, lengths[-1])) for _ in range(rounds)]),
        )


async def _first_tokens(prober: _Prober, lengths: Sequence[int]) -> dict[int, tuple[float, float]]:
    found = {}
    for num_tokens in lengths:
        seen = await prober.stream(prober.prompt(num_tokens), 1)
        overhead = 0.0 if seen.engine_ms is None else max(seen.first_ms - seen.engine_ms, 0.0)
        found[num_tokens] = (seen.first_ms, overhead)
    return found


async def _step(prober: _Prober, batch: int) -> float:
    streams = await asyncio.gather(*(prober.stream(prober.prompt(PROMPT_TOKENS[0]), _DECODED_TOKENS) for _ in range(batch)))
    # The first gaps still see other prompts being prefilled.
    return statistics.median(seen.gap_ms(4) for seen in streams)


async def _long_step(prober: _Prober, num_tokens: int) -> float:
    return (await prober.stream(prober.prompt(num_tokens), _DECODED_TOKENS)).gap_ms(2)


def fit(measured: Measurement, name: str, source: str, *, max_num_seqs: int, max_num_batched_tokens: int) -> Profile:
    """The profile that explains the figures best."""
    rate, pair_ns, base_ms = _fit_prefill(measured)
    context_ns = max((measured.long_step_ms - measured.step_ms[1]) * 1e6 / _LONG_CONTEXT, 0.0)
    mean_context = PROMPT_TOKENS[0] + _DECODED_TOKENS / 2
    steps = [(0, base_ms)]
    for batch, ms in sorted(measured.step_ms.items()):
        # A bigger batch is not faster: where it seems so, something else was going on.
        steps.append((batch, max(ms - batch * mean_context * context_ns / 1e6, steps[-1][1])))
    return Profile(
        name=name,
        source=source,
        block_size=measured.block_size,
        num_kv_blocks=measured.num_kv_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=measured.max_model_len,
        request_overhead_ms=round(measured.overhead_ms, 2),
        prefill_tokens_per_s=round(rate, 1),
        step_ms=tuple((batch, round(ms, 2)) for batch, ms in steps),
        context_ns=round(context_ns, 1),
        prefill_context_ns=round(pair_ns, 2),
    )


def _fit_prefill(measured: Measurement) -> tuple[float, float, float]:
    """(tokens/s, ns a pair of tokens, ms of an empty step) of `ms = base + n / rate + n^2/2 * pair`, least squares of
    the relative error; the pair term is left out where it would be negative."""
    points = [(n, ms - measured.overhead_ms) for n, ms in measured.first_token_ms.items()]
    base_ms, per_token, per_pair = _least_squares([((1.0, n, n * n / 2), ms) for n, ms in points])
    if per_pair < 0:
        base_ms, per_token = _least_squares([((1.0, float(n)), ms) for n, ms in points])
        per_pair = 0.0
    smallest = min(ms for _, ms in points)
    return 1e3 / max(per_token, 1e-9), per_pair * 1e6, min(max(base_ms, 0.1), smallest)


def _least_squares(rows: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """The coefficients, by the normal equations; each row weighs as much as its relative error."""
    size = len(rows[0][0])
    matrix = [[0.0] * (size + 1) for _ in range(size)]
    for terms, value in rows:
        for i in range(size):
            for j in range(size):
                matrix[i][j] += terms[i] * terms[j] / value**2
            matrix[i][size] += terms[i] / value
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(matrix[row][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for j in range(size):
            if j != i:
                factor = matrix[j][i] / matrix[i][i]
                matrix[j] = [a - factor * b for a, b in zip(matrix[j], matrix[i], strict=True)]
    return [matrix[i][size] / matrix[i][i] for i in range(size)]


class _Content:
    """A prompt and an output of given lengths whose blocks are nobody else's."""

    def __init__(self, number: int, num_output_tokens: int) -> None:
        self._number = number
        self._num_output_tokens = num_output_tokens

    def reach(self, num_output_tokens: int) -> int:
        return min(num_output_tokens, self._num_output_tokens)

    def block_hashes(self, num_blocks: int) -> list[int]:
        return [self._number * 1_000_000 + at for at in range(num_blocks)]


def _simulate(profile: Profile, prompts: Sequence[tuple[int, int]], num_output_tokens: int) -> list[Job]:
    """Jobs of (number, prompt tokens) answered one batch at a time; the last of them."""
    engine = Engine(profile)
    jobs = [Job(_Content(number, num_output_tokens), length) for number, length in prompts]
    for job in jobs:
        engine.add(job, 0.0)
    engine.advance(float("inf"))
    return jobs


def simulate(profile: Profile, measured: Measurement) -> Measurement:
    """What `measure` would see of a worker with this profile."""

    def first_ms(num_tokens: int) -> float:
        (job,) = _simulate(profile, [(1, num_tokens)], 1)
        return ((job.first_token_s or 0.0) - job.arrived_s) * 1e3

    def gap_ms(batch: int, num_tokens: int) -> float:
        jobs = _simulate(profile, [(number, num_tokens) for number in range(batch)], _DECODED_TOKENS)
        job = jobs[-1]
        return ((job.last_token_s or 0.0) - (job.first_token_s or 0.0)) * 1e3 / (_DECODED_TOKENS - 1)

    longest = max(measured.first_token_ms)
    engine = Engine(profile)
    for start_s in (0.0, 1e6):
        again = Job(_Content(1, 1), longest)
        engine.add(again, start_s)
        engine.advance(float("inf"))
    return Measurement(
        model=measured.model,
        block_size=profile.block_size,
        num_kv_blocks=profile.num_kv_blocks,
        max_model_len=profile.max_model_len,
        overhead_ms=profile.request_overhead_ms,
        first_token_ms={n: first_ms(n) for n in measured.first_token_ms},
        cached_first_token_ms=((again.first_token_s or 0.0) - again.arrived_s) * 1e3,
        step_ms={batch: gap_ms(batch, PROMPT_TOKENS[0]) for batch in measured.step_ms},
        long_step_ms=gap_ms(1, min(_LONG_CONTEXT, longest)),
    )


def compare(profile: Profile, measured: Measurement) -> dict[str, float]:
    """Simulated / measured, figure by figure: 1 is a perfect calibration, 2 a simulation that is twice as slow."""
    simulated = simulate(profile, measured)
    ratios = {f"first_token_ms[{n}]": simulated.first_token_ms[n] / ms for n, ms in measured.first_token_ms.items()}
    ratios |= {f"step_ms[{batch}]": simulated.step_ms[batch] / ms for batch, ms in measured.step_ms.items()}
    ratios["cached_first_token_ms"] = simulated.cached_first_token_ms / measured.cached_first_token_ms
    ratios["long_step_ms"] = simulated.long_step_ms / measured.long_step_ms
    return ratios


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.simfleet.calibrate", description=__doc__)
    parser.add_argument("--url", required=True, help="a vLLM worker that nobody else uses")
    parser.add_argument("--name", default="measured", help="the profile's name")
    parser.add_argument("--source", default="measured with loadtest.simfleet.calibrate", help="where it is from")
    parser.add_argument("--max-num-seqs", type=int, default=128, help="the worker's flag, which HTTP does not tell")
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048, help="likewise")
    parser.add_argument("--rounds", type=int, default=3, help="of everything; the best counts")
    parser.add_argument("--out", type=Path, help="write the profile here")
    parser.add_argument("--against", help="compare with this profile and make none")
    options = parser.parse_args(arguments)
    try:
        measured = asyncio.run(measure(options.url, rounds=options.rounds))
        limits = {"max_num_seqs": options.max_num_seqs, "max_num_batched_tokens": options.max_num_batched_tokens}
        profile = load(options.against) if options.against else fit(measured, options.name, options.source, **limits)
    except ProfileError as error:
        print(f"simfleet: {error}", file=sys.stderr)
        return 1
    print(msgspec.json.format(msgspec.json.encode(measured)).decode())
    print(profile.to_json(), end="")
    for name, ratio in compare(profile, measured).items():
        print(f"simulated / measured  {name:<24} {ratio:.2f}")
    if options.out is not None:
        options.out.write_text(profile.to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
