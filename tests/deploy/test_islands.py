"""clotho sample --server --islands: merged as if one engine had drawn them all, whatever befalls the servers."""
import json
import socket
import subprocess
import threading

import numpy as np
import pytest
from support.estimate import SIGMAS
from support.posterior import Problem
from support.server import TINY_FLAGS, Run, Server, environment
from support.shapes import BOS, ENDING, ENDLESS

POTENTIAL = {"type": "contains", "text": "a", "soft": -2}


@pytest.fixture(scope="module")
def pair(model_file):
    with Server(model_file(**ENDING), *TINY_FLAGS) as a, Server(model_file(**ENDING), *TINY_FLAGS) as b:
        yield a, b


def urls(servers):
    return ",".join(f"http://{s.host}:{s.port}" for s in servers)


def islands(clotho, servers, *flags, prompt="ab", **more):
    command = [clotho, "sample", "--server", servers if isinstance(servers, str) else urls(servers), *flags, prompt]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(more))


def run(clotho, servers, *flags, **more):
    """(the merged run, what was said on stderr)"""
    done = islands(clotho, servers, "--json", *flags, **more)
    assert done.returncode == 0, done.stderr
    return Run(done.stdout.encode().splitlines()), done.stderr


ASK = ("--particles", "8", "--max-tokens", "4", "--potential", json.dumps(POTENTIAL))


def test_one_island_is_the_same_run(clotho, pair, model_file):
    """Of a server or of the program itself: to the byte, but for what is normalised anew."""
    here = subprocess.run([clotho, "sample", "--model", model_file(**ENDING), *TINY_FLAGS, "--json", "--seed", "5",
                           *ASK, "ab"], capture_output=True, check=True, env=environment())
    here = Run(here.stdout.splitlines())
    there, _ = run(clotho, pair, "--seed", "5", *ASK)
    assert [s | {"weight": 0} for s in there.samples] == [s | {"weight": 0} for s in here.samples]
    assert there.log_z == pytest.approx(here.log_z, abs=1e-12)
    assert there.done["ess"] == pytest.approx(here.done["ess"])
    assert there.done["usage"] == here.done["usage"]


def test_islands_are_merged(clotho, pair):
    """Each is the run of its own seed; the whole is their mean."""
    merged, _ = run(clotho, pair, "--seed", "40", "--islands", "6", *ASK)
    alone = [run(clotho, pair[:1], "--seed", str(40 + i), *ASK)[0] for i in range(6)]
    assert [s["index"] for s in merged.samples] == list(range(48))
    assert [s["tokens"] for s in merged.samples] == [s["tokens"] for r in alone for s in r.samples]
    assert np.exp(merged.log_z) == pytest.approx(np.mean([np.exp(r.log_z) for r in alone]))
    weights = np.array([s["weight"] for s in merged.samples])
    assert weights.sum() == pytest.approx(1) and merged.done["ess"] == pytest.approx(1 / (weights**2).sum())
    assert merged.start["particles"] == 48 and merged.start["seed"] == 40


def test_what_else_a_sample_has(clotho, pair):
    segments = '[{"sample":"z","max_tokens":2},{"observe":"a"},{"sample":"y","max_tokens":2}]'
    merged, _ = run(clotho, pair, "--islands", "2", "--logprobs", "--segments", segments)
    for sample in merged.samples:
        assert sample["holes"].keys() == {"z", "y"} and len(sample["token_log_p"]) == len(sample["tokens"])
    table = islands(clotho, pair, "--islands", "2", *ASK)
    assert table.returncode == 0 and "log Z" in table.stdout and " of 16 " in table.stdout


# ------------------------------------------------------------------------------- what befalls servers


class Torn:
    """A relay before a server that breaks off every other answer in its middle, as a killed server does."""

    def __init__(self, server):
        self.server, self.n = server, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self.listener.getsockname()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            client, _ = self.listener.accept()
            self.n += 1
            threading.Thread(target=self._relay, args=(client, self.n % 2 == 1), daemon=True).start()

    def _relay(self, client, torn):
        with client, socket.create_connection((self.server.host, self.server.port)) as upstream:
            request = b""
            while not request.endswith(b"}"):  # of its body
                request += client.recv(65536)
            upstream.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            answer = b""
            while data := upstream.recv(65536):
                answer += data
            client.sendall(answer[:len(answer) * 2 // 3] if torn else answer)


def test_a_torn_answer_is_no_answer(clotho, pair):
    whole, _ = run(clotho, pair, "--seed", "7", "--islands", "8", *ASK)
    torn, said = run(clotho, [Torn(pair[0]), pair[1]], "--seed", "7", "--islands", "8", *ASK)
    assert said.count("drawn again") >= 1
    assert torn.sample_lines() == whole.sample_lines()


def test_unbiased_though_one_replica_is_killed(clotho, model_file, reference):
    """A replica is killed amid its islands; the other one draws them again. Over many islands E[Z-hat] = Z,
    as enumerated."""
    problem = Problem(reference(**ENDING), (BOS,), max_tokens=4, potential=(POTENTIAL,))
    exact = problem.solve()
    n = 400
    with Server(model_file(**ENDING), *TINY_FLAGS) as stays:
        with pytest.raises(RuntimeError, match="exit code -9"):
            with Server(model_file(**ENDING), *TINY_FLAGS) as dies:
                process = subprocess.Popen(
                    [clotho, "sample", "--json", "--server", urls([dies, stays]), "--islands", str(n), "--seed", "1",
                     *ASK, ""], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
                while dies.client().get("/metrics").body.count(b"clotho_jobs_done_total 0"):
                    pass
                dies.kill()
                out, said = process.communicate(timeout=120)
    assert process.returncode == 0 and b"drawn again" in said
    merged = Run(out.splitlines())
    assert len(merged.samples) == 8 * n
    z_hat = np.exp([s["log_weight"] for s in merged.samples]).reshape(n, 8).mean(1)
    deviation = (z_hat.mean() - np.exp(exact.log_z)) / (z_hat.std(ddof=1) / np.sqrt(n))
    assert abs(deviation) < SIGMAS
    assert merged.log_z == pytest.approx(np.log(z_hat.mean()), abs=1e-9)


def test_refusals(clotho, pair, model_file):
    wrong = islands(clotho, pair, "--islands", "3", "--particles", "100000")
    assert wrong.returncode == 1 and "particles" in wrong.stderr and wrong.stdout == ""
    assert "--server" in subprocess.run([clotho, "sample", "--model", model_file(**ENDING), "--islands", "2", "a"],
                                        capture_output=True, text=True, env=environment()).stderr
    with Server(model_file(**ENDLESS), *TINY_FLAGS, "--alias", "other") as other:
        mixed = islands(clotho, [pair[0], other], "--islands", "16", *ASK)
    assert mixed.returncode == 1 and "different models" in mixed.stderr


def test_keys(clotho, model_file):
    with Server(model_file(**ENDING), *TINY_FLAGS, env={"CLOTHO_API_KEY": "sesame"}) as server:
        assert islands(clotho, [server], *ASK).returncode == 1
        assert islands(clotho, [server], *ASK, CLOTHO_API_KEY="sesame").returncode == 0
