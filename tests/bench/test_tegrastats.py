"""Power and energy from recorded lines of tegrastats."""

from __future__ import annotations

import sys
import time

import pytest

from bench.tegrastats import Sampler, integrate, watts

ORIN_NANO = (
    "11-23-2026 10:12:01 RAM 2451/7620MB (lfb 2x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [1%@729,0%@729,0%@729,2%@729,0%@729,0%@729] GR3D_FREQ 0% cpu@46.5C soc2@45.656C "
    "gpu@46.281C tj@46.531C VDD_IN 4587mW/4601mW VDD_CPU_GPU_CV 560mW/560mW VDD_SOC 1361mW/1361mW"
)
AGX_ORIN = (
    "RAM 5034/30536MB (lfb 5x4MB) CPU [2%@729,off,off,off] GR3D_FREQ 0% tj@44.5C "
    "VDD_GPU_SOC 2400mW/2400mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 3640mW/3640mW NC 0mW/0mW"
)
XAVIER_NX = "RAM 1903/7771MB (lfb 8x4MB) CPU [8%@1190,off] VDD_IN 4217/4217 VDD_SOC 1254/1254"
NANO = "RAM 1212/3956MB (lfb 34x4MB) POM_5V_GPU 0/0 POM_5V_IN 1532/1532 POM_5V_CPU 128/128"
LAPTOP = "RAM 1212/3956MB (lfb 34x4MB) CPU [9%@102]"


@pytest.mark.parametrize(
    ("line", "power"),
    [(ORIN_NANO, 4.587), (AGX_ORIN, 6.44), (XAVIER_NX, 4.217), (NANO, 1.532), (LAPTOP, None)],
)
def test_power_of_the_board(line: str, power: float | None) -> None:
    assert watts(line) == (None if power is None else pytest.approx(power))


def test_energy_is_mean_power_times_time() -> None:
    samples = [(0.0, 100.0), (1.0, 4.0), (1.5, 6.0), (2.0, 8.0), (3.0, 100.0)]
    assert integrate(samples, 1.0, 2.0).joules == pytest.approx(6.0)
    nothing = integrate(samples, 2.1, 2.2)
    assert nothing.joules is None
    assert nothing.reason == "no sample of tegrastats within 0.100 s"


def test_without_tegrastats_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with Sampler() as sampler:
        assert sampler.energy(0, 1).joules is None
        assert sampler.energy(0, 1).reason == "no tegrastats on this machine"


@pytest.mark.parametrize(
    ("line", "joules", "reason"),
    [(ORIN_NANO, 4.587, None), (LAPTOP, None, "tegrastats names no rail that feeds the board")],
)
def test_a_running_tegrastats(line: str, joules: float | None, reason: str | None) -> None:
    code = f"import time\nwhile True:\n    print({line!r}, flush=True)\n    time.sleep(0.02)"
    with Sampler([sys.executable, "-c", code]) as sampler:
        begin = time.monotonic()
        while not sampler.lines and time.monotonic() < begin + 20:
            time.sleep(0.01)
        end = time.monotonic()
        found = sampler.energy(begin, end)
    assert found.reason == reason
    assert found.joules == (None if joules is None else pytest.approx(joules * (end - begin)))
