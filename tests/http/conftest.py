"""The server over an engine without a model (stub_engine.c), for what only HTTP decides."""
from pathlib import Path

import pytest
from support.server import Server, binary


@pytest.fixture(scope="session")
def stub_program():
    return str(Path(binary()).with_name("clotho-stub"))


@pytest.fixture(scope="session")
def stub_model(model_file):
    """A model file whose tokenizer can spell the stub's scripts."""
    return model_file(tokenizer="bytes")


@pytest.fixture(scope="session")
def stub(stub_program, stub_model):
    """stub(*flags, **environment) -> a running server, one a session for the same arguments. Each
    must still be well at the end, and stop with code 0."""
    running = {}

    def start(*flags, **environment):
        key = flags, tuple(environment.items())
        if key not in running:
            server = Server(stub_model, *flags, env=environment, program=stub_program)
            running[key] = server.__enter__()
        return running[key]

    yield start
    codes = {" ".join(server.flags): server.stop() for server in running.values()}
    assert not any(codes.values()), f"exit codes after SIGTERM: {codes}"


@pytest.fixture
def fresh_stub(stub_program, stub_model):
    """fresh_stub(*flags, wait=True, **environment) -> a server of this test's own, not entered."""

    def make(*flags, wait=True, **environment):
        return Server(stub_model, *flags, env=environment, wait=wait, program=stub_program)

    return make
