"""The systemd unit: that systemd takes it, how far it shuts the service in, and that the program lives with
it. What needs a tool or kernel that is not here is skipped."""
import ctypes
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.server import ROOT, TINY_FLAGS, Server
from support.shapes import ENDLESS

UNIT = ROOT / "deploy/systemd/clotho.service"
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


@needs_systemd
def test_systemd_takes_it(clotho, tmp_path):
    unit = tmp_path / "clotho.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/clotho", clotho))
    said = analyze("verify", "--man=no", str(unit))
    ours = [line for line in (said.stdout + said.stderr).splitlines() if "clotho" in line]
    assert said.returncode == 0 and not ours, ours


@needs_systemd
def test_how_far_it_is_shut_in():
    """What is open: the network, to anybody."""
    said = analyze("security", "--offline=true", "--no-pager", str(UNIT)).stdout
    score = float(re.search(r"Overall exposure level for clotho.service: ([0-9.]+)", said).group(1))
    assert score <= 1.2, said


def setting(name):
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)


def test_it_is_given_the_time_to_drain(clotho):
    defaults = subprocess.run([clotho, "serve", "--print-config"], capture_output=True, text=True).stdout
    drain = int(re.search(r"^drain-seconds: (\d+)$", defaults, re.M).group(1))
    connections = int(re.search(r"^max-connections: (\d+)$", defaults, re.M).group(1))
    assert int(setting("TimeoutStopSec")[0]) >= drain + 10
    assert int(setting("LimitNOFILE")[0]) >= connections + 64


def members(name):
    """The system calls of one of systemd's sets."""
    lines = analyze("syscall-filter", "--no-pager", name).stdout.splitlines()
    words = {line.strip() for line in lines[1:] if line.startswith("    ") and not line.strip().startswith("#")}
    nested = {word for word in words if word.startswith("@")}
    return (words - nested).union(*map(members, nested))


def use_everything(server):
    """Learn, sample, list, reload: all that the program does."""
    client = server.client()
    client.learn(name="dd", prompts=[[0, 2]], max_tokens=4, particles=8, updates=2, seed=1,
                 potential={"type": "contains", "text": "dd"})
    twist = {"type": "learned", "name": "dd"}
    assert len(client.sample(prompt="ab", particles=8, max_tokens=4, twist=twist).samples) == 8
    assert client.get("/v1/twists").status == 200
    assert client.get("/metrics").status == 200
    server.process.send_signal(signal.SIGHUP)


@needs_systemd
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not here")
def test_the_system_calls_it_makes(clotho, model_file, tmp_path):
    """None that the unit's filter forbids, but those whose refusal the program puts up with."""
    trace = tmp_path / "trace"
    script = tmp_path / "traced"
    script.write_text(f'#!/bin/sh\nexec strace -D -f -qq -o {trace} {clotho} "$@"\n')
    script.chmod(0o755)
    with Server(model_file(**ENDLESS), "--threads", "2", "--twist-dir", str(tmp_path / "twists"),
                program=str(script)) as server:
        use_everything(server)
    made = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.M))
    allowed, forbidden = setting("SystemCallFilter")
    refused = members(allowed) - set().union(*map(members, forbidden.lstrip("~").split()))
    assert "epoll_wait" in made and not made - refused - {"setrlimit", "prlimit64", "sched_setaffinity"}, made - refused


def test_without_memory_that_is_written_and_run(clotho, model_file, tmp_path):
    """MemoryDenyWriteExecute, as newer kernels have it: patterns are then matched without being compiled."""
    libc = ctypes.CDLL(None, use_errno=True)
    check = f"import ctypes, sys; sys.exit(ctypes.CDLL(None).prctl({PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0) != 0)"
    if subprocess.run([sys.executable, "-c", check]).returncode != 0:
        pytest.skip("this kernel does not know it")
    script = tmp_path / "shut-in"
    script.write_text(f"#!{sys.executable}\nimport ctypes, os, sys\n"
                      f"ctypes.CDLL(None).prctl({PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0)\n"
                      f"os.execv({clotho!r}, [{clotho!r}, *sys.argv[1:]])\n")
    script.chmod(0o755)
    with Server(model_file(tokenizer="gpt2"), *TINY_FLAGS, "--twist-dir",
                str(tmp_path / "twists"), program=str(script)) as server:
        answer = server.client().sample(prompt="two words", particles=2, max_tokens=2, seed=1)
        assert len(answer.samples) == 2
