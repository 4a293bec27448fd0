"""Cases of a test, and which of them are run on other devices than the CPU, too (pytest -m device)."""
import itertools

import pytest


def cases(*axes, device):
    """All combinations; device(*combination) says which are for devices."""
    return [pytest.param(*c, marks=pytest.mark.device if device(*c) else ())
            for c in itertools.product(*axes)]
