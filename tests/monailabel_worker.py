"""The client of the package monailabel, which 3D Slicer's MONAI Label module uses.

    CLIENTS/bin/python tests/monailabel_worker.py URL IMAGE.nii.gz STEPS.json FOLDER

STEPS.json is a list of the prompts of each request. FOLDER gets the masks 0.nrrd, 1.nrrd, ... and
facts.json, what else the server said. It runs in an environment without this project.
"""

import json
import shutil
import sys
from pathlib import Path

from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException


def work(client: MONAILabelClient, image: str, steps: list[dict], folder: Path) -> dict:
    """Open a session, send the prompts of each step, close the session; return what was said."""
    facts = {"auth": client.auth_enabled(), "info": client.info()}
    (model,) = facts["info"]["models"]
    session = client.create_session(image)["session_id"]
    facts["session"] = client.get_session(session)
    for number, prompts in enumerate(steps):
        params = {"label": "target", "result_extension": ".nrrd", **prompts}
        found, said = client.infer(model, session, params, session_id=session)
        shutil.move(found, folder / f"{number}.nrrd")
        facts["said"] = said
    facts["refused"] = []
    for wrong in (
        lambda: client.infer(model, session, {"foreground": [[99, 99, 99]]}, session_id=session),
        lambda: client.infer("spleen", session, {"foreground": []}, session_id=session),
        lambda: client.next_sample("random", {}),
        lambda: client.train_start(model, {}),
    ):
        try:
            wrong()
        except MONAILabelClientException as error:
            facts["refused"].append(str(error.msg))
    client.remove_session(session)
    facts["session after"] = client.get_session(session)
    return facts


def main() -> None:
    url, image, steps, folder = sys.argv[1:]
    client = MONAILabelClient(url, tmpdir=folder, client_id="user")
    facts = work(client, image, json.loads(Path(steps).read_text()), Path(folder))
    (Path(folder) / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
