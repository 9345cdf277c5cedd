"""How the threads of PyTorch and NumPy wait. Every script imports this before both.

PyTorch splits an operation among threads, and those that are done wait for the last one. GNU OpenMP
(libgomp, part of PyTorch's Linux builds) lets them spin for about 3 ms before they sleep. Where
other processes want the same cores, the spinning threads take the time that the last one needs, and
a training step of the small network took 25 times as long. After 0.1 ms of spinning it does not,
and a quiet machine is hardly slower.

The threads of NumPy's OpenBLAS spin after a matrix product as well, for longer, on the cores that
PyTorch needs next. So NumPy's products have one thread. With two, decoding a click after a mask was
resampled took 1.4 times as long, and a training step beside a loader worker 1.5 times.

docs/performance.md has the figures. Spinning changes no bit of the results. OMP_WAIT_POLICY,
GOMP_SPINCOUNT and OPENBLAS_NUM_THREADS in the environment are left as they are.
"""

import os

#: About 0.1 ms.
SPINS = 10_000

# The libraries read these once, when they are loaded.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
