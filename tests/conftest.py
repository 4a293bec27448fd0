"""Servers and tiny models for all Python tests. A server is started once a session for each model
and set of flags; a missing program is a failure, never a skip."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from support.make_model import Shape, make_model  # noqa: E402
from support.reference import Model  # noqa: E402
from support.server import TINY_FLAGS, Server, binary  # noqa: E402


@pytest.fixture(scope="session")
def clotho():
    """Path of the program."""
    return binary()


@pytest.fixture(scope="session")
def emulated(clotho):
    """The environment in which --backend cuda is the emulated device."""
    folder = Path(clotho).with_name("emu")
    if not (folder / "libclotho-cuda.so").exists():
        pytest.skip("this build has no emulated device")
    return {"LD_LIBRARY_PATH": str(folder)}


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """model_file(**changes of Shape) -> path of a generated GGUF, each written once."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def make(**changes):
        key = Shape(**changes)
        if key not in made:
            path = folder / f"model{len(made)}.gguf"
            make_model(path, key)
            made[key] = path
        return made[key]

    return make


@pytest.fixture(scope="session")
def reference(model_file):
    """reference(**changes of Shape) -> the float64 model, each loaded once; rounded: as in bf16."""
    loaded = {}

    def load(rounded=False, **changes):
        key = model_file(**changes), rounded
        if key not in loaded:
            loaded[key] = Model(*key)
        return loaded[key]

    return load


@pytest.fixture(scope="session")
def serve(model_file):
    """serve(*flags, **changes of Shape) -> a running server, one a session for the same arguments.
    All are stopped at the end, and each must then exit with code 0."""
    running = {}

    def start(*flags, **changes):
        key = flags, Shape(**changes)
        if key not in running:
            server = Server(model_file(**changes), *TINY_FLAGS, *flags)
            running[key] = server.__enter__()
        return running[key]

    yield start
    codes = {" ".join(server.flags): server.stop() for server in running.values()}
    assert not any(codes.values()), f"exit codes after SIGTERM: {codes}"


def pytest_configure(config):
    config.addinivalue_line("markers", "device: what is run on other devices than the CPU, too")
