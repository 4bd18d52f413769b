"""What the machine's own matrix product reaches: the limit that a network is measured against."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from bench.report import median

SIDES: Final = (512, 1024, 2048)
ROUNDS: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """Operations a second by the side of the square matrices; ``best`` of them is the limit."""

    by_side: dict[int, float]

    @property
    def best(self) -> float:
        return max(self.by_side.values())

    def figures(self) -> dict[str, Any]:
        """In GFLOP/s, for a report."""
        sides = {f"side_{side}": round(rate / 1e9, 1) for side, rate in self.by_side.items()}
        return {"limit_gflop_per_s": round(self.best / 1e9, 1)} | sides


def matrix_product(*, threads: int = 0, rounds: int = ROUNDS) -> Reached:
    """Multiply square float32 matrices in ONNX Runtime, by turns of their sizes.

    Args:
        threads: As in ``Engine.open``.
        rounds: How often each size; the median counts.

    Raises:
        ImportError: If ``onnx`` is not installed.
    """
    session = _session(threads)
    rng = np.random.default_rng(0)
    pairs = {side: rng.standard_normal((2, side, side), dtype=np.float32) for side in SIDES}
    taken: dict[int, list[float]] = {side: [] for side in SIDES}
    for i in range(1 + rounds):
        for side, (a, b) in pairs.items():
            begin = time.perf_counter()
            session.run(None, {"a": a, "b": b})
            if i:
                taken[side].append(time.perf_counter() - begin)
    return Reached(by_side={side: 2 * side**3 / median(taken[side]) for side in SIDES})


def _session(threads: int) -> ort.InferenceSession:
    from onnx import TensorProto, helper

    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "n"]) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "g", [a, b], [c])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
