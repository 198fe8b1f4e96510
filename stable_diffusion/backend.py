"""This machine: its device, the precision that suits it, a fast BLAS if MLX comes without one, memory limits.

All other modules import MLX from here (`from .backend import mx, nn`), so that a faulty installation is explained
(`BackendError`). Importing this module changes nothing in the process. `prepare` does, when the first model is loaded
or trained:

- On a Linux CPU the MLX wheel has the reference BLAS, 40 to 70 times slower than a tuned one; so MLX's matrix products
  are redirected to scipy-openblas32 or mkl (both on PyPI), whichever is installed. STABLE_DIFFUSION_BLAS chooses:
  `auto` (the default), `openblas`, `mkl` or `none`. If anything is unexpected, MLX is left unchanged, and one warning
  says why and what to do.
- There the C library keeps the memory that MLX frees; STABLE_DIFFUSION_MALLOC=system turns that off.
- On a GPU a lock file detects a second process that uses it (gpu_lock.py).
- On Metal, weights stay resident up to STABLE_DIFFUSION_WIRED (in GiB), if that is set, and MLX's cache of free buffers
  is limited to an eighth of the memory.

Once anything has been evaluated, MLX hangs in a forked child (threads are not copied), and `prepare` evaluates a small
product: use multiprocessing's "spawn" start method.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import glob
import importlib.util
import math
import os
import re
import site
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import __version__, gpu_lock, mlx_packages, relink
from .errors import InputError

try:
    import mlx.core as mx
    import mlx.nn as nn
except ImportError as error:
    raise mlx_packages.import_failed(error) from error
mlx_packages.check_single()

__all__ = [
    "BLAS_VARIABLE",
    "Blas",
    "blas",
    "cpu_threads",
    "default_float16",
    "describe",
    "device_memory",
    "end_phase",
    "fit_threads",
    "give_back_memory",
    "gpu_kind",
    "has_gpu",
    "keep_little_memory",
    "mlx_version",
    "mx",
    "nn",
    "one_blas_thread",
    "prepare",
    "product_threads",
    "scalar_functions",
    "version",
    "working_set",
]

BLAS_VARIABLE = "STABLE_DIFFUSION_BLAS"
MALLOC_VARIABLE = "STABLE_DIFFUSION_MALLOC"
WIRED_VARIABLE = "STABLE_DIFFUSION_WIRED"
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h
BLAS_CHOICES = ("auto", "openblas", "mkl", "none")
REMEDY = "`pip install scipy-openblas32` installs one that is about 40 times faster"
PRODUCTS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
FAST_NAMES = ("openblas", "mkl", "blis", "armpl", "nvpl", "accelerate")  # in file names of fast libraries
CACHE_SHARE = 8  # of the device's memory, one part may stay in MLX's cache
SMALL_PRODUCT = 500_000_000  # multiply-adds; some 5 ms of one core
THREAD_VARIABLES = {
    "openblas": ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
    "mkl": ("MKL_NUM_THREADS", "OMP_NUM_THREADS"),
}


_INT, _FLOAT, _ARRAY = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
# Order, transpositions, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc.
SGEMM = ctypes.CFUNCTYPE(None, *[_INT] * 6, _FLOAT, _ARRAY, _INT, _ARRAY, _INT, _FLOAT, _ARRAY, _INT, use_errno=False)


class BlasError(Exception):
    """A BLAS library that MLX cannot use; the message says why."""


@dataclass(frozen=True)
class Blas:
    """The library that computes MLX's matrix products; `library` is None if it came with MLX.

    `threads` is its number of threads, `fixed` whether the environment sets that, `set_threads` changes it; `sgemm` is
    its cblas_sgemm, for ctypes.
    """

    name: str
    threads: int | None = None
    fixed: bool = False
    library: ctypes.CDLL | None = None
    set_threads: Callable[[int], None] | None = None
    sgemm: Callable[..., None] | None = None


_blas: Blas | None = None  # until `prepare` has chosen
_preparing = threading.Lock()
_threads: int | None = None  # as `fit_threads` set them last


def blas() -> Blas:
    """The BLAS for matrix products on the CPU; calls `prepare` if needed."""
    return _blas or prepare()


def has_gpu() -> bool:
    """True if MLX's default device is a GPU (Metal or CUDA)."""
    return mx.default_device().type == mx.gpu


def gpu_kind() -> str | None:
    """Which GPU MLX's default device is, "metal" or "cuda"; None for a CPU."""
    if not has_gpu():
        return None
    return "metal" if mx.metal.is_available() else "cuda"


@functools.cache
def mlx_version() -> tuple[int, ...]:
    """MLX's version as numbers, (0, 32, 4)."""
    return tuple(int(digits) for digits in re.findall(r"\d+", mx.__version__)[:3])  # type: ignore[attr-defined]


def device_memory() -> int | None:
    """Bytes of the GPU's memory (on a Mac the machine's); None without a GPU, or where it does not tell."""
    info = mx.device_info() if has_gpu() else {}
    return _bytes(info.get("memory_size") or info.get("total_memory"))


def working_set() -> int | None:
    """Bytes that the GPU recommends to use at once, on Metal; elsewhere what `device_memory` returns."""
    recommended = _bytes(mx.device_info().get("max_recommended_working_set_size")) if has_gpu() else None
    return recommended or device_memory()


def _bytes(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def scalar_functions() -> bool:
    """True where MLX computes exp and the like one element at a time, 50 times slower than additions: a Linux CPU."""
    return sys.platform == "linux" and not has_gpu()


def default_float16() -> bool:
    """Whether networks run in float16 by default: on a GPU. The CPU's fast matrix products are float32 only."""
    return has_gpu()


def describe() -> str:
    """One line for a log or an about box: MLX's version, the device, and on a CPU its BLAS and threads."""
    device = "gpu" if has_gpu() else "cpu"
    name = str(mx.device_info().get("device_name", "")).strip()
    parts = [f"MLX {mx.__version__}", f"{device} ({name})" if name else device]  # type: ignore[attr-defined]
    if not has_gpu():
        used = blas()
        parts.append(used.name if used.threads is None else f"{used.name}, threads: {used.threads}")
    return ", ".join(parts)


def version() -> str:
    """This program, its MLX and the kind of device. If all three are the same, pictures are bit-identical."""
    kind = "gpu" if has_gpu() else "cpu"
    return f"stable_diffusion {__version__} with MLX {mx.__version__} on {kind}"  # type: ignore[attr-defined]


def prepare() -> Blas:
    """Set up BLAS and memory; loading and training call it. Idempotent and thread-safe.

    Warns if another process uses the GPU. Raises `InputError` for a $STABLE_DIFFUSION_WIRED that is not a number.
    """
    global _blas
    with _preparing:
        if _blas is None:
            if has_gpu():
                gpu_lock.take()
            _keep_weights_resident()
            _limit_cache()
            _keep_freed_memory()
            _blas = _choose_blas() if sys.platform == "linux" and not has_gpu() else Blas("the BLAS of the system")
        return _blas


def fit_threads(multiply_adds: int) -> int | None:
    """Give the BLAS one thread if a model's largest matrix product has few `multiply_adds`, all cores otherwise.

    The threads of a product wait actively for each other. For a small product they gain little, and if another program
    occupies a core, each product waits for the scheduler: 5 to 10 times slower (docs/benchmarks.md). A number of
    threads set by the environment is kept. Returns the number, or None if it cannot be set.
    """
    global _threads
    used = blas()
    if used.set_threads is None or used.threads is None:
        return None
    _threads = 1 if multiply_adds < SMALL_PRODUCT and not used.fixed else used.threads
    used.set_threads(_threads)
    return _threads


def product_threads() -> int | None:
    """The number of threads that `fit_threads` chose last; None if it was not called."""
    return _threads


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, each matrix product of the whole process has one thread, so that several threads can run products."""
    used = blas()
    assert used.set_threads and used.threads, "the BLAS's threads cannot be set"
    used.set_threads(1)
    try:
        yield
    finally:
        used.set_threads(_threads or used.threads)


def cpu_threads() -> int:
    """Physical cores that this process may use, limited by affinity and a container's quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    limit = math.ceil(int(quota) / int(period)) if quota.isdigit() and period.isdigit() and int(period) else len(cores)
    return max(1, min(len(cores), limit))


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _keep_weights_resident() -> None:
    """On Metal, wire memory up to $STABLE_DIFFUSION_WIRED GiB, but no more than the device recommends.

    Opt-in, because machines with a wired limit have panicked (github.com/ml-explore/mlx, issue 3186).
    """
    asked = os.environ.get(WIRED_VARIABLE, "").strip()
    if not asked:
        return
    try:
        wanted = int(float(asked) * (1 << 30))
    except (ValueError, OverflowError):
        wanted = -1
    if wanted < 0:
        raise InputError(f"${WIRED_VARIABLE} = {asked!r} should be a number of GiB, such as 12.")
    if not mx.metal.is_available():
        return
    recommended = _bytes(mx.device_info().get("max_recommended_working_set_size"))
    if recommended:
        with contextlib.suppress(RuntimeError, ValueError):  # the system allows less: carry on without
            mx.set_wired_limit(min(wanted, recommended))


def _limit_cache() -> None:
    """On Metal limit MLX's cache of freed buffers to an eighth of the memory.

    MLX itself lets it grow to 1.5 times the recommended working set (github.com/ml-explore/mlx, issue 3350).
    """
    size = device_memory() if gpu_kind() == "metal" else None
    if size:
        mx.set_cache_limit(size // CACHE_SHARE)


def end_phase() -> None:
    """On a GPU give back the buffers that a finished phase of a generation left; the next one needs other sizes."""
    if has_gpu():
        mx.clear_cache()


def _keep_freed_memory() -> None:
    """On a Linux CPU, let the C library keep what MLX frees for the next arrays.

    Otherwise large arrays are new memory from the system each time, which has to clear the pages: a third of the time
    of a decoding (docs/benchmarks.md). `give_back_memory` releases it.
    """
    if not scalar_functions() or os.environ.get(MALLOC_VARIABLE, "").strip().lower() == "system":
        return
    with contextlib.suppress(AttributeError, OSError):  # not glibc: leave it unchanged
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 1 << 26)):
            mallopt(option, value)


def keep_little_memory() -> None:
    """From now on, return large freed memory to the system at once, in the whole process."""
    prepare()  # first, because it sets the opposite
    mx.set_cache_limit(0)
    if scalar_functions():
        with contextlib.suppress(AttributeError, OSError):
            mallopt = ctypes.CDLL(None).mallopt
            large = 1 << 25  # malloc's largest threshold; smaller blocks are reused
            for option, value in ((M_MMAP_MAX, 65536), (M_MMAP_THRESHOLD, large), (M_TRIM_THRESHOLD, 2 * large)):
                mallopt(option, value)


def give_back_memory() -> None:
    """Return unused memory to the system, after a model was dropped."""
    gc.collect()
    mx.clear_cache()
    if scalar_functions():
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def _choose_blas() -> Blas:
    """Try the libraries in order of preference; issues this module's only warning."""
    choice = os.environ.get(BLAS_VARIABLE, "").strip().lower() or "auto"
    bundled = Blas("the BLAS that MLX came with")
    if choice == "none":
        return bundled
    problems = []
    if choice not in BLAS_CHOICES:
        problems.append(f"{BLAS_VARIABLE}={choice!r} is not one of {', '.join(BLAS_CHOICES)}; using auto")
        choice = "auto"
    try:
        used = _fast_already() or _first_usable(choice, problems)
    except relink.RelinkError as error:
        used = None
        problems.append(f"this build of MLX is not as expected ({error})")
    if used is None:
        problems.append(f"MLX keeps its own slow BLAS; {BLAS_VARIABLE}=none hides this warning")
    if problems:
        warnings.warn("; ".join(problems), RuntimeWarning, stacklevel=3)
    return used or bundled


def _first_usable(choice: str, problems: list[str]) -> Blas | None:
    """The first installed library, in order of preference, that works; what goes wrong is added to `problems`."""
    found = False
    for name in _preference(choice):
        path = FINDERS[name]()
        if path is None:
            if name == choice:
                problems.append(f"{BLAS_VARIABLE}={choice}, but it is not installed")
            continue
        found = True
        try:
            return _use(name, path)
        except (BlasError, relink.RelinkError, OSError) as error:
            problems.append(f"{name} cannot be used ({error})")
    if not found:
        problems.append(f"no fast BLAS is installed: {REMEDY}")
    return None


def _preference(choice: str) -> tuple[str, ...]:
    """The libraries to try, best first; if the chosen one fails, the other is tried."""
    if choice == "auto":
        # Measured: mkl is faster on Intel's processors, OpenBLAS on others (docs/benchmarks.md).
        choice = "mkl" if "Intel" in str(mx.device_info(mx.cpu).get("device_name", "")) else "openblas"
    return (choice, *(name for name in FINDERS if name != choice))


def _find_openblas() -> str | None:
    """The library of PyPI's scipy-openblas32, found without importing the package."""
    spec = importlib.util.find_spec("scipy_openblas32")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "lib", "libscipy_openblas*.so"))):
            return path
    return None


def _find_mkl() -> str | None:
    """The library of PyPI's mkl, which pip puts into lib/ of the environment or of the user's folder."""
    for folder in (sys.prefix, site.getuserbase()):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "lib", "libmkl_rt.so*")), key=len, reverse=True):
            return path
    return None


FINDERS: dict[str, Callable[[], str | None]] = {"openblas": _find_openblas, "mkl": _find_mkl}


def _fast_already() -> Blas | None:
    """MLX's own BLAS, if its file name is that of a tuned one (conda, a build from source)."""
    regions = relink.mapped_regions()
    image = relink.Image.named("libmlx.so", regions)
    for slot in image.slots(PRODUCTS[:1]).get(PRODUCTS[0], []):
        region = relink.region_at(image.target(slot), regions)
        file_name = os.path.basename(region.path) if region else ""
        if any(name in file_name for name in FAST_NAMES):
            return Blas(file_name)
    return None


def _use(name: str, path: str) -> Blas:
    """Load and check the library, redirect MLX to it, check MLX's products, and undo that if they are wrong."""
    if name == "mkl" and os.environ.get("LD_BIND_NOW"):
        raise BlasError("LD_BIND_NOW is set, which makes mkl end the process")
    library = ctypes.CDLL(path)
    prefix = "scipy_" if name == "openblas" else ""
    try:
        functions = {product: getattr(library, prefix + product) for product in PRODUCTS}
        set_threads = getattr(
            library, "scipy_openblas_set_num_threads" if name == "openblas" else "MKL_Set_Num_Threads"
        )
    except AttributeError as error:
        raise BlasError(str(error)) from None
    _check_integer_width(functions["cblas_sgemm"])
    addresses = {product: ctypes.cast(function, ctypes.c_void_p).value or 0 for product, function in functions.items()}
    regions = relink.mapped_regions()
    undo = relink.redirect(relink.Image.named("libmlx.so", regions), addresses, regions)
    if not _products_are_right():
        undo()
        raise BlasError("with it MLX's matrix products are wrong")
    asked = _asked_threads(name)
    threads = asked or cpu_threads()
    set_threads(threads)
    return Blas(name, threads, asked is not None, library, set_threads, SGEMM(addresses["cblas_sgemm"]))


def _asked_threads(name: str) -> int | None:
    """The number of threads set by the library's own environment variables."""
    for variable in THREAD_VARIABLES[name]:
        value = os.environ.get(variable, "").strip()
        if value.isdigit() and int(value) > 0:
            return int(value)
    return None


def _check_integer_width(sgemm: Callable) -> None:
    """Raise BlasError unless `sgemm` is a CBLAS function with 32-bit integers (LP64).

    The 64-bit argument for n = 2 has a bit of its upper half set. A function with 32-bit integers does not see it; one
    with 64-bit integers sees n > ldb, which CBLAS requires it to refuse, so the result is not written. The other
    integers are 64-bit too, because ctypes leaves the upper half of a shorter argument undefined.
    """
    matrix = ctypes.c_float * 6
    a, b, c = matrix(1, 2, 3, 4, 5, 6), matrix(1, -1, 2, 0, -3, 5), matrix(*[7] * 6)
    row_major, plain = 101, 111
    m, n, k, too_large_n = (ctypes.c_int64(size) for size in (2, 2, 3, 2 | 1 << 32))
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    sgemm(row_major, plain, plain, m, too_large_n, k, one, a, k, b, n, zero, c, n)
    if list(c) != [-4, 14, -4, 26, 7, 7]:
        raise BlasError("it is not a CBLAS with 32-bit integers (a small product came out wrong)")


def _products_are_right() -> bool:
    """Whether MLX multiplies small integers exactly, in three types, plain and transposed."""
    rows, columns = range(1, 8), range(-2, 3)
    a = [[i * j - 3 for j in columns] for i in rows]
    b = [[i - 2 * j for j in range(3)] for i in columns]
    expected = [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]
    with mx.stream(mx.cpu):
        for dtype in (mx.float32, mx.float64, mx.complex64):
            left, right = mx.array(a).astype(dtype), mx.array(b).astype(dtype)
            products = left @ right, (right.T @ left.T).T
            if any(product.tolist() != expected for product in products):
                return False
    return True
