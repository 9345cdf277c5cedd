"""A `Predictor` that is loaded and saved as users of the Hugging Face hub know it.

The mixin of huggingface_hub is not used: its ``save_pretrained`` deletes a ``config.json`` that it
finds in the folder, and it saves each argument of the class as configuration. Here the network file
holds its own configuration, and nothing in a folder is replaced.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from segment_anything import checkpoint_payload
from segment_anything.checkpoint import HASH_SUFFIX
from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.files.hub import SCHEME, HubFile, fetch
from utils.prediction.predictor import Predictor
from utils.run.network import open_network, save_payload, trained_on

NETWORK_FILE = "student.pth"  # as in weights/
CARD = "README.md"
CARD_TEXT = """---
library_name: fastsam3d
pipeline_tag: image-segmentation
tags:
- medical
- 3d
- interactive-segmentation
---

# A network for interactive segmentation of 3D medical images

`{file}` is a `{network}` network for crops of {size}³ voxels. In the folder of the project:

```python
from utils.prediction.pretrained import PretrainedPredictor

predictor = PretrainedPredictor.from_pretrained("OWNER/REPO")
```

Or on the command line: `python predict.py --checkpoint hf://OWNER/REPO/{file} …`

Folders of its training data: {trained_on}

If its training began with the weights that ship with the project, their licence (CC BY-SA 4.0)
and the attributions in `weights/README.md` apply to these weights too.
"""


class PretrainedPredictor(Predictor):
    """A predictor with `from_pretrained` and `save_pretrained`; all else is as in `Predictor`::

    predictor = PretrainedPredictor.from_pretrained("OWNER/REPO")
    predictor.set_image(volume, spacing_xyz=(0.8, 0.8, 2.5))
    """

    #: "organ/data set" folders that the network was trained on; None where its file does not say.
    trained_on: set[str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *,
        file: str = NETWORK_FILE,
        revision: str | None = None,
        network: str | None = None,
        **settings: Any,
    ) -> "PretrainedPredictor":
        """Load a network from a folder, or from a repository of the hub::

            PretrainedPredictor.from_pretrained(
                "blueyo0/SAM-Med3D", file="sam_med3d_turbo.pth", network="vit_b_ori"
            )

        A file of the hub is downloaded once; see `utils.files.hub.fetch`.

        Args:
            name: a folder, or OWNER/REPO.
            file: the network's file in it.
            revision: branch, tag or commit of the repository, by default main; of no effect for a
                folder.
            network: name in `sam_model_registry3D`, for released weights.
            settings: keyword arguments of `Predictor`, such as ``device``.

        Raises:
            InputError: there is no such folder and ``name`` is no OWNER/REPO; the file is not in
                the folder or cannot be fetched; or it is no network file, see `open_network`.
        """
        path = _in_folder(name, file) or fetch(_on_hub(name, file, revision or "main"))
        predictor = cls(*open_network(path, network), **settings)
        predictor.trained_on = trained_on(path)
        return predictor

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Save the network as ``student.pth``, with a model card where the folder has none.

        ``hf upload OWNER/REPO FOLDER`` publishes the folder.

        Args:
            folder: made if it is missing.

        Returns:
            the network's file: weights in float32, configuration, crop rule and `trained_on`.

        Raises:
            InputError: the folder has such a file already.
            WriteError: the disk is full, or the folder cannot be written to.
        """
        path = Path(folder) / NETWORK_FILE
        for taken in (path, path.with_name(NETWORK_FILE + HASH_SUFFIX)):
            if os.path.lexists(taken):
                raise InputError(
                    f"{taken}: is there already, expected no such file.\nName another folder; "
                    "save_pretrained replaces nothing."
                )
        model, facts = self.network.model, {"crop_rule": self.rule.to_dict()}
        if self.trained_on is not None:
            facts["trained_on"] = sorted(self.trained_on)
        save_payload(path, checkpoint_payload(model, **facts))
        card = path.with_name(CARD)
        if not os.path.lexists(card):
            with atomic_path(card) as temporary:
                temporary.write_text(self._card(), encoding="utf-8")
        return path

    def _card(self) -> str:
        """Return a model card; the hub shows it as the repository's page."""
        sets = "not recorded" if self.trained_on is None else ", ".join(sorted(self.trained_on))
        network = self.network.model.config.network
        return CARD_TEXT.format(
            file=NETWORK_FILE, network=network, size=self.rule.size, trained_on=sets
        )


def _in_folder(name: str | os.PathLike, file: str) -> Path | None:
    """Return the path of a folder's file; None where ``name`` is no folder."""
    folder = Path(name)
    if not (os.fspath(name) and folder.is_dir()):
        return None
    if not (folder / file).is_file():
        raise InputError(
            f"{folder}: has no {file}, expected a network file.\nName it with file=, or name "
            "another folder."
        )
    return folder / file


def _on_hub(name: str | os.PathLike, file: str, revision: str) -> HubFile:
    """Return the address of a repository's file."""
    if os.fspath(name).count("/") == 1:
        with suppress(InputError):
            return HubFile.parse(f"{SCHEME}{name}/{file}@{revision}")
    raise InputError(
        f"{name}: is no folder, and {file} at {revision} in it is no file of the hub. Expected a "
        "folder with a network file, or a repository as OWNER/REPO."
    )
