"""Engines, images and containers that fail: one readable line or a failure of infrastructure, never a hang."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from containers import Build, containers, none_is_left, open_docker
from registry import Registry
from tls_front import tls_front

from palaestra.core.errors import EnvironmentFailure, SandboxUnavailable
from palaestra.sandboxes import ExecStatus, Limits, Sandbox, container, shutdown

pytestmark = pytest.mark.docker
SLEEP = "import time\ntime.sleep(60)"


class Waiting:
    """Threads that each wait for a call of their own session."""

    def __init__(self, image: str, count: int = 5) -> None:
        self.sandboxes: list[Sandbox] = [open_docker(image) for _ in range(count)]
        assert all(sandbox.exec("1").ok for sandbox in self.sandboxes)
        self._statuses: list[ExecStatus] = []
        self._threads = [threading.Thread(target=self._wait, args=(sandbox,)) for sandbox in self.sandboxes]
        for thread in self._threads:
            thread.start()
        time.sleep(0.3)
        assert self._statuses == []

    def _wait(self, sandbox: Sandbox) -> None:
        self._statuses.append(sandbox.exec(SLEEP, timeout_s=60).status)

    def statuses(self, seconds: float) -> list[ExecStatus]:
        """What each call gave, within so many seconds."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return list(self._statuses)


# --- images and runtimes


def test_a_missing_image_that_cannot_be_pulled(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with pytest.raises(SandboxUnavailable, match=r"image='127\.0\.0\.1:9/no:1' is not there and cannot be pulled"):
            open_docker("127.0.0.1:9/no:1")
        assert capsys.readouterr().err == "palaestra: pulling the Docker image 127.0.0.1:9/no:1\n"


def test_a_missing_image_is_pulled(image: str, engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with Registry(engine, image) as registry:
        name = f"127.0.0.1:{registry.port}/pulled:1"
        try:
            for said in (f"palaestra: pulling the Docker image {name}\n", ""):
                with open_docker(name) as sandbox:
                    assert sandbox.exec("6 * 7").stdout == "42\n"
                assert capsys.readouterr().err == said
                shutdown()
        finally:
            engine.remove_image(name, force=True)


OLD = r"""
cat >/usr/local/bin/python3 <<'END'
#!/bin/sh
exec /usr/bin/python3 -I -S -c 'import sys; sys.version_info = (3, 9, 2); exec(sys.argv[5])' "$@"
END
chmod +x /usr/local/bin/python3
"""
CRASHING = r"""
printf '#!/bin/sh\necho first >&2; echo Segmentation fault >&2; exit 139\n' >/usr/local/bin/python3
chmod +x /usr/local/bin/python3
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("rm /usr/bin/python3*", "there is no python3 on its PATH: use an image with Python 3.11 or newer"),
        (OLD, "the container ended: the image's python3 is 3.9: 3.11 or newer is needed"),
        (CRASHING, "the container ended: Segmentation fault"),
    ],
)
def test_an_image_whose_python_does_not_do(build: Build, engine: Any, script: str, said: str) -> None:
    image = build("broken", script)
    started = time.monotonic()
    with pytest.raises(SandboxUnavailable) as raised:
        open_docker(image)
    assert str(raised.value).startswith(f"image={image!r}: ")
    assert str(raised.value).endswith(said)
    assert time.monotonic() - started < 20
    assert not [found for found in containers(engine) if found["Image"] == image]


NO_ROOT = r"""
cat >/usr/local/bin/python3 <<'END'
#!/bin/sh
if [ "$(id -u)" = 0 ]; then echo "not as root" >&2; exit 1; fi
exec /usr/bin/python3 "$@"
END
chmod +x /usr/local/bin/python3
"""


def test_the_other_mode_is_tried_where_the_first_one_fails(build: Build, engine: Any, fresh: None) -> None:
    image = build("no-root", NO_ROOT)
    with open_docker(image) as sandbox:
        assert sandbox.exec("6 * 7").stdout == "42\n"
        (found,) = containers(engine)
        assert engine.inspect_container(found["Id"])["Config"]["User"] == "1000:1000"
    with pytest.raises(SandboxUnavailable, match="not as root"):
        open_docker(image, "uid")


def test_a_runtime_that_the_engine_does_not_know(image: str) -> None:
    with pytest.raises(SandboxUnavailable, match=r"^runtime='runsk': .*install it, and list it in .*daemon\.json$"):
        open_docker(image, runtime="runsk")


# --- containers that end


def test_a_killed_container_is_a_failure_of_infrastructure_for_all_who_wait(
    image: str, engine: Any, fresh: None
) -> None:
    for _ in range(2):
        waiting = Waiting(image)
        idle = open_docker(image)
        assert idle.exec("1").ok
        (killed,) = containers(engine)
        engine.kill(killed["Id"])
        assert waiting.statuses(10) == [ExecStatus.SANDBOX_DIED] * 5
        result = idle.exec("1")
        assert (result.status, result.message != "", idle.alive) == (ExecStatus.SANDBOX_DIED, True, False)
        idle.reset()
        assert idle.exec("6 * 7").stdout == "42\n"
        assert killed["Id"] not in [found["Id"] for found in containers(engine)]
        shutdown()


def test_an_episode_whose_container_ends_is_taken_up_in_another_one(image: str, engine: Any, fresh: None) -> None:
    env = gym.make("CodeSandbox-v0", sandbox="docker", image=image, reuse_results=False)
    env.reset(seed=3)
    env.step("run\nx = 41")
    for found in containers(engine):
        engine.kill(found["Id"])
    observation, reward, _, _, info = env.step("run\nprint(x + 1)")
    assert (observation.splitlines()[0], reward, info.get("failure")) == ("42", 0.0, None)
    env.close()


def test_memory_that_runs_out_costs_sessions_and_not_the_container(image: str, engine: Any, fresh: None) -> None:
    limits = Limits(memory_mib=1024)
    with open_docker(image, limits=limits) as sandbox, open_docker(image) as neighbour:
        assert sandbox.exec("1").ok
        assert neighbour.exec("x = 1").ok
        (found,) = containers(engine)
        engine.update_container(found["Id"], mem_limit=256 << 20, memswap_limit=256 << 20)
        result = sandbox.exec("x = bytearray(700 << 20)")
        assert result.status in (ExecStatus.KILLED, ExecStatus.MEMORY_LIMIT)
        assert neighbour.exec("x").stdout == "1\n"


# --- engines that end


@pytest.fixture
def restarted(at_own_engine: Any) -> Iterator[Any]:
    """An engine that is started again, whatever a test does to it."""
    yield at_own_engine
    shutdown()
    at_own_engine.kill()
    at_own_engine.start()


def test_an_engine_that_is_killed(restarted: Any, image: str) -> None:
    waiting = Waiting(image)
    env = gym.make("CodeSandbox-v0", sandbox="docker", image=image, reuse_results=False)
    env.reset(seed=3)
    env.step("run\nprint(1)")
    restarted.kill()
    assert waiting.statuses(10) == [ExecStatus.SANDBOX_DIED] * 5
    with pytest.raises(SandboxUnavailable, match=r"no Docker engine answers at unix://.*: start it"):
        waiting.sandboxes[0].reset()
    with pytest.raises(EnvironmentFailure, match="sandbox_died"):
        env.step("submit\ndef f(x): return x")
    env.close()
    started = time.monotonic()
    shutdown()
    assert time.monotonic() - started < 5
    restarted.start()
    with open_docker(image) as sandbox:
        assert sandbox.exec("6 * 7").stdout == "42\n"
        with restarted.client() as client:
            assert len(containers(client.api)) == 1  # the earlier ones are gone


def test_an_engine_that_does_not_answer_any_more(restarted: Any, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(container, "_ANSWER_TIMEOUT_S", 1.0)
    with open_docker(image) as sandbox:
        assert sandbox.exec("1").ok
        os.kill(restarted.pid, signal.SIGSTOP)
        started = time.monotonic()
        result = sandbox.exec(SLEEP)
        assert result.status is ExecStatus.SANDBOX_DIED
        assert "does not answer" in result.message
        shutdown()
        assert time.monotonic() - started < 15
        os.kill(restarted.pid, signal.SIGCONT)
    with restarted.client() as client:
        assert none_is_left(client.api)


def test_a_long_silent_call_outlives_the_patience(image: str, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_PATIENCE_S", 0.2)
    with open_docker(image) as sandbox:
        assert sandbox.exec("import time\ntime.sleep(1.5)\n7").stdout == "7\n"


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_engine_on_a_port(
    at_own_engine: Any, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    port = int(at_own_engine.tcp_host.rpartition(":")[2])
    with tls_front(port, tmp_path) if encrypted else contextlib.nullcontext(port) as front:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{front}")
        if encrypted:
            monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
            monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
            for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
                monkeypatch.delenv(name, raising=False)
        use_engine_on_a_port(at_own_engine, image)


def use_engine_on_a_port(engine: Any, image: str) -> None:
    waiting = Waiting(image)
    with open_docker(image) as sandbox:
        sandbox.write_file("a", bytes(10_000_000))
        assert sandbox.read_file("a") == bytes(10_000_000)
    with engine.client() as client:
        (found,) = containers(client.api)
        client.api.kill(found["Id"])
        assert waiting.statuses(10) == [ExecStatus.SANDBOX_DIED] * 5
        shutdown()
        assert containers(client.api) == []
