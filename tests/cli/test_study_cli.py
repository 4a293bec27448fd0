"""clotho bounds and clotho twist, over the stub engine of tests/http: log Z is -2, bounds are off by
1/K (SIS: by 4/K), and by twice that from the base proposal; what is learned is a twist of zeros."""
import json
import math
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path
from xml.parsers import expat
from xml.etree import ElementTree

import pytest

from support.server import binary, environment

SVG = "{http://www.w3.org/2000/svg}"
POTENTIAL = '{"type":"lexicon","bias":{"#7":-1}}'
FACTOR = '{"type":"factor"}'
EXACT = ["--max-draws", "100"]


@pytest.fixture(scope="module")
def model(model_file):
    return str(model_file(tokenizer="bytes"))


@pytest.fixture
def run(model):
    """run(*arguments) -> the finished process of the program over the stub."""
    stub = Path(binary()).with_name("clotho-stub")

    def go(*arguments, env=None):
        return subprocess.run([stub, *map(str, arguments)], capture_output=True, text=True,
                              timeout=60, env=environment(env), stdin=subprocess.DEVNULL)

    return go


@pytest.fixture
def bounds(run, model):
    return lambda *flags: run("bounds", "--model", model, "--potential", POTENTIAL, *flags)


@pytest.fixture
def learn(run, model, tmp_path):
    return lambda *flags: run("twist", "learn", "--model", model, "--twist-dir", tmp_path / "twists",
                              "--potential", POTENTIAL, *flags)


def ok(done):
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def refused(done, *words, code=1):
    assert done.returncode == code and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and all(w in done.stderr for w in words), done.stderr


# ------------------------------------------------------------------------------ bounds

def rows(text):
    """(K, kind, proposal, lower, upper, gap) of each line of the table."""
    number = r"(-?(?:\d+\.\d+|inf)|-)(?: ± \d+\.\d+)?"
    line = rf"^ +(\d+)  (SIS|SMC) +(base|twist) +{number} +{number} +{number} "
    return [(int(k), kind, proposal, *numbers)
            for k, kind, proposal, *numbers in re.findall(line, text, re.M)]


def test_a_table(bounds):
    text = ok(bounds("--particles", "4,16", "--repeats", 3, "--seed", 7, *EXACT, "a"))
    assert rows(text) == [(4, "SMC", "base", "-2.5000", "-1.5000", "1.0000"),
                          (16, "SMC", "base", "-2.1250", "-1.8750", "0.2500")]
    assert re.search(r"^log Z is about -2\.0000, between -2\.1250 and -1\.8750 +seed 7$", text, re.M)


def test_columns_are_straight(bounds):
    lines = ok(bounds("--particles", "1,1024", *EXACT, "a dead=2")).splitlines()[:3]
    assert len({len(line) for line in lines}) == 1


def test_without_exact_draws_there_is_no_upper_bound(bounds):
    text = ok(bounds("--particles", "4", "a"))
    assert rows(text) == [(4, "SMC", "base", "-2.5000", "-", "-")]
    assert "log Z is" not in text and "seed" in text


def test_kind_and_proposal_are_the_request_s(bounds):
    text = ok(bounds("--particles", "4", "--twist", FACTOR, "--resampling", '{"ess_threshold":0}', "a"))
    assert [r[:3] for r in rows(text)] == [(4, "SIS", "twist")]


def test_json_is_what_the_server_streams(bounds):
    events = [json.loads(x) for x in ok(bounds("--json", "--repeats", 2, *EXACT, "a")).splitlines()]
    assert [e["event"] for e in events] == ["start", "bound", "bound", "bound", "bound", "done"]
    assert events[0]["particles"] == 16 and events[-1]["gap"] == 0.25


def test_json_of_several_runs_says_which(bounds):
    text = ok(bounds("--json", "--repeats", 1, "--particles", "2,4", "a"))
    events = [json.loads(x) for x in text.splitlines()]
    assert [e["event"] for e in events] == ["run", "start", "bound", "done"] * 2
    assert events[0] == {"event": "run", "particles": 2, "kind": "SMC", "proposal": "base"}
    assert events[1]["seed"] == events[5]["seed"]


def test_given_targets(bounds):
    ok(bounds("--targets", '["ab","cd"]', "--max-tokens", 8, "a"))
    refused(bounds("--targets", '["ab"]', *EXACT, "a"), "--targets", "--max-draws")
    refused(bounds("--targets", '["ab"', "a"), "--targets", code=2)
    refused(bounds("--max-draws", "many", "a"), "--max-draws", code=2)


@pytest.mark.parametrize("flags,word", [
    (["--particles", "4,"], "particles"), (["--particles", "0"], "particles"),
    (["--particles", "1,2000"], "particles"), (["--repeats", "0"], "repeats"),
    (["--twist", "a/b"], "twist.name"), (["--proposal", "twist"], "proposal"),
    (["--max-tokens", "9000000"], "max_tokens"),
], ids=" ".join)
def test_refused_before_any_run(bounds, flags, word):
    refused(bounds(*flags, "a"), word)


@pytest.mark.parametrize("arguments", [("a", "b"), ("--json=maybe",), ("--segments", "[]")])
def test_bad_command_lines(bounds, arguments):
    refused(bounds(*arguments), code=2)


def test_an_engine_that_fails(bounds):
    done = bounds("--particles", "4", "a fail=2")
    assert done.returncode == 1 and "the script said so" in done.stderr


# ------------------------------------------------------------------------------ twists

def test_life_of_a_twist(run, learn, tmp_path):
    folder = tmp_path / "twists"
    text = ok(learn("--name", "sea", "--updates", 7, "--head", "mlp", "--hidden", 5, "--layers", 2,
                    "--seed", 9, "--max-tokens", 6, "--method", "sixo", "one", "two"))
    assert re.match(rf"{re.escape(str(folder))}/sea\.safetensors: 7 updates in .* log Z -2\.0000", text)
    assert (folder / "sea.safetensors").exists()
    listed = ok(run("twist", "list", "--twist-dir", folder)).splitlines()
    assert len(listed) == 2 and listed[1].split()[:4] == ["sea", "sixo", "mlp", "2x5"]
    shown = ok(run("twist", "show", "sea", "--twist-dir", folder))
    assert "sixo, 7 updates of 64 particles" in shown and '"prompts":["one","two"]' in shown
    as_json = json.loads(ok(run("twist", "show", "sea", "--twist-dir", folder, "--json")))
    assert as_json["id"] == "sea" and as_json["seed"] == 9
    assert as_json["head"] == {"type": "mlp", "hidden": 5, "layers": 2}
    assert as_json["request"]["prompts"] == ["one", "two"]
    assert "removed" in ok(run("twist", "remove", "sea", "--twist-dir", folder))
    refused(run("twist", "remove", "sea", "--twist-dir", folder), "sea")
    refused(run("twist", "show", "sea", "--twist-dir", folder), "sea")
    assert json.loads(ok(run("twist", "list", "--json", "--twist-dir", folder)))["data"] == []


def test_learning_as_json(learn):
    text = ok(learn("--name", "x", "--updates", 4, "--bounds", 2, *EXACT, "--json", "a"))
    kinds = [json.loads(line)["event"] for line in text.splitlines()]
    assert kinds == ["start", "update", "update", "bound", "bound", "update", "update", "bound",
                     "bound", "done"]


def test_nothing_is_left_of_a_learning_that_fails(learn, tmp_path):
    done = learn("--name", "x", "--updates", 4, "a fail=3")
    assert done.returncode == 1 and "the script said so" in done.stderr
    assert not list((tmp_path / "twists").iterdir())


def test_a_name_stands_for_a_learned_twist(run, learn, model, tmp_path):
    """--twist NAME asks for what {"type":"learned"} asks for."""
    ok(learn("--name", "sea", "--updates", 1, "a"))
    flags = ["sample", "--model", model, "--twist-dir", tmp_path / "twists", "--seed", 1,
             "--max-tokens", 2, "a", "--twist"]
    by_name = ok(run(*flags, "sea"))
    assert by_name.splitlines()[:-1] == ok(run(*flags, '{"type":"learned","name":"sea"}')).splitlines()[:-1]
    refused(run(*flags, "a/b"), "twist.name")
    refused(run(*flags, "{sea"), "--twist", code=2)


@pytest.mark.parametrize("flags,word", [
    (["--updates", "0"], "updates"), (["--method", "magic"], "method"), (["--head", "tall"], "head"),
    (["--layers", "2"], "head"), (["--particles", "1"], "particles"), (["--name", "a/b"], "name"),
], ids=" ".join)
def test_learning_refuses_what_the_server_refuses(learn, flags, word):
    refused(learn("--name", "x", *flags, "a"), word)


def test_a_folder_is_needed(run, model):
    refused(run("twist", "learn", "--model", model, "--name", "x", "a"), "--twist-dir", code=2)
    refused(run("twist", "list"), "--twist-dir", code=2)
    refused(run("twist", "list", "--twist-dir", "/no/such/folder"), "/no/such/folder")


@pytest.mark.parametrize("command", ["learn", "sample", "bounds", "bench"])
def test_what_cannot_be_a_folder(run, model, tmp_path, command):
    (tmp_path / "file").write_text("")
    arguments = {"learn": ["twist", "learn", "--name", "x", "a"], "bench": ["bench"]}
    done = run(*arguments.get(command, [command, "a"]), "--model", model, "--twist-dir",
               tmp_path / "file")
    refused(done, "--twist-dir", "file")


@pytest.mark.parametrize("arguments", [(), ("frobnicate",), ("show",), ("show", "a", "b"),
                                       ("list", "a"), ("show", "../a"), ("show", "a", "--model", "m")],
                         ids=" ".join)
def test_bad_twist_commands(run, tmp_path, arguments):
    flags = ["--twist-dir", tmp_path] if arguments[:1] not in ((), ("frobnicate",)) else []
    refused(run("twist", *arguments, *flags), code=2)


@pytest.mark.parametrize("command", [("bounds",), ("twist",), ("twist", "learn"), ("twist", "list")])
def test_help(run, command):
    text = ok(run(*command, "--help"))
    assert text.startswith(f"Usage: clotho {command[0]}") and "--twist-dir" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_print_config_is_read_again(run, tmp_path):
    file = tmp_path / "clotho.yaml"
    file.write_text(ok(run("twist", "learn", "--print-config", "--updates", 3, "--head", "linear")))
    again = ok(run("twist", "learn", "--print-config", "--config", file))
    assert again == file.read_text() and "updates: 3" in again


# ------------------------------------------------------------------------------ interruption

@pytest.mark.parametrize("arguments", [
    ["bounds", "--repeats", "1000", "a us=10000"],
    ["twist", "learn", "--name", "x", "--updates", "100000", "a us=10000"]], ids=lambda a: a[0])
def test_interrupted(model, tmp_path, arguments):
    stub = Path(binary()).with_name("clotho-stub")
    plot = tmp_path / "plot.svg"
    process = subprocess.Popen([stub, *arguments, "--model", model, "--potential", POTENTIAL, "--json",
                                "--plot", plot, "--twist-dir", tmp_path / "twists"],
                               stdout=subprocess.PIPE, env=environment())
    while b"start" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert not list((tmp_path / "twists").iterdir()) and not list(tmp_path.glob("*plot*"))


def test_progress_on_a_terminal(model, tmp_path):
    stub = Path(binary()).with_name("clotho-stub")
    ours, theirs = pty.openpty()
    done = subprocess.run([stub, "twist", "learn", "--model", model, "--potential", POTENTIAL, "--name",
                           "x", "--updates", "5", "--twist-dir", tmp_path, "a us=1000"],
                          stdout=subprocess.PIPE, stderr=theirs, env=environment(), timeout=60)
    time.sleep(0.05)
    said = os.read(ours, 65536).decode()
    assert done.returncode == 0
    assert "update 5 of 5" in said and said.endswith("\r\x1b[K")


# ------------------------------------------------------------------------------ pictures

def picture(path):
    data = path.read_bytes()
    expat.ParserCreate().Parse(data, True)
    root = ElementTree.fromstring(data)
    assert root.tag == SVG + "svg" and not list(root.iter(SVG + "script"))
    return root


def texts(root, kind=None):
    return [t for t in root.iter(SVG + "text") if kind is None or kind in t.get("class", "").split()]


def scale(ticks, coordinate, of=float):
    """value -> pixel, through the first and the last tick; the others must lie on it."""
    points = [(of(t.text), float(t.get(coordinate))) for t in ticks]
    (v0, p0), (v1, p1) = points[0], points[-1]

    def to_pixel(value):
        return p0 + (of(value) - v0) / (v1 - v0) * (p1 - p0)

    for value, pixel in points:
        assert p0 + (value - v0) / (v1 - v0) * (p1 - p0) == pytest.approx(pixel, abs=0.02)
    return to_pixel


def log2(text):
    return math.log2(float(text))


def test_bounds_drawn(bounds, tmp_path):
    """Every point is where the axes say its numbers are."""
    path = tmp_path / "bounds.svg"
    text = ok(bounds("--particles", "2,8,32", "--repeats", 3, *EXACT, "--twist", FACTOR, "--plot",
                     path, "a dead=5"))
    assert [r[:3] for r in rows(text)] == [(k, kind, proposal) for k in (2, 8, 32)
                                           for proposal in ("base", "twist") for kind in ("SIS", "SMC")]
    root = picture(path)
    assert [t.text for t in texts(root, "legend")] == [
        f"{kind}, {proposal}: {side}" for proposal in ("base", "twist") for kind in ("SIS", "SMC")
        for side in ("lower", "upper")] + ["log Z is about -2.000"]
    assert [t.text for t in texts(root, "title")] == ["Bounds on log Z"]
    x = scale([t for t in texts(root, "x")], "x", log2)
    y = scale([t for t in texts(root, "y")], "y")
    circles = list(root.iter(SVG + "circle"))
    assert len(circles) == 4 * 2 * 3 - 4  # the lower bounds with 2 particles are -inf
    want = {(k, -2 + sign * off * scale_ / k) for k in (2, 8, 32) for off in (1, 4)
            for scale_ in (1, 2) for sign in (-1, 1) if (k, sign) != (2, -1)}
    got = set()
    for c in circles:
        k, value, bar = re.fullmatch(r"(\d+): (\S+) ± (\S+)", c.find(SVG + "title").text).groups()
        assert float(c.get("cx")) == pytest.approx(x(k), abs=0.02)
        assert float(c.get("cy")) == pytest.approx(y(value) - 4, abs=0.02)  # below it: text's baseline
        assert float(bar) == pytest.approx(1.96 * 0.05)
        got.add((int(k), float(value)))
    assert got == want
    floor = [p for p in root.iter(SVG + "path") if p.find(SVG + "title") is not None]
    assert len(floor) == 4 and all("-inf" in p.find(SVG + "title").text for p in floor)
    level, = (p for p in root.iter(SVG + "path")
              if p.get("class") == "level" and "H" in p.get("d"))
    assert float(re.search(r"M\d+ ([\d.]+)H", level.get("d")).group(1)) == pytest.approx(y(-2) - 4, abs=0.02)


def test_ways_that_are_the_same_are_run_once(bounds, tmp_path):
    path = tmp_path / "bounds.svg"
    assert [r[1:3] for r in rows(ok(bounds("--particles", "4", "--plot", path, "a")))] == [
        ("SIS", "base"), ("SMC", "base")]
    text = ok(bounds("--particles", "4", "--plot", path, "--resampling", '{"ess_threshold":0}', "a"))
    assert [r[1:3] for r in rows(text)] == [("SIS", "base")]
    picture(path)


def test_curves_drawn(learn, tmp_path):
    path = tmp_path / "curves.svg"
    ok(learn("--name", "sea", "--updates", 50, "--bounds", 10, *EXACT, "--plot", path, "a"))
    root = picture(path)
    assert [t.text for t in texts(root, "title")] == ["Learning sea"]
    labels = {t.text for t in texts(root)}
    assert {"loss", "log Z", "effective samples", "update", "lower bound", "upper bound"} <= labels
    said = [t.text for t in root.iter(SVG + "title")]
    assert said.count("50: 0.02") == 1 and said.count("50: -2.02") == 1
    assert len(said) == 3 * 50 + 2 * 5


def test_many_points_are_a_line(learn, tmp_path):
    path = tmp_path / "curves.svg"
    ok(learn("--name", "sea", "--updates", 3000, "--bounds", 0, "--plot", path, "a"))
    root = picture(path)
    assert not list(root.iter(SVG + "circle"))
    assert sum(p.get("d").count("L") == 2999 for p in root.iter(SVG + "path")) == 3


def test_texts_are_escaped(bounds, tmp_path):
    path = tmp_path / "bounds.svg"
    name = "<&>\"' ]]> \x01\t\uffff é"
    ok(bounds("--alias", name, "--plot", path, "a"))
    subtitle, = texts(picture(path), "subtitle")
    assert subtitle.text.startswith("<&>\"' ]]>    é")


@pytest.mark.parametrize("where", ["no/such/folder/x.svg", ".", "folder/", "device"])
def test_a_picture_that_cannot_be_written_is_known_before_any_work(bounds, learn, tmp_path, where):
    path = "/dev/null" if where == "device" else f"{tmp_path}/{where}"
    (tmp_path / "folder").mkdir()
    begun = time.monotonic()
    refused(bounds("--plot", path, "a quiet=20000"), path.rstrip("/").rsplit("/", 1)[0])
    refused(learn("--name", "x", "--plot", path, "a quiet=20000"))
    assert time.monotonic() - begun < 10
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_picture_replaces_an_old_one_only_when_it_is_whole(bounds, tmp_path):
    path = tmp_path / "bounds.svg"
    path.write_text("old")
    assert bounds("--plot", path, "a fail=1").returncode == 1
    assert path.read_text() == "old"
    ok(bounds("--plot", path, "a"))
    picture(path)
    assert [p.name for p in tmp_path.iterdir()] == ["bounds.svg"]
