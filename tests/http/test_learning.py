"""Learned twists over the real engine and a tiny model: from learning to use, and what becomes of the
file whatever happens."""
import math
import random
import signal
import subprocess
import threading
import time

import pytest
from support.server import TINY_FLAGS, Server, environment
from support.shapes import ENDLESS
from support.watch import metric, wait_until
from wire import Wire, ask, get, post

PROMPT = [0, 2]
TARGET = {"prompt": PROMPT, "max_tokens": 4, "potential": {"type": "contains", "text": "dd"}}
LEARN = {"prompts": [PROMPT], "max_tokens": 4, "potential": TARGET["potential"], "particles": 64,
         "updates": 200, "learning_rate": 0.01, "seed": 1, "bounds": 0}
LEARNED = {"type": "learned", "name": "dd"}
LONG = {"updates": 100000, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("twists")


@pytest.fixture(scope="module")
def server(serve, folder):
    """With the twist "dd" learned."""
    server = serve("--twist-dir", str(folder), **ENDLESS)
    assert ask(server, learn("dd")).events()[-1]["event"] == "done"
    return server


def learn(name, **fields):
    return post("/v1/twists", LEARN | {"name": name} | fields)


def sample(**fields):
    return post("/v1/sample", TARGET | {"particles": 32, "seed": 1} | fields)


def names(server):
    return [t["id"] for t in ask(server, get("/v1/twists")).json()["data"]]


def is_idle(server):
    return metric(server, "clotho_requests_running") == metric(server, "clotho_requests_waiting") == 0


# ------------------------------------------------------------------------------ use

def test_events_of_learning(server, folder):
    events = ask(server, learn("events", updates=6, bounds=3, targets={
        "source": "rejection", "max_draws": 10000})).events()
    updates = [e for e in events if e["event"] == "update"]
    assert [e["update"] for e in updates] == [1, 2, 3, 4, 5, 6]
    for e in updates:
        assert math.isfinite(e["loss"]) and 0 <= e["ess"] <= 64
    kinds = [e["event"] for e in events]
    assert kinds[0] == "start" and kinds[-1] == "done" and kinds.index("bound") > kinds.index("update")
    assert events[-1]["name"] == "events" and events[-1]["updates"] == 6
    assert (folder / "events.safetensors").exists()
    shown = ask(server, get("/v1/twists/events")).json()
    assert shown["updates"] == 6 and shown["method"] == "ctl" and shown["max_tokens"] == 4


def test_a_learned_twist_guides(server):
    """Nearly every text it proposes is one that the target wants, where few of the prior's are."""
    def hits(**fields):
        events = ask(server, sample(resampling={"ess_threshold": 0}, **fields)).events()
        return sum(e["log_weight"] is not None for e in events if e["event"] == "sample")
    assert hits() < 8 and hits(twist=LEARNED) > 24


def test_bounds_are_tighter_with_it(server):
    def gap(**fields):
        body = TARGET | {"particles": 64, "repeats": 64, "seed": 2, "stream": False,
                         "resampling": {"ess_threshold": 0}, "targets": {"source": "rejection", "max_draws": 100000}} | fields
        return ask(server, post("/v1/bounds", body)).json()
    base, twisted = gap(), gap(twist=LEARNED)
    assert abs(twisted["gap"]) < base["gap"] / 2
    assert twisted["kl_sigma_q"] < base["kl_sigma_q"] / 2
    assert twisted["lower"]["mean"] == pytest.approx(-2.72, abs=0.1)


def test_scores_say_its_values(server):
    body = {k: v for k, v in TARGET.items() if k != "max_tokens"}
    result, = ask(server, post("/v1/score", body | {"completions": [[2, 5, 5, 3]],
                                                    "twist": LEARNED})).json()["results"]
    assert len(result["log_twist"]) == 4 and all(math.isfinite(x) for x in result["log_twist"])


def test_the_same_seed_gives_the_same_file(server, folder):
    files = []
    for seed in (5, 5, 6):
        ask(server, learn("same", updates=5, seed=seed))
        files.append((folder / "same.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_twist_in_use_can_be_replaced_and_removed(server):
    ask(server, learn("moving", updates=3))
    wires = [Wire(server).send(sample(twist=LEARNED | {"name": "moving"}, particles=64, seed=i))
             for i in range(8)]
    ask(server, learn("moving", updates=3, seed=2))
    assert ask(server, get("/v1/twists/moving", method="DELETE")).status == 200
    for wire in wires:
        reply = wire.reply()
        assert reply.status == 404 or reply.events()[-1]["event"] in ("done", "error")
    reply = ask(server, sample(twist=LEARNED | {"name": "moving"}))
    assert reply.status == 404 and "moving" in reply.json()["error"]["message"]


def test_metrics(server):
    updates = metric(server, "clotho_learning_updates_total")
    ask(server, learn("metrics", updates=4))
    assert metric(server, "clotho_learning_updates_total") == updates + 4
    ask(server, sample(twist=LEARNED))
    assert metric(server, "clotho_twists_loaded") >= 1
    assert metric(server, "clotho_twist_memory_bytes") > 0
    assert metric(server, 'clotho_op_calls_total{op="adam"}') > 0


# ------------------------------------------------------------------------------ company

def test_learning_shares_the_engine(server):
    """Sampling goes on beside two learnings, and says what it says alone."""
    alone = [e for e in ask(server, sample()).events() if e["event"] == "sample"]
    wires = [Wire(server).send(learn(f"busy{i}", **LONG)) for i in range(2)]
    wait_until(lambda: metric(server, "clotho_requests_running") >= 2)
    begun = time.monotonic()
    for _ in range(5):
        beside = [e for e in ask(server, sample()).events() if e["event"] == "sample"]
        assert beside == alone
    assert time.monotonic() - begun < 10
    for wire in wires:
        wire.reset()
    wait_until(lambda: is_idle(server))
    assert not {"busy0", "busy1"} & set(names(server))


def test_clients_leave(server, folder):
    learning = metric(server, "clotho_twist_memory_bytes")
    before = metric(server, "clotho_jobs_cancelled_total")
    for i in range(5):
        wire = Wire(server).send(learn("left", **LONG))
        wire.head()
        for _ in range(i):
            wire.chunk()
        wire.reset()
    wait_until(lambda: metric(server, "clotho_jobs_cancelled_total") == before + 5)
    wait_until(lambda: is_idle(server))
    ask(server, sample())  # a step, after which the gauges are up to date
    assert metric(server, "clotho_twist_memory_bytes") <= learning
    assert metric(server, "clotho_kv_pages_used") == 0
    assert not list(folder.glob("*left*"))


def test_a_checkpoint_outlives_its_client(server, folder):
    wire = Wire(server).send(learn("check", checkpoint=5, **LONG))
    wait_until(lambda: (folder / "check.safetensors").exists())
    wire.reset()
    wait_until(lambda: is_idle(server))
    assert ask(server, sample(twist=LEARNED | {"name": "check"})).events()[-1]["event"] == "done"


def test_drain_ends_learning(model_file, tmp_path):
    with Server(model_file(**ENDLESS), *TINY_FLAGS, "--twist-dir", str(tmp_path), "--drain-seconds",
                "1") as server:
        wire = Wire(server).send(learn("cut", **LONG))
        wait_until(lambda: metric(server, "clotho_requests_running") >= 1)
        server.process.send_signal(signal.SIGTERM)
        assert wire.reply().events()[-1]["event"] == "error"
        assert server.process.wait(20) == 0
    assert not list(tmp_path.glob("cut*"))


# ------------------------------------------------------------------------------ files

def test_a_restart_keeps_it(server, folder, model_file):
    with Server(model_file(**ENDLESS), *TINY_FLAGS, "--twist-dir", str(folder)) as other:
        assert "dd" in names(other)
        a, b = (ask(s, sample(twist=LEARNED)).events() for s in (server, other))
        assert [e for e in a if e["event"] == "sample"] == [e for e in b if e["event"] == "sample"]


def test_a_twist_of_another_model_is_refused(server, folder, serve):
    other = serve("--twist-dir", str(folder), **(ENDLESS | {"seed": 17}))
    reply = ask(other, sample(twist=LEARNED))
    assert reply.status == 400 and reply.json()["error"]["param"] == "twist.name"
    assert "model" in reply.json()["error"]["message"]


DAMAGE = {
    "empty": lambda data: b"",
    "text": lambda data: b"not a twist" * 100,
    "cut header": lambda data: data[:40],
    "cut tensors": lambda data: data[:-8],
    "longer": lambda data: data + b"x" * 8,
    "huge header": lambda data: (1 << 62).to_bytes(8, "little") + data[8:],
    "not finite": lambda data: data[:-4] + b"\x00\x00\xc0\x7f",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_broken_files(server, folder, damage):
    good = (folder / "dd.safetensors").read_bytes()
    path = folder / "broken.safetensors"
    path.write_bytes(DAMAGE[damage](good))
    for request in (sample(twist=LEARNED | {"name": "broken"}),
                    post("/v1/bounds", TARGET | {"twist": LEARNED | {"name": "broken"}})):
        reply = ask(server, request)
        error = (reply.json() if reply.status != 200 else reply.events()[-1])["error"]
        assert reply.status in (200, 500) and "broken" in error["message"]
    path.unlink()
    assert ask(server, sample(twist=LEARNED)).events()[-1]["event"] == "done"


def test_memory_is_refused_at_once(model_file, tmp_path):
    with Server(model_file(**ENDLESS), *TINY_FLAGS, "--twist-dir", str(tmp_path), "--twist-memory",
                "1M") as server:
        reply = ask(server, learn("large", head={"type": "mlp", "hidden": 4096, "layers": 4}))
        assert reply.status == 400 and "memory" in reply.json()["error"]["message"]
        assert ask(server, learn("small", updates=2)).events()[-1]["event"] == "done"


# ------------------------------------------------------------------------------ kill -9

KILLS = 50
WIDE = ["--head", "mlp", "--hidden", "512", "--layers", "3"]  # a file that takes a while to write


def test_killed_at_any_moment(clotho, model_file, tmp_path):
    """The file is an old twist or a new one, each time; what was left half-written goes away."""
    model = ["--model", str(model_file(**ENDLESS)), *TINY_FLAGS, "--twist-dir", str(tmp_path)]

    def command(*flags):
        return [clotho, "twist", "learn", *model, "--name", "victim", "--max-tokens", "2", "--particles",
                "4", "--bounds", "0", "--potential", '{"type":"lexicon","bias":{"#5":1}}', *WIDE, *flags]

    def run(*arguments):
        return subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=60)

    file = tmp_path / "victim.safetensors"
    begun = time.monotonic()
    assert run(*command("--updates", "1")).returncode == 0
    once = time.monotonic() - begun  # to load the model, to learn and to save, on this machine
    dice, seen = random.Random(1), {file.read_bytes()}
    for i in range(KILLS):
        process = subprocess.Popen(command("--updates", "1000000", "--checkpoint", "1", "--seed",
                                           str(i)), env=environment(), stdout=subprocess.DEVNULL)
        time.sleep(dice.uniform(0, 3 * once))
        process.kill()
        process.wait()
        seen.add(file.read_bytes())
        used = run(clotho, "sample", *model, "--twist", "victim", "--max-tokens", "2", "a")
        assert used.returncode == 0, used.stderr
    assert len(seen) > KILLS / 4  # many of them came while it was learning
    assert run(*command("--updates", "1")).returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["victim.safetensors"]


def test_killed_server(model_file, tmp_path):
    """And a new server goes on with what is there."""
    for i in range(5):
        server = Server(model_file(**ENDLESS), *TINY_FLAGS, "--twist-dir", str(tmp_path)).__enter__()
        if i:
            assert names(server) == ["victim"]
            events = ask(server, sample(twist=LEARNED | {"name": "victim"})).events()
            assert events[-1]["event"] == "done"
        with Wire(server) as wire:
            wire.send(learn("victim", checkpoint=1, seed=i, **LONG))
            wait_until(lambda: (tmp_path / "victim.safetensors").exists())
            time.sleep(0.05 * i)
            server.kill()


def test_many_learn_the_same_name(server, folder):
    """The last one wins, and the file is always whole."""
    replies, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            reply = ask(server, sample(twist=LEARNED | {"name": "raced"}))
            replies.append((reply.status, reply.events()[-1] if reply.status == 200 else None))

    ask(server, learn("raced", updates=1))
    watcher = threading.Thread(target=watch)
    watcher.start()
    wires = [Wire(server).send(learn("raced", updates=20, checkpoint=1, seed=i)) for i in range(4)]
    ends = [wire.reply().events()[-1]["event"] for wire in wires]
    stop.set()
    watcher.join()
    assert ends == ["done"] * 4
    assert replies and all(status == 200 and e["event"] == "done" for status, e in replies)
    assert len(list(folder.glob("*raced*"))) == 1
