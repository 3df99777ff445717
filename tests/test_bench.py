"""`make bench`: the figures and the page that it promises, by a run of tiny size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.floors import FLOORS, Floor
from bench.load import LOADS, TABLE
from bench.many_shards import Measured, need
from bench.many_shards import measured as measured_of_shards
from bench.markdown import table
from bench.parts import PARTS
from bench.patterns import PATTERNS
from bench.percentile import percentile
from bench.report import _budgets, _scale, with_costs, with_many_shards, with_summary
from bench.results import Results
from bench.rivals.child import GO, Child, answer
from bench.scale import divided
from bench.sizes import QUICK

from writebehind.route import shard_of
from writebehind_worker.testing.servers import new_data_dir

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Its servers have their folder where ours have theirs."""
    folder = new_data_dir()
    yield os.environ | {"TMPDIR": str(folder)}
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The folder in which a quick run of four parts has left its figures and its page."""
    folder = tmp_path_factory.mktemp("bench")
    arguments = ["--quick", "--only", "counters,batch_sizes,put,lag", "--json", f"{folder}/latest.json"]
    command = [sys.executable, "-m", "bench", *arguments, "--docs", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return folder


def found(measured: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((measured / "latest.json").read_text())
    return figures


def test_a_part_has_the_members_that_are_promised(measured: Path) -> None:
    figures = found(measured)
    assert figures["counters"]["writes_per_s"] > 0
    assert figures["counters"]["ratio_to_afternoon"] > 0
    assert figures["counters"]["ratio_to_limit"] > 0
    assert figures["put"]["ratio_to_pipelined_pair"] > 0
    assert figures["put"]["ratio_to_naive_pair"] > 0
    assert figures["put"]["threads"].keys() == {"1", "8"}
    assert figures["lag_half_load"]["p99_ms"] >= figures["lag_half_load"]["p50_ms"] > 0
    assert all(load["between_flushes_ms"] > load["flush_ms"] > 0 for load in figures["lag"]["loads"])
    assert figures["lag"]["redis_unsynced"]["p99_ms"] >= figures["lag"]["redis_unsynced"]["p50_ms"] > 0
    for load in figures["lag"]["loads"]:
        assert load["cores"].keys() == {"process", "redis", "postgres", "bench"}
        assert 0 < sum(load["cores"].values()) <= figures["about"]["machine"]["cores"]
    assert figures["batch_sizes"].keys() == {"5000", "20000"}
    for size in figures["batch_sizes"].values():
        assert size["writes_per_s"] > 0
        assert size["longest_claim_ms"] >= size["claim_ms"] > 0
    assert figures["batch_sizes"]["5000"]["ratio_to_default"] == 1
    assert set(figures["about"]["parts"]) == {"counters", "batch_sizes", "put", "lag"}


def test_each_rival_has_its_runs_and_the_cpu_time_of_each_process(measured: Path) -> None:
    rivals = found(measured)["counters"]["rivals"]
    assert rivals.keys() == {"writebehind", "limit", "afternoon"}
    for rival in rivals.values():
        assert len(rival["runs"]) == QUICK.rounds
        assert rival["cpu_us_per_write"].keys() == {"process", "redis", "postgres"}


def test_the_page_shows_what_was_measured_and_its_plots(measured: Path) -> None:
    page, rate = (measured / "benchmarks.md").read_text(), found(measured)["counters"]["writes_per_s"]
    assert f"{rate:,}" in page
    for plot in ("drain", "put", "lag"):
        assert f"(benchmarks-{plot}.svg)" in page
        assert (measured / f"benchmarks-{plot}.svg").read_text().startswith("<svg")
    assert "durability ladder" not in page, "not measured"


def test_what_a_floor_allows_is_what_the_cores_have_for_that_rate() -> None:
    rivals = {
        "writebehind": {"cpu_us_per_write": {"process": 3.0, "redis": 2.0, "postgres": 1.0}},
        "afternoon": {"writes_per_s": 100_000},
    }
    about = {"machine": {"cores": 2}}
    text = _budgets({"about": about, "hot_keys": {"rivals": rivals}}, 2)
    assert "| hot keys, writes/s ≥ 400,000 |             5.00 |  6.00 |  1.20 |" in text
    assert "afternoon ≥ 5    |             4.00 |  6.00 |  1.50 |" in text


def test_what_the_floor_of_shards_allows_is_reckoned_with_what_a_unique_update_costs() -> None:
    cpu = {"writebehind": {"cpu_us_per_write": {"process": 3.0, "redis": 4.0, "postgres": 3.0}}}
    measured: dict[str, Any] = {"scale": {"shards": {"2": {"limit": {"writes_per_s": 400_000}}}}}
    assert _budgets(measured, 2).count("\n") == 1
    measured["unique_updates"] = {"rivals": cpu}
    (row,) = _budgets(measured, 2).splitlines()[2:]  # 240,000 writes a second, for which there are 2 cores
    assert row == "| 2 shards, 2 processes, of 2 bare connections ≥ 0.6 |             8.33 | 10.00 |  1.20 |"


def test_a_rival_keeps_its_connections_until_what_they_used_is_read() -> None:
    with Child(answer, int) as child:
        child.wait_until_ready()
        assert child.ask(GO) == 0
        child._process.join(0.5)
        assert child._process.is_alive()


def test_shards_are_measured_beside_as_many_bare_connections_and_idle(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    arguments = [
        "--quick",
        "--only",
        "scale,idle",
        "--json",
        f"{tmp_path}/latest.json",
        "--docs",
        f"{tmp_path}",
    ]
    subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT, env=environment, check=True)
    scale = found(tmp_path)["scale"]
    assert scale["shards"].keys() == {str(shards) for shards in QUICK.shards}
    for shards, figures in scale["shards"].items():
        assert scale[f"ratio_to_limit_{shards}"] == figures["n_processes"]["ratio_to_limit"] > 0
        assert [figures[name]["processes"] for name in ("one_process", "n_processes")] == [1, int(shards)]
        assert all(len(one["runs"]) == QUICK.rounds for one in figures.values())
        assert figures["one_process"]["most_shards_of_a_process"] == int(shards)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| shards: 2, processes: 2 |" in page
    assert "| shards: 2, queues served: 3 |" in page
    for shards, figures in found(tmp_path)["idle"].items():
        queues = int(shards) + 1  # the queue itself is served, too
        assert (figures["queues"], figures["postgres_connections"]) == (queues, queues)


def test_what_the_cores_allow_shards_is_what_a_write_costs() -> None:
    cpu = {"writebehind": {"cpu_us_per_write": {"process": 3.0, "redis": 4.0, "postgres": 3.0}}}
    ours = {"processes": 2, "writes_per_s": 80_000, "ratio_to_limit": 0.2}
    ours |= {"busiest_process_cores": 0.3, "most_shards_of_a_process": 1}
    shards = {"2": {"limit": {"writes_per_s": 400_000}, "one_process": ours, "n_processes": ours}}
    measured: dict[str, Any] = {"about": {"machine": {"cores": 2}}, "scale": {"shards": shards}}
    assert "| 400,000 |         0.20 |               - |" in _scale(measured)
    measured["unique_updates"] = {"rivals": cpu}
    assert "| 400,000 |         0.20 |            0.50 |" in _scale(measured)


def test_a_load_is_divided_as_the_library_divides_it_and_nothing_is_left_out() -> None:
    load = LOADS["unique_updates"](QUICK)
    parts = divided(load, 4)
    assert sorted(id for part in parts for id, _ in part.writes) == sorted(id for id, _ in load.writes)
    for number, part in enumerate(parts):
        assert part.writes
        assert {shard_of(TABLE, str(id), 4) for id, _ in part.writes} == {number}


def test_the_page_of_the_patterns_tells_what_they_cost_as_measured_last() -> None:
    last, page = json.loads((ROOT / "bench" / "latest.json").read_text()), ROOT / "docs" / "patterns.md"
    assert last["patterns"].keys() == PATTERNS.keys()
    assert with_costs(page.read_text(), last) == page.read_text(), "run `make bench`"
    assert all(f"| {name} " in page.read_text() for name in PATTERNS)


def test_parts_measured_on_this_machine_before_are_kept(tmp_path: Path) -> None:
    path, machine = tmp_path / "latest.json", {"cpu": "one"}
    Results(path, machine, "default").add("put", {"put": {"figure": 1}}, 1)
    Results(path, machine, "default").add("lag", {"lag": {"figure": 2}}, 1)
    assert json.loads(path.read_text()).keys() == {"about", "put", "lag"}
    Results(path, {"cpu": "another"}, "default").add("lag", {"lag": {"figure": 3}}, 1)
    assert json.loads(path.read_text()).keys() == {"about", "lag"}


def test_an_unknown_part_is_refused() -> None:
    command = [sys.executable, "-m", "bench", "--only", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no such part; there are unique_inserts" in done.stderr


def test_a_floor_is_reached_from_above_and_a_ceiling_from_below() -> None:
    assert Floor("put", "ratio", "", 0.8).is_reached(0.8)
    assert not Floor("put", "ratio", "", 0.8).is_reached(0.79)
    assert not Floor("lag", "p99_ms", "", 25, is_ceiling=True).is_reached(25.1)
    assert {floor.part for floor in FLOORS} <= {*PARTS, "lag_half_load"}


def test_percentiles_are_figures_that_occur() -> None:
    assert percentile([1, 2, 3, 4], 50) == 2
    assert percentile([1, 2, 3, 4], 99) == 4
    assert percentile([7], 99.9) == 7


def test_a_load_is_the_same_each_time() -> None:
    for make in LOADS.values():
        assert make(QUICK) == make(QUICK)


def test_a_table_is_aligned_markdown() -> None:
    lines = table(("", "a"), [("x", 1234), ("y", None)]).splitlines()
    assert lines == ["|     |     a |", "| --- | ----: |", "| x   | 1,234 |", "| y   |     - |"]


def test_the_page_of_scaling_tells_what_was_measured_last() -> None:
    last, page = json.loads((ROOT / "bench" / "latest.json").read_text()), ROOT / "docs" / "scaling.md"
    assert with_many_shards(page.read_text(), last) == page.read_text(), "run `make bench`"


def test_the_readme_tells_what_was_measured_last() -> None:
    last, page = json.loads((ROOT / "bench" / "latest.json").read_text()), ROOT / "README.md"
    told = with_summary(page.read_text(), last)
    assert told == page.read_text(), "run `make bench`"
    assert f"{last['unique_updates']['ratio_to_limit']:.2f} of what one" in told
    assert with_summary(told, {**last, "put": {}}) == told, "not all was measured"


_ONE = Measured(20, 3000, 3, 0.0004, 0.002, 5, 6, 5)


def test_what_many_shards_need_grows_with_shards_and_with_writes() -> None:
    for shards in (10, 100, 1000):
        idle, busy = need(_ONE, shards, 0), need(_ONE, shards, 1_000_000)
        assert idle.postgres_connections == busy.postgres_connections == shards + 1
        assert busy.worker_cores >= 8 > idle.worker_cores  # 5 s of CPU a second, at 0.7 of a core
        for need_of in (idle, busy):  # each further process looks at every queue, six commands a second
            assert need_of.idle_commands_per_s == (20 + 6 * (need_of.worker_cores - 1)) * (shards + 1)
        assert busy.redis_cores >= 20 > idle.redis_cores  # 8 s to accept them, 6 s until they are settled
        assert 600 <= busy.megabytes_per_s - idle.megabytes_per_s < 610
    assert need(_ONE, 10, 0).stops == "-"
    assert need(_ONE, 10, 1_000_000).stops == "one Redis"
    assert need(_ONE, 1000, 10_000_000).stops == "one Redis, Postgres' connections, one Postgres"


def test_nothing_is_said_of_many_shards_before_few_are_measured() -> None:
    assert measured_of_shards({}) is None
    page = "<!-- many shards, written by make bench -->\n<!-- end of many shards -->"
    assert "Not measured yet." in with_many_shards(page, {})
