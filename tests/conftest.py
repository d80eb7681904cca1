"""Shapes are checked at run time in the tests: jaxtyping's hook, before any import."""

import os
from pathlib import Path

import jaxtyping

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the tests' time: what one test, process or run has compiled is
# there for the next.
CACHE = Path(__file__).parents[1] / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Tiny programs run few times: LLVM's optimisation would only cost time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
jaxtyping.install_import_hook("jaxkd", "lazy_beartype.checked")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# Meshes are tested on four devices that share this machine's cores.
jax.config.update("jax_num_cpu_devices", 4)

# A first example compiles, which takes as long as the machine is busy.
hypothesis.settings.register_profile("compiled", deadline=None)
hypothesis.settings.load_profile("compiled")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def unchecked_shapes():
    """Turn jaxtyping's checks off, so that the library's own errors show."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def load_golden():
    """Return ``name -> arrays``: numbers computed by the authors' own code, by key."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    return load


@pytest.fixture(scope="session")
def golden(load_golden):
    """The classic methods' numbers."""
    return load_golden("00-baselines")


@pytest.fixture
def x64():
    """Double precision, to compare with the authors' float64 closely."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def source():
    """Twenty random images of three classes, to train on."""
    from jaxkd.data import Source

    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.normal(size=(20, 4, 4, 1)).astype("f4"),
        "label": rng.integers(0, 3, 20).astype("i4"),
    }
    return Source("toy", arrays, 3)
