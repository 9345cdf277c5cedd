"""Score what people have without a network, by the validations' protocols on the same cases.

    python benchmarks/without_network.py --method random-walker --val-datas tree/*/*
    python benchmarks/without_network.py --method grow-from-seeds --protocol challenge \\
        --images val --labels val_gts --json classes.json --workers 2
    python -m utils.validation.compare work_dir/random-walker work_dir/validation_student

benchmarks/seed_methods.py describes the methods. Crops, simulated clicks, scores, tables and report
are those of validation.py, and a stopped run resumes. Each click falls into an error of the
method's own mask. In protocol challenge a method runs in the regions that `Predictor` takes from
prompts and masks. What `Predictor` adds to a network's masks (limited changes far from a click,
small cubes in large targets) is off.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import utils.run.threads  # noqa: F401  before NumPy and torch

# isort: split
from benchmarks import seed_methods
from utils.errors import InputError, exit_on_input_error
from utils.prediction.session import PredictorOptions
from utils.validation.arguments import add_protocol_arguments, show, with_out_dir
from utils.validation.protocol import Summary
from utils.validation.run import PROTOCOLS, validate
from utils.validation.run_challenge import ChallengeProtocol

#: Values of flags that only networks have, as every validation keeps them in args.json.
OF_NETWORKS = {
    "checkpoint": None, "network": None, "device": "cpu", "precision": "float32",
    "engine": "eager", "seed": 0,
}  # fmt: skip


class SeedChallenge(ChallengeProtocol):
    """Protocol "challenge" for methods that need no help of the predictor with their masks."""

    predictor_options = PredictorOptions(box_mask=False, far_share=1.0, tile_above=0.0)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(**OF_NETWORKS)
    parser.add_argument("--method", choices=seed_methods.METHODS, required=True)
    parser.add_argument(
        "--out-dir",
        type=Path,
        help="(default: work_dir/METHOD, with --protocol challenge work_dir/METHOD_challenge)",
    )
    add_protocol_arguments(parser)
    args = parser.parse_args(argv)
    return with_out_dir(args, Path("work_dir") / args.method)


def run(args: argparse.Namespace) -> Summary:
    """Score the method as ``args`` say.

    Raises:
        InputError: as `validate`; or the method needs boxes, and the protocol has none.
    """
    if args.method == "ellipsoid" and not (args.protocol == "challenge" and args.boxes):
        raise InputError(
            f"--method ellipsoid: found --protocol {args.protocol} without boxes. Expected cases "
            "with boxes: give --protocol challenge, without --no-boxes."
        )
    method = seed_methods.SeedMethod(Path(seed_methods.__file__), args.method)
    protocols = PROTOCOLS | {"challenge": SeedChallenge}
    return validate(args, network=method, protocols=protocols)


@exit_on_input_error
def main() -> int:
    return show(run(parse_args()))


if __name__ == "__main__":
    main()
