"""Policies side by side on a trace, in virtual time: how runs come to be, and the bar that the default policy has to pass."""

import random
from pathlib import Path

import orjson
import pytest

from sluice.cli import main
from sluice.policies.least_inflight import LeastInflight
from sluice.policies.prefix_affinity import PrefixAffinity
from sluice.policies.round_robin import RoundRobin
from sluice.replay.engine import Engine, EngineModel
from sluice.replay.gateways import Gateways
from sluice.replay.references import Oracle, RandomChoice, pooled_hit_rate
from sluice.replay.simulate import simulate
from sluice.replay.study import BOUND, Study, rows_of, run_all
from sluice.replay.trace import Trace, conversations

TRACE = conversations(800, seed=5)
MODEL = EngineModel(kv_blocks=300, block_tokens=64)


def arrivals(load: float = 0.7, seed: int = 0, trace: Trace = TRACE):
    return trace.arrivals(tokens_per_s=load * 4 * MODEL.prefill_tokens_per_s, rng=random.Random(seed))


def engines() -> list[Engine]:
    return [Engine(MODEL) for _ in range(4)]


def test_every_call_is_answered_and_nothing_is_held_at_the_end():
    everyone = engines()
    gateways = Gateways([LeastInflight(1), LeastInflight(2)], everyone, seed=1)
    run = simulate(arrivals(), everyone, gateways)
    assert len(run.ttft_s) == len(TRACE.requests) and run.prompt_tokens == TRACE.prompt_tokens
    assert run.cached_tokens + sum(run.worker_tokens) == run.prompt_tokens
    assert 0 < run.quantile_s(0.5) <= run.quantile_s(0.9) <= run.quantile_s(0.99) <= run.ttft_s[-1]
    assert not gateways._held
    for gateway in gateways._gateways:
        assert all(worker.in_flight == worker.prefill_tokens == 0 for worker in gateway.workers)
    assert all(engine.cache.usage == 0 and not engine.waiting for engine in everyone)


def test_round_robin_gives_everyone_as_many_and_one_engine_gets_all():
    run = simulate(arrivals(), everyone := engines(), Gateways([RoundRobin()], everyone, seed=1))
    assert 1 <= run.imbalance < 1.3
    alone = [Engine(MODEL)]
    assert simulate(arrivals(0.2), alone, RandomChoice(alone, 1)).imbalance == 1


def test_gateways_see_the_load_of_the_last_scrape_and_their_own_part_of_it():
    everyone = engines()
    gateways = Gateways([LeastInflight(1), LeastInflight(2)], everyone, seed=1)
    seen = []

    class Watching(LeastInflight):
        def pick(self, candidates, call, now):
            seen.append([(now - worker.load.read_at, worker.load) for worker in candidates if worker.load])
            return super().pick(candidates, call, now)

    gateways = Gateways([Watching(1), LeastInflight(2)], everyone, seed=1)
    simulate(arrivals(), everyone, gateways)
    loads = [load for one in seen for _, load in one]
    assert all(age_s >= 0 for one in seen for age_s, _ in one)
    assert all(load.num_ours <= load.num_running + load.num_waiting for load in loads)
    assert any(load.num_ours < load.num_running + load.num_waiting for load in loads)


def test_conversations_that_stay_with_their_gateway_find_what_they_left():
    def hit_rate(*, sticky: bool) -> float:
        everyone = engines()
        policies = [PrefixAffinity(1), PrefixAffinity(2)]
        return simulate(arrivals(), everyone, Gateways(policies, everyone, seed=1, sticky=sticky)).hit_rate

    assert hit_rate(sticky=True) > hit_rate(sticky=False)


@pytest.mark.parametrize("num_gateways", [2, 4])
def test_gateways_that_tell_each_other_hit_as_much_as_one(num_gateways):
    """Calls go to any of them; what they tell is heard 50 ms later, or never."""

    def run(num: int, late_s: float | None):
        everyone = engines()
        policies = [PrefixAffinity(seed) for seed in range(num)]
        return simulate(arrivals(), everyone, Gateways(policies, everyone, seed=1, notes_late_s=late_s))

    one, telling, silent = run(1, None), run(num_gateways, 0.05), run(num_gateways, None)
    assert telling.hit_rate >= 0.97 * one.hit_rate
    assert silent.hit_rate < 0.9 * one.hit_rate
    assert telling.mean_s < silent.mean_s


def test_the_oracle_waits_least_and_no_placement_hits_much_more_than_one_pooled_cache():
    everyone = engines()
    oracle = simulate(arrivals(), everyone, Oracle(everyone, 1))
    everyone = engines()
    blind = simulate(arrivals(), everyone, RandomChoice(everyone, 1))
    assert oracle.mean_s < blind.mean_s / 2
    assert oracle.hit_rate <= pooled_hit_rate(arrivals(), 4 * MODEL.kv_blocks, 64) * 1.02


def study(**changes) -> Study:
    asked = {
        "trace": TRACE,
        "model": MODEL,
        "policies": ["prefix_affinity", "least_inflight", "round_robin", "oracle"],
        "loads": [0.7, 0.9],
        "kv_blocks": [300],
        "num_workers": 4,
        "num_seeds": 3,
    }
    return Study(**asked | changes)


def test_it_makes_no_difference_how_many_processes_run_a_study():
    small = study(loads=[0.7], num_seeds=2, trace=conversations(150, seed=2))
    one, two = run_all(small, num_processes=1), run_all(small, num_processes=2)
    assert {case: figures[:6] for case, figures in one.items() if case.policy != BOUND} == {
        case: figures[:6] for case, figures in two.items() if case.policy != BOUND
    }


def test_prefix_affinity_passes_the_bar_on_made_up_chats():
    """The bar of the study on the Mooncake trace, on three seeds of traffic that needs no data. `make study` has the rest."""
    rows = {(row.load, row.policy): row for row in rows_of(study(), run_all(study()))}
    for load in (0.7, 0.9):
        ours = rows[load, "prefix_affinity"]
        assert ours.mean_ratio < 1.10 and ours.p90_ratio < 1.15
        assert ours.figures.mean_s < rows[load, "least_inflight"].figures.mean_s
        assert ours.figures.mean_s < 0.5 * rows[load, "round_robin"].figures.mean_s
        assert ours.figures.hit_rate > 0.85 * rows[load, BOUND].figures.hit_rate


def command(*words: str) -> int:
    async def no_server(settings, *, on_ready=None):
        raise AssertionError

    return main(["replay", *words], run_server=no_server)


def test_the_command_prints_a_table_and_writes_json_and_a_picture(tmp_path: Path, capsys):
    json, plot = tmp_path / "rows.json", tmp_path / "plot.svg"
    words = ["--requests", "120", "--policy", "least_inflight", "--policy", "oracle", "--workers", "2", "--load", "0.5"]
    assert command("synthetic", *words, "--json", str(json), "--plot", str(plot), "--pick-cost") == 0
    said = capsys.readouterr().out
    assert "least_inflight" in said and "2 runs of 120 requests" in said and "a pick takes least_inflight " in said
    assert [row["policy"] for row in orjson.loads(json.read_bytes())] == ["least_inflight", "oracle", BOUND]
    assert b"<svg" in plot.read_bytes()


@pytest.mark.parametrize(
    "words, said",
    [
        (["none.jsonl"], "none.jsonl: No such file or directory"),
        (["synthetic", "--policy", "nobody"], "routes.NAME.policy"),
        (["synthetic", "--requests", "50", "--kv-blocks", "3"], "--kv-blocks 3 cannot hold the longest request, which needs"),
        (["synthetic", "--requests", "50", "--policy", "oracle", "--plot", "x.nonsense"], "cannot write x.nonsense"),
        (["synthetic", "--requests", "50", "--policy", "oracle", "--json", "/no/where"], "cannot write /no/where: No such"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(capsys, words, said):
    assert command(*words) == 1
    told = capsys.readouterr().err
    assert told.startswith("sluice: ") and said in told and told.count("\n") == 1


@pytest.mark.parametrize("words", [["--load", "0"], ["--load", "9"], ["--workers", "0"], ["--seeds", "many"]])
def test_arguments_that_make_no_sense_are_refused(capsys, words):
    with pytest.raises(SystemExit) as caught:
        command("synthetic", *words)
    assert caught.value.code == 2


def test_without_matplotlib_a_plot_is_refused_with_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    words = ["--requests", "50", "--policy", "oracle", "--plot", str(tmp_path / "x.png")]
    assert command("synthetic", *words) == 1
    assert "pip install 'sluice[plots]'" in capsys.readouterr().err
