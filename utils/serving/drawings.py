"""Scribbles and lassos, which the network does not take, as prompts that it does take."""

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

REACH = 1.8  # voxels that touch by a corner are neighbours


def points_along(drawn: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Return places along a curve, its middle first, then towards both of its ends in turn.

    Args:
        drawn: (D, H, W) bool, with at least one voxel; of several curves the largest counts.
        count: of places, evenly spaced; fewer where the curve is short.
    """
    labels, parts = ndimage.label(drawn, np.ones((3, 3, 3)))
    largest = 1 + np.argmax(np.bincount(labels.ravel(), minlength=parts + 1)[1:])
    voxels = np.argwhere(labels == largest)
    graph = cKDTree(voxels).sparse_distance_matrix(cKDTree(voxels), REACH).tocsr()
    end = int(np.argmax(dijkstra(graph, indices=0)))
    along = dijkstra(graph, indices=end)
    shares = (np.arange(count) + 0.5) / count
    shares = shares[np.argsort(np.abs(shares - 0.5), kind="stable")]
    found = []
    for share in shares:
        near = voxels[np.abs(along - share * along.max()) <= 1]
        place = near[np.argmin(((near - near.mean(axis=0)) ** 2).sum(axis=1))]
        if tuple(place.tolist()) not in found:
            found.append(tuple(place.tolist()))
    return found
