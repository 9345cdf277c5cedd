"""serve.py: its flags, its messages, and a whole run as a process from ready line to Ctrl-C."""

import json
import logging
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from preparation_helpers import ROOT
from serving_helpers import voxels
from small_networks import save_student
from test_pipeline import Watched

import serve
from utils.errors import InputError
from utils.files.nifti import write_nifti
from utils.serving import server
from utils.volumes.geometry import affine_from_spacing

AFFINE = affine_from_spacing(np.array([1.2, 1.1, 1.0]))


def parsed(*words):
    return serve.parse_args(list(map(str, words)))


@pytest.fixture
def student(tmp_path):
    return save_student(tmp_path / "student.pth")


def save_demo_student(folder, steps):
    folder = folder / "work_dir" / "demo" / f"{steps}_steps" / "student"
    folder.mkdir(parents=True)
    return save_student(folder / "student.pth")


def test_without_any_network_one_message_says_what_to_type(weights):
    with pytest.raises(InputError, match=r"--checkpoint FILE, or type make demo"):
        serve.run(parsed())


def test_the_shipped_student_is_taken_before_that_of_the_demo(weights, monkeypatch, caplog):
    path = save_student(weights / "student.pth")
    save_demo_student(weights.parent, 2000)
    opened = []
    monkeypatch.setattr(server, "serve", lambda served, *_, **__: opened.append(served))
    with caplog.at_level(logging.INFO):
        serve.run(parsed("--device", "cpu"))
    assert opened[0].digest == server.file_digest(path)
    assert [text for text in caplog.messages if str(path) in text]
    assert "demo" not in caplog.text


def test_the_newest_student_of_the_demo_is_taken_where_no_student_ships(weights, caplog):
    for steps in (120, 2000):
        save_demo_student(weights.parent, steps)
        time.sleep(0.02)
    assert "2000_steps" in str(serve.default_checkpoint())
    assert "trained on phantoms" in caplog.text


def test_another_address_without_token_is_refused_before_the_network_is_opened(tmp_path):
    with pytest.raises(InputError, match=r"--host 0.0.0.0: other machines can reach"):
        serve.run(parsed("--host", "0.0.0.0", "--checkpoint", tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--token", "short"), "expected 16 or more"),
        (("--token", "with a blank in the middle"), "expected 16 or more"),
        (("--port", "65536"), "expected 0 to 65535"),
        (("--port", "-1"), "expected 0 to 65535"),
        (("--sessions", "0"), "expected 1 or more"),
        (("--max-voxels", "0"), "expected 1 or more"),
    ],
)
def test_flags_that_make_no_sense_are_refused(capsys, words, said):
    with pytest.raises(SystemExit):
        parsed(*words)
    assert said in capsys.readouterr().err


def test_a_token_is_made_where_none_is_named(tmp_path, student, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens = []
    monkeypatch.setattr(server, "serve", lambda _, address, **__: tokens.append(address.token))
    for _ in range(2):
        serve.run(parsed("--checkpoint", student, "--token"))
    assert len(set(tokens)) == 2
    assert min(map(len, tokens)) >= 32


def test_a_port_in_use_is_named(tmp_path, student, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with server.listening_socket(server.Address("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: cannot be listened on"):
            serve.run(parsed("--checkpoint", student, "--port", port, "--device", "cpu"))


def test_class_names_may_have_colours(tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("liver #AA3322\n\n  left kidney \nvertebra L#1\n#112233\n", "utf-8-sig")
    assert serve.class_colors(names) == {
        "liver": "#aa3322", "left kidney": "", "vertebra L#1": "", "#112233": "",
    }  # fmt: skip
    assert serve.class_colors(None) == {}


def test_every_flag_is_read(tmp_path, student, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server, "serve", lambda *_, **__: None)
    write_nifti(tmp_path / "scan.nii.gz", voxels(), AFFINE)
    names = tmp_path / "classes.txt"
    names.write_text("liver\n\n  spleen \n")
    words = ["--checkpoint", student, "--image", tmp_path / "scan.nii.gz", "--classes", names]
    args = Watched(parsed(*words))
    serve.run(args)
    assert args.unread() == set()


def test_as_a_process_it_says_when_it_is_ready_answers_and_ends_on_ctrl_c(tmp_path, student):
    write_nifti(tmp_path / "scan.nii.gz", voxels(), AFFINE)
    words = ["--checkpoint", student, "--image", "scan.nii.gz", "--port", "0", "--device", "cpu"]
    command = [sys.executable, str(ROOT / "serve.py"), *map(str, words)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("ready: "):
                break
        url = lines[-1].split()[1]
        with urllib.request.urlopen(f"{url}api/status") as answer:
            assert json.load(answer)["ready"]
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 0
    assert "Traceback" not in rest
    assert "ended; prompts are kept in" in rest


def test_help_loads_no_torch():
    code = "import sys, serve\ntry: serve.parse_args(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'starlette', 'uvicorn'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://viewer.example", "https://viewer.example"),
        ("https://Viewer.Example:443", "https://viewer.example"),
        ("http://viewer.example:80", "http://viewer.example"),
        ("https://viewer.example:08443", "https://viewer.example:8443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_an_allowed_page_is_named_as_browsers_name_it(given, sent):
    assert serve.parse_args(["--allow-origin", given]).allow_origin == [sent]


@pytest.mark.parametrize(
    "given", ["viewer.example", "ftp://a", "https://a/page", "https://a:99999", "*", "null", ""]
)
def test_what_is_no_page_is_no_allowed_one(capsys, given):
    with pytest.raises(SystemExit):
        serve.parse_args(["--allow-origin", given])
    assert "expected scheme, host and port alone" in capsys.readouterr().err
