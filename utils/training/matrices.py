"""The weights of layers as matrices, as Muon updates them (Jordan et al., 2024).

Muon makes all singular values of a matrix's update equal, so that no direction of a layer learns
faster than the others. The weights of linear layers and convolutions are such matrices. A
convolution's kernel is flattened: one row for each of its first axis. Position tables, embeddings,
norms and biases are no matrices.
"""

from torch import nn


def layer_weights(module: nn.Module) -> set[nn.Parameter]:
    """Return the weights of all linear layers and convolutions in a module."""
    layers = (nn.Linear, nn.Conv3d, nn.ConvTranspose3d)
    return {part.weight for part in module.modules() if isinstance(part, layers)}


class Flattened:
    """A weight as a matrix (rows, everything else) that shares its memory.

    Attributes:
        matrix: the parameter for the optimizer. Updating it updates the weight.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        self._weight = weight
        self.matrix = nn.Parameter(weight.detach().view(len(weight), -1))

    def take_gradient(self) -> None:
        """Move the weight's gradient to the matrix."""
        gradient, self._weight.grad = self._weight.grad, None
        self.matrix.grad = None if gradient is None else gradient.reshape(self.matrix.shape)
