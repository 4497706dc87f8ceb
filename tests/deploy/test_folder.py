"""The folder of a federation: keys stay secret, compose files are read, what is refused, what the wheel brings."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import threading
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

import fedopt
from fedopt import config as configs
from fedopt.config import Config
from fedopt.deploy import compose
from fedopt.deploy import folder as folders
from fedopt.deploy.join import clock, refusal
from fedopt.registry import ConfigError
from fedopt.types import FedoptError
from fedopt.wire import authority
from fedopt.wire.monitor import token

pytest.importorskip("cryptography", reason="needs the extra 'deploy'")
yaml = pytest.importorskip("yaml", reason="compose files are read with PyYAML, which comes with Ray and Flower")

ROOT = Path(fedopt.__file__).parents[1]
EXAMPLE = ROOT / "docker" / "compose.yaml"


@pytest.fixture
def config() -> Config:
    return configs.load(ROOT / "configs" / "quickstart.toml", ["data.clients=3", "participation.count=3"])


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "fedopt-0.1.0-py3-none-any.whl"
    path.touch()
    return path


def test_what_everybody_gets(tmp_path: Path, config: Config, wheel: Path) -> None:
    folder = tmp_path / "federation"
    folders.create(folder, config, 3, host="fl.example.org", data=tmp_path, gpus=frozenset({1}), wheel=wheel)
    assert folders.federation(folder / "server") == folders.Federation("fl.example.org", 8000, 9443, 3, "/data", 9444)
    for client in range(3):
        bundle = folder / "clients" / str(client)
        assert folders.bundle(bundle).client == client
        assert folders.bundle(bundle).server == "fl.example.org:8000"
        assert folders.bundle(bundle).device == ("cuda" if client == 1 else "cpu")
        assert (bundle / "ca.pem").read_bytes() == (folder / "authority" / "ca.pem").read_bytes()
        assert {path.name for path in bundle.iterdir()} == {
            "ca.pem", "client.toml", "compose.yaml", "fedopt-client.service", "node.key", "state",
        }  # fmt: skip
    secret = [folder / "authority" / "ca.key", folder / "server" / "server.key", *folder.glob("clients/*/node.key")]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secret) and len(secret) == 5
    held = {path.read_bytes() for path in secret}
    assert len(held) == 5, "nobody shares a key"
    outside = [p for p in folder.rglob("*") if p.is_file() and p not in secret and b"PRIVATE KEY" in p.read_bytes()]
    assert outside == [], "and they lie nowhere else"
    assert not (folder / "server" / "ca.key").exists(), "the server cannot sign"
    experiment = configs.load(folders.experiments(folder / "server")[0] / "config.toml")
    assert experiment.strategy == config.strategy and experiment.run.out is None
    shown = folder / "server" / "monitor.token"
    assert token(shown, "monitor-token") and stat.S_IMODE(shown.stat().st_mode) == 0o600


def test_the_flower_app_is_whole(tmp_path: Path, config: Config, wheel: Path) -> None:
    folders.create(tmp_path / "f", config, 3, wheel=wheel)
    app = tmp_path / "f" / "server" / "app"
    named = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    for component in named["components"].values():
        assert (app / component.split(":")[0].replace(".", "/")).with_suffix(".py").exists()
    assert (app / named["config"]["config"]).exists()


def test_compose_files_say_who_runs_what(tmp_path: Path, config: Config, wheel: Path) -> None:
    folder = tmp_path / "f"
    folders.create(folder, config, 3, data=tmp_path, gpus=frozenset({2}), wheel=wheel)
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    assert set(services) == {"server", "client-0", "client-1", "client-2"}
    for name, service in services.items():
        assert service["user"].split(":")[0] != "0", "nobody is root"
        assert "healthcheck" in service and service["restart"] == "unless-stopped"
        context = folder / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).exists()
        assert not list(context.rglob("*.key")), "images hold no keys"
        for volume in service["volumes"]:
            assert Path(folder, volume.split(":")[0]).exists(), f"{name}: {volume}"
        assert f"{tmp_path}:/data:ro" in service["volumes"]
    assert services["server"]["ports"] == ["8000:8000", "9443:9443", "9444:9444", "127.0.0.1:9464:9464"]
    assert "deploy" in services["client-2"] and "deploy" not in services["client-1"]
    alone = yaml.safe_load((folder / "clients" / "2" / "compose.yaml").read_text())["services"]
    assert set(alone) == {"client-2"} and "build" not in alone["client-2"]


def test_the_example_is_what_is_written() -> None:
    """docker/compose.yaml: images from the checkout, a federation of three clients in `federation/`."""
    wanted = compose.everything(
        [8000, 9443, 9444], compose.HOST, dict.fromkeys(range(3), False), "${FEDOPT_UID:-10001}",
        folder="../federation", context="..",
    )  # fmt: skip
    assert "".join(line for line in EXAMPLE.read_text().splitlines(True) if not line.startswith("#")) == wanted


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose")
def test_docker_compose_reads_them(tmp_path: Path, config: Config, wheel: Path) -> None:
    folder = tmp_path / "f"
    folders.create(folder, config, 3, gpus=frozenset({2}), wheel=wheel)
    for path in (folder / "compose.yaml", folder / "clients" / "0" / "compose.yaml", EXAMPLE):
        done = subprocess.run(["docker-compose", "-f", str(path), "config", "-q"], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def test_experiments_wait_in_line(tmp_path: Path, config: Config) -> None:
    for name in ("one", "two", "three"):
        folders.submit(tmp_path, config, name)
    assert [path.name for path in folders.experiments(tmp_path)] == ["1-one", "2-two", "3-three"]
    with pytest.raises(ConfigError, match="name of a folder"):
        folders.submit(tmp_path, config, "../escape")


def test_a_key_is_taken_back_once(tmp_path: Path, config: Config, wheel: Path) -> None:
    folders.create(tmp_path / "f", config, 3, wheel=wheel)
    server = tmp_path / "f" / "server"
    folders.revoke(server, 1)
    assert sorted(path.stem for path in (server / "keys").glob("*.pub")) == ["0", "2"]
    with pytest.raises(FedoptError, match="clients 0, 2 have a key, 1 has none"):
        folders.revoke(server, 1)


def test_what_is_refused(tmp_path: Path, config: Config, wheel: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FedoptError, match="is not empty; give another one"):
        folders.create(tmp_path / "full", config, 3, wheel=wheel)
    for host in ("", "two words", 'quo"te', "-dash"):
        with pytest.raises(FedoptError, match="--host takes a name or an address"):
            folders.create(tmp_path / "f", config, 3, host=host, wheel=wheel)
    with pytest.raises(FedoptError, match="clients 0 to 2; --gpu names 5"):
        folders.create(tmp_path / "f", config, 3, gpus=frozenset({5}), wheel=wheel)
    assert not (tmp_path / "f").exists(), "nothing was written"
    with pytest.raises(FedoptError, match="a folder that `fedopt deploy init` wrote"):
        folders.federation(tmp_path)
    (tmp_path / "federation.toml").write_text('host = "a"\nport = 1\n')
    with pytest.raises(FedoptError, match="'clients' is missing or unknown"):
        folders.federation(tmp_path)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired'))",
            "expired",
        ),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate is not yet valid", "clock"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer certificate", "authority"),
        ("Connection refused", None),
    ],
)
def test_what_a_supernode_says_is_put_in_words(said: str, meant: str | None) -> None:
    found = refusal(said)
    assert found is None if meant is None else found is not None and meant in found


@pytest.mark.slow
def test_the_wheel_brings_the_app(tmp_path: Path, config: Config) -> None:
    """As files to write out, not as packages `server` and `client`."""
    folders.create(tmp_path / "f", config, 3)
    (wheel,) = (tmp_path / "f" / "image" / "wheels").glob("fedopt-*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"fedopt"} == {top for top in tops if not top.startswith("fedopt-")}
    shared = {name.split("share/fedopt/")[1] for name in names if "share/fedopt/" in name}
    assert {"server/app.py", "client/app.py", "pyproject.toml", "docker/server.Dockerfile"} <= shared
    target = tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "venv", str(target)], check=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(target / "bin" / "pip"), "install", "-q", "--no-deps", str(wheel)], check=True, env=env)
    (site,) = target.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # what the wheel needs
    code = (
        "import json; from fedopt.deploy.folder import shipped; where = shipped();"
        " print(json.dumps([str(where), (where / 'server/app.py').exists()]))"
    )
    done = subprocess.run(
        [str(target / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    where, there = json.loads(done.stdout)
    assert there and where.startswith(str(target))


@pytest.mark.parametrize(
    ("apart", "meant"), [(0, None), (30, None), (1800, "1800 s behind"), (-1800, "1800 s ahead of")]
)
def test_a_clock_that_is_wrong_is_said(apart: int, meant: str | None, tmp_path: Path) -> None:
    """Against a server whose clock is so many seconds ahead."""

    class Ahead(http.server.BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(round(time.time()) + apart)

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    pem = tmp_path / "ca.pem"
    pem.write_bytes(authority.authority("test").certificate)
    with http.server.HTTPServer(("127.0.0.1", 0), Ahead) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = clock(f"http://127.0.0.1:{server.server_port}/health", pem)
        server.shutdown()
    if meant is None:
        assert said is None
    else:  # whole seconds, on both sides of a tick
        assert said is not None and meant in re.sub(r"1(799|801)", "1800", said)
    assert clock("http://127.0.0.1:1/health", pem) is None, "who does not answer says nothing"
