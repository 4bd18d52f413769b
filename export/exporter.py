"""``export_checkpoint``: from a checkpoint to a bundle, one network after another.

Each network is loaded, traced, stored, compared with its original in ONNX Runtime and freed before
the next is touched, so that the peak is that of the largest. ``bundle.json`` is written last.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from engine.bundle import (
    COMPONENTS,
    FAST_DECODER,
    SHALLOW_UNET,
    Bundle,
    Component,
    FileRecord,
    Latents,
)
from engine.errors import EngineError
from export import defaults as chosen
from export import licence as licences
from export.checkpoint import Checkpoint
from export.errors import ExportError, in_a_line
from export.fast_vae import FastVae
from export.output import called, require_free, staged
from export.quiet import quiet
from export.sources import ORIGINAL, OTHER_VAE, adapted, find_checkpoint

if TYPE_CHECKING:
    from export.networks import Network

Progress = Callable[[str, int, int], None]
"""Called before each stage with its name, its index and the number of stages; then "done"."""

TARGETS: Final = ("cpu",)
PRECISIONS: Final = ("fp32", "fp16", "int8")

IN_BYTES: Final = ("text_encoder", "text_encoder_2", "unet")
"""What ``"int8"`` is for: the networks that are large."""

_LIBRARIES: Final = ("torch", "diffusers", "transformers", "optimum-onnx", "onnx", "onnxruntime")


def export_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    target: str = "cpu",
    precision: str = "fp32",
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    size: int | None = None,
    max_size: int | None = None,
    context: float | None = None,
    scheduler: str | None = None,
    licence: Mapping[str, Any] | None = None,
    documents: Sequence[str | os.PathLike[str]] = (),
    safety_checker: bool = True,
    fast_vae: str | os.PathLike[str] | None = None,
    deep_cache: int | None = None,
    clip_skip: int | None = None,
    clip_tokenizer: str | os.PathLike[str] | None = None,
    prediction_type: str | None = None,
    vae: str | os.PathLike[str] | None = None,
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
) -> Bundle:
    """Export a checkpoint as a model bundle.

    Args:
        source: A diffusers folder, a name on the hub such as ``"owner/model"``, or a single
            ``.safetensors`` file in the original layout; see ``export.original``.
        output: The folder that becomes the bundle.
        target: What the bundle is for; ``"cpu"``.
        precision: How the weights are stored; what is computed with them is fp32. Of ``"fp32"``
            only those that fp16 holds exactly are stored in fp16, and nothing is lost; ``"fp16"``
            rounds them all, ``"int8"`` keeps those of the text encoder and the UNet in 8.25 bits
            each and rounds the others to fp16.
        revision: Branch, tag or commit on the hub.
        overwrite: Replace a bundle that lies at ``output``.
        progress: Told of each stage.
        num_inference_steps: Default steps; the scheduler's usual ones where None.
        guidance_scale: Default guidance; the scheduler's usual one where None.
        size: Native side in pixels; the UNet's ``sample_size`` where None.
        max_size: Longest side that is still good; 1.5 times ``size`` where None.
        context: What a region shows round the mask, as a share of the mask's box, on each side;
            a half where None.
        scheduler: Default scheduler; the checkpoint's where None.
        licence: The licence entry, with ``id``; the checkpoint's where None.
        documents: Texts to put into the bundle; the checkpoint's licence texts where empty.
        safety_checker: Export the checkpoint's safety checker too, where it has one.
        fast_vae: The folder of an AutoencoderTiny (TAESD), for a second, faster decoder.
        deep_cache: Split the UNet at this skip connection, counted from the outermost, 0, so that
            requests may run its outer layers alone at some steps; see ``export.deep_cache``.
        clip_skip: Let requests leave out up to so many of the text encoder's last layers; see
            ``export.clip_skip``.
        clip_tokenizer: The tokenizer for a single file; see ``export.clip_vocabulary``.
        prediction_type: What the UNet of a single file predicts, ``"epsilon"`` or
            ``"v_prediction"``, where the file does not say.
        vae: The folder of another autoencoder, or a ``.safetensors`` file of one in the original
            layout, in place of the checkpoint's.
        loras: LoRA files, each with its scale, fused into the weights; see ``export.lora``.

    Returns:
        The bundle, opened and verified.

    Raises:
        ExportError: When the checkpoint is not supported, or the output may not be written.
        ParityError: When a converted network does not compute what the original does.
    """
    _require("target", target, TARGETS)
    _require("precision", precision, PRECISIONS)
    output = Path(output)
    require_free(output, overwrite=overwrite)
    stages = _Stages(progress)
    stages.next("checkpoint")
    with (
        staged(output, overwrite=overwrite) as folder,
        called(folder / ORIGINAL, source),
        called(folder / OTHER_VAE, vae or ""),
    ):
        checkpoint = find_checkpoint(
            source,
            revision=revision,
            safety_checker=safety_checker,
            work=folder,
            clip_tokenizer=clip_tokenizer,
            prediction_type=prediction_type,
            vae=vae,
        )
        checkpoint = adapted(checkpoint, vae=vae, loras=loras)
        fast = None if fast_vae is None else FastVae.open(Path(fast_vae), checkpoint)
        config = chosen.scheduler_config(checkpoint)
        networks, tokenizer = _libraries()
        values = chosen.defaults(
            config,
            networks.native_size(checkpoint),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            size=size,
            max_size=max_size,
            context=context,
            scheduler=scheduler,
        )
        stages.next("tokenizer")
        tokenizers, tokens = tokenizer.write_tokenizers(checkpoint, folder)
        components = {}
        builders = networks.builders(checkpoint, tokens=tokens)
        if fast is not None:
            builders[FAST_DECODER] = fast.network
        if clip_skip is not None:
            builders["text_encoder"] = _skipping(checkpoint, tokens=tokens, skips=clip_skip)
        stages.expect(networks=len(builders))
        for name, build in builders.items():
            components[name] = _export_network(name, build, folder, stages, precision)
            gc.collect()
        if deep_cache is not None:
            whole, outer = _split(folder, components["unet"], branch=deep_cache)
            components |= {"unet": whole, SHALLOW_UNET: outer}
        stages.next("preview")
        latents = _latents(checkpoint, folder / components["vae_encoder"].model.file)
        stages.next("bundle")
        texts = [Path(name) for name in documents] or licences.texts(checkpoint.folder)
        bundle = Bundle(
            path=folder,
            family=chosen.family(checkpoint),
            target=target,
            precision=precision,
            components=components,
            tokenizer=FileRecord.of(tokenizers[0]),
            latents=latents,
            scheduler=config,
            defaults=values,
            provenance=_provenance(checkpoint, fast),
            licence=licences.read_licence(checkpoint.folder, licence),
            documents=licences.copy_documents(texts, folder),
            safety=networks.safety(checkpoint),
            fast_latents=None if fast is None else fast.latents,
            tokenizer_2=FileRecord.of(tokenizers[1]) if len(tokenizers) > 1 else None,
            force_zeros_for_empty_prompt=checkpoint.force_zeros_for_empty_prompt,
        )
        for name in (ORIGINAL, OTHER_VAE):
            shutil.rmtree(folder / name, ignore_errors=True)
        _write(bundle, output)
    bundle = Bundle.open(output)
    stages.done()
    return bundle


def _write(bundle: Bundle, output: Path) -> None:
    """Write the manifest; what the engine would refuse is refused here, in the output's name."""
    try:
        bundle.write()
    except EngineError as exc:
        said = str(exc).removeprefix(f"{bundle.path}: ")
        raise ExportError(f"{output}: would be no bundle that the engine opens: {said}") from exc


def _libraries() -> tuple[ModuleType, ModuleType]:
    """The modules that need torch and its company, imported here and not before."""
    try:
        with quiet("diffusers.utils.import_utils"):
            from export import networks, tokenizer
    except ImportError as exc:
        raise ExportError(
            f"exporting needs {exc.name}; install the extra: pip install 'edgefill[export]'"
        ) from exc
    return networks, tokenizer


class _Stages:
    """Counts the stages for the caller's progress display."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._index = progress, 0
        self.expect(networks=len(COMPONENTS))

    def expect(self, *, networks: int) -> None:
        self._total = 4 + 2 * networks

    def next(self, name: str) -> None:
        if self._progress is not None:
            self._progress(name, self._index, self._total)
        self._index += 1

    def done(self) -> None:
        if self._progress is not None:
            self._progress("done", self._total, self._total)


def _export_network(
    name: str,
    build: Callable[[], Network],
    folder: Path,
    stages: _Stages,
    precision: str = "fp32",
) -> Component:
    """Load, trace, store and check one network; it is freed on return."""
    from export import graph, onnx_configs, parity

    stored = _stored(name, precision)
    stages.next(f"{name}: convert")
    network = build()
    work = folder / "work"
    work.mkdir()
    traced, model = work / f"{name}.onnx", folder / f"{name}.onnx"
    try:
        onnx_configs.convert(network.module, network.config, traced)
        data = graph.finish(
            traced,
            model,
            takes=network.config.takes,
            gives=network.config.gives,
            plane=network.plane,
            stored=stored,
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, OSError) as exc:
        raise ExportError(f"{name}: cannot be converted: {in_a_line(exc)}") from exc
    shutil.rmtree(work)
    stages.next(f"{name}: check")
    return Component(
        model=FileRecord.of(model),
        data=None if data is None else FileRecord.of(data),
        inputs=network.config.takes,
        outputs=network.config.gives,
        parity=parity.check(network, model, stored=stored),
    )


def _stored(name: str, precision: str) -> str:
    """How a network's weights are stored; a decoder's errors are seen, a checker's are weighed."""
    if precision == "int8" and name not in IN_BYTES:
        return "fp16"
    return "exact" if precision == "fp32" else precision


def _split(folder: Path, unet: Component, *, branch: int) -> tuple[Component, Component]:
    from export import deep_cache

    return deep_cache.split(folder, unet, branch=branch)


def _skipping(checkpoint: Checkpoint, *, tokens: int, skips: int) -> Callable[[], Network]:
    from export import clip_skip

    return lambda: clip_skip.network(checkpoint, tokens=tokens, skips=skips)


def _latents(checkpoint: Checkpoint, vae_encoder: Path) -> Latents:
    import onnxruntime

    from export.preview import fit_rgb_factors

    session = onnxruntime.InferenceSession(vae_encoder, providers=["CPUExecutionProvider"])
    channels = int(checkpoint.vae.get("latent_channels", 4))
    scaling = checkpoint.scaling_factor
    factors = fit_rgb_factors(
        lambda image: session.run(None, {"image": image})[0],
        channels=channels,
        scaling_factor=scaling,
    )
    # The shift factor stays 0: these pipelines have none, whatever the VAE's configuration says.
    return Latents(channels=channels, scaling_factor=scaling, rgb_factors=factors)


def _provenance(checkpoint: Checkpoint, fast: FastVae | None) -> dict[str, Any]:
    from export.onnx_configs import OPSET

    more = {} if fast is None else {"fast_vae_weights_sha256": fast.digest()}
    return (
        more
        | dict(checkpoint.extras)
        | {
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "pipeline": checkpoint.pipeline,
            "weights_sha256": checkpoint.digest(),
            "exporter": f"edgefill {_version('edgefill')}",
            "libraries": {name: _version(name) for name in _LIBRARIES},
            "opset": OPSET,
        }
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _require(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ExportError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
