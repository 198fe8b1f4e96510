"""The preparation of the machine: products that are right, and libraries that are refused while MLX goes on working."""

from __future__ import annotations

import glob
import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from stable_diffusion import backend
from stable_diffusion.backend import mx
from stable_diffusion.errors import InputError

linux_cpu = pytest.mark.skipif(sys.platform != "linux" or backend.has_gpu(), reason="only a Linux CPU needs a BLAS")
needs_openblas = pytest.mark.skipif(
    importlib.util.find_spec("scipy_openblas32") is None, reason="needs scipy-openblas32"
)
needs_mkl = pytest.mark.skipif(backend._find_mkl() is None, reason="needs mkl")

# What the subprocesses share: which library MLX's products go to, and whether they are right.
PRELUDE = """
import os, sys, warnings
warnings.simplefilter("always")
def prepare():
    from stable_diffusion import backend
    backend.prepare()
    return backend
def report():
    import mlx.core as mx
    from stable_diffusion import relink
    regions = relink.mapped_regions()
    image = relink.Image.named("libmlx.so", regions)
    files = {os.path.basename(relink.region_at(image.target(a), regions).path)
             for slots in image.slots(("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")).values() for a in slots}
    right = mx.array_equal(mx.arange(12.0).reshape(3, 4) @ mx.ones((4, 2)),
                           mx.array([[6.0] * 2, [22.0] * 2, [38.0] * 2])).item()
    print(*sorted(files), "right" if right else "wrong")
"""


def run(code: str, **environment: str) -> tuple[str, str]:
    """Run `code` in a new process; its output and the warnings that it gave."""
    inherited = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS") and k != backend.BLAS_VARIABLE}
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        env=inherited | {"PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def relative_error(product: mx.array, a: np.ndarray, b: np.ndarray) -> float:
    wide = np.complex128 if np.iscomplexobj(a) else np.float64
    expected = a.astype(wide) @ b.astype(wide)
    return float(np.abs(np.array(product) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (65, 33, 17), (128, 320, 77), (1, 640, 319), (257, 2, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-14), ("complex64", 2e-6)])
def test_products_agree_with_numpy(shape, dtype, tolerance):
    m, k, n = shape
    random = np.random.default_rng(7)
    a, b = (random.standard_normal(s) for s in ((m, k), (k, n)))
    if dtype == "complex64":
        a, b = a + 1j * random.standard_normal(a.shape), b - 1j * random.standard_normal(b.shape)
    a, b = a.astype(dtype), b.astype(dtype)
    with mx.stream(mx.cpu):
        kind = getattr(mx, dtype)
        left, right = mx.array(a, dtype=kind), mx.array(b, dtype=kind)
        left_t, right_t = (mx.array(np.ascontiguousarray(x.T), dtype=kind).T for x in (a, b))
        plain, first, second, both = left @ right, left_t @ right, left @ right_t, left_t @ right_t
        for product in (plain, first, second, both):
            assert relative_error(product, a, b) <= tolerance


def test_batched_and_broadcast_products_agree_with_numpy():
    random = np.random.default_rng(8)
    a, b = (random.standard_normal(s).astype(np.float32) for s in ((2, 3, 19, 31), (3, 31, 5)))
    with mx.stream(mx.cpu):
        assert relative_error(mx.array(a) @ mx.array(b), a, b) <= 2e-6
        part = mx.array(a)[:, ::2, 1:, 3:] @ mx.array(b)[::2, 3:]
        assert relative_error(part, a[:, ::2, 1:, 3:], b[::2, 3:]) <= 2e-6


def test_products_with_a_bias_and_convolutions_agree_with_numpy():
    random = np.random.default_rng(9)
    x, w, bias = (random.standard_normal(s).astype(np.float32) for s in ((23, 29), (29, 11), (11,)))
    with mx.stream(mx.cpu):
        got = np.array(mx.addmm(mx.array(bias), mx.array(x), mx.array(w), alpha=0.5, beta=2.0))
        assert np.allclose(got, 0.5 * (x.astype(np.float64) @ w) + 2.0 * bias, atol=1e-5)
        # A 1x1 convolution is a product, and goes through the same routine.
        picture = mx.conv2d(mx.array(x.reshape(1, 23, 1, 29)), mx.array(w.T.reshape(11, 1, 1, 29).copy()))
        assert relative_error(picture.reshape(23, 11), x, w) <= 2e-6


@linux_cpu
@needs_openblas
def test_openblas_takes_the_products():
    out, warned = run("backend = prepare(); report(); print(backend.describe())",
                      STABLE_DIFFUSION_BLAS="openblas")  # fmt: skip
    first, line = out.splitlines()
    assert first == "libscipy_openblas.so right"
    assert "cpu" in line and "openblas, " in line and "\n" not in line
    assert warned == ""


@linux_cpu
@needs_mkl
def test_mkl_takes_the_products():
    out, warned = run("prepare(); report()", STABLE_DIFFUSION_BLAS="mkl")
    assert out.startswith("libmkl_rt.so") and out.endswith("right") and warned == ""


@linux_cpu
@needs_mkl
def test_mkl_with_64_bit_integers_is_refused():
    out, warned = run("prepare(); report()",
                      STABLE_DIFFUSION_BLAS="mkl", MKL_INTERFACE_LAYER="ILP64")  # fmt: skip
    assert "libmkl" not in out and out.endswith("right")
    assert "mkl cannot be used (it is not a CBLAS with 32-bit integers" in warned


@linux_cpu
@needs_mkl
def test_mkl_is_refused_where_it_would_end_the_process():
    out, warned = run("prepare(); report()",
                      STABLE_DIFFUSION_BLAS="mkl", LD_BIND_NOW="1")  # fmt: skip
    assert "libmkl" not in out and out.endswith("right") and "LD_BIND_NOW" in warned


@linux_cpu
@needs_openblas
@pytest.mark.parametrize(
    "before",
    [
        "import mlx.core as mx; mx.eval(mx.ones((9, 9)) @ mx.ones((9, 9)))",
        "import numpy; numpy.ones((300, 300)) @ numpy.ones((300, 300))",
        "import mlx.nn",
    ],
)
def test_works_whatever_was_imported_before(before):
    out, warned = run(f"{before}\nprepare(); report()", STABLE_DIFFUSION_BLAS="openblas")
    assert out == "libscipy_openblas.so right" and warned == ""


@linux_cpu
def test_the_variable_turns_it_off():
    out, warned = run("backend = prepare(); report(); print(backend.describe())",
                      STABLE_DIFFUSION_BLAS="none")  # fmt: skip
    assert "openblas.so" not in out and "mkl_rt" not in out and "right" in out
    assert "the BLAS that MLX came with" in out and warned == ""


@linux_cpu
@needs_openblas
def test_an_unknown_value_is_told_and_taken_as_auto():
    out, warned = run("prepare(); report()", STABLE_DIFFUSION_BLAS="fastest")
    assert ("libscipy_openblas.so" in out or "libmkl_rt" in out) and out.endswith("right")
    assert "STABLE_DIFFUSION_BLAS='fastest' is not one of auto, openblas, mkl, none" in warned


# Each of these replaces one thing that `_choose_blas` meets, in a process where nothing has been done yet.
REFUSALS = {
    "nothing is installed": (
        "backend.FINDERS.update(openblas=lambda: None, mkl=lambda: None)",
        "pip install scipy-openblas32",
    ),
    "the file is not a library": (
        "backend.FINDERS.update(openblas=lambda: backend.__file__, mkl=lambda: None)",
        "openblas cannot be used",
    ),
    "the library lacks the functions": (
        "import ctypes.util; backend.FINDERS.update(openblas=lambda: ctypes.util.find_library('c'), mkl=lambda: None)",
        "scipy_cblas_sgemm",
    ),
    "the products come out wrong": (
        "backend._products_are_right = lambda: False",
        "with it MLX's matrix products are wrong",
    ),
    "MLX's library is damaged": (
        "from stable_diffusion import relink; relink.SLOT_RELOCATIONS.clear()",
        "this build of MLX is not as expected",
    ),
    "there is no /proc": (
        "from stable_diffusion import relink; kept = relink.mapped_regions\n"
        "def absent(): raise relink.RelinkError('/proc/self/maps cannot be read')\n"
        "relink.mapped_regions = absent",
        "/proc/self/maps cannot be read",
    ),
    "functions of other names": (
        "backend.PRODUCTS = ('cblas_sgemm', 'cblas_strsm')",
        "does not import cblas_strsm",
    ),
}


@linux_cpu
@needs_openblas
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_is_not_as_expected_leaves_mlx_as_it_is(refusal):
    change, message = REFUSALS[refusal]
    out, warned = run(
        "from stable_diffusion import backend\nfrom stable_diffusion import relink\n"
        "kept, machines = relink.mapped_regions, dict(relink.SLOT_RELOCATIONS)\n"
        f"os.environ['STABLE_DIFFUSION_BLAS'] = 'auto'\nreport()\n{change}\n"
        "used = backend._choose_blas()\nassert used.library is None, used\n"
        "relink.mapped_regions = kept; relink.SLOT_RELOCATIONS.update(machines)\nreport()",
        STABLE_DIFFUSION_BLAS="none",
    )
    before, after = out.splitlines()
    assert before == after and after.endswith("right")
    assert message in warned
    assert warned.count("RuntimeWarning") == 1 and "MLX keeps its own slow BLAS" in warned


@linux_cpu
def test_64_bit_integers_are_refused():
    folder = os.path.join(os.path.dirname(os.path.dirname(np.__file__)), "numpy.libs")
    libraries = glob.glob(os.path.join(glob.escape(folder), "libscipy_openblas64_*.so"))
    if not libraries:
        pytest.skip("this numpy brings no library with 64-bit integers")
    function = backend.ctypes.CDLL(libraries[0]).scipy_cblas_sgemm64_
    with pytest.raises(backend.BlasError, match="not a CBLAS with 32-bit integers"):
        backend._check_integer_width(function)


@linux_cpu
@needs_openblas
def test_threads_are_the_cores_unless_the_environment_says_otherwise():
    code = """
from stable_diffusion import backend
used = backend.blas()
print(used.threads, used.library.scipy_openblas_get_num_threads(), backend.cpu_threads())
"""
    cores = run(code, STABLE_DIFFUSION_BLAS="openblas")[0].split()
    assert cores[0] == cores[1] == cores[2]
    assert run(code, STABLE_DIFFUSION_BLAS="openblas", OMP_NUM_THREADS="1")[0].split()[:2] == ["1", "1"]
    both = run(code, STABLE_DIFFUSION_BLAS="openblas", OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1")[0]
    assert both.split()[:2] == ["1", "1"]
    nonsense = run(code, STABLE_DIFFUSION_BLAS="openblas", OMP_NUM_THREADS="many")[0].split()
    assert nonsense[0] == nonsense[2]


@linux_cpu
@needs_openblas
@pytest.mark.parametrize(("asked", "expected"), [({}, ["1", "all"]), ({"OMP_NUM_THREADS": "3"}, ["3", "3"])])
def test_small_products_get_one_thread(asked, expected):
    out, _ = run(
        "from stable_diffusion import backend\nused = backend.blas()\n"
        "for size in (512 * 576 * 64, 8192 * 2880 * 320):\n"
        "    threads = backend.fit_threads(size)\n"
        "    assert used.library.scipy_openblas_get_num_threads() == threads\n"
        "    print(threads)\nprint(backend.cpu_threads())",
        STABLE_DIFFUSION_BLAS="openblas",
        **asked,
    )
    small, large, cores = out.split()
    assert [small, large] == [cores if e == "all" else e for e in expected]


@linux_cpu
def test_threads_are_left_alone_without_a_library_of_ours():
    out, _ = run("from stable_diffusion import backend; print(backend.fit_threads(1))", STABLE_DIFFUSION_BLAS="none")
    assert out == "None"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs sched_getaffinity")
@pytest.mark.parametrize(
    ("quota", "siblings", "expected"),
    [
        ("", {}, 4),
        ("max 100000", {}, 4),
        ("150000 100000", {}, 2),
        ("50000 100000", {}, 1),
        ("800000 100000", {}, 4),
        ("", {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, 2),
        ("100000 0", {}, 4),
        ("nonsense", {}, 4),
    ],
)
def test_counts_cores_without_hyper_threads_and_within_the_quota(monkeypatch, quota, siblings, expected):
    def read(path: str) -> str:
        if path.endswith("cpu.max"):
            return quota
        return siblings.get(int(path.split("/cpu/cpu")[1].split("/")[0]), "")

    monkeypatch.setattr(backend, "_read", read)
    monkeypatch.setattr(backend.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert backend.cpu_threads() == expected


def test_precision_follows_the_device(monkeypatch):
    assert backend.default_float16() == (mx.default_device().type == mx.gpu)
    monkeypatch.setattr(backend, "has_gpu", lambda: True)
    assert backend.default_float16() is True


def test_prepares_once(monkeypatch):
    monkeypatch.setattr(backend, "_choose_blas", lambda: pytest.fail("chosen again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.prepare() is backend.prepare() is backend.blas()


@pytest.mark.parametrize(
    ("asked", "info", "expected"),
    [
        ("", {"max_recommended_working_set_size": 1 << 33}, []),
        ("4", {"max_recommended_working_set_size": 1 << 33}, [1 << 32]),
        ("12", {"max_recommended_working_set_size": 1 << 33}, [1 << 33]),
        ("0.5", {"max_recommended_working_set_size": 1 << 33}, [1 << 29]),
        ("12", {}, []),
        ("12", {"max_recommended_working_set_size": 0}, []),
    ],
)
def test_memory_is_wired_where_that_is_asked_for(monkeypatch, asked, info, expected):
    limits: list[int] = []
    monkeypatch.setenv(backend.WIRED_VARIABLE, asked)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda *device: info)
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    backend._keep_weights_resident()
    assert limits == expected


@pytest.mark.parametrize("value", ["all", "-1", "nan", "inf"])
def test_a_wired_limit_that_is_no_number_is_refused(monkeypatch, value):
    monkeypatch.setenv(backend.WIRED_VARIABLE, value)
    monkeypatch.setattr(backend, "_blas", None)
    with pytest.raises(InputError, match=f"STABLE_DIFFUSION_WIRED = '{value}' should be a number of GiB"):
        backend.prepare()


@pytest.mark.parametrize(
    ("metal", "info", "memory", "working_set", "limits"),
    [
        (True, {"memory_size": 16 << 30, "max_recommended_working_set_size": 12 << 30}, 16 << 30, 12 << 30, [2 << 30]),
        (True, {"memory_size": 16 << 30}, 16 << 30, 16 << 30, [2 << 30]),
        (True, {}, None, None, []),
        (True, {"memory_size": 0, "max_recommended_working_set_size": "much"}, None, None, []),
        (False, {"total_memory": 24 << 30, "free_memory": 1 << 30}, 24 << 30, 24 << 30, []),  # CUDA's names
    ],
)
def test_the_memory_of_a_gpu(monkeypatch, metal, info, memory, working_set, limits):
    """On Metal MLX's cache of freed buffers is an eighth of it at most."""
    set_to: list[int] = []
    monkeypatch.setattr(backend, "has_gpu", lambda: True)
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(mx, "device_info", lambda *device: info)
    monkeypatch.setattr(mx, "set_cache_limit", set_to.append)
    assert backend.gpu_kind() == ("metal" if metal else "cuda")
    assert (backend.device_memory(), backend.working_set()) == (memory, working_set)
    backend._limit_cache()
    assert set_to == limits


def test_a_cpu_keeps_its_cache(monkeypatch):
    monkeypatch.setattr(backend, "has_gpu", lambda: False)
    for name in ("set_cache_limit", "clear_cache"):
        monkeypatch.setattr(mx, name, lambda *size: pytest.fail("changed"))
    backend._limit_cache()
    backend.end_phase()
    assert backend.gpu_kind() is backend.device_memory() is backend.working_set() is None


def test_mlx_version_is_numbers(monkeypatch):
    assert backend.mlx_version() >= (0, 32, 4)
    monkeypatch.setattr(mx, "__version__", "0.33.0.dev20261130+abc1234")
    assert backend.mlx_version.__wrapped__() == (0, 33, 0)


IMPORTS = """
import importlib, pkgutil, stable_diffusion
for module in pkgutil.walk_packages(stable_diffusion.__path__, "stable_diffusion."):
    if module.name != "stable_diffusion.__main__" and not module.name.startswith("stable_diffusion.webui"):
        importlib.import_module(module.name)
from stable_diffusion import backend
from stable_diffusion.backend import mx
"""


@linux_cpu
@needs_openblas
def test_only_a_model_that_is_loaded_changes_the_process():
    out, warned = run(
        """
import ctypes, mlx.core
calls = []
real = ctypes.CDLL
class Spy(real):
    def __getattr__(self, name):
        if name == "mallopt":
            calls.append(name)
        return super().__getattr__(name)
ctypes.CDLL = Spy
report()
"""
        + IMPORTS
        + """
mx.set_wired_limit = lambda limit: calls.append("wired")
(mx.ones((9, 9)) @ mx.ones((9, 9))).tolist()
report()
print(backend._blas, calls)
stable_diffusion.StableDiffusion("postcards-tiny")
report()
print(backend._blas.name, sorted(set(calls)))
""",
        STABLE_DIFFUSION_BLAS="openblas",
    )
    before, after_import, untouched, after_load, used = out.splitlines()
    assert before == after_import and "libscipy_openblas" not in before
    assert untouched == "None []"
    assert after_load == "libscipy_openblas.so right"
    assert used == "openblas ['mallopt']"
    assert warned == ""


@linux_cpu
@needs_openblas
@pytest.mark.parametrize(
    "use",
    [
        "from stable_diffusion.training.runs import RUNS; from stable_diffusion.training.loop import Limit\n"
        "from stable_diffusion.training.data import open_data; import pathlib, tempfile\n"
        "folder = tempfile.TemporaryDirectory()\n"
        "RUNS['vae'].train(open_data('postcards', 64), pathlib.Path(folder.name), Limit(steps=0))",
        "backend.fit_threads(1)",
        "backend.keep_little_memory()",
        "backend.describe()",
    ],
    ids=["training", "a generation", "low memory", "describing it"],
)
def test_whoever_needs_a_fast_machine_prepares_it(use):
    out, _ = run(f"{IMPORTS}\n{use}\nreport()", STABLE_DIFFUSION_BLAS="openblas")
    assert out.splitlines()[-1] == "libscipy_openblas.so right"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_what_was_freed_is_given_back():
    """In a process of its own: the memory of a large array stays with the process until it is given back."""
    program = (
        "import numpy as np\n"
        "from stable_diffusion import backend\n"
        "backend.prepare()\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "before = resident()\n"
        "x = [np.ones(1 << 20) for _ in range(24)]\n"
        "held = resident()\n"
        "del x\n"
        "freed = resident()\n"
        "backend.give_back_memory()\n"
        "print(held - before, freed - before, resident() - before)\n"
    )
    root = Path(__file__).parents[1]
    for choice, kept in (("", True), ("system", False)):
        environment = {**os.environ, backend.MALLOC_VARIABLE: choice}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            cwd=root,
        )
        held, freed, given_back = map(int, done.stdout.split())
        assert held > 180e6, done.stderr
        assert (freed > 0.8 * held) == (kept and backend.scalar_functions())
        assert given_back < 0.3 * held
