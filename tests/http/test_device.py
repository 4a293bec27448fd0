"""Another device than the CPU: opening it, planning its memory, and its end. All on the emulated one."""
import json
import re
import subprocess
import time

from support.server import TINY_FLAGS, Server, environment, free_port
from support.shapes import ENDLESS
from support.watch import metric
from wire import Wire, get, post

BODY = {"prompt": [0, 2], "particles": 16, "max_tokens": 100, "ignore_eos": True, "seed": 3}
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "LD_LIBRARY_PATH": ""}  # nor an emulated one


def refused_start(program, model, *flags, env=None):
    """The line that a server says that does not start."""
    done = subprocess.run([program, "serve", "--model", model, "--port", str(free_port()), *flags],
                          capture_output=True, text=True, timeout=60, env=environment(env))
    lines = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1 and len(lines) == 1, lines
    return lines[0]


# ------------------------------------------------------------------------------------------ start

def test_cuda_without_a_gpu(clotho, model_file):
    assert "CUDA" in refused_start(clotho, model_file(**ENDLESS), "--backend", "cuda", env=NO_GPU)


def test_auto_without_a_gpu(model_file):
    """One line says why it is the CPU."""
    with Server(model_file(**ENDLESS), "--backend", "auto", *TINY_FLAGS, env=NO_GPU) as server:
        said = [line for line in server.log().splitlines() if "GPU" in line]
        assert len(said) == 1 and re.match("clotho: no GPU is used: .+", said[0])
        assert ", on cpu: " in server.log()


def test_the_cpu_is_silent_about_it(model_file):
    with Server(model_file(**ENDLESS), "--backend", "cpu", *TINY_FLAGS) as server:
        assert "GPU" not in server.log()


# ----------------------------------------------------------------------------------------- memory

def planned(server):
    """MiB of each part, and what was free."""
    line = next(line for line in server.log().splitlines() if "memory planned" in line)
    found = re.fullmatch(r"clotho: memory planned: (\d+) MiB = weights (\d+) \+ KV cache (\d+) \(\d+ pages of "
                         r"16 tokens\) \+ activations (\d+) \+ twists (\d+); (\d+) MiB were free", line)
    assert found, line
    return [int(x) for x in found.groups()]


# The texts of 1,024 particles would fill 1 GiB.
LONG = ENDLESS | {"context": 4096, "kv_heads": 2, "head_dim": 8, "layers": 2}


def test_a_cache_that_fills_the_device(emulated, model_file, tmp_path):
    with Server(model_file(**LONG), "--backend", "cuda", "--dtype", "f32", "--batch-rows", "64",
                "--twist-dir", str(tmp_path), "--twist-memory", "64M",
                env=emulated | {"CLOTHO_EMU_MEMORY": str(256 << 20)}) as server:
        total, weights, kv, activations, twists, free = planned(server)
        assert abs(total - weights - kv - activations - twists) <= 2 and twists == 64
        assert 0.88 * free < total <= 0.9 * free
        assert abs(metric(server, "clotho_memory_kv_bytes") / 2**20 - kv) <= 1


def test_a_model_that_does_not_fit(emulated, clotho, model_file, tmp_path):
    line = refused_start(clotho, model_file(**ENDLESS), "--backend", "cuda", "--twist-dir", tmp_path,
                         "--twist-memory", "64G", env=emulated)
    assert re.match(r"clotho: cuda: \d+ MiB are free, and \d+ would be needed = weights 0 \+ KV cache \d+ "
                    r"\+ activations \d+ \+ twists 65536$", line), line


# -------------------------------------------------------------------------------------- its end

def events(reply):
    return [json.loads(line) for line in reply.body.splitlines()]


def test_a_device_that_fails(emulated, model_file):
    """What runs and what waits ends with an error event, what comes is refused, and the process ends
    with a status that its supervisor restarts it by."""
    failing = emulated | {"CLOTHO_EMU_FAIL_AFTER": "1500"}
    server = Server(model_file(**ENDLESS), "--backend", "cuda", "--max-running-particles", "40",
                    env=failing).__enter__()
    kept = [Wire(server) for _ in range(2)]
    for wire in kept:
        wire.send(get("/readyz")).reply()
    sent = [Wire(server).send(post("/v1/sample", BODY | {"stream": i != 1})) for i in range(5)]
    replies = [wire.reply() for wire in sent]
    for i, reply in enumerate(replies):
        error = reply.json()["error"] if i == 1 else events(reply)[-1]["error"]
        assert "device" in error["message"] or "cuda" in error["message"], error
    assert kept[0].send(get("/readyz")).reply().status == 503
    assert kept[1].send(post("/v1/sample", BODY)).reply().status == 503
    begun = time.monotonic()
    assert server.process.wait(10) == 1
    assert time.monotonic() - begun < 5
    assert sum("device failure" in line for line in server.log().splitlines()) == 1
