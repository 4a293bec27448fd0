"""Look at a running server until something is so."""
import time

WAIT_SECONDS = 30


def metric(server, name):
    """A metric's value, labels as written on the page."""
    for line in server.client().get("/metrics").body.decode().splitlines():
        if line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])
    raise KeyError(name)


def wait_until(condition, seconds=WAIT_SECONDS):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
