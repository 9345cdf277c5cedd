"""How long PyTorch's threads spin while they wait. Every script imports this before torch.

PyTorch splits an operation among threads, and those that are done wait for the last one. GNU OpenMP
(libgomp, part of PyTorch's Linux builds) lets them spin for about 3 ms before they sleep. Where
other processes want the same cores, the spinning threads take the time that the last one needs, and
a training step of the small network took 25 times as long. After 0.1 ms of spinning it does not,
and a quiet machine is hardly slower; docs/performance.md has the figures. The results have the same
bits. OMP_WAIT_POLICY or GOMP_SPINCOUNT in the environment is left as it is.
"""

import os

#: About 0.1 ms.
SPINS = 10_000

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)  # libgomp reads it once, when it is loaded
