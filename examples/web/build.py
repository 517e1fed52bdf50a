"""A folder of static files that runs a packed network in a browser, and a server to look at it.

    npm install onnxruntime-web
    python examples/web/build.py --out web --serve 8000

The folder holds the page, ONNX Runtime's WebAssembly from ``node_modules``, the digits network in
float, in int8 and packed, and images that it has not seen. Any static server will do: the page asks
nothing of other servers, and the visitor's processor does the computing.
"""

import argparse
import json
import shutil
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

import zaq_onnx
from zaq_plugin import PWLQSpec
from zaq_plugin.ptq import calibrate, fold_batch_norm, simulate
from zaq_timm.digits import PIXEL_MEAN, PIXEL_STD, digits_model, load_digits_split

HERE = Path(__file__).parent
PAGE = ("index.html", "page.js", "style.css")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
IMAGES = 120


def copy_runtime(modules: Path, out: Path) -> None:
    """Copy ONNX Runtime's files.

    Raises:
        FileNotFoundError: it is not there; the text says how to install it.
    """
    dist = modules / "onnxruntime-web" / "dist"
    out.mkdir(parents=True, exist_ok=True)
    for name in RUNTIME:
        if not (dist / name).is_file():
            raise FileNotFoundError(
                f"{dist / name} is missing. Install ONNX Runtime's package with: npm install "
                "onnxruntime-web, and name its folder: --node-modules node_modules."
            )
        shutil.copyfile(dist / name, out / name)


def export_files(out: Path) -> None:
    """The digits network in three forms, and images that it was neither trained nor ranged on."""
    data = load_digits_split()
    batches = list(data.train_images[:256].split(32))
    model = digits_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (batches[0],),
            str(out / "float.onnx"),
            input_names=["x"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    student = simulate(fold_batch_norm(model, (batches[0],)), PWLQSpec(bits=3))
    calibrate(student, batches)
    zaq_onnx.export(
        student, (batches[0],), out / "packed.onnx", calibration=batches, reduce_range=True
    )
    zaq_onnx.unpack(out / "packed.onnx", out / "int8.onnx")
    pixels = 16 * (data.test_images[:IMAGES] * PIXEL_STD + PIXEL_MEAN)
    images = {
        "mean": PIXEL_MEAN,
        "deviation": PIXEL_STD,
        "pixels": pixels.round().int().flatten(1).tolist(),
        "labels": data.test_labels[:IMAGES].tolist(),
    }
    (out / "images.json").write_text(json.dumps(images), encoding="utf-8")


def build(modules: Path, out: Path) -> None:
    """Write the folder."""
    copy_runtime(modules, out / "ort")
    for name in PAGE:
        shutil.copyfile(HERE / name, out / name)
    export_files(out)


class Handler(SimpleHTTPRequestHandler):
    """Names the types that a browser insists on."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a folder, for this machine alone; port 0 takes a free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(folder)))


def main() -> None:
    """Build, then serve if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--node-modules", type=Path, default=Path("node_modules"))
    parser.add_argument("--out", type=Path, default=Path("web"))
    parser.add_argument("--serve", type=int, metavar="PORT", help="serve the folder afterwards")
    args = parser.parse_args()
    try:
        build(args.node_modules, args.out)
    except FileNotFoundError as error:
        parser.exit(1, f"build.py: {error}\n")
    print(f"{args.out}: " + ", ".join(sorted(path.name for path in args.out.iterdir())))
    if args.serve is not None:
        with server(args.out, args.serve) as running:
            print(f"http://127.0.0.1:{running.server_port}/")
            try:
                running.serve_forever()
            except KeyboardInterrupt:
                print()


if __name__ == "__main__":
    main()
