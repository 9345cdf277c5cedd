"""Prompts for NIfTI images: JSON files and flags, in each kind of coordinates."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from header_kinds import KINDS, write_kind

from utils.errors import InputError
from utils.files.nifti import read_nifti
from utils.prompts.files import (
    PromptSpace,
    add_prompt_arguments,
    find_prompts,
    gives_prompts,
    image_stem,
    protect_minus,
    read_prompt_file,
)
from utils.prompts.kinds import BoxPrompt, Click, PromptError, checked_box, checked_click

SHAPE = (10, 20, 30)
# x grows to patient left, as in most scans: 2 mm, 1 mm, 5 mm voxels, none at the origin.
AFFINE = np.array([[-2.0, 0, 0, 40], [0, 1, 0, -7], [0, 0, 5, -100], [0, 0, 0, 1]])
OBLIQUE = np.array([[1.8, 0.6, 0, 10], [-0.4, 1.2, 0.3, -7], [0.1, -0.2, 4, 3], [0, 0, 0, 1]])


def world(zyx, affine=AFFINE):
    return (affine @ [*zyx[::-1], 1.0])[:3].tolist()


def write(folder, content, name="scan.json"):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)
    return folder / name


def read(folder, targets, coordinates="zyx", affine=AFFINE):
    path = write(folder, {"coordinates": coordinates, "targets": targets})
    return read_prompt_file(path, SHAPE, affine)


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_prompt_arguments(parser)
    return parser.parse_args(protect_minus(words))


def test_a_file_gives_each_target_its_box_and_then_its_points_in_order(tmp_path):
    points = [{"at": [5, 6, 7]}, {"at": [1, 2, 3], "positive": False}, {"at": [9, 19, 29]}]
    box = {"from": [4, 5, 6], "to": [6, 7, 8]}
    liver = {"id": 7, "name": "liver", "points": points, "box": box}
    first, second = read(tmp_path, [liver, {"id": 1}])
    assert (first.id, first.name) == (7, "liver")
    assert first.prompts == [
        BoxPrompt((4, 5, 6), (7, 8, 9)),
        Click((5, 6, 7), True),
        Click((1, 2, 3), False),
        Click((9, 19, 29), True),
    ]
    assert (second.id, second.name, second.prompts) == (1, "", [])


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("coordinates", ["zyx", "xyz", "mm", "mm-lps"])
def test_the_same_places_in_each_kind_of_coordinates(tmp_path, coordinates, affine):
    def said(zyx):
        x, y, z = world(zyx, affine)
        millimetres = {"mm": [x, y, z], "mm-lps": [-x, -y, z]}
        return ({"zyx": list(zyx), "xyz": list(zyx[::-1])} | millimetres)[coordinates]

    box = {"from": said((2, 3, 4)), "to": said((5, 9, 20))}
    target = {"id": 1, "points": [{"at": said((5, 6, 7))}], "box": box}
    (read_back,) = read(tmp_path, [target], coordinates, affine)
    assert read_back.prompts == [BoxPrompt((2, 3, 4), (6, 10, 21)), Click((5, 6, 7), True)]


def test_millimetres_go_to_the_nearest_voxel():
    x, y, z = world((5, 6, 7))
    for offset in (-0.4, 0.4):
        place = (x + 2 * offset, y + offset, z + 5 * offset)
        assert PromptSpace("mm", SHAPE, AFFINE).click(place, True) == Click((5, 6, 7), True)


def test_any_two_opposite_corners_make_the_box():
    space = PromptSpace("zyx", SHAPE, AFFINE)
    expected = BoxPrompt((2, 3, 4), (6, 10, 21))
    assert space.box((5, 3, 20), (2, 9, 4)) == expected
    assert space.box((2, 3, 4), (2, 3, 4)) == BoxPrompt((2, 3, 4), (3, 4, 5))


def test_a_box_is_cut_to_the_image():
    space = PromptSpace("zyx", SHAPE, AFFINE)
    assert space.box((-5, 0, 0), (50, 4, 4)) == BoxPrompt((0, 0, 0), (10, 5, 5))


POINT = {"at": [1, 2, 3]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"is not JSON \(.*line 1"),
        ("[" * 100_000, "is not JSON|cannot be read"),
        ("[]", r"the entry is \[\]\. Expected an object with coordinates, targets"),
        ({"Modality": "MR", "targets": []}, "unknown 'Modality', missing 'coordinates'"),
        ({"coordinates": "ijk", "targets": []}, 'coordinates is "ijk". Expected one of zyx, xyz'),
        ({"coordinates": "zyx", "targets": {}}, r"targets is \{\}. Expected a list"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value))[:30],
)
def test_what_is_no_prompt_file_is_named(tmp_path, content, said):
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=rf"scan\.json: .*({said})"):
        read_prompt_file(path, SHAPE, AFFINE)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"points": []}, "missing 'id'"),
        ({"id": 1, "point": []}, "unknown 'point'. Expected the keys id, name, box, points"),
        ({"id": 0}, "id is 0. Expected a whole number from 1"),
        ({"id": True}, "id is true"),
        ({"id": 70_000}, "id is 70000"),
        ({"id": 1, "name": 3}, "name is 3"),
        ({"id": 1, "points": [POINT, {"at": [1, 2]}]}, r"points\[1\]: at is \[1, 2\]"),
        ({"id": 1, "points": [{"at": [1, 2, "3"]}]}, r"points\[0\]: at is"),
        ({"id": 1, "points": [{"at": [1, 2, float("nan")]}]}, r"points\[0\]: at is"),
        ({"id": 1, "points": [POINT | {"positive": 1}]}, r"points\[0\]: positive is 1"),
        ({"id": 1, "points": [{"at": [10, 2, 3]}]}, r"points\[0\]: the click .* is not a voxel"),
        ({"id": 1, "points": [{"at": [1.5, 2, 3]}]}, r"points\[0\]: the click .* is not a voxel"),
        ({"id": 1, "box": {"from": [1, 2, 3]}}, "box: missing 'to'"),
        ({"id": 1, "box": {"from": [11, 0, 0], "to": [15, 4, 4]}}, "box: the box .* no voxel"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value))[:40],
)
def test_what_is_wrong_with_a_target_is_named_with_its_place(tmp_path, target, said):
    with pytest.raises(InputError, match=rf"(?s)scan\.json: targets\[1\]: (?=.*Expected){said}"):
        read(tmp_path, [{"id": 9}, target])


def test_one_target_has_one_entry(tmp_path):
    with pytest.raises(InputError, match=r"the ids is \[3, 3\]"):
        read(tmp_path, [{"id": 3}, {"id": 3}])


def test_flags_give_one_target_its_box_then_its_clicks(tmp_path):
    args = parsed("--fg", "5,6,7", "1,1,1", "--bg", "0,0,0", "--box", "4,5,6,6,7,8")
    (target,) = find_prompts(args, tmp_path / "scan.nii.gz", SHAPE, AFFINE)
    assert target.id == 1
    assert target.prompts == [
        BoxPrompt((4, 5, 6), (7, 8, 9)),
        Click((5, 6, 7), True),
        Click((1, 1, 1), True),
        Click((0, 0, 0), False),
    ]


def test_flags_may_begin_with_a_minus(tmp_path):
    x, y, z = world((5, 6, 7))
    assert min(x, y, z) < 0
    corner = ",".join(map(str, world((2, 3, 29))))
    opposite = ",".join(map(str, world((4, 9, 20))))
    flags = [
        "--coordinates",
        "mm",
        "--fg",
        f"{x},{y},{z}",
        "--bg",
        ",".join(map(str, world(SHAPE))),
    ]
    args = parsed(*flags[:4], "--box", f"{corner},{opposite}")
    assert corner.startswith("-")
    (target,) = find_prompts(args, tmp_path / "scan.nii.gz", SHAPE, AFFINE)
    assert target.prompts == [BoxPrompt((2, 3, 20), (5, 10, 30)), Click((5, 6, 7), True)]
    with pytest.raises(InputError, match=r"--bg: the click .* is not a voxel"):
        find_prompts(parsed(*flags), tmp_path / "scan.nii.gz", SHAPE, AFFINE)


@pytest.mark.parametrize("words", [["--fg", "1,2"], ["--box", "1,2,3"], ["--bg", "a,b,c"]])
def test_a_flag_with_other_than_its_numbers_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        parsed(*words)
    assert "numbers with commas between" in capsys.readouterr().err


def test_prompts_lie_beside_the_image_or_where_the_flag_says(tmp_path):
    content = {"coordinates": "zyx", "targets": [{"id": 4, "points": [POINT]}]}
    for folder in ("images", "prompts"):
        (tmp_path / folder).mkdir()
    image = tmp_path / "images" / "scan.nii.gz"
    with pytest.raises(InputError, match=r"has no prompts, found no .*images/scan\.json"):
        find_prompts(parsed(), image, SHAPE, AFFINE)
    path = write(tmp_path / "prompts", content)
    for where in (path, path.parent):
        args = parsed("--prompts", str(where))
        assert gives_prompts(args)
        assert find_prompts(args, image, SHAPE, AFFINE)[0].id == 4
    write(tmp_path / "images", content)
    assert not gives_prompts(parsed())
    assert find_prompts(parsed(), image, SHAPE, AFFINE)[0].id == 4


def test_prompts_in_two_places_are_refused(tmp_path):
    args = parsed("--prompts", "p.json", "--fg", "1,2,3")
    with pytest.raises(InputError, match=r"Expected prompts in one place"):
        find_prompts(args, tmp_path / "scan.nii", SHAPE, AFFINE)


@pytest.mark.parametrize("name", ["a.b.nii.gz", "a.b.nii", "a.b.npz"])
def test_the_stem_is_the_name_without_the_suffix(tmp_path, name):
    assert image_stem(tmp_path / name) == "a.b"


SHIFTED = AFFINE + np.array([[0, 0, 0, 12.0], [0] * 4, [0] * 4, [0] * 4])  # 6 voxels along x


@pytest.mark.parametrize(("coordinates", "x"), [("mm", 7), ("mm-lps", 13)])
def test_where_forms_differ_mm_means_nibabel_s_place_and_mm_lps_that_of_itk(
    tmp_path, coordinates, x, caplog
):
    place = np.array(world((5, 6, 7))) * ([1, 1, 1] if coordinates == "mm" else [-1, -1, 1])
    target = {"id": 1, "points": [{"at": place.tolist()}]}
    path = write(tmp_path, {"coordinates": coordinates, "targets": [target]})

    (read_back,) = read_prompt_file(path, SHAPE, AFFINE, SHIFTED)

    assert read_back.prompts == [Click((5, 6, x), True)]
    assert "scan.json: the forms of its header lie up to 12 mm apart" in caplog.text
    assert f"make sure that {coordinates} fits the viewer" in caplog.text


def test_forms_less_than_half_a_voxel_apart_and_voxel_coordinates_need_no_warning(tmp_path, caplog):
    path = write(tmp_path, {"coordinates": "mm", "targets": []})
    read_prompt_file(path, SHAPE, AFFINE, AFFINE + np.eye(4, k=3) * 0.49)
    read_prompt_file(path, SHAPE, AFFINE)
    assert not caplog.text

    read_prompt_file(path, SHAPE, AFFINE, AFFINE + np.eye(4, k=3) * 0.51)
    assert "0.51 mm apart" in caplog.text
    caplog.clear()
    path = write(tmp_path, {"coordinates": "xyz", "targets": []})
    read_prompt_file(path, SHAPE, AFFINE, SHIFTED)
    assert not caplog.text


def test_flags_take_the_same_coordinates_and_warn_too(tmp_path, caplog):
    x, y, z = world((5, 6, 7))
    args = parsed("--fg", f"{-x},{-y},{z}", "--coordinates", "mm-lps")

    (target,) = find_prompts(args, tmp_path / "scan.nii.gz", SHAPE, AFFINE, SHIFTED)

    assert target.prompts == [Click((5, 6, 13), True)]
    assert "scan.nii.gz: the forms of its header" in caplog.text


def test_a_place_of_itk_in_an_image_with_odd_forms_is_the_voxel_that_itk_shows(tmp_path):
    """The voxel's place by SimpleITK itself, given as mm-lps, comes back as the voxel."""
    for number, kind in enumerate(KINDS):
        path = tmp_path / f"{number}.nii"
        write_kind(path, kind, np.zeros(SHAPE, np.int16))
        volume = read_nifti(path)
        place = sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint((7, 6, 5))
        space = PromptSpace("mm-lps", SHAPE, volume.affine, volume.itk_affine)

        assert space.click(place, True) == Click((5, 6, 7), True), kind


@pytest.mark.parametrize(("system", "said"), [("LPS", "mm-lps"), ("RAS", "mm"), (None, "mm-lps")])
def test_markups_of_slicer_are_refused_with_what_to_write(tmp_path, system, said):
    markup = {
        "type": "Fiducial",
        "coordinateSystem": system,
        "controlPoints": [{"id": "1", "label": "F-1", "position": [8.0, 10.5, -10]}],
    }
    path = write(tmp_path, {"@schema": "https://x", "markups": [markup]}, "slicer.mrk.json")

    with pytest.raises(
        InputError, match=r"slicer\.mrk\.json: is a markups file of 3D Slicer"
    ) as error:
        read_prompt_file(path, SHAPE, AFFINE)

    suggested = str(error.value).split(": write ")[1].split(", with one entry a point")[0]
    path = write(tmp_path, suggested)
    assert json.loads(suggested)["coordinates"] == said
    assert json.loads(suggested)["targets"][0]["points"][0]["at"] == [8.0, 10.5, -10]


def test_markups_without_points_are_refused_too(tmp_path):
    for markups in ([], [{}], [5]):
        path = write(tmp_path, {"markups": markups})
        with pytest.raises(InputError, match=r"is a markups file.*mm-lps.*\[x, y, z\]"):
            read_prompt_file(path, SHAPE, AFFINE)


def test_a_click_outside_the_image_is_told_in_which_coordinates_it_is_inside():
    x, y, z = world((5, 6, 7))
    with pytest.raises(InputError, match=r"not a voxel.* As coordinates mm-lps, \(.*\) lies in"):
        PromptSpace("mm", SHAPE, AFFINE).click((-x, -y, z), True)
    with pytest.raises(InputError, match=r"As coordinates xyz, \(29, 19, 9\) lies in the image"):
        PromptSpace("zyx", SHAPE, AFFINE).click((29, 19, 9), True)
    with pytest.raises(InputError) as error:
        PromptSpace("zyx", SHAPE, AFFINE).click((500, 500, 500), True)
    assert "As coordinates" not in str(error.value)


@pytest.mark.parametrize(
    ("start", "stop", "cut"),
    [
        ((-3, 0, 0), (4, 5, 6), ((0, 0, 0), (4, 5, 6))),
        ((1.5, 2.25, 3), (99, 99, 99), ((1.5, 2.25, 3), (10, 20, 30))),
        ((9.5, 0, 0), (11, 1, 1), ((9.5, 0, 0), (10, 1, 1))),
    ],
)
def test_a_box_is_cut_to_the_image_on_each_side(start, stop, cut):
    assert checked_box(start, stop, SHAPE) == BoxPrompt(*cut)
    assert checked_box(start, stop, SHAPE, middle_slice=True).middle_slice is True
    assert BoxPrompt((1, 2, 3), (4, 5, 7)).centre_zyx == (2, 3, 4.5)


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        ((0, 0), (4, 5, 6)),
        ((0, 0, 0), (4, 5, 6, 7)),
        ((0, 0, 0, 0), (4, 5, 6, 7)),
        ((0, 0, np.nan), (4, 5, 6)),
        ((0, 0, 0), (4, 5, np.inf)),
        ((4, 0, 0), (4, 5, 6)),
        ((0, 5, 0), (4, 4, 6)),
        ((10, 0, 0), (12, 5, 6)),
        ((0, 0, -5), (4, 5, 0)),
    ],
)
def test_a_box_of_other_numbers_or_beside_the_image_is_refused(start, stop):
    with pytest.raises(PromptError, match=r"^the box from .* holds no voxel .*\(10, 20, 30\)"):
        checked_box(start, stop, SHAPE)


@pytest.mark.parametrize("zyx", [(0, 0, 0), (9, 19, 29), (4.0, 5.0, 6.0)])
def test_a_click_on_any_voxel_is_taken_as_whole_numbers(zyx):
    for kind in (True, False, np.True_, 0):
        click = checked_click(zyx, kind, SHAPE)
        assert click == Click(tuple(int(c) for c in zyx), bool(kind))
        assert [type(c) for c in (*click.zyx, click.is_foreground)] == [int] * 3 + [bool]


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("value", [-1, 0.5, "length"])
def test_a_click_beside_the_image_on_one_axis_is_refused(axis, value):
    place = [1, 2, 3]
    place[axis] = SHAPE[axis] if value == "length" else value
    with pytest.raises(PromptError, match=r"^the click .* is not a voxel .*\(10, 20, 30\)"):
        checked_click(place, True, SHAPE)


@pytest.mark.parametrize("number", [1, 65535])
def test_the_first_and_the_last_id_are_taken(tmp_path, number):
    assert read(tmp_path, [{"id": number}])[0].id == number


@pytest.mark.parametrize("number", [65536, -1, 1.0, "1", None])
def test_other_ids_are_refused(tmp_path, number):
    with pytest.raises(InputError, match=r"targets\[0\]: id is .*from 1 to 65535"):
        read(tmp_path, [{"id": number}])


def test_a_long_value_is_cut_in_the_message(tmp_path):
    with pytest.raises(InputError, match=r"name is \[(0, ){25}0\.\.\.\. Expected text"):
        read(tmp_path, [{"id": 1, "name": [0] * 1000}])


def test_a_minus_is_kept_from_argparse_before_numbers_alone():
    words = ["--fg", "-1,2,3", "-1.5e-3,2,3", "-x,2", "--box", "-.5,1,2,3,4,5", "-", "-7"]
    blanks = ["--fg", " -1,2,3", " -1.5e-3,2,3", "-x,2", "--box", " -.5,1,2,3,4,5", "-", "-7"]
    assert protect_minus(words) == blanks


def test_flags_of_each_kind_say_that_prompts_are_given():
    assert not gives_prompts(parsed())
    for words in (["--fg", "1,2,3"], ["--bg", "1,2,3"], ["--box", "1,2,3,4,5,6"]):
        assert gives_prompts(parsed(*words))
        with pytest.raises(InputError, match=r"--prompts p\.json: found --fg"):
            find_prompts(parsed("--prompts", "p.json", *words), Path("scan.nii"), SHAPE, AFFINE)


def test_flags_may_be_given_more_than_once_and_in_any_coordinates(tmp_path):
    words = [
        "--fg",
        "1,2,3",
        "4,5,6",
        "--fg",
        "7,8,9",
        "--coordinates",
        "xyz",
        "--box",
        "1,2,3,4,5,6",
    ]
    (target,) = find_prompts(parsed(*words), tmp_path / "scan.nii", SHAPE, AFFINE)
    clicks = [Click(zyx, True) for zyx in ((3, 2, 1), (6, 5, 4), (9, 8, 7))]
    assert target == (1, "", [BoxPrompt((3, 2, 1), (7, 6, 5)), *clicks])
    for flag, words in (("--box", ["--box", "11,0,0,12,4,4"]), ("--fg", ["--fg", "1,2,99"])):
        with pytest.raises(PromptError, match=f"^{flag}: the "):
            find_prompts(parsed(*words), tmp_path / "scan.nii", SHAPE, AFFINE)


def test_a_stem_keeps_dots_and_other_suffixes():
    names = {"a.nii": "a", "a.nii.gz.nii.gz": "a.nii.gz", "a.gz": "a.gz", "a.npz.txt": "a.npz.txt"}
    assert {name: image_stem(Path(name)) for name in names} == names


def test_an_unknown_coordinate_system_is_refused_as_a_flag(capsys):
    with pytest.raises(SystemExit):
        parsed("--fg", "1,2,3", "--coordinates", "ijk")
    assert "--coordinates: invalid choice: 'ijk'" in capsys.readouterr().err
