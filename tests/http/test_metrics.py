"""The page at /metrics, read by Prometheus' own parser, and by promtool where that is installed."""
import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.watch import metric, wait_until
from wire import ask, get, sample

KEY = "X-Api-Key: a"
UNITS = ("_seconds", "_bytes", "_ratio", "_rows")


@pytest.fixture(scope="module")
def page(stub, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("a name=ann\nb\n")
    server = stub("--api-key-file", str(keys))
    with_key = sample("us=100", 4, 8).replace(b"Host: x", b"Host: x\r\n" + KEY.encode())
    assert ask(server, with_key).status == 200
    wait_until(lambda: b"key_tokens_total{key=\"ann\"} 32" in ask(server, get("/metrics", KEY)).body)
    reply = ask(server, get("/metrics", KEY))
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return reply.body.decode()


@pytest.fixture(scope="module")
def families(page):
    """By the name as in the TYPE line, less a counter's _total."""
    return {f.name: f for f in text_string_to_metric_families(page)}


def test_names_follow_the_rules(page, families):
    """One prefix, base units, a help each, counters end in _total and nothing else does."""
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name.endswith("_total") == (kind == "counter"), name
            assert kind != "histogram" or name.endswith(UNITS), name
    for name, family in families.items():
        assert name.startswith("clotho_") and family.type != "unknown", name
        assert family.documentation.endswith("."), name
        assert not any(word in name for word in ("_ms", "_milli", "_percent", "_mib")), name


def test_all_is_there(families):
    wanted = {
        "requests", "request_duration_seconds", "time_to_first_event_seconds", "queue_seconds", "requests_waiting",
        "requests_running", "requests_active", "connections", "client_memory_bytes", "cancelled", "forward_rows",
        "kv_pages", "kv_pages_used", "kv_pages_shared", "ess_ratio", "resamples", "extinctions", "jobs_cancelled",
        "forward_seconds", "smc_seconds", "op_seconds", "op_calls", "learning_updates", "bounds_runs",
        "twists_loaded", "twist_memory_bytes", "build_info", "ready", "particles_active", "key_requests",
        "key_refused", "key_requests_active", "key_tokens", "key_prompt_tokens"}
    assert not wanted - {name.removeprefix("clotho_") for name in families}


def test_histograms_add_up(families):
    """Buckets never fall, end at +Inf, and that is the count."""
    seen = 0
    for family in families.values():
        if family.type != "histogram":
            continue
        series = {}
        for s in family.samples:
            labels = tuple(sorted((k, v) for k, v in s.labels.items() if k != "le"))
            series.setdefault(labels, []).append(s)
        for samples in series.values():
            buckets = [s for s in samples if s.name.endswith("_bucket")]
            assert buckets[-1].labels["le"] == "+Inf"
            counts = [s.value for s in buckets]
            assert counts == sorted(counts)
            assert next(s.value for s in samples if s.name.endswith("_count")) == counts[-1]
            seen += 1
    assert seen >= 5


def test_labels(families):
    build = families["clotho_build_info"].samples[0]
    assert set(build.labels) == {"version", "backend", "model", "fingerprint"} and build.value == 1
    reasons = {s.labels["reason"] for s in families["clotho_cancelled"].samples}
    assert reasons == {"left", "slow", "late", "full", "shutdown"}
    drawn = {s.labels["key"]: s.value for s in families["clotho_key_tokens"].samples}
    assert drawn == {"ann": 32, "key-2": 0}


def test_promtool(page):
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed")
    said = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and not said.stderr, said.stderr


def test_requests_are_counted(stub):
    server, name = stub(), 'clotho_requests_total{endpoint="/livez",method="GET",code="200"}'
    ask(server, get("/livez"))
    before = metric(server, name)
    for _ in range(3):
        ask(server, get("/livez"))
    assert metric(server, name) == before + 3
