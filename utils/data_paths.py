"""Which data the training and the validation read. This is the file to edit.

``img_datas`` are the folders to train on, ``val_datas`` those to evaluate on. Each holds
``imagesTr`` and ``labelsTr`` with files of the same names, as categorize.py and reallocate.py
leave them: ``data/medical_preprocessed/<organ>/<data set>/``.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent

# Every organ and data set that was prepared:
img_datas = sorted(p.parent for p in ROOT.glob("data/medical_preprocessed/*/*/labelsTr"))
val_datas = sorted(p.parent for p in ROOT.glob("data/medical_validation/*/*/labelsTr"))

# Or only some of them:
# img_datas = [
#     ROOT / "data/medical_preprocessed/liver/CT_AMOS",
#     ROOT / "data/medical_preprocessed/spleen/CT_AMOS",
# ]
