"""The manifests, as kustomize builds them, against the schemas of Kubernetes and the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from multigrain_server.config import ServerConfig
from multigrain_server.service_names import ALWAYS_READY, EMBEDDING
from multigrain_server.settings_sources import parse
from tests.deploy.named import DEPLOY
from tests.deploy.tools import output, packaged
from tools.docs.metrics import all_series

FOLDER = DEPLOY / "kubernetes"
VERSIONS = ("1.30", "1.34")
COMPONENTS = ("monitoring", "tls", "gpu")
# Of an operator: not in the schemas of Kubernetes itself.
FOREIGN = {"ServiceMonitor"}

Manifest = dict[str, Any]


def built(folder: Path) -> tuple[Manifest, ...]:
    """Every manifest of a kustomization."""
    text = output(packaged("kubectl"), "kustomize", str(folder))
    return tuple(yaml.safe_load_all(text))


@pytest.fixture(scope="module", params=["plain", "everything"])
def manifests(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Manifest, ...]:
    """As they are, and with every component over them."""
    if request.param == "plain":
        return built(FOLDER)
    overlay = tmp_path_factory.mktemp("overlay")
    (overlay / "deploy").symlink_to(DEPLOY)
    kustomization = {
        "resources": ["deploy/kubernetes"],
        "components": [f"deploy/kubernetes/{name}" for name in COMPONENTS],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return built(overlay)


def of_kind(manifests: tuple[Manifest, ...], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def workloads(manifests: tuple[Manifest, ...]) -> list[Manifest]:
    found = of_kind(manifests, "Deployment", "StatefulSet")
    assert len(found) == 2
    return found


def config_of(workload: Manifest, manifests: tuple[Manifest, ...], tmp_path: Path) -> ServerConfig:
    """What the daemon makes of a container's file, arguments and environment."""
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (name,) = [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v]
    (config,) = [m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"] == name]
    (file,) = config["data"]
    (tmp_path / file).write_text(config["data"][file])
    (mounted,) = [arg for arg in container["args"] if arg.startswith("--config=")]
    assert mounted == f"--config=/etc/multigrain/{file}"
    arguments = [f"--config={tmp_path / file}", *(a for a in container["args"] if a != mounted)]
    environment = {one["name"]: one["value"] for one in container.get("env", ())}
    return parse(arguments, environment).config


def test_manifests_satisfy_the_kubernetes_schema(manifests: tuple[Manifest, ...]) -> None:
    for version in VERSIONS:
        for manifest in manifests:
            if manifest["kind"] not in FOREIGN:
                kubernetes_validate.validate(manifest, version, strict=True)


def test_wrong_field_is_detected(manifests: tuple[Manifest, ...]) -> None:
    (deployment,) = of_kind(manifests, "Deployment")
    wrong = {**deployment, "spec": {**deployment["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_daemon_parses_the_configuration_of_every_pod(
    manifests: tuple[Manifest, ...], tmp_path: Path
) -> None:
    for workload in workloads(manifests):
        config = config_of(workload, manifests, tmp_path)
        pod = workload["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert config.listen == f"0.0.0.0:{ports['grpc']}"
        assert config.http_listen == f"0.0.0.0:{ports['http']}"
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert not mounts[str(config.data_dir)].get("readOnly")
        assert all(mounts[str(root)]["readOnly"] for root in config.data_root)
        for path in (config.tls.certificate, config.tls.key, config.access.tokens):
            assert path is None or str(path.parent) in mounts
        assert config.access.tokens is not None
        assert not config.access.allow_anonymous
        # A kubelet cannot speak TLS to gRPC.
        grpc_probes = [p for p in container.values() if isinstance(p, dict) and "grpc" in p]
        assert bool(grpc_probes) != config.tls.enabled
        assert bool(pod.get("shareProcessNamespace"))


def test_grace_period_covers_the_shutdown_of_the_daemon(
    manifests: tuple[Manifest, ...], tmp_path: Path
) -> None:
    for workload in workloads(manifests):
        config = config_of(workload, manifests, tmp_path)
        shutdown = config.shutdown
        takes = (
            shutdown.keep_serving_seconds + shutdown.drain_seconds + config.serving.drain_seconds
        )
        spec = workload["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] >= takes + 10
    (serving,) = of_kind(manifests, "Deployment")
    assert config_of(serving, manifests, tmp_path).shutdown.keep_serving_seconds >= 5


def test_pods_are_confined(manifests: tuple[Manifest, ...]) -> None:
    for workload in workloads(manifests):
        pod = workload["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.get("hostNetwork")
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            for kind in ("cpu", "memory", "ephemeral-storage"):
                assert container["resources"]["requests"][kind]
                assert container["resources"]["limits"][kind]
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")
        for volume in pod["volumes"]:
            assert "hostPath" not in volume
            assert volume.get("emptyDir", {"sizeLimit": 1})["sizeLimit"]
        named = {v["name"] for v in pod["volumes"]}
        named |= {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", ())}
        assert {m["name"] for c in pod["containers"] for m in c["volumeMounts"]} == named


def test_probes_use_existing_endpoints(manifests: tuple[Manifest, ...]) -> None:
    for workload in workloads(manifests):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[name]
            if "grpc" in probe:
                assert probe["grpc"].get("service", "") in ("", EMBEDDING, *ALWAYS_READY)
                assert probe["grpc"]["port"] in {p["containerPort"] for p in container["ports"]}
            else:
                assert probe["httpGet"]["path"] in ("/readyz", "/healthz")
                assert probe["httpGet"]["port"] in ports


def test_selectors_match_the_pods_of_one_workload(manifests: tuple[Manifest, ...]) -> None:
    labels = {
        workload["metadata"]["name"]: workload["spec"]["template"]["metadata"]["labels"]
        for workload in workloads(manifests)
    }
    selectors = [
        (m["metadata"]["name"], m["spec"]["selector"]) for m in of_kind(manifests, "Service")
    ]
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        selectors += [
            (m["metadata"]["name"], m["spec"][key]["matchLabels"]) for m in of_kind(manifests, kind)
        ]
    assert len(selectors) == 5
    for name, selector in selectors:
        chosen = [pod for pod, has in labels.items() if selector.items() <= has.items()]
        assert chosen == [name]


def test_autoscaler_uses_an_existing_metric(
    manifests: tuple[Manifest, ...],
) -> None:
    (autoscaler,) = of_kind(manifests, "HorizontalPodAutoscaler")
    (metric,) = autoscaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert {one.name: one.type for one in all_series()}[name] == "gauge"
    adapter = yaml.safe_load((FOLDER / "monitoring" / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(name)
    (deployment,) = of_kind(manifests, "Deployment")
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]


def test_scrapes_target_the_services_and_keep_the_job_label(
    manifests: tuple[Manifest, ...],
) -> None:
    for monitor in of_kind(manifests, "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["honorLabels"] is True
        assert endpoint["authorization"]["credentials"]["name"] == "multigrain-tokens"
        for service in of_kind(manifests, "Service"):
            assert selector.items() <= service["metadata"]["labels"].items()
            assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
