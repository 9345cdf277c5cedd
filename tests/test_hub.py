"""Files of the hub: downloaded once, then read from the cache; what cannot be had is said."""

import hashlib
from pathlib import Path

import pytest
from local_hub import COMMIT, SECRET, LocalHub, run_with_hub
from preparation_helpers import ROOT

from utils.errors import InputError
from utils.files.hub import HubFile, address_of

WEIGHTS = bytes(range(256)) * 40
FILES = {
    "owner/net/weights.pth": WEIGHTS,
    "owner/net/runs/1/last.pt": b"another file",
    "owner/secret/weights.pth": WEIGHTS,
    "owner/asked/weights.pth": WEIGHTS,
}
ADDRESS = "hf://owner/net/weights.pth"
FETCH = """
import sys
from utils.errors import exit_on_input_error
from utils.files.hub import fetch
from utils.run.log import start_log

@exit_on_input_error
def main():
    start_log()
    print(fetch(sys.argv[1]))

main()
"""


@pytest.fixture
def hub():
    with hub_of_files() as hub:
        yield hub


def hub_of_files():
    return LocalHub(FILES, frozenset({"owner/secret"}), frozenset({"owner/asked"}))


@pytest.fixture
def fetched(tmp_path):
    """Return a function that fetches an address in a new process; the cache is the test's."""

    def run(hub, address=ADDRESS, code=FETCH, **environment):
        return run_with_hub(hub, tmp_path, "-c", code, address, **environment)

    return run


def test_a_file_is_downloaded_once_and_named_in_one_line_with_commit_and_digest(
    hub, fetched, tmp_path
):
    done = fetched(hub)
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert path.startswith(str(tmp_path / "cache"))
    assert Path(path).read_bytes() == WEIGHTS
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hf://")]
    digest = hashlib.sha256(WEIGHTS).hexdigest()[:12]
    assert line == f"{ADDRESS}@{COMMIT}: SHA-256 {digest}, {path}"
    assert "HTTP Request" not in done.stderr
    assert len(hub.downloads) == 1

    again = fetched(hub)
    assert again.stdout == done.stdout
    assert len(hub.downloads) == 1


def test_a_file_in_a_folder_of_the_repository_is_found(hub, fetched):
    path = fetched(hub, "hf://owner/net/runs/1/last.pt").stdout.strip()
    assert Path(path).read_bytes() == b"another file"


def test_without_a_network_the_cached_file_of_a_branch_is_used_and_the_log_says_so(hub, fetched):
    first = fetched(hub)
    hub.stop()
    second = fetched(hub)
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    said = f"{ADDRESS}: the hub cannot be asked (Connection refused): the cached copy is used"
    assert said in second.stderr
    assert said not in first.stderr


def test_a_hub_that_is_down_is_no_reason_to_stop_where_the_file_is_cached(hub, fetched):
    first = fetched(hub)
    hub.status = 503
    second = fetched(hub)
    assert second.stdout == first.stdout
    assert "cannot be asked (status 503)" in second.stderr


def test_a_cached_commit_needs_no_request_and_no_word_about_the_network(hub, fetched):
    fetched(hub)
    before = len(hub.asked)
    done = fetched(hub, f"{ADDRESS}@{COMMIT}")
    assert done.returncode == 0, done.stderr
    assert len(hub.asked) == before > 0
    assert "cannot be asked" not in done.stderr


def test_hf_hub_offline_asks_nobody(hub, fetched):
    first = fetched(hub)
    before = len(hub.asked)
    second = fetched(hub, HF_HUB_OFFLINE="1")
    assert second.stdout == first.stdout
    assert len(hub.asked) == before
    assert "HF_HUB_OFFLINE is set" in second.stderr


def refused(done):
    """Return the message of a process that ended with one."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("InputError: ")]
    assert "Expected " in done.stderr
    return line


NOT_HAD = {
    "hf://owner/other/weights.pth": "no repository owner/other, or it is private",
    "hf://owner/net/other.pth": "has no file other.pth at revision main",
    f"{ADDRESS}@v9": "owner/net has no revision v9",
    f"{ADDRESS}@{'f' * 40}": f"owner/net has no revision {'f' * 40}",
    "hf://owner/secret/weights.pth": "no repository owner/secret, or it is private",
    "hf://owner/asked/weights.pth": "only to accounts that it has admitted",
    "hf://owner/two--dashes/weights.pth": "is no address of a file on the hub",
}
EACH = """
import sys
from utils.errors import InputError
from utils.files.hub import fetch

for address in sys.argv[1:]:
    try:
        print(fetch(address))
    except InputError as error:
        print(" ".join(str(error).split()))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Return the message for each address of `NOT_HAD`, from one process."""
    with hub_of_files() as hub:
        done = run_with_hub(hub, tmp_path_factory.mktemp("refusals"), "-c", EACH, *NOT_HAD)
    assert done.returncode == 0, done.stderr
    return dict(zip(NOT_HAD, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize(
    "address", NOT_HAD, ids=["repository", "file", "tag", "commit", "private", "gated", "name"]
)
def test_what_the_hub_does_not_have_or_give_is_said(refusals, address):
    assert refusals[address].startswith(f"{address}: ")
    assert NOT_HAD[address] in refusals[address]
    assert " Expected " in refusals[address]


def test_another_answer_is_given_by_its_status(hub, fetched):
    hub.status = 418
    assert f"{ADDRESS}: the hub answers with status 418" in refused(fetched(hub))


def test_a_repository_that_is_closed_later_is_refused_also_where_it_is_cached(hub, fetched):
    assert fetched(hub).returncode == 0
    hub.private = frozenset({"owner/net"})
    assert "or it is private" in refused(fetched(hub))


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["down", "offline"])
def test_a_file_that_is_not_cached_needs_a_network(hub, fetched, environment):
    hub.stop()
    line = refused(fetched(hub, **environment))
    assert f"{ADDRESS}: is not in the cache, and the hub cannot be asked" in line


def test_the_token_opens_a_private_repository_and_is_sent_but_never_shown(hub, fetched):
    done = fetched(hub, "hf://owner/secret/weights.pth", HF_TOKEN=SECRET)
    assert done.returncode == 0, done.stderr
    assert {asked.authorization for asked in hub.downloads} == {f"Bearer {SECRET}"}
    assert not any(SECRET in asked.path for asked in hub.asked)
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("token", "found"),
    [
        ("hf_wrongToken", "the hub refuses access (status 401)"),
        ("hf_wröngToken", "the hub cannot be asked (UnicodeEncodeError)"),
    ],
    ids=["wrong", "illegal"],
)
def test_a_token_that_does_not_open_it_is_refused_and_not_shown(hub, fetched, token, found):
    done = fetched(hub, "hf://owner/secret/weights.pth", HF_TOKEN=token)
    line = refused(done)
    assert "hf://owner/secret/weights.pth: " in line
    assert found in line
    assert "Token" not in done.stderr.replace("HF_TOKEN", "")


def test_a_download_whose_digest_is_not_the_hubs_is_refused_also_the_second_time(fetched):
    class Damaging(LocalHub):
        def sent(self, content):
            return content[:-1] + b"!"

    with Damaging(FILES) as hub:
        for _ in range(2):
            line = refused(fetched(hub))
            assert "has the SHA-256" in line
            assert hashlib.sha256(WEIGHTS).hexdigest()[:12] in line


def test_a_cache_that_cannot_be_written_is_named(hub, fetched, tmp_path):
    (tmp_path / "cache").write_text("a file")
    done = fetched(hub)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "cache") in done.stderr


def test_without_the_package_the_message_has_the_command_that_installs_it(hub, fetched):
    code = f"import sys; sys.modules['huggingface_hub'] = None\n{FETCH}"
    done = fetched(hub, code=code)
    assert "needs the package huggingface_hub, which is not installed" in refused(done)
    assert "pip install -c constraints.txt -r requirements-hub.txt" in done.stderr
    assert (ROOT / "requirements-hub.txt").exists()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        (ADDRESS, ("owner/net", "weights.pth", "main")),
        (f"{ADDRESS}@main", ("owner/net", "weights.pth", "main")),
        (f"{ADDRESS}@v1.0", ("owner/net", "weights.pth", "v1.0")),
        ("hf://o/n/runs/1/last.pt@refs/pr/3", ("o/n", "runs/1/last.pt", "refs/pr/3")),
        ("hf://a-b/c_d.e/two words.pth", ("a-b/c_d.e", "two words.pth", "main")),
    ],
)
def test_an_address_names_repository_file_and_revision(address, parts):
    file = HubFile.parse(address)
    assert (file.repo, file.name, file.revision) == parts
    assert str(file) == address.removesuffix("@main")


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf://owner/net",
        "hf://owner/net/",
        "hf://owner//weights.pth",
        "hf:/owner/net/weights.pth",
        "HF://owner/net/weights.pth",
        "hf://owner/net@main/weights.pth",
        "hf://owner/net/weights.pth@",
        "hf://owner/net/../weights.pth",
        "hf://owner/net/weights.pth@../main",
        "hf://owner/net/..\\weights.pth",
        "hf://ow ner/net/weights.pth",
        "https://huggingface.co/owner/net/resolve/main/weights.pth",
    ],
)
def test_other_forms_are_refused_with_the_right_one(address):
    with pytest.raises(InputError, match=r"is no address .* Expected hf://OWNER/REPO/FILE, or"):
        HubFile.parse(address)


@pytest.mark.parametrize("name", ["weights.pth", "runs/1/last.pt"])
def test_a_path_in_the_cache_gives_the_address_with_its_commit(tmp_path, name):
    path = tmp_path / "hub/models--owner--net/snapshots" / COMMIT / name
    assert address_of(path) == f"hf://owner/net/{name}@{COMMIT}"
    assert HubFile.parse(address_of(path)) == HubFile("owner/net", name, COMMIT)


@pytest.mark.parametrize(
    "path",
    [
        "weights.pth",
        "models--owner--net/snapshots/main/weights.pth",
        f"models--owner--net/blobs/{COMMIT}/weights.pth",
        f"datasets--owner--net/snapshots/{COMMIT}/weights.pth",
        f"models--owner--net/snapshots/{COMMIT}",
    ],
)
def test_other_paths_have_no_address(tmp_path, path):
    assert address_of(tmp_path / path) is None
