"""The model of the protocol: it holds, it is the code's, and each rule is needed."""

from __future__ import annotations

import pytest
from tests.model.instances import HOLDING, LEFT_OUT, QUICK, QUICK_LEFT_OUT, Instance, LeftOut, run
from tests.model.search import search


@pytest.mark.parametrize("instance", QUICK, ids=lambda i: i.name)
def test_every_promise_holds_in(instance: Instance) -> None:
    found = run(instance)

    assert found.violation is None, "\n".join(found.trace)
    assert found.states > 1_000, "it has not been searched"


@pytest.mark.parametrize("left", QUICK_LEFT_OUT, ids=lambda left: ", ".join(left.rules))
def test_without_a_rule_a_promise_is_broken(left: LeftOut) -> None:
    found = run(left.instance)

    assert found.violation is not None
    assert found.violation.startswith(left.violation), "\n".join((found.violation, *found.trace))
    assert found.trace


def test_the_tests_search_a_part_of_what_make_model_searches() -> None:
    assert set(QUICK) < set(HOLDING)
    assert len(QUICK_LEFT_OUT) == len(LEFT_OUT) - 2


def test_a_search_finds_the_shortest_way() -> None:
    def steps(n: int) -> list[tuple[str, int]]:
        return [("add 1", n + 1), ("double", n * 2)] if n < 100 else []

    found = search(1, steps, lambda n: "ten" if n == 10 else None, lambda n: None)

    assert found.violation == "ten"
    assert len(found.trace) == 4  # 1 → 2 → 4 → 5 → 10


def test_a_search_without_a_violation_has_seen_every_state() -> None:
    found = search(0, lambda n: [("on", (n + 1) % 7)], lambda n: None, lambda n: "stuck")

    assert (found.states, found.depth, found.violation) == (7, 6, None)


def test_a_state_that_no_step_leaves_is_told() -> None:
    found = search(0, lambda n: [("on", n + 1)] if n < 3 else [], lambda n: None, lambda n: f"stuck at {n}")

    assert (found.violation, found.trace) == ("stuck at 3", ("on", "on", "on"))
