"""Open a network as predict.py does, and nothing more: no image is built with one that fails.

python check_network.py --checkpoint weights/student.pth
"""

import argparse

from utils.errors import exit_on_input_error
from utils.run.checkpoint_flags import checkpoint_file, with_local_files
from utils.run.network import open_network


@exit_on_input_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=checkpoint_file, required=True)
    parser.add_argument("--network", help="name of the network in a released file")
    parser.add_argument(
        "--teacher", type=checkpoint_file, help="file of prompt encoder and mask decoder"
    )
    args = with_local_files(parser.parse_args())
    model, _ = open_network(args.checkpoint, args.network, args.teacher)
    print(f"{args.checkpoint}: network {model.config.network}")


if __name__ == "__main__":
    main()
