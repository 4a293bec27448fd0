"""clotho bench: what it prints is consistent, on a tiny model; how fast that is, is no test."""
import json
import subprocess

import pytest

from support.server import environment


@pytest.fixture
def bench(clotho, model_file):
    """bench(*flags) -> the finished process, on a tiny model."""
    model = model_file(tokenizer="sentencepiece")

    def go(*flags):
        return subprocess.run([clotho, "bench", "--model", model, "--threads", "1", *flags], text=True,
                              capture_output=True, env=environment(), timeout=60)
    return go


def test_lines_agree_with_themselves(bench):
    done = bench("--particles", "1,12", "--tokens", "20", "--prompt-tokens", "9", "--repeat", "1", "--json")
    assert done.returncode == 0, done.stderr
    head, *lines = map(json.loads, done.stdout.splitlines())
    assert (head["prompt_tokens"], head["tokens"], head["repeat"]) == (9, 20, 1)
    assert [line["particles"] for line in lines] == [1, 12]
    for line in lines:
        k = line["particles"]
        # differences of two timings: on a model this small they are noise of either sign
        rates = ("rows_per_second", "forward_rows_per_second", "smc_percent", "prefill_tokens_per_second")
        assert all(isinstance(line[name], (int, float)) for name in rates)
        ms = sum(value for name, value in line.items() if name.endswith("_ms"))
        assert ms == pytest.approx(1e3 * k / line["rows_per_second"])
        assert 2 <= line["kv_pages_distinct"] <= line["kv_pages_used"] <= k * 3 + 1
    assert lines[0]["resamples"] == 0


def test_table(bench):
    done = bench("--particles", "2,3", "--tokens", "4", "--repeat", "1")
    assert done.returncode == 0, done.stderr
    title, *lines = done.stdout.splitlines()[3:]
    assert "rows/s SMC" in title and "KV pages" in title
    assert [line.split()[0] for line in lines] == ["2", "3"]
    assert {len(line) for line in lines} == {len(title)}


@pytest.mark.parametrize("flags,words", [
    (["--particles", "1,x"], ["particles", '"1,x"']),
    (["--particles", "0"], ["particles"]),
    (["--particles", "5000"], ["particles", "5000"]),
    (["--tokens", "1"], ["tokens"]),
])
def test_refusals(bench, flags, words):
    done = bench(*flags)
    assert done.returncode == 1 and done.stdout == ""
    assert all(word in done.stderr.splitlines()[-1] for word in words)
