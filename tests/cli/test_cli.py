"""The command line: what it prints, where, and the exit code."""
import json
import re
import socket
import struct
import subprocess

import pytest

from support import gguf
from support.make_model import Shape
from support.server import TINY_FLAGS, environment
from support.shapes import ENDING

WORDS = dict(tokenizer="sentencepiece", scale=2.0)
LEXICON = {"type": "lexicon", "bias": {" the": 1.5}}


@pytest.fixture
def run(clotho):
    """run(*arguments) -> the finished process."""
    def go(*arguments, env=None, timeout=60):
        return subprocess.run([clotho, *map(str, arguments)], capture_output=True, text=True,
                              env=environment(env), timeout=timeout, stdin=subprocess.DEVNULL)
    return go


def refused(done, *words, code=1):
    """Nothing on stdout, one line on stderr that holds the words."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), lines[0]


# ------------------------------------------------------------------------------------- the frame

def test_version(run):
    done = run("version")
    assert done.returncode == 0 and done.stderr == ""
    assert re.search(r"\b\d+\.\d+\.\d+\b", done.stdout.splitlines()[0])


@pytest.mark.parametrize("arguments", [("--help",), ("help",)])
def test_help_lists_the_commands(run, arguments):
    done = run(*arguments)
    assert done.returncode == 0 and done.stderr == ""
    assert all(word in done.stdout for word in ("serve", "sample", "bench", "version"))


@pytest.mark.parametrize("command,flags", [
    ("serve", ["--model", "--host", "--port", "--backend", "--dtype", "--alias", "--api-key", "--config",
               "--kv-memory", "--batch-rows", "--max-queue", "--drain-seconds"]),
    ("sample", ["--model", "--particles", "--max-tokens", "--seed", "--json", "--potential", "--twist"]),
    ("bench", ["--model", "--particles", "--prompt-tokens", "--tokens", "--json"])])
def test_help_of_a_command(run, command, flags):
    done = run(command, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert all(flag in done.stdout for flag in flags)
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_no_command(run):
    done = run()
    assert done.returncode != 0
    assert "serve" in done.stderr and done.stdout == ""


def test_unknown_command(run):
    done = run("frobnicate")
    assert done.returncode != 0
    assert "frobnicate" in done.stderr and done.stdout == ""


@pytest.mark.parametrize("command", ["serve", "sample"])
@pytest.mark.parametrize("flags,word", [
    (["--frobnicate", "1"], "--frobnicate"),
    (["--threads", "many"], "--threads"),
    (["--threads", "-1"], "--threads"),
    (["--batch-rows", "-1"], "--batch-rows"),
    (["--dtype", "f64"], "--dtype"),
    (["--kv-memory", "12X"], "--kv-memory"),
    (["--model"], "--model"),
    ([], "--model"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_flags(run, command, flags, word):
    """Exit code 2 tells a wrong command line from a failure."""
    done = run(command, *flags)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and word in done.stderr, done.stderr


def test_settings_beat_each_other(run, tmp_path):
    """Flags beat environment, environment beats file."""
    file = tmp_path / "clotho.yaml"
    file.write_text("port: 1001\nhost: 10.0.0.1\nmax-queue: 7\n")
    env = {"CLOTHO_PORT": "1002", "CLOTHO_HOST": "10.0.0.2"}
    done = run("serve", "--config", file, "--port", 1003, "--print-config", env=env)
    assert done.returncode == 0, done.stderr
    settings = dict(re.findall(r"^([a-z-]+): *(\S+)", done.stdout, re.M))
    assert (settings["port"], settings["max-queue"]) == ("1003", "7")
    assert settings["host"].strip('"') == "10.0.0.2"


# ------------------------------------------------------------------------------------ bad files

def cut(data, share):
    return data[:int(len(data) * share)]


BROKEN = {
    "empty": lambda data: b"",
    "short": lambda data: data[:10],
    "text": lambda data: b"This is not a model.\n" * 50,
    "version": lambda data: data[:4] + struct.pack("<I", 99) + data[8:],
    "many-tensors": lambda data: data[:8] + struct.pack("<Q", 1 << 60) + data[16:],
    "many-keys": lambda data: data[:16] + struct.pack("<Q", 1 << 60) + data[24:],
    "cut-header": lambda data: cut(data, 0.05),
    "cut-tensors": lambda data: cut(data, 0.9),
    "other-architecture": lambda data: data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lemur", 1),
}


@pytest.mark.parametrize("command", ["serve", "sample"])
@pytest.mark.parametrize("damage", BROKEN)
def test_broken_models(run, model_file, tmp_path, command, damage):
    path = tmp_path / "broken.gguf"
    path.write_bytes(BROKEN[damage](model_file(**ENDING).read_bytes()))
    refused(run(command, "--model", path, *(["--port", "0"] if command == "serve" else ["a"])),
            "broken.gguf")


@pytest.mark.parametrize("command", ["serve", "sample"])
def test_missing_models(run, tmp_path, command):
    refused(run(command, "--model", tmp_path / "none.gguf"), "none.gguf")
    refused(run(command, "--model", tmp_path), str(tmp_path))


def test_a_missing_tensor(run, model_file, tmp_path):
    g = gguf.read(model_file(**ENDING))
    data = model_file(**ENDING).read_bytes()
    assert "output_norm.weight" in g.tensors
    path = tmp_path / "model.gguf"
    path.write_bytes(data.replace(b"output_norm.weight", b"output_morn.weight", 1))
    refused(run("sample", "--model", path, "a"), "model.gguf", "tensor", "output_")


def test_a_folder_with_one_model(run, model_file, tmp_path):
    (tmp_path / "model.gguf").write_bytes(model_file(**ENDING).read_bytes())
    done = run("sample", "--model", tmp_path, *TINY_FLAGS, "--max-tokens", 2, "ab")
    assert done.returncode == 0, done.stderr
    (tmp_path / "other.gguf").write_bytes(b"")
    refused(run("sample", "--model", tmp_path, "ab"), str(tmp_path))


def test_a_port_that_is_taken(run, model_file):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        done = run("serve", "--model", model_file(**ENDING), *TINY_FLAGS, "--port", port)
    assert done.returncode == 1 and str(port) in done.stderr.splitlines()[-1]


# --------------------------------------------------------------------------------------- sample

def test_sample_as_a_table(run, model_file):
    done = run("sample", "--model", model_file(**WORDS), *TINY_FLAGS, "--particles", 6, "--seed", 3,
               "--max-tokens", 8, "--potential", json.dumps(LEXICON), "the man")
    assert done.returncode == 0, done.stderr
    assert "log Z" in done.stdout
    weights = [float(w) for w in re.findall(r"^\s*(?:\d+\s+)?([01]\.\d+)\s", done.stdout, re.M)]
    assert weights and weights == sorted(weights, reverse=True)
    assert "\033" not in done.stdout + done.stderr  # no terminal, no escapes


def test_sample_is_what_the_server_answers(run, serve, model_file):
    """The same request and seed without HTTP: the same sample events, byte for byte."""
    flags = ["--particles", 12, "--max-tokens", 10, "--seed", 5, "--temperature", 0.8, "--top-k", 20,
             "--potential", json.dumps(LEXICON), "--twist", '{"type":"factor"}', "--logprobs"]
    done = run("sample", "--model", model_file(**WORDS), *TINY_FLAGS, "--json", *flags, "the man")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "start" and events[-1]["event"] == "done"
    lines = [line.encode() for line, e in zip(done.stdout.splitlines(), events) if e["event"] == "sample"]
    run_over_http = serve(**WORDS).client().sample(
        prompt="the man", particles=12, max_tokens=10, seed=5, temperature=0.8, top_k=20,
        potential=LEXICON, twist={"type": "factor"}, logprobs=True)
    assert lines == run_over_http.sample_lines()


@pytest.mark.parametrize("flags,word", [
    (["--particles", "0"], "particles"),
    (["--particles", "100000"], "particles"),
    (["--temperature", "-1"], "temperature"),
    (["--potential", '{"type":"telepathy"}'], "potential"),
    (["--potential", "{nonsense"], "potential"),
    (["--twist", '{"type":"learned","name":"x"}'], "twist"),
    (["--max-tokens", "1000000"], "max"),
], ids=lambda v: v[0] + v[1][:12] if isinstance(v, list) else "")
def test_sample_refuses_what_the_server_refuses(run, model_file, flags, word):
    done = run("sample", "--model", model_file(**WORDS), *TINY_FLAGS, *flags, "the")
    assert done.returncode != 0 and done.stdout == ""
    assert word in done.stderr.splitlines()[-1]


def test_a_prompt_too_long_for_the_model(run, model_file):
    shape = Shape(**WORDS)
    done = run("sample", "--model", model_file(**WORDS), *TINY_FLAGS, " man" * shape.context)
    assert done.returncode != 0 and done.stdout == ""
