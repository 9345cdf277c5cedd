"""Write small DICOM series with SimpleITK, for tests."""

import locale

import numpy as np
import SimpleITK

SPACING_XYZ = (0.7, 0.8, 2.5)
ORIGIN = (10.0, -20.0, 30.0)  # LPS mm
OBLIQUE = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def voxels(shape=(4, 5, 6)):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 30


def write_series(
    folder, array, *, places=None, uid="1.2.3", modality="CT", direction=OBLIQUE, number=0, **tags
):
    """Write one file a slice; ``places`` are their distances along the normal in mm."""
    folder.mkdir(parents=True, exist_ok=True)
    before = locale.setlocale(locale.LC_ALL)
    places = SPACING_XYZ[2] * np.arange(len(array)) if places is None else places
    axes = np.reshape(direction, (3, 3)).T
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, (plane, place) in enumerate(zip(array, places, strict=True), number):
        image = SimpleITK.GetImageFromArray(plane[None], isVector=plane.ndim == 3)[:, :, 0]
        image.SetSpacing(SPACING_XYZ[:2])
        position = np.add(ORIGIN, axes[2] * place)
        values = {
            "0008|0018": f"{uid}.{k}",
            "0008|0060": modality,
            "0008|103e": "a series",
            "0020|000e": uid,
            "0020|0032": "\\".join(f"{p:.8g}" for p in position),
            "0020|0037": "\\".join(f"{d:g}" for d in axes[:2].ravel()),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in (values | tags).items():
            if value is not None:
                image.SetMetaData(tag, value)
        # The order of the names is not that of the slices.
        writer.SetFileName(str(folder / f"{(7 * k) % 997:03d}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # GDCM's writer sets it to C
    return folder
