"""deploy/: what the containers of docs/containers.md run, as processes on loopback."""

from __future__ import annotations

import json
import re
import shlex
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.clusters import wait_until
from tests.serving import COMMAND, ROOT, Serve, all_closed, code, curl, environment
from tests.test_http_serve import ports

DEPLOY = ROOT / "deploy"
SERVICES: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
NODES = ["node1", "node2", "node3"]


def on_loopback(text: str, root: Path, raft: list[str]) -> str:
    """What a container is told, for a process of this machine: paths, and names that only containers have."""
    for name, port in zip(NODES, raft, strict=True):
        text = text.replace(f"{name}:9001", f"localhost:{port}").replace(f"/secrets/{name}.", "/secrets/localhost.")
    return text.replace("/secrets/", f"{root}/secrets/")


def test_three_nodes_with_tls(tmp_path: Path) -> None:
    """The commands of the compose file make three nodes that trust each other by the certificates of secrets.sh, and
    nobody else; a write on one is read on another, with the token, and a node that is stopped comes back."""
    secrets = tmp_path / "secrets"
    made = []
    for _ in range(2):  # the second time, what is there stays
        subprocess.run(["sh", DEPLOY / "secrets.sh", secrets, "localhost"], check=True, capture_output=True)
        made.append({file.name: file.read_bytes() for file in secrets.iterdir()})
    assert made[0] == made[1]
    assert {stat.S_IMODE(file.stat().st_mode) for file in secrets.glob("*.key")} == {0o600}

    raft, http = ports(3), ports(3)
    nodes, settings = [], dict[str, str]()
    for number, name in enumerate(NODES):
        command = on_loopback(SERVICES[name]["command"], tmp_path, raft)
        command = command.replace("0.0.0.0:8001", f"127.0.0.1:{http[number]}").replace("/data/", f"{tmp_path}/{name}/")
        program, *arguments = shlex.split(command)
        assert (program, arguments[:2]) == ("serve", ["--id", name])
        settings = {key: on_loopback(value, tmp_path, raft) for key, value in SERVICES[name]["environment"].items()}
        (tmp_path / name).mkdir()
        nodes.append(Serve(tmp_path, name, *arguments[2:], environment=settings))
    with all_closed(nodes):
        for node in nodes:
            node.start()
        urls = [f"http://localhost:{port}" for port in http]
        for url in urls:
            wait_until(lambda url=url: code(f"{url}/readyz") == 200, f"{url} is ready", 60)  # type: ignore[misc]
        token = f"Authorization: Bearer {(secrets / 'token').read_text().strip()}"
        assert code("-X", "PUT", "-d", "distributed", f"{urls[0]}/kv/hello") == 401
        assert code("-X", "PUT", "-d", "distributed", "-H", token, f"{urls[0]}/kv/hello") == 204
        assert curl("-H", token, f"{urls[2]}/kv/hello?consistency=linearizable") == "distributed"
        assert len(json.loads(curl("-H", token, f"{urls[1]}/members"))["members"]) == 3

        asks = [COMMAND, "get", "hello", "--node", f"localhost:{raft[1]}"]
        known = subprocess.run(asks, env=environment(settings), capture_output=True, text=True, check=True)
        assert known.stdout == "distributed\n"
        unknown = subprocess.run(asks, env=environment({}), capture_output=True, text=True, check=False)
        assert unknown.returncode != 0

        probe = SERVICES["node2"]["healthcheck"]["test"]
        probe = [part.replace("localhost:8001", f"localhost:{http[1]}") for part in probe[1:]]
        assert subprocess.run(probe, check=False).returncode == 0
        assert nodes[1].end(signal.SIGTERM) == 0
        assert subprocess.run(probe, check=False, capture_output=True).returncode != 0
        nodes[1].start()
        wait_until(lambda: subprocess.run(probe, check=False, capture_output=True).returncode == 0, "it is back", 60)


def test_containers_and_compose_file_agree() -> None:
    """All nodes know each other, each shows its own certificate, and what the image gives is what they use."""
    text = (DEPLOY / "Containerfile").read_text()
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0]) == ["replidict"]
    program = SERVICES["secrets"]["entrypoint"][0]
    assert f"COPY deploy/secrets.sh /usr/local/bin/{program}\n" in text
    assert SERVICES["secrets"]["command"] == ["/secrets", *NODES]
    for name in NODES:
        service = SERVICES[name]
        others = [other for other in NODES if other != name]
        assert re.findall(r"--(?:addr|peer) (\w+):9001", service["command"]) == [name, *others]
        assert service["environment"]["REPLIDICT_CERT"] == f"/secrets/{name}.pem"
        assert service["environment"]["REPLIDICT_CERT_KEY"] == f"/secrets/{name}.key"
        for volume in service["volumes"]:
            directory = volume.split(":")[1]
            assert re.search(rf"install --directory .* {directory}\b", text)
