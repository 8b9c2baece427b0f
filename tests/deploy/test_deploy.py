"""What deploy/ starts: files that parse, fit together, and are valid where there is a schema. Nothing of it is started here."""

import copy
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from dashboards import FOLDER, PATHS, ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
# No shell in its image; a job that ends.
WITHOUT_HEALTH = {"collector", "plugin"}


def documents(path):
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def mounts(service):
    """(source, target) of its volumes."""
    return [
        tuple(volume.split(":")[:2]) for volume in SERVICES[service].get("volumes", ()) if not volume.startswith("${")
    ]


class TestCompose:
    def test_all_parts_are_there(self):
        assert {"lightllm", "prometheus", "alertmanager", "grafana", "collector", "dcgm-exporter"} <= set(SERVICES)
        assert {name for name, each in SERVICES.items() if "profiles" in each} == {"collector", "dcgm-exporter"}

    @pytest.mark.parametrize("name", SERVICES)
    def test_images_are_pinned(self, name):
        image = SERVICES[name]["image"]
        assert image.startswith("${LIGHTLLM_IMAGE:?") or re.search(r":v?\d+\.\d+\.\d+", image)

    @pytest.mark.parametrize("name", sorted(set(SERVICES) - WITHOUT_HEALTH))
    def test_services_say_when_they_are_well(self, name):
        assert {"test", "interval", "timeout", "retries"} <= set(SERVICES[name]["healthcheck"])

    @pytest.mark.parametrize("name", SERVICES)
    def test_what_is_mounted_is_there(self, name):
        for source, _ in mounts(name):
            if not source.startswith("."):
                assert source in COMPOSE["volumes"], source
                continue
            path = DEPLOY / source
            if not path.exists() and path.name in ("alertmanager.yml", "rules"):
                pytest.skip(f"{path.name}: the alerts are not there yet")
            assert path.exists(), source

    def test_nothing_listens_to_other_machines_by_default(self):
        ports = [port for each in SERVICES.values() for port in each.get("ports", ())]
        assert ports
        assert all(port.startswith("127.0.0.1:") for port in ports)

    def test_no_password_has_a_default(self):
        text = (DEPLOY / "compose.yaml").read_text()
        assert "${GRAFANA_PASSWORD:?" in text

    def test_the_server_waits_for_the_plugin_and_starts_with_it(self):
        server = SERVICES["lightllm"]
        assert server["depends_on"] == {"plugin": {"condition": "service_completed_successfully"}}
        assert server["environment"]["LIGHTLLM_OTEL"] == "1"
        targets = dict(mounts("lightllm"))
        assert server["environment"]["PYTHONPATH"] == targets["plugin"] == dict(mounts("plugin"))["plugin"]


class TestPrometheus:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())

    def test_every_target_is_a_port_of_a_service(self):
        open_ports = {
            f"{name}:{port.split(':')[-1]}"
            for name, each in SERVICES.items()
            for port in (*each.get("ports", ()), *each.get("expose", ()))
        }
        targets = [
            t for job in self.config["scrape_configs"] for s in job.get("static_configs", ()) for t in s["targets"]
        ]
        targets += [
            t for a in self.config["alerting"]["alertmanagers"] for s in a["static_configs"] for t in s["targets"]
        ]
        targets += [
            f"{s['names'][0]}:{s['port']}" for j in self.config["scrape_configs"] for s in j.get("dns_sd_configs", ())
        ]
        assert len(targets) == 5
        assert set(targets) <= open_ports

    def test_rules_are_read_where_they_are_mounted(self):
        (pattern,) = self.config["rule_files"]
        assert dict(mounts("prometheus"))["../grafana/rules"] == str(Path(pattern).parent)

    def test_it_scrapes_itself_so_that_failing_rules_are_known(self):
        (own,) = [job for job in self.config["scrape_configs"] if job["job_name"] == "prometheus"]
        assert own["static_configs"] == [{"targets": ["prometheus:9090"]}]

    def test_lightllms_own_metrics_are_read_without_a_content_type(self):
        (own,) = [job for job in self.config["scrape_configs"] if job["job_name"] == "lightllm"]
        assert own["fallback_scrape_protocol"] == "PrometheusText0.0.4"

    def test_promtool_takes_it(self, tmp_path):
        promtool = shutil.which("promtool")
        if promtool is None:
            pytest.skip("promtool is not installed (Debian: prometheus)")
        config = copy.deepcopy(self.config)
        version = subprocess.run([promtool, "--version"], capture_output=True, text=True, check=True)
        if re.search(r"version 2\.", version.stdout + version.stderr):
            for job in config["scrape_configs"]:
                job.pop("fallback_scrape_protocol", None)  # unknown before 3.0, as the file says
        path = tmp_path / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        check = [promtool, "check", "config", "--syntax-only", str(path)]
        done = subprocess.run(check, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class TestGrafana:
    folder = DEPLOY / "grafana" / "provisioning"

    def test_the_provider_reads_the_folder_in_which_the_dashboards_are_mounted(self):
        (provider,) = yaml.safe_load((self.folder / "dashboards" / "lightllm.yml").read_text())["providers"]
        mounted = dict(mounts("grafana"))
        assert mounted["../grafana/dashboards"] == provider["options"]["path"]
        assert mounted["./grafana/provisioning"] == "/etc/grafana/provisioning"
        home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        assert Path(home).parent == Path(provider["options"]["path"])
        assert (FOLDER / Path(home).name).exists()

    def test_the_data_sources_are_services_and_one_prometheus_is_the_default(self):
        sources = yaml.safe_load((self.folder / "datasources" / "prometheus.yml").read_text())["datasources"]
        assert [each["type"] for each in sources if each.get("isDefault")] == ["prometheus"]
        for each in sources:
            host, port = each["url"].removeprefix("http://").split(":")
            assert f"127.0.0.1:{port}:{port}" in SERVICES[host]["ports"]
        uids = {each["uid"] for each in sources}
        assert {
            each["jsonData"]["alertmanagerUid"] for each in sources if "alertmanagerUid" in each["jsonData"]
        } <= uids

    def test_the_scrape_interval_is_the_one_that_grafana_is_told(self):
        sources = yaml.safe_load((self.folder / "datasources" / "prometheus.yml").read_text())["datasources"]
        assert sources[0]["jsonData"]["timeInterval"] == TestPrometheus.config["global"]["scrape_interval"]


class TestCollector:
    config = yaml.safe_load((DEPLOY / "collector.yaml").read_text())

    def test_pipelines_are_made_of_what_is_declared(self):
        for pipeline in self.config["service"]["pipelines"].values():
            for kind, names in pipeline.items():
                assert set(names) <= set(self.config[kind])
        assert set(self.config["service"]["extensions"]) <= set(self.config["extensions"])

    def test_its_ports_are_those_of_the_service(self):
        text = (DEPLOY / "collector.yaml").read_text()
        assert all(f"0.0.0.0:{port}" in text for port in SERVICES["collector"]["expose"])


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("kubernetes_generate", KUBERNETES / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OBJECTS = [
    each
    for path in sorted([*KUBERNETES.glob("*.yaml"), *(KUBERNETES / "examples").glob("*.yaml")])
    for each in documents(path)
    if each["kind"] != "Kustomization"
]
RULES = "groups:\n- name: one\n  rules:\n  - record: a:b:c\n    expr: vector(1)\n"
ALERTS = (
    "groups:\n- name: two\n  rules:\n  - alert: Late\n    expr: up == 0\n    for: 5m\n    labels: {severity: page}\n"
)


@pytest.fixture(scope="module")
def validate():
    """Objects → problems, by the schemas of the Prometheus operator's resources and of Kubernetes."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no node and npm: Kubernetes objects are not checked against their schemas")
    folder = ROOT / ".cache" / "kubernetes-models"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "kubernetes-models").exists():
        packages = ["@kubernetes-models/prometheus-operator@6.0.0", "kubernetes-models@5.1.0"]
        install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), *packages]
        done = subprocess.run(install, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            pytest.skip(f"npm could not install the schemas: {done.stderr.strip().splitlines()[-1:]}")

    def problems(objects):
        command = [node, str(Path(__file__).with_name("validate.mjs")), str(folder)]
        done = subprocess.run(command, input=json.dumps(objects), capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return problems


def targets_of(promtool, folder, relabelings):
    """Labels of three pods' targets after the relabelling, as promtool shows them."""
    pods = [("blue", "9464", "10.0.0.1"), ("blue", "9465", "10.0.0.1"), ("green", "9464", "10.0.0.2")]
    found = [
        {
            "targets": [f"{address}:{port}"],
            "labels": {
                "__meta_kubernetes_namespace": namespace, "__meta_kubernetes_pod_name": "lightllm-0",
                "__meta_kubernetes_pod_container_port_number": port,
            },
        }
        for namespace, port, address in pods
    ]  # fmt: skip
    (folder / "pods.json").write_text(json.dumps(found))
    as_prometheus_has_it = [
        {re.sub(r"([A-Z])", r"_\1", key).lower(): value for key, value in each.items()} for each in relabelings
    ]
    job = {
        "job_name": "pods", "file_sd_configs": [{"files": [str(folder / "pods.json")]}],
        "relabel_configs": as_prometheus_has_it,
    }  # fmt: skip
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    command = [promtool, "check", "service-discovery", "--timeout=1s", str(folder / "prometheus.yml"), "pods"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [each["labels"] for each in json.loads(done.stdout[done.stdout.index("[") :])]


class TestKubernetes:
    def test_what_follows_from_other_files_is_current(self, generate):
        """Else run: python deploy/kubernetes/generate.py"""
        assert [path.name for path, text in generate.files().items() if path.read_text() != text] == []

    def test_rules_of_all_files_become_one_object(self, generate, tmp_path):
        (tmp_path / "alerts.yml").write_text(ALERTS)
        (tmp_path / "recording.yml").write_text(RULES)
        (tmp_path / "tests").mkdir()
        made = generate.rule(tmp_path)
        assert [group["name"] for group in made["spec"]["groups"]] == ["two", "one"]
        assert made["spec"]["groups"][0]["rules"][0]["labels"] == {"severity": "page"}

    def test_no_rules_are_no_groups(self, generate, tmp_path):
        assert generate.rule(tmp_path / "none")["spec"]["groups"] == []

    def test_every_dashboard_is_a_config_map_of_its_own_that_kubectl_can_apply(self, generate):
        made = generate.dashboards(FOLDER)["configMapGenerator"]
        assert [each["files"] for each in made] == [[f"dashboards/{path.name}"] for path in PATHS]
        assert all(path.stat().st_size < 200_000 for path in PATHS)

    def test_objects_are_valid(self, validate):
        assert len(OBJECTS) >= 7
        assert validate(OBJECTS) == []

    def test_a_rule_made_from_rules_is_valid(self, validate, generate, tmp_path):
        (tmp_path / "alerts.yml").write_text(ALERTS)
        assert validate([generate.rule(tmp_path)]) == []

    def test_an_object_that_is_wrong_is_noticed(self, validate):
        wrong = copy.deepcopy(next(each for each in OBJECTS if each["kind"] == "PodMonitor"))
        wrong["spec"]["podMetricsEndpoints"][0]["port"] = 9464
        (problem,) = validate([wrong])
        assert "PodMonitor lightllm-otel" in problem
        assert "port" in problem
        assert "string" in problem

    def test_monitors_find_the_pods_and_ports_of_the_examples(self):
        monitors = [each for each in OBJECTS if each["kind"] == "PodMonitor"]
        for pod in (each["spec"]["template"] for each in OBJECTS if "template" in each.get("spec", {})):
            ports = {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", ())}
            for monitor in monitors:
                assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
                assert {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]} <= ports

    @pytest.mark.parametrize("name", ["lightllm-otel", "lightllm"])
    def test_no_two_targets_share_job_and_instance(self, tmp_path, name):
        """By Prometheus' own relabelling: pods of one name in two namespaces, and a pod with two exporters."""
        promtool = shutil.which("promtool")
        if promtool is None:
            pytest.skip("promtool is not installed (Debian: prometheus)")
        (monitor,) = [each for each in OBJECTS if each["kind"] == "PodMonitor" and each["metadata"]["name"] == name]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        found = targets_of(promtool, tmp_path, endpoint["relabelings"])
        assert {each["job"] for each in found} == {name}
        assert sorted(each["instance"] for each in found) == [
            "blue/lightllm-0:9464", "blue/lightllm-0:9465", "green/lightllm-0:9464",
        ]  # fmt: skip

    def test_servers_are_called_after_their_node_which_a_roll_out_does_not_change(self):
        for pod in (each["spec"]["template"] for each in OBJECTS if "template" in each.get("spec", {})):
            (exporter,) = [
                each for each in pod["spec"]["containers"] if "otel-metrics" in {port["name"] for port in each["ports"]}
            ]
            names = [each["name"] for each in exporter["env"]]
            values = {each["name"]: each for each in exporter["env"]}
            assert values["NODE_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
            assert values["LIGHTLLM_OTEL_SERVER"]["value"].startswith("$(NODE_NAME)/")
            assert names.index("NODE_NAME") < names.index("LIGHTLLM_OTEL_SERVER"), "else it is not put in"

    def test_volumes_of_the_examples_are_declared(self):
        for pod in (each["spec"]["template"]["spec"] for each in OBJECTS if "template" in each.get("spec", {})):
            named = {volume["name"] for volume in pod["volumes"]}
            containers = [*pod["containers"], *pod.get("initContainers", ())]
            assert {mount["name"] for each in containers for mount in each["volumeMounts"]} == named

    def test_kustomize_builds_it(self):
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            pytest.skip("no kubectl: the kustomization is not built")
        done = subprocess.run([kubectl, "kustomize", str(KUBERNETES)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        built = [each for each in yaml.safe_load_all(done.stdout) if each]
        maps = {each["metadata"]["name"]: each for each in built if each["kind"] == "ConfigMap"}
        assert set(maps) == {path.stem for path in PATHS}
        for path in PATHS:
            each = maps[path.stem]
            assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
            assert each["data"] == {path.name: path.read_text()}
