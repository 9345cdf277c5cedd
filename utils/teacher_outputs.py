"""What the teacher makes of a batch: its embedding, and its masks under simulated clicks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segment_anything import Sam3D
from utils.interaction import ClickHistory, coarsen, decode, low_res_size, simulate_clicks


@torch.no_grad()
def teacher_outputs(
    teacher: Sam3D,
    image: Tensor,
    label: Tensor,
    num_clicks: int,
    rngs: Sequence[np.random.Generator],
) -> dict[str, Tensor]:
    """Encode once, click ``num_clicks`` times into the teacher's own errors.

    Args:
        image: (B, 1, S, S, S) on the teacher's device.
        label: (B, 1, S, S, S) bool.
        rngs: a generator for each sample.

    Returns:
        ``image_embedding`` (B, C, g, g, g), ``low_res_masks`` (B, clicks, s, s, s) logits,
        ``predicted_iou`` (B, clicks), ``click_coords`` (B, clicks, 3) in crop voxels and
        ``click_labels`` (B, clicks); all on the image's device.
    """
    coarse, full = coarsen(label, low_res_size(teacher)), label[:, 0].cpu().numpy()
    embedding = teacher.image_encoder(image)
    history = ClickHistory(teacher.config.prompt.click_memory)
    low_res, masks, ious, coords, labels = None, [], [], [], []
    for _ in range(num_clicks):
        points, point_labels = simulate_clicks(low_res, coarse, full, rngs)
        points, point_labels = points.to(image.device), point_labels.to(image.device)
        history.add(points, point_labels)
        logits, iou = decode(teacher, embedding, history, low_res)
        low_res = logits.float()
        masks.append(low_res[:, 0])
        ious.append(iou[:, 0].float())
        coords.append(points)
        labels.append(point_labels)
    return {
        "image_embedding": embedding.float(),
        "low_res_masks": torch.stack(masks, 1),
        "predicted_iou": torch.stack(ious, 1),
        "click_coords": torch.stack(coords, 1),
        "click_labels": torch.stack(labels, 1),
    }
