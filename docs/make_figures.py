"""Draws the figures of the concepts page from the digits network: python docs/make_figures.py"""

import argparse
from pathlib import Path

from zaq_plugin import PWLQSpec, fold_batch_norm, quantize
from zaq_plugin.report import plots
from zaq_timm.digits import digits_model, load_digits_split

SHOWN_LAYER = "stage2.conv2"
HERE = Path(__file__).parent / "figures"


def figures() -> dict[str, str]:
    """File name to SVG."""
    images = load_digits_split().train_images[:1]
    layer = fold_batch_norm(digits_model(), (images,)).get_submodule(SHOWN_LAYER)
    weight, spec = layer.weight.detach(), PWLQSpec(bits=4)
    return {
        "levels.svg": plots.weight_histogram(weight, quantize(weight, spec), name=SHOWN_LAYER),
        "error.svg": plots.error_over_breakpoint(weight, spec, name=SHOWN_LAYER),
        "breakpoint.svg": plots.optimal_breakpoint_figure(),
    }


def main() -> None:
    """Writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in figures().items():
        (folder / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
