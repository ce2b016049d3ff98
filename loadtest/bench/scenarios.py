"""What is measured and what it may cost: the scenarios, each a function from a running pair to rows of the table."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from loadtest.bench import meter
from loadtest.bench.answers import make_ask, prompt_text
from loadtest.bench.client import connected
from loadtest.bench.engine import TOKENS_UNREAD, Turns
from loadtest.bench.measure import Held, Load, cpu_us_a_unit, disturb_streams, hold_streams, kilo_instructions_a_unit
from loadtest.bench.processes import ALIAS, MODEL, Subject
from loadtest.bench.report import Bar, Kind, Row
from loadtest.bench.speed import CoreSpeed, Sample, chosen

_BODY_BYTES = 33_554_432  # the gateway's default bound
_MANY_MESSAGES = (prompt_text(950),) * 33_000
_PACE_S = 0.020
_SLOW_PACE_S = 0.250
_NOT_JUDGED = Bar(Kind.RATIO, None)


@dataclass(frozen=True)
class Scale:
    """How long to measure: `rounds`, and up to `max_rounds` until enough of them saw the core at full speed."""

    rounds: int
    max_rounds: int
    gap_rounds: int
    num_held_streams: int
    held_s: float
    num_bodies: int
    num_warm_requests: int
    num_requests: int


FULL = Scale(
    rounds=5,
    max_rounds=15,
    gap_rounds=3,
    num_held_streams=2000,
    held_s=9.0,
    num_bodies=5,
    num_warm_requests=30_000,
    num_requests=100_000,
)
QUICK = Scale(
    rounds=3,
    max_rounds=5,
    gap_rounds=1,
    num_held_streams=500,
    held_s=5.0,
    num_bodies=2,
    num_warm_requests=10_000,
    num_requests=10_000,
)


@dataclass(frozen=True)
class Pair:
    """The two that are compared, both running, and how to tell the user what is going on."""

    reference: Subject
    subject: Subject
    turns: Turns
    speed: CoreSpeed
    scale: Scale
    counts_instructions: bool
    say: Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    name: str
    what: str
    run: Callable[[Pair], Awaitable[list[Row]]]
    pace_s: float = 0.0  # of the workers


async def _cost(pair: Pair, *, name: str, load: Load, bar: Bar, with_alias: bool = False) -> list[Row]:
    """CPU a unit of work, reference and subject by turns; the alias is shown and not judged."""
    unit = "event" if load.stream else "request"
    sides = {"reference": (pair.reference, MODEL), "subject": (pair.subject, MODEL)}
    if with_alias:
        sides["alias"] = (pair.subject, ALIAS)
    samples: dict[str, list[Sample]] = {side: [] for side in sides}
    figures = None
    for number in range(pair.scale.max_rounds):
        for side, (subject, model) in sides.items():
            before_s = pair.speed.probe_s()
            us = await cpu_us_a_unit(subject, load, model, pair.turns)
            samples[side].append(Sample(us, max(before_s, pair.speed.probe_s())))
        pair.say(f"round {number + 1}: {_round_line(pair.speed, samples, unit)}")
        figures = chosen(pair.speed, list(samples.values()))
        if number + 1 >= pair.scale.rounds and figures is not None:
            break
    if figures is None:
        pair.say("fewer than three figures of one side were taken at full speed: all rounds count")
        figures = [[sample.figure for sample in taken] for taken in samples.values()]
    rows = [Row(name, f"us/{unit}", figures[0], figures[1], bar)]
    if with_alias:
        rows.append(Row(f"{name}, alias", f"us/{unit}", figures[0], figures[2], _NOT_JUDGED))
    return rows + await _instructions(pair, name, unit, load, bar)


def _round_line(speed: CoreSpeed, samples: Mapping[str, Sequence[Sample]], unit: str) -> str:
    slow = {side: "" if speed.at_full_speed(taken[-1:]) else " (slow core)" for side, taken in samples.items()}
    return ", ".join(f"{side} {taken[-1].figure:.1f} us/{unit}{slow[side]}" for side, taken in samples.items())


async def _instructions(pair: Pair, name: str, unit: str, load: Load, bar: Bar) -> list[Row]:
    """The same in instructions, which no neighbour changes, where they are counted."""
    if not pair.counts_instructions:
        return []
    theirs = await kilo_instructions_a_unit(pair.reference, load, MODEL, pair.turns)
    ours = await kilo_instructions_a_unit(pair.subject, load, MODEL, pair.turns)
    return [] if theirs is None or ours is None else [Row(f"{name}, instructions", f"ki/{unit}", [theirs], [ours], bar)]


async def _held_streams(pair: Pair) -> list[Row]:
    """Memory, delay and CPU while very many slow streams are open."""
    scale = pair.scale
    load = Load(scale.num_held_streams, 1, int(scale.held_s / _SLOW_PACE_S), stream=True, pace_s=_SLOW_PACE_S)
    held: dict[str, list[Held]] = {"reference": [], "subject": []}
    for number in range(scale.gap_rounds):
        for side, subject in (("reference", pair.reference), ("subject", pair.subject)):
            held[side].append(await hold_streams(subject, load, MODEL, ramp_s=scale.held_s * 0.2))
        pair.say(f"round {number + 1}: " + ", ".join(f"{side} gap p99 {held[side][-1].gap_p99_ms:.1f} ms" for side in held))
    ours, theirs = held["subject"], held["reference"]
    name = f"{load.num_clients:,} streams paced at 250 ms"
    return [
        # Memory once taken is not given back, so only the first round shows what a stream takes.
        Row(f"{name}: memory", "KiB/stream", [theirs[0].kib], [ours[0].kib], Bar(Kind.VALUE, 40)),
        Row(
            f"{name}: gap p99",
            "ms",
            [one.gap_p99_ms for one in theirs],
            [one.gap_p99_ms for one in ours],
            Bar(Kind.EXCESS, 5),
        ),
        Row(f"{name}: CPU", "us/event", [one.cpu_us for one in theirs], [one.cpu_us for one in ours], _NOT_JUDGED),
    ]


async def _large_bodies(pair: Pair) -> list[Row]:
    """Whether a body of the largest size, in one message or in very many, holds up the streams beside it."""
    load = Load(64, 1000, 65, stream=True, pace_s=_PACE_S)  # until the bodies are through
    rows = []
    for what, contents in (("one message", (prompt_text(_BODY_BYTES - 128),)), ("32,000 messages", _MANY_MESSAGES)):
        raised: dict[str, list[float]] = {"reference": [], "subject": []}
        for number in range(pair.scale.gap_rounds):
            for side, subject in (("reference", pair.reference), ("subject", pair.subject)):
                body = make_ask(f"127.0.0.1:{subject.port}", subject.key, MODEL, TOKENS_UNREAD, contents=contents)
                disturbed = await disturb_streams(subject, load, MODEL, body, pair.scale.num_bodies)
                raised[side].append(disturbed.raised_ms)
            pair.say(f"round {number + 1}: " + ", ".join(f"{side} raised by {raised[side][-1]:.1f} ms" for side in raised))
        name = f"32 MiB body ({what}) beside 64 streams: gap p99 raised by"
        rows.append(Row(name, "ms", raised["reference"], raised["subject"], Bar(Kind.VALUE, 5)))
    return rows


async def _flat_memory(pair: Pair) -> list[Row]:
    """Whether memory stays where it is: chats, one in eight of them streamed."""
    num_requests = pair.scale.num_requests
    grown, mib = [], []
    for subject in (pair.reference, pair.subject):
        await _chats(subject, pair.scale.num_warm_requests, pair.turns)
        warm_bytes = meter.rss_bytes(subject.pid)
        await _chats(subject, num_requests, pair.turns)
        end_bytes = meter.rss_bytes(subject.pid)
        grown.append((end_bytes / warm_bytes - 1) * 100)
        mib.append(end_bytes / 2**20)
        pair.say(f"{subject.name}: {warm_bytes / 2**20:.1f} MiB warm, {end_bytes / 2**20:.1f} MiB at the end")
    name = f"memory over {num_requests:,} requests"
    return [
        Row(f"{name}: growth", "%", grown[:1], grown[1:], Bar(Kind.VALUE, 5)),
        Row(f"{name}: at the end", "MiB", mib[:1], mib[1:], _NOT_JUDGED),
    ]


async def _chats(subject: Subject, num_requests: int, turns: Turns) -> None:
    plain = Load(64, 7, 16)
    streamed = Load(64, 1, 8, stream=True)
    async with connected(subject.port, 64, streamed.watch(turns)) as crew:
        for _ in range(max(1, num_requests // (64 * 8))):
            await crew.ask(plain.ask_of(subject, MODEL), plain.times)
            await crew.ask(streamed.ask_of(subject, MODEL), streamed.times)


def _cost_scenario(name: str, what: str, load: Load, limit: float, moonshot: float, with_alias: bool = False) -> Scenario:
    bar = Bar(Kind.RATIO, limit, moonshot)
    return Scenario(name, what, partial(_cost, name=what, load=load, bar=bar, with_alias=with_alias), load.pace_s)


SCENARIOS: Sequence[Scenario] = (
    _cost_scenario("chat", "chat, 64 clients", Load(64, 80, 16), 7, 4),
    _cost_scenario("prompt", "chat, 64 clients, 64 KB prompt", Load(64, 25, 16, prompt_bytes=65_536), 8, 4),
    _cost_scenario("flat-out", "64 streams of 129 events, flat out", Load(64, 5, 128, True), 1.5, 1.2, True),
    _cost_scenario("paced-64", "64 streams of 66 events at 20 ms", Load(64, 1, 65, True, _PACE_S), 1.5, 1.3, True),
    _cost_scenario("paced-512", "512 streams of 66 events at 20 ms", Load(512, 1, 65, True, _PACE_S), 1.5, 1.3, True),
    Scenario("held", "very many streams, paced at 250 ms: memory and gaps", _held_streams, _SLOW_PACE_S),
    Scenario("body", "32 MiB bodies beside paced streams: gaps", _large_bodies, _PACE_S),
    Scenario("memory", "memory over many requests", _flat_memory),
)
