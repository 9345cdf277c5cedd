"""Scores of a case, as validation leaves them in JSON; values are the test's."""


def row(
    case: str = "CT_AMOS_1",
    *targets: dict,
    dataset: str = "CT_AMOS",
    has_box: bool = True,
    seconds: tuple[float, ...] = (1.0, 2.0, 3.0),
) -> dict:
    """Return a case of one box step and two clicks, with one target unless some are given."""
    return {
        "case": case,
        "dataset": dataset,
        "modality": dataset.split("_")[0],
        "shape": [40, 50, 60],
        "spacing_xyz": [0.8, 0.8, 2.5],
        "has_box": has_box,
        "seconds": list(seconds),
        "peak_memory_mib": 812.0,
        "targets": list(targets) or [target()],
    }


def target(
    organ: str = "liver",
    dsc: tuple[float, ...] = (0.5, 0.6, 0.8),
    nsd: tuple[float, ...] = (0.4, 0.5, 0.7),
    nsd_official: tuple[float, ...] = (0.3, 0.4, 0.6),
) -> dict:
    """Return a target that was clicked twice."""
    return {
        "class_id": 6,
        "name": organ.capitalize(),
        "organ": organ,
        "voxels": 1234,
        "dsc": list(dsc),
        "nsd": list(nsd),
        "nsd_official": list(nsd_official),
        "clicks": [[1, 2, 3, 1], [4, 5, 6, 0]],
    }
