"""Click on a scan and see the mask: a local server with a page, and for clients of nnInteractive.

Reads   --image        the scan that the page opens; without it, a phantom. Never written to
        --checkpoint   a file of this project (student.pth), or a released file with --network;
                       a path, or hf://OWNER/REPO/FILE[@REVISION] on the Hugging Face hub; without
                       it, the student that ships: weights/student.pth, or else that of make demo
Writes  --save-dir     masks that you save, and after each click the prompts (autosave)

    python serve.py --image ct.nii.gz --open
    python serve.py --checkpoint student.pth --host 0.0.0.0 --token

The server prints the address of its page when it is ready, and ends on Ctrl-C. docs/serving.md
tells how to connect 3D Slicer and napari, and how to use it from another machine.
"""

import utils.run.threads  # noqa: F401  before NumPy and torch

# isort: split
import argparse
import logging
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from utils.errors import InputError, exit_on_input_error
from utils.run.checkpoint_flags import FROM_HUB, checkpoint_file, with_local_files
from utils.run.flags import add_device_arguments, add_engine_arguments, positive_int
from utils.run.log import start_log
from utils.serving.defaults import MAX_VOXELS, SAVE_DIR, default_checkpoint
from utils.volumes.intensity import add_intensity_arguments

PORT = 1527  # of nnInteractive's server
NEW_TOKEN = "new"
ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
CLASSES_HELP = "text file of target names, one a line; a colour may follow: liver #aa3322"

logger = logging.getLogger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    files = parser.add_argument_group("files")
    files.add_argument("--image", type=Path, help="NIfTI, NRRD, MetaImage or a DICOM folder")
    files.add_argument(
        "--checkpoint",
        type=checkpoint_file,
        help=f"file of the network, {FROM_HUB} (default: weights/student.pth, else the demo's)",
    )
    files.add_argument("--network", help="name of the network in a released file, as vit_b_ori")
    teacher = "take prompt encoder and mask decoder from this file"
    files.add_argument("--teacher", type=checkpoint_file, help=teacher)
    files.add_argument("--classes", type=Path, help=CLASSES_HELP)
    files.add_argument(
        "--save-dir",
        type=Path,
        default=SAVE_DIR,
        help="folder for saved masks and autosaves (default: %(default)s)",
    )
    reach = parser.add_argument_group("who can reach it")
    reach.add_argument("--host", default="127.0.0.1", help="address (default: this machine alone)")
    reach.add_argument("--port", type=port, default=PORT, help="0: any (default: %(default)s)")
    reach.add_argument(
        "--token",
        type=token,
        nargs="?",
        const=NEW_TOKEN,
        default="",
        help="a secret of 16 or more characters that clients must show; without a value a new one "
        "is made and printed (default: none)",
    )
    reach.add_argument(
        "--allow-host", nargs="+", default=[], metavar="NAME", help="more names of this machine"
    )
    reach.add_argument(
        "--allow-origin",
        type=origin,
        nargs="+",
        default=[],
        metavar="URL",
        help="web pages of other sites that may use the server, as https://viewer.example "
        "(default: none)",
    )
    reach.add_argument("--open", action="store_true", help="open the page in the browser")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--sessions", type=positive_int, default=4, help="(default: %(default)s)")
    limits.add_argument(
        "--max-voxels",
        type=positive_int,
        default=MAX_VOXELS,
        help="of an image (default: %(default)s, as 512 x 512 x 1024)",
    )
    add_intensity_arguments(parser)
    parser.add_argument("--series", metavar="UID", help="DICOM series of --image, if several")
    run = parser.add_argument_group("run")
    add_device_arguments(run)
    add_engine_arguments(run)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C.

    Raises:
        InputError: a flag or file cannot be used, or the port is in use.
    """
    with_packages()
    from utils.files.atomic import make_folder
    from utils.prediction.predictor import Predictor, ready_predictor
    from utils.run.network import open_network
    from utils.serving.scan import open_scan, phantom_scan
    from utils.serving.server import Address, Served, file_digest, serve
    from utils.serving.worker import Worker

    secret = secrets.token_urlsafe(24) if args.token == NEW_TOKEN else args.token
    address = Address(
        args.host, args.port, secret, names=args.allow_host, origins=args.allow_origin
    )
    address.require_safe()
    args = with_local_files(args)
    checkpoint = args.checkpoint or default_checkpoint()
    make_folder(args.save_dir)
    scan = open_scan(args.image, args, args.max_voxels) if args.image else phantom_scan()
    logger.info("%s: %s", scan.name, scan.mapping)
    if scan.warning:
        logger.warning("%s: %s", scan.name, scan.warning)

    def opened() -> Predictor:
        model, rule = open_network(
            checkpoint, args.network, args.teacher, encoder=args.encoder, refine=args.refine
        )
        return ready_predictor(
            model, rule, device=args.device, precision=args.precision, engine=args.engine
        )

    classes, worker = class_colors(args.classes), Worker()
    served = Served(
        predictor=worker.call(opened),
        network=checkpoint.name,
        digest=file_digest(checkpoint),
        scan=scan,
        sessions=args.sessions,
        max_voxels=args.max_voxels,
        save_dir=args.save_dir,
        classes=list(classes),
        class_colors={name: color for name, color in classes.items() if color},
        worker=worker,
    )
    serve(served, address, open_browser=args.open)


def with_packages() -> None:
    """Raise `InputError` if the server's packages are not installed."""
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"found no package {error.name}. Expected those of the server: type pip install -r "
            "requirements-serve.txt, or make serve, which does it."
        ) from error


def class_colors(path: Path | None) -> dict[str, str]:
    """Return the names of targets in a text file, one a line, with their colours; none without.

    Returns:
        name -> "#rrggbb", which may follow the name on its line; empty where it does not.

    Raises:
        InputError: the file cannot be read.
    """
    if path is None:
        return {}
    from utils.files.safe_read import open_regular, reading

    with reading(path, "a text file of names"), open_regular(path) as file:
        lines = file.read(2**20).decode("utf-8-sig").splitlines()
    found = (re.fullmatch(r"(.*?)(?:\s(#[0-9a-fA-F]{6}))?", line.strip()) for line in lines)
    return {match[1].strip()[:64]: (match[2] or "").lower() for match in found if match[1].strip()}


def port(text: str) -> int:
    """Parse the value of a flag: a port, 0 to 65535."""
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"found {text}, expected 0 to 65535")
    return int(text)


def origin(text: str) -> str:
    """Parse the value of a flag: scheme, host and port of a page's address, as browsers send it."""
    match = ORIGIN.fullmatch(text.lower())
    if not match or int(match[3] or 0) > 65535:
        raise argparse.ArgumentTypeError(
            f"found {text}, expected scheme, host and port alone, as https://viewer.example:8443"
        )
    scheme, host, number = match.groups()
    is_usual = number is None or int(number) == {"http": 80, "https": 443}[scheme]
    return f"{scheme}://{host}" + ("" if is_usual else f":{int(number)}")


def token(text: str) -> str:
    """Parse the value of a flag: a secret of at least 16 characters that fit into a URL."""
    if text not in ("", NEW_TOKEN) and not re.fullmatch(r"[A-Za-z0-9._~-]{16,200}", text):
        raise argparse.ArgumentTypeError(
            "expected 16 or more letters, digits, or . _ ~ -; without a value one is made"
        )
    return text


@exit_on_input_error
def main() -> None:
    start_log()
    run(parse_args())


if __name__ == "__main__":
    main()
