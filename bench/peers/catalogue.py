"""The peers, and what each of them needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_TORCH: Final = ("torch==2.13.0", "numpy==2.3.5", "pillow==12.3.0", "safetensors==0.8.0")
_DIFFUSERS: Final = (*_TORCH, "diffusers==0.37.1", "transformers==4.57.6", "accelerate==1.15.0")
_OPTIMUM: Final = (
    *_TORCH,
    "diffusers==0.37.1",
    "transformers==4.57.6",
    "optimum==2.1.0",
    "optimum-onnx==0.1.0",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
)
_OPENVINO: Final = (
    *_TORCH,
    "openvino==2026.4.1",
    "openvino-genai==2026.4.1.0",
    "openvino-tokenizers==2026.4.1.0",
    "nncf==3.4.0",
    "optimum==2.3.0",
    "huggingface-hub==1.21.0",
    "setuptools==84.2.1",
    "requests==2.34.2",
    "diffusers==0.37.1",
    "transformers==5.5.4",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One row of a comparison.

    Attributes:
        name: What the command line calls it.
        title: What a table calls it.
        module: Of ``bench.peers``, which runs it.
        environment: Name of its environment; peers with the same one share it. None: it runs in
            the interpreter of the command, and may import what lies beside ``bench``.
        requirements: What is installed there, to the version.
        bare: Installed there too, without their dependencies.
        model: Name of what it makes of the checkpoint, once; None where it opens the checkpoint.
        options: See its module.
        precision: Of the networks' arithmetic.
        noise: What the timed pictures start from: ``"same"`` as diffusers', or its ``"own"``.
        shared_noise: Whether it can be given diffusers' noise for one further picture, from which
            its quality is then taken.
        note: What a reader of its row must know.
    """

    name: str
    title: str
    module: str
    environment: str | None
    requirements: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "float32"
    noise: str = "same"
    shared_noise: bool = False
    note: str = ""


def _openvino(name: str, title: str, **changes: Any) -> Peer:
    # optimum-intel would install torchvision, which it does not need here and which does not load
    # beside a build of torch from another place.
    return Peer(
        name=name,
        title=title,
        module="openvino",
        environment="openvino",
        requirements=_OPENVINO,
        bare=("optimum-intel==2.2.0",),
        model="openvino",
        noise="own",
        shared_noise=True,
        **changes,
    )


def _edit(name: str, title: str, note: str, **options: Any) -> Peer:
    """Edgefill as it comes, in the interactive edit."""
    return Peer(
        name=name,
        title=title,
        module="edgefill",
        environment=None,
        model="edgefill",
        options={"reference": False, **options},
        noise="own",
        note=f"{note}; keeps every pixel outside",
    )


PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer(
            name="diffusers",
            title="diffusers, eager",
            module="diffusers",
            environment="diffusers",
            requirements=_DIFFUSERS,
            options={"compile": False},
        ),
        Peer(
            name="edgefill",
            title="Edgefill, reference mode",
            module="edgefill",
            environment=None,
            model="edgefill",
            options={"reference": True},
        ),
        Peer(
            name="diffusers-compile",
            title="diffusers, torch.compile",
            module="diffusers",
            environment="diffusers",
            requirements=_DIFFUSERS,
            options={"compile": True},
            note="UNet and VAE decoder compiled; compiling is part of the first picture",
        ),
        Peer(
            name="optimum",
            title="optimum, ONNX Runtime",
            module="optimum",
            environment="optimum",
            requirements=_OPTIMUM,
            model="optimum",
        ),
        _openvino("openvino", "OpenVINO GenAI, float32", options={"precision": "f32"}),
        _openvino(
            "openvino-default",
            "OpenVINO GenAI as it comes",
            options={"precision": None},
            precision="its choice",
            note="its choice is bfloat16 where the processor has instructions for it",
        ),
        Peer(
            name="sdcpp",
            title="stable-diffusion.cpp",
            module="sdcpp",
            environment="sdcpp",
            requirements=("stable-diffusion-cpp-python==0.4.7", "numpy==2.3.5", "pillow==12.3.0"),
            precision="float32, convolutions float16",
            noise="own",
            note="its own sampler and noise: pictures cannot be compared",
        ),
        _edit("edgefill-region", "Edgefill", "works on the region of the mask"),
        *(
            _edit(
                f"edgefill-{size}",
                f"Edgefill, working_size {size}",
                f"the region is brought to {size} pixels for the networks, and back",
                working_size=size,
            )
            for size in (384, 320)
        ),
    )
}
"""In the order of a table."""

BASELINE: Final = "diffusers"
"""The peer that all ratios and qualities are held against."""

INTERACTIVE: Final = (BASELINE, "edgefill-region", "edgefill-384", "edgefill-320")
"""Those of the interactive edit."""

FULL: Final = tuple(name for name in PEERS if name == BASELINE or name not in INTERACTIVE)
"""Those that do the same work: the whole picture."""
