"""NumPy's matrix products run on one thread. The training scripts import this before NumPy.

A loader worker cuts crops with matrix products of NumPy's OpenBLAS, while PyTorch trains on all
cores. Each product starts as many threads as there are cores. Those that are done spin while they
wait, which kept a worker busy all the time, although it needs a tenth of a core. A training step of
the small network on two cores took 1.5 times as long; docs/performance.md has the figures.
OPENBLAS_NUM_THREADS in the environment is left as it is.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # OpenBLAS reads it once, when it is loaded
