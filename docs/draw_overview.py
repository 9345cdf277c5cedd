"""Draw the picture of the README: two phantoms, clicks, and the masks of the student that ships.

Reads   --checkpoint  a network file (default: weights/student.pth)
Writes  --out         a PNG: truth green, mask magenta, clicks numbered

    python docs/draw_overview.py
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils.cases.phantoms import CT_CLASSES, MR_CLASSES, Phantom, ct_phantom, mr_phantom
from utils.errors import exit_on_input_error
from utils.files.atomic import atomic_path
from utils.prediction.predictor import Predictor
from utils.prompts.click_method import challenge_click
from utils.results.metrics import dsc
from utils.results.overlays import overlay_figure
from utils.run.flags import new_file, positive_int
from utils.run.network import open_network
from utils.run.shipped import shipped

SEED = 37  # of phantoms that no demo trains on
DPI = 90


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="(default: weights/student.pth)")
    out = Path(__file__).with_name("overview.png")
    parser.add_argument("--out", type=new_file, default=out, help="(default: docs/overview.png)")
    parser.add_argument("--clicks", type=positive_int, default=3, help="on each (default: 3)")
    return parser.parse_args(argv)


def draw(predictor: Predictor, phantom: Phantom, value: int, name: str, count: int) -> np.ndarray:
    """Click ``count`` times into one class; return the overlay's pixels (height, width, 4)."""
    truth = phantom.label == value
    predictor.set_image(phantom.image, phantom.spacing_xyz)
    clicks, mask = [], np.zeros_like(truth)
    for _ in range(count):
        click = challenge_click(mask, truth)
        if click is None:
            break
        clicks.append(click)
        predictor.add_point(click.zyx, click.is_foreground)
        mask = predictor.mask()
    figure = overlay_figure(
        phantom.image,
        truth,
        mask,
        spacing_zyx=phantom.spacing_xyz[::-1],
        clicks=clicks,
        title=f"{name}, {len(clicks)} clicks: DSC {dsc(truth, mask):.2f}",
    )
    return pixels(figure)


def pixels(figure: Figure) -> np.ndarray:
    """Return a figure's pixels (height, width, 4) uint8."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def run(args: argparse.Namespace) -> Path:
    """Draw the picture; return its path."""
    predictor = Predictor(*open_network(args.checkpoint or shipped("student")))
    rng = np.random.default_rng(SEED)
    liver, ventricle = CT_CLASSES["Liver"], MR_CLASSES["Left ventricle cavity"]
    rows = [
        draw(predictor, ct_phantom(rng), liver, "CT phantom, liver", args.clicks),
        draw(predictor, mr_phantom(rng), ventricle, "MR phantom, left ventricle", args.clicks),
    ]
    with atomic_path(args.out) as temporary:
        imsave(temporary, np.vstack(rows))
    return args.out


@exit_on_input_error
def main() -> None:
    print(run(parse_args()))


if __name__ == "__main__":
    main()
