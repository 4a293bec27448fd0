"""What operators deploy, read by the tools that will read it; and no query asks for a metric that there is not."""
import json
import os
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml
from support.server import ROOT, TINY_FLAGS, Server
from support.shapes import ENDING

DEPLOY = ROOT / "deploy"
KUBERNETES = "1.31"


def call(*command, **environment):
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True, capture_output=True,
                          text=True).stdout


# ------------------------------------------------------------------------------- Prometheus, Grafana


def test_prometheus():
    call("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yml")
    call("promtool", "check", "rules", DEPLOY / "prometheus/rules.yml")
    call("promtool", "test", "rules", DEPLOY / "prometheus/rules_test.yml")


@pytest.fixture(scope="module")
def metrics(model_file, tmp_path_factory):
    """The names of a server's page, once it has had something to do."""
    with Server(model_file(**ENDING), *TINY_FLAGS, "--api-key", "k") as server:
        client = server.client(headers={"X-Api-Key": "k"})
        client.sample(prompt=[0, 2], particles=2, max_tokens=3)
        page = client.get("/metrics").body.decode()
    return set(re.findall(r"^# TYPE (\w+)", page, re.M))


def queries():
    dashboard = json.loads((DEPLOY / "grafana/clotho.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        yield variable["name"], variable["query"]
    for group in yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    adapter = yaml.safe_load((DEPLOY / "k8s/adapter-values.yaml").read_text())
    for rule in adapter["rules"]["custom"]:
        yield "adapter", rule["seriesQuery"]


def test_metrics_are_there(metrics):
    """Those of histograms by their families' names; those with a colon are recorded by rules.yml."""
    asked = [(where, name) for where, query in queries() for name in re.findall(r"\bclotho_\w+", query)]
    assert len(asked) > 40
    assert not [(where, name) for where, name in asked
                if metrics.isdisjoint({name, re.sub("_(bucket|sum|count)$", "", name)})]


def test_dashboard_is_well_formed():
    dashboard = json.loads((DEPLOY / "grafana/clotho.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids) and dashboard["uid"] == "clotho"


def test_dashboard_queries(tmp_path):
    """Prometheus can parse them: as the rules of a file of their own."""
    rules = [{"record": f"query:{i}", "expr": query.replace("$__rate_interval", "1m")}
             for i, (_, query) in enumerate(queries()) if "label_values" not in query]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    call("promtool", "check", "rules", tmp_path / "rules.yml")


# ------------------------------------------------------------------------------- Compose, Kubernetes


def test_compose(tmp_path):
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True) if shutil.which("docker") else None
    compose = ["docker", "compose"] if plugin and plugin.returncode == 0 else ["docker-compose"]
    text = call(*compose, "-f", ROOT / "docker-compose.yml", "config", CLOTHO_MODELS=str(tmp_path))
    services = yaml.safe_load(text)["services"]
    assert services.keys() == {"clotho-1", "clotho-2", "nginx", "prometheus", "grafana"}
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            assert not source.startswith(str(ROOT)) or "/secrets/" in source or os.path.exists(source), source


def manifests():
    folder = DEPLOY / "k8s"
    names = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [document for name in names for document in yaml.safe_load_all((folder / name).read_text())]


def test_kubernetes():
    for manifest in manifests():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_manifests_agree():
    by_kind = {m["kind"]: m for m in manifests()}
    pod = by_kind["Deployment"]["spec"]["template"]
    labels, spec = pod["metadata"]["labels"].items(), pod["spec"]
    for kind in ("Service", "PodDisruptionBudget"):
        selector = by_kind[kind]["spec"]["selector"]
        assert selector.get("matchLabels", selector).items() <= labels
    assert by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == by_kind["Deployment"]["metadata"]["name"]
    settings = yaml.safe_load((DEPLOY / "k8s/clotho.yaml").read_text())
    grace = spec["terminationGracePeriodSeconds"]
    pause = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace > settings["drain-seconds"] + pause
    claim = by_kind["PersistentVolumeClaim"]["metadata"]["name"]
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim


def test_settings_of_kubernetes(clotho):
    """The program knows all of them."""
    call(clotho, "serve", "--config", DEPLOY / "k8s/clotho.yaml", "--print-config")
