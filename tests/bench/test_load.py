"""The measurements run, on real servers and for a moment only; no figure is judged."""

from __future__ import annotations

import asyncio

import pytest

from bench import endurance, load, overhead
from bench.client import Connection, get
from bench.server import ServerError, serving
from service.cli import main


def test_overload_is_refused_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "CAPACITY_SECONDS", 0.5)
    monkeypatch.setattr(load, "SETTLING_SECONDS", 0.3)
    monkeypatch.setattr(load, "CASES", load.CASES[:1])
    found = load.measure(seconds=1.5, lanes=1, factor=30)
    case = found["small_bodies_one"]
    assert case["broken"] == {}
    assert set(case["statuses"]) <= {"200", "429"}
    assert case["refused"]["count"] == case["statuses"]["429"] > 0
    assert case["accepted"]["count"] == case["statuses"]["200"]
    assert 0 < case["capacity_per_s"] < 11
    assert case["readyz"]["count"] > 0
    assert case["memory_mb"]["last"] > 10


def test_face_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "WARM_UP", 1)
    found = overhead.measure(repetitions=2)
    for figures in (*found["default_bundle"].values(), *found["stub_engine"].values()):
        assert figures["count"] == 2
    assert found["default_bundle"]["served"]["median_ms"] > 0
    assert all(value > 0 for value in found["stages_alone"].values())


def test_endurance() -> None:
    found = endurance.measure(requests=endurance.LEAST)
    for figures in found.values():
        assert figures["pictures"] == endurance.LEAST
        assert 10 < figures["first_mb"] <= figures["last_mb"] + 10


def test_growth_shows_in_the_figures_of_endurance() -> None:
    grown = [(float(made), 100 + made / 100) for made in range(100, 2001, 100)]
    assert endurance.figures(grown)["mb_per_1000_in_second_half"] == pytest.approx(10)
    level = [(made, min(memory, 105.0)) for made, memory in grown]
    assert endurance.figures(level) == {
        "pictures": 2000,
        "first_mb": 101.0,
        "half_way_mb": 105.0,
        "last_mb": 105.0,
        "mb_per_1000_in_second_half": 0.0,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["latency", "--repetitions", "0"], "error: --repetitions is 0; must be at least 1"),
        (
            ["latency", "--request", "steps=3"],
            "error: --request: 'steps=3' is not FIELD=",
        ),
        (["load", "--seconds", "1"], "error: --seconds is 1; must be 0 or at least 4"),
        (
            ["load", "--endurance", "3"],
            "error: --endurance is 3; must be 0 or at least 40",
        ),
        (["load", "--lanes", "0"], "error: --lanes is 0; must be at least 1"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert capsys.readouterr().err.strip().startswith(words)


def test_a_server_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(ServerError, match="not known; allowed"),
        serving(settings={"database_url": "oracle://x/y"}),
    ):
        pass


def test_one_connection_carries_many_requests() -> None:
    async def ask(port: int) -> list[int]:
        connection = await Connection.open(port)
        try:
            return [(await connection.ask(get(path))).status for path in ("/livez", "/no") * 2]
        finally:
            connection.close()

    command = ("-m", "bench.stub", "--seconds", "0")
    with serving(command) as server:
        assert asyncio.run(ask(server.port)) == [200, 404] * 2
