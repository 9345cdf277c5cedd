"""The teacher's outputs for a batch: image embedding, and masks after simulated clicks."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from segment_anything import Interaction, Sam3D, decode_points
from utils.training.clicks import coarsen, simulate_clicks


@torch.no_grad()
def teacher_outputs(
    teacher: Sam3D,
    image: Tensor,
    label: Tensor,
    num_clicks: int,
    rngs: Sequence[np.random.Generator],
    *,
    layers: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Encode a batch once, then decode ``num_clicks`` clicks, each in the error of the last mask.

    With ``num_clicks`` 0 there are only the outputs of the encoder.

    Args:
        image: (B, 1, S, S, S) on the teacher's device.
        label: (B, 1, S, S, S) bool; the clicks are placed by it.
        rngs: a generator for each sample's clicks.
        layers: blocks whose output is returned too, counted from 1.

    Returns:
        ``image_embedding`` (B, C, g, g, g), its learnt channels, ``low_res_masks`` (B, clicks, m,
        m, m) logits,
        ``predicted_iou`` (B, clicks), ``click_coords`` (B, clicks, 3) in crop voxels and
        ``click_labels`` (B, clicks), and for each of ``layers`` ``hidden_<n>`` (B, g, g, g, C);
        all on the image's device.
    """
    embedding, hidden = teacher.image_encoder.forward_features(image)
    # The rest is the image itself, which the student has from its own crop.
    learnt = embedding[:, : teacher.config.encoder.learnt_chans]
    encoded = {"image_embedding": learnt.float()}
    encoded |= {hidden_name(n): hidden[n].float() for n in layers}
    if num_clicks == 0:
        return encoded
    coarse = coarsen(label, teacher.config.encoder.cells_size)
    full = label[:, 0].cpu().numpy()
    # Raw masks: the student learns what the network computes, not its refinement.
    dense_pe = teacher.prompt_encoder.get_dense_pe()
    decode = partial(decode_points, teacher, dense_pe=dense_pe, finish=False)
    interaction = Interaction(teacher, embedding, decode=decode)
    masks, ious, coords, labels = [], [], [], []
    for _ in range(num_clicks):
        points, point_labels = simulate_clicks(interaction.low_res_masks, coarse, full, rngs)
        points, point_labels = points.to(image.device), point_labels.to(image.device)
        logits, iou = interaction.click(points, point_labels)
        interaction.keep_raw(logits.float())
        masks.append(logits[:, 0].float())
        ious.append(iou[:, 0].float())
        coords.append(points)
        labels.append(point_labels)
    return encoded | {
        "low_res_masks": torch.stack(masks, 1),
        "predicted_iou": torch.stack(ious, 1),
        "click_coords": torch.stack(coords, 1),
        "click_labels": torch.stack(labels, 1),
    }


def hidden_name(layer: int) -> str:
    """Return the name of the hidden states after a block, counted from 1."""
    return f"hidden_{layer}"
