"""What is shown of latest.json: the tables on the terminal, and docs/benchmarks.md with its plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .floors import FLOORS, Floor
from .load import LOADS
from .many_shards import Need, measured, needs
from .markdown import table
from .plots import PLOTS
from .sizes import DEFAULT
from .summary import BEGIN, END, summary

Found = Mapping[str, Any]

_RIVALS = ("limit", "afternoon", "one_by_one")
_COSTS, _END = "<!-- costs, written by make bench -->", "<!-- end of costs -->"
_MANY, _END_OF_MANY = "<!-- many shards, written by make bench -->", "<!-- end of many shards -->"
_HOW = (Path(__file__).parent / "how.md").read_text()


def tables(found: Found) -> Iterator[tuple[str, str]]:
    """Title and table of each section that has been measured."""
    cores = found["about"]["machine"]["cores"]
    sections = {
        "Floors": _floors(found),
        "Draining a queue, writes/s": _rates(found),
        "CPU µs a write": _cpu(found),
        f"What {cores} cores allow": _bounds(found, cores),
        f"What a write may cost on {cores} cores, CPU µs": _budgets(found, cores),
        "Hot keys, by the writes of a batch": _batch_sizes(found),
        "Writing from an application": _put(found),
        "What a call is made of, µs": _made_of(found),
        "The durability ladder, µs a put": _ladder(found),
        "Patterns, µs a call": _patterns(found),
        "Lag, ms from accepted to committed": _lag(found),
        "Lag at half load, ms, by when Redis' log goes to the disk that both use": _synced(found),
        "Where a batch spends its time, ms": _stages(found),
        "Cores that these streams keep busy": _cores(found),
        "What waits": _backlog(found),
        "Rows in the table": _table_size(found),
        "Shards": _scale(found),
        "Shards that nobody writes to": _idle(found),
        "Task queues, a task a write": _task_queues(found),
    }
    for title, text in sections.items():
        if text.count("\n") > 1:
            yield title, text


def write_document(found: Found, folder: Path) -> None:
    """benchmarks.md and the plots that it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = {name: svg for name, plot in PLOTS.items() if (svg := plot(found))}
    for name, svg in shown.items():
        (folder / f"benchmarks-{name}.svg").write_text(svg)
    parts = ["# Benchmarks", _preface(found)]
    parts += [f"![{name}](benchmarks-{name}.svg)" for name in shown]
    parts += [f"## {title}\n\n{text}" for title, text in tables(found)]
    parts += [_HOW.strip(), _settings(found)]
    (folder / "benchmarks.md").write_text("\n\n".join(parts) + "\n")
    for name, filled in (("patterns.md", with_costs), ("scaling.md", with_many_shards)):
        if (page := folder / name).exists():
            page.write_text(filled(page.read_text(), found))
    if (page := folder.parent / "README.md").exists():
        page.write_text(with_summary(page.read_text(), found))


def with_summary(page: str, found: Found) -> str:
    """README.md with what it says of speed, between its two marks; as it was if that is not measured."""
    told = summary(found)
    return page if told is None else _between(page, BEGIN, told, END)


def with_costs(page: str, found: Found) -> str:
    """docs/patterns.md with what its patterns cost, between its two marks."""
    costs = "\n\n".join(filter(None, (_patterns(found), _ladder(found))))
    return _between(page, _COSTS, costs, _END)


def with_many_shards(page: str, found: Found) -> str:
    """docs/scaling.md with what was measured of shards, and what follows from it for many."""
    parts = [_scale(found), _idle(found), _many_shards(found)]
    shown = [part for part in parts if part.count("\n") > 1]
    return _between(page, _MANY, "\n\n".join(shown) or "Not measured yet.", _END_OF_MANY)


def _between(page: str, begin: str, text: str, end: str) -> str:
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    return f"{before}{found_begin}\n{text}\n{found_end}{after}" if found_end else page


def _preface(found: Found) -> str:
    machine, measured = found["about"]["machine"], found["about"]["parts"].values()
    days = sorted({part["at"][:10] for part in measured})
    return (
        "Written by `make bench` from `bench/latest.json`; no figure is typed by hand. "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; "
        f"{machine['redis']}, {machine['postgres']}, Python {machine['python']}; {', '.join(days)}. "
        f"Each figure is the median of at least {DEFAULT.rounds} rounds. All processes share the cores: "
        "the ratios say more than the rates."
    )


def _floors(found: Found) -> str:
    rows = []
    for floor in FLOORS:
        figure = floor.figure(found)
        if figure is not None:
            bound = f"{'<' if floor.is_ceiling else '≥'} {floor.bound:,g}"
            rows.append((floor.title, figure, bound, "yes" if floor.is_reached(figure) else "not yet"))
    return table(("", "measured", "floor", "reached"), rows)


def _rates(found: Found) -> str:
    rows = []
    for load in (found[name] for name in LOADS if name in found):
        rates = [load["rivals"].get(rival, {}).get("writes_per_s") for rival in _RIVALS]
        ratios = load["ratio_to_limit"], load["ratio_to_afternoon"]
        rows.append((load["title"], load["writes_per_s"], *rates, *ratios))
    head = ("", "writebehind", "limit", "afternoon", "one by one", "of the limit", "× afternoon")
    return table(head, rows)


def _cpu(found: Found) -> str:
    rows = []
    for load in (found[name] for name in LOADS if name in found):
        ours, *others = (
            load["rivals"].get(name, {}).get("cpu_us_per_write") for name in ("writebehind", *_RIVALS)
        )
        sums = (sum(cpu.values()) if cpu else None for cpu in others)
        rows.append((load["title"], *ours.values(), float(sum(ours.values())), *sums))
    return table(("", "worker", "Redis", "Postgres", "sum", "limit", "afternoon", "one by one"), rows)


def _at_most(load: Found, cores: int) -> float | None:
    """Writes a second that keep every core busy; ``None`` where the load was too short to be seen."""
    cpu_us = sum(load["rivals"]["writebehind"]["cpu_us_per_write"].values())
    return cores * 1e6 / cpu_us if cpu_us else None


def _bounds(found: Found, cores: int) -> str:
    """The rates at which worker, Redis and Postgres together keep every core busy."""
    rows = []
    for load in (found[name] for name in LOADS if name in found):
        at_most = _at_most(load, cores)
        if at_most is None:
            continue
        limit, afternoon = (load["rivals"][name]["writes_per_s"] for name in ("limit", "afternoon"))
        ratios = at_most / limit, at_most / afternoon, load["writes_per_s"] / at_most
        rows.append((load["title"], round(at_most), *ratios))
    return table(("", "writes/s at most", "of the limit", "× afternoon", "of this reached"), rows)


def _asked(floor: Floor, found: Found) -> tuple[float, float] | None:
    """The rate that a floor of a rate asks for, and the CPU µs that a write costs."""
    compared = floor.member.removeprefix("ratio_to_")
    if floor.part == "scale":  # their writes are unique updates
        shards = found.get("scale", {}).get("shards", {}).get(compared.removeprefix("limit_"))
        rivals = {compared: shards["limit"]} if shards else {}
        load = found.get("unique_updates")
    else:
        load = found.get(floor.part) if floor.part in LOADS else None
        rivals = load["rivals"] if load else {}
    if load is None or (compared not in rivals and floor.member != "writes_per_s"):
        return None
    used = float(sum(load["rivals"]["writebehind"]["cpu_us_per_write"].values()))
    rate = floor.bound * (rivals[compared]["writes_per_s"] if compared in rivals else 1)
    return (rate, used) if used else None


def _budgets(found: Found, cores: int) -> str:
    """What worker, Redis and Postgres together may spend on a write, for the floors of the rates."""
    rows = []
    for floor in FLOORS:
        if (asked := _asked(floor, found)) is not None:
            rate, used = asked
            allowed = cores * 1e6 / rate
            rows.append((f"{floor.title} ≥ {floor.bound:,g}", allowed, used, used / allowed))
    return table(("", "the floor allows", "spent", "of it"), rows)


def _batch_sizes(found: Found) -> str:
    rows = [
        (f"{int(size):,}", f["writes_per_s"], f["ratio_to_default"], *f["cpu_us_per_write"].values(),
         f["claim_ms"], f["longest_claim_ms"])
        for size, f in found.get("batch_sizes", {}).items()
    ]  # fmt: skip
    cpu = "CPU µs a write, worker", "Redis", "Postgres"
    return table(("", "writes/s", "× default", *cpu, "a claim in Redis, ms", "the longest, ms"), rows)


def _put(found: Found) -> str:
    rows = []
    for part in (found[name] for name in ("put", "put_batch_100", "put_batch_1000") if name in found):
        for threads, figures in part["threads"].items():
            ours = figures["rivals"]["writebehind"]["writes_per_s"]
            for name, figure in figures["rivals"].items():
                what = f"{part['batch']:,} a call, {threads} thread{'s' if threads != '1' else ''}"
                rows.append((what, name, *figure.values(), ours / figure["writes_per_s"]))
    return table(("", "", "writes/s", "p50 µs a call", "p99 µs a call", "writebehind is ×"), rows)


def _made_of(found: Found) -> str:
    """One write a call, one thread; and what a call may take by the floor."""
    part = found.get("put", {})
    names = {"nothing": "nothing: PING", "pipeline": "SET + LPUSH, pipelined", "naive": "SET, LPUSH"}
    rows = [
        (names.get(name, name), c["p50_us"], c["application_us"], c["redis_us"])
        for name, c in part.get("made_of", {}).items()
    ]
    for floor in (f for f in FLOORS if f.member == "ratio_to_naive_pair" and rows):
        allowed = 1e6 / part["rivals"]["naive"]["writes_per_s"] / floor.bound
        rows.append((f"{floor.bound:g} × naive would be", allowed, "", ""))
    return table(("", "p50", "CPU, application", "CPU, Redis"), rows)


def _ladder(found: Found) -> str:
    rungs = found.get("ladder", {})
    return table(("", "p50", "p99"), [(name, *figures.values()) for name, figures in rungs.items()])


def _patterns(found: Found) -> str:
    rows = [
        (name, *(f["writebehind"].values()), *(f["by hand"].values()), f["ratio"])
        for name, f in found.get("patterns", {}).items()
    ]
    head = ("", "p50", "p99", "by hand, p50", "by hand, p99", "× by hand")
    return table(head, rows)


def _loads(found: Found) -> list[dict[str, Any]]:
    loads: list[dict[str, Any]] = found.get("lag", {}).get("loads", [])
    return loads


def _lag(found: Found) -> str:
    head = ("write delay, ms", "load, %", "writes/s", "p50", "p99", "p99.9", "a flush", "from flush to flush")
    rows = [tuple(value for value in load.values() if not isinstance(value, dict)) for load in _loads(found)]
    return table(head, rows)


def _synced(found: Found) -> str:
    unsynced = found.get("lag", {}).get("redis_unsynced")
    ways = {"each second": found["lag_half_load"], "left to the system": unsynced} if unsynced else {}
    rows = [(way, f["p50_ms"], f["p99_ms"], f["p999_ms"]) for way, f in ways.items()]
    return table(("", "p50", "p99", "p99.9"), rows)


def _stages(found: Found) -> str:
    loads = _loads(found)
    rows = [(load["write_delay_ms"], load["load_percent"], *load["stages_ms"].values()) for load in loads]
    return table(("write delay, ms", "load, %", *(loads[0]["stages_ms"] if loads else ())), rows)


def _cores(found: Found) -> str:
    rows = [
        (load["write_delay_ms"], load["load_percent"], *load["cores"].values(), sum(load["cores"].values()))
        for load in _loads(found)
    ]
    return table(("write delay, ms", "load, %", "worker", "Redis", "Postgres", "the bench", "all"), rows)


def _backlog(found: Found) -> str:
    pending = found.get("backlog", {}).get("pending", {})
    rows = [(f"{int(count):,} pending", *figures.values()) for count, figures in pending.items()]
    return table(("", "writes/s", "worker's memory, most, MiB"), rows)


def _table_size(found: Found) -> str:
    sizes = found.get("table_size", {}).get("rows", {})
    rows = [(f"{int(n):,} rows", f["writes_per_s"], f["ratio_to_limit"]) for n, f in sizes.items()]
    return table(("", "writes/s", "of the limit"), rows)


def _scale(found: Found) -> str:
    rows = []
    one = found.get("unique_updates")
    at_most = one and _at_most(one, found["about"]["machine"]["cores"])
    for shards, figures in found.get("scale", {}).get("shards", {}).items():
        limit = figures["limit"]["writes_per_s"]
        for ours in (figures["one_process"], figures["n_processes"])[shards == "1" :]:  # there the same
            what = f"shards: {shards}, processes: {ours['processes']}"
            rates = ours["writes_per_s"], limit, ours["ratio_to_limit"], at_most and at_most / limit
            rows.append((what, *rates, ours["busiest_process_cores"], ours["most_shards_of_a_process"]))
    rates_of = "writes/s", "limit", "of the limit", "all cores allow"
    return table(("", *rates_of, "cores of the busiest process", "its shards, most"), rows)


def _idle(found: Found) -> str:
    rows = []
    for shards, f in found.get("idle", {}).items():
        asked = f["redis_commands_per_s"], f["redis_bytes_per_s"]
        held = f["redis_connections"], f["postgres_connections"]
        what = f"shards: {shards}, queues served: {f['queues']}"
        rows.append((what, *asked, *held, *f["cpu_ms_per_s"].values()))
    connections = "connections to Redis", "to Postgres"
    cpu = "CPU ms/s, worker", "Redis", "Postgres"
    return table(("", "Redis commands/s", "bytes/s", *connections, *cpu), rows)


def _many_shards(found: Found) -> str:
    one = measured(found)
    rows = [] if one is None else [_need(need) for need in needs(one)]
    connections = "connections to Redis", "to Postgres"
    cores = "cores: Redis", "workers", "Postgres"
    head = ("", "idle commands/s", "MB/s", *connections, *cores, "not enough")
    return table(head, rows)


def _need(need: Need) -> tuple[object, ...]:
    what = f"{need.shards:,} shards, {need.writes_per_s:,} writes/s"
    cores = need.redis_cores, need.worker_cores, need.postgres_cores
    held = need.redis_connections, need.postgres_connections
    return what, round(need.idle_commands_per_s), round(need.megabytes_per_s, 1), *held, *cores, need.stops


def _task_queues(found: Found) -> str:
    queues = found.get("task_queues", {}).get("queues", {})
    rows = [
        (name, f.get("version"), f.get("writes_per_s"), f.get("writebehind_is"), f["remark"])
        for name, f in queues.items()
    ]
    return table(("", "version", "writes/s", "writebehind is ×", ""), rows)


def _settings(found: Found) -> str:
    about = found["about"]
    names = (f"`{name} {value}`" for name, value in about["redis"].items())
    reused = (
        " Segments of WAL are there to be used again, as on a server that has run for a while: else every "
        "few seconds a commit has to make one, and takes far longer."
    )
    return (
        f"**Servers**, the same for all. Redis: {', '.join(names)}. Postgres: "
        + ", ".join(f"`{name} = {value}`" for name, value in about["postgres"].items())
        + ". Nothing may start by itself in the middle of a run, so that rivals are equal: rows are vacuumed "
        "and a checkpoint is made before each."
        # Figures of before were measured without.
         + (reused if "min_wal_size" in about["postgres"] else "")
    )
