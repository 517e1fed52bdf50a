"""One peer on one model, as a process: ``python -m benchmarks.peers.run FOLDER``.

Reads ``request.json`` and ``calibration.safetensors`` from the folder; leaves ``result.json`` and
``outputs.safetensors`` there.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.data.subjects import BATCH, load_subject, traceable
from benchmarks.peers.base import PROTOCOL, PeerRequest, stored_bytes


def run(place: Path) -> dict[str, Any]:
    """The result without outputs, which are written beside it."""
    asked = json.loads((place / "request.json").read_text())
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(asked["seed"])
    data, imagenet = (asked[k] and Path(asked[k]) for k in ("data", "imagenet"))
    subject = load_subject(asked["model"], data, imagenet)
    request = PeerRequest(
        traceable(subject),
        subject.images[:2],
        load_file(place / "calibration.safetensors")["images"],
        asked["weight_bits"],
        asked["activation_bits"],
        asked["recipe"],
        asked["seed"],
        asked["effort"],
        min(32, BATCH[subject.name]),
    )
    adapter = importlib.import_module(f"benchmarks.peers.{asked['peer']}_peer")
    started = time.process_time()
    result = adapter.quantize(request)
    seconds = time.process_time() - started
    outputs = subject.outputs(result.model, asked["limit"])
    save_file({"outputs": outputs.float().contiguous()}, place / "outputs.safetensors")
    numel = sum(n for n, _, _ in result.weights.values())
    if not numel:
        raise ValueError("nothing was quantized")
    bits = sum(n * b for n, _, b in result.weights.values()) / numel
    return {
        "levels": "uniform",
        "mac_bits": round(bits, 3),
        "stored_bits": round(bits, 3),
        "stored_bytes": stored_bytes(result.weights, result.asymmetric),
        "layers": len(result.weights),
        "float_layers": result.float_layers,
        "seconds": seconds,
        "notes": [*result.notes, version(asked["peer"])],
        "protocol": {**PROTOCOL, **result.protocol},
    }


def version(peer: str) -> str:
    """The tool's distribution and version."""
    from importlib.metadata import version as installed

    names = {"aimet": "aimet-torch", "mct": "model-compression-toolkit"}
    return f"{names.get(peer, peer)} {installed(names.get(peer, peer))}"


def main() -> None:
    """Write the result, or the error as the result."""
    place = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    try:
        result = run(place)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    (place / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
