"""Files of the Hugging Face hub, named by addresses such as hf://OWNER/REPO/FILE@REVISION.

The optional package huggingface_hub downloads a file once, into its cache (HF_HOME). It takes the
token for private repositories from HF_TOKEN or from its own login. A message of this module never
repeats the words of the package or of the server, since these may hold a token or a signed address.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from utils.errors import InputError
from utils.files.safe_read import sha256_of

SCHEME = "hf://"
FORM = f"{SCHEME}OWNER/REPO/FILE, or with a branch, tag or commit {SCHEME}OWNER/REPO/FILE@REVISION"
EXAMPLE = f"{SCHEME}blueyo0/SAM-Med3D/sam_med3d_turbo.pth"
ADDRESS = re.compile(rf"{SCHEME}([\w.-]+/[\w.-]+)/([^@]+)(?:@([^@]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SHOWN = 12  # hexadecimal digits of a SHA-256 in the log

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubFile:
    """A file in a model repository of the hub; ``str`` returns its address."""

    repo: str  # OWNER/REPO
    name: str  # path in the repository
    revision: str = "main"  # a branch, a tag, or a commit of 40 digits

    @classmethod
    def parse(cls, address: str) -> "HubFile":
        """Read an address.

        Raises:
            InputError: it has not the form of one.
        """
        found = ADDRESS.fullmatch(address)
        parts = re.split("[/\\\\]", address.removeprefix(SCHEME).replace("@", "/"))
        if not found or {"", ".", ".."} & {*parts}:
            raise _wrong_form(address)
        repo, name, revision = found.groups()
        return cls(repo, name, revision or "main")

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{SCHEME}{self.repo}/{self.name}{revision}"


def is_address(text: str) -> bool:
    """Tell whether a text is meant as an address of the hub, and not as a path."""
    return text.lower().startswith("hf:")


def address_of(path: Path) -> str | None:
    """Return the address, with its commit, of a file in the hub's cache; None for other files."""
    parts = path.parts
    for at in range(len(parts) - 3):
        repo, snapshots, commit = parts[at : at + 3]
        if repo.startswith("models--") and snapshots == "snapshots" and COMMIT.fullmatch(commit):
            name = "/".join(parts[at + 3 :])
            return str(HubFile(repo.removeprefix("models--").replace("--", "/"), name, commit))
    return None


def fetch(file: HubFile | str) -> Path:
    """Return the local copy of a file of the hub; download it if the cache has none::

        model, rule = open_network(fetch("hf://OWNER/REPO/student.pth"))

    The hub is asked where a branch or tag stands. If it does not answer, the cached copy is
    returned and a warning logged. A file named by its commit needs no network once it is cached.

    Args:
        file: or its address.

    Returns:
        a path in the cache, which holds the commit; see `address_of`.

    Raises:
        InputError: the address has a wrong form, or names nothing that may be read; the package is
            not installed; the hub does not answer and the file is not cached; or the cached copy
            is damaged.
        OSError: the cache cannot be written to.
    """
    file = HubFile.parse(file) if isinstance(file, str) else file
    hub = _package(file)
    path = Path(_cached_or_downloaded(hub, file))
    digest = _require_intact(path)
    logger.info("%s: SHA-256 %s, %s", address_of(path) or file, digest[:SHOWN], path)
    return path


def _package(file: HubFile) -> ModuleType:
    """Import huggingface_hub; what it writes itself does not enter the log a second time."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{file}: needs the package huggingface_hub, which is not installed. Expected it for "
            "files of the hub:\npip install -c constraints.txt -r requirements-hub.txt"
        ) from error
    logging.getLogger("huggingface_hub").propagate = False
    for name in ("httpx2", "httpx"):  # each request, with its address
        logging.getLogger(name).setLevel(logging.WARNING)
    return huggingface_hub


def _cached_or_downloaded(hub: ModuleType, file: HubFile) -> str:
    """Return the path of the copy in the cache."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        cached = hub.try_to_load_from_cache(file.repo, file.name, revision=file.revision)
        is_cached = isinstance(cached, str)
        if is_cached and COMMIT.fullmatch(file.revision):
            return cached
        silence = _silence(hub, file)
        if silence is None:
            return hub.hf_hub_download(file.repo, file.name, revision=file.revision)
    except HFValidationError as error:
        raise _wrong_form(str(file)) from error
    except HfHubHTTPError as error:
        raise _refused(file, error) from error
    except Exception as error:  # of the package that makes the requests, or of the disk
        if _is_of_disk(error):
            raise
        raise InputError(
            f"{file}: the download failed ({_reason(error)}). Expected the whole file: check the "
            "network, the disk, and HF_ENDPOINT if it is set, then run again."
        ) from None  # the words of the error may hold the token
    if not is_cached:
        raise InputError(
            f"{file}: is not in the cache, and the hub cannot be asked ({silence}). Expected a "
            "network for the first download: connect, or download the file elsewhere and give its "
            "path."
        )
    logger.warning(
        "%s: the hub cannot be asked (%s): the cached copy is used, and %s may be newer by now.",
        file, silence, file.revision,
    )  # fmt: skip
    return cached


def _silence(hub: ModuleType, file: HubFile) -> str | None:
    """Ask the hub for the file's head; return why it does not answer, None if it does.

    Raises:
        HfHubHTTPError: it answers that the file may not be read, or is not there.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    url = hub.hf_hub_url(file.repo, file.name, revision=file.revision)
    try:
        hub.get_hf_file_metadata(url)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status < 500 and status != 429:
            raise
        return f"status {status}"
    except Exception as error:  # of the package that makes the requests: httpx2 or another
        if _is_of_disk(error):
            raise
        return _reason(error)
    return None


def _refused(file: HubFile, error: Exception) -> InputError:
    """Return the message for an answer of the hub that is not the file."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status, page = error.response.status_code, f"https://huggingface.co/{file.repo}"
    if isinstance(error, EntryNotFoundError):
        found = f"{file.repo} has no file {file.name} at revision {file.revision}"
        advice = f"the path of a file: look at {page}/tree/{file.revision}"
    elif isinstance(error, RevisionNotFoundError):
        found = f"{file.repo} has no revision {file.revision}"
        advice = f"a branch, a tag or a commit of 40 digits: look at {page}/commits/main"
    elif isinstance(error, GatedRepoError):
        found = f"{file.repo} gives its files only to accounts that it has admitted"
        advice = f"HF_TOKEN with a token of such an account: ask for access on {page}"
    elif isinstance(error, RepositoryNotFoundError):
        found = f"the hub has no repository {file.repo}, or it is private"
        advice = f"the name of {page}: check it, or set HF_TOKEN to a token that may read it"
    elif status in (401, 403):
        found = f"the hub refuses access (status {status})"
        advice = f"a token that may read {file.repo}: set HF_TOKEN to another, or unset it"
    else:
        found = f"the hub answers with status {status}"
        advice = "the file: run again later, and check HF_ENDPOINT if it is set"
    return InputError(f"{file}: {found}. Expected {advice}.")


def _is_of_disk(error: Exception) -> bool:
    """Tell whether an error is about a file of the cache, and not about the network."""
    return isinstance(error, OSError) and error.filename is not None


def _reason(error: BaseException) -> str:
    """Return the system's words for an error, or the name of its type."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    return type(error).__name__


def _require_intact(path: Path) -> str:
    """Return the SHA-256 of a copy; refuse it if the hub named another.

    The cache holds a large file under the SHA-256 that the hub gave, and a link to it.
    """
    _, digest = sha256_of(path, "a file of the hub's cache")
    stored = path.parent / path.readlink() if path.is_symlink() else path
    if SHA256.fullmatch(stored.name) and stored.name != digest:
        raise InputError(
            f"{path}: has the SHA-256 {digest[:SHOWN]}. Expected {stored.name[:SHOWN]}, as the hub "
            f"gives it: the copy is damaged. Delete {stored.resolve()}, then run again."
        )
    return digest


def _wrong_form(address: str) -> InputError:
    return InputError(
        f"{address[:200]}: is no address of a file on the hub. Expected {FORM}: write it like "
        f"{EXAMPLE}."
    )
