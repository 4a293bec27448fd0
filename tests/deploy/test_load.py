"""The load generator counts right: whole answers, refusals, failures, tokens."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.server import ROOT, Server, binary

STUB = str(Path(binary()).with_name("clotho-stub"))


@pytest.fixture(scope="module")
def stub_model(model_file):
    return model_file(tokenizer="bytes")


def load(server, *flags):
    command = [sys.executable, ROOT / "deploy/load/load.py", "--url", f"http://{server.host}:{server.port}", "--json",
               "--warm-up", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_closed_loop(stub_model):
    """Four clients of streams that take 50 ms at the least."""
    with Server(stub_model, program=STUB) as server:
        code, r = load(server, "--streams", "4", "--seconds", "1", "--prompt", "us=10000", "--particles", "3",
                       "--max-tokens", "5")
    assert code == 0 and not r["errors"] and not r["refused_429"]
    assert 1 <= r["whole"] <= 80 and r["cut_at_the_end"] <= 4
    tokens, events = (round(r[f"{kind}_per_second"] * r["seconds"]) for kind in ("particle_tokens", "events"))
    assert 15 * r["whole"] <= tokens <= 15 * (r["whole"] + 4)
    assert 10 * r["whole"] <= events <= 10 * (r["whole"] + 4)
    seconds = r["completion_seconds"]
    assert 0.05 <= seconds["p50"] <= seconds["p95"] <= seconds["p99"]
    assert r["first_event_seconds"]["p50"] <= seconds["p50"]


def test_open_loop_and_refusals(stub_model):
    """One runs, none may wait: what arrives meanwhile is told to come again."""
    with Server(stub_model, "--max-queue", "0", program=STUB, env={"STUB_RUNNING": "1"}) as server:
        code, r = load(server, "--rate", "50", "--seconds", "1", "--prompt", "us=100000", "--max-tokens", "4")
    assert code == 0 and r["refused_429"] > 0 and r["whole"] >= 1 and not r["errors"]


@pytest.mark.parametrize("script, kind", [("fail=3", "error event"), ("vanish=3", "ClientPayloadError")])
def test_failures(stub_model, script, kind):
    """An error event, and a stream that breaks off."""
    with Server(stub_model, program=STUB) as server:
        code, r = load(server, "--streams", "2", "--seconds", "0.5", "--prompt", script)
    assert code == 1 and r["errors"] == {kind: 2} and r["whole"] == 0
