"""A real engine: `make test-docker` starts one, and names it and the image in the environment."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from palaestra.sandboxes import shutdown

sys.path.append(str(Path(__file__).parent))  # makes `containers` importable

from containers import Build, containers


@pytest.fixture(scope="session")
def image() -> str:
    """The test image, in the engine of DOCKER_HOST."""
    name = os.environ.get("PALAESTRA_TEST_IMAGE")
    if not name:
        pytest.skip("needs a Docker engine with the test image: make test-docker")
    return name


@pytest.fixture(scope="session")
def engine(image: str) -> Iterator[Any]:
    """The SDK's low-level client of that engine."""
    with contextlib.closing(docker.from_env().api) as client:
        yield client


@pytest.fixture(scope="session", autouse=True)
def no_container_is_left_behind(engine: Any) -> Iterator[None]:
    """Fails the run when a container with our label outlives it."""
    yield
    shutdown()
    assert containers(engine) == []


@pytest.fixture
def fresh(image: str) -> Iterator[None]:
    """For tests that need containers of their own: none is shared with tests before or after."""
    shutdown()
    yield
    shutdown()


@pytest.fixture(scope="session")
def build(engine: Any, image: str) -> Build:
    """Gives a function that makes an image out of the test image by running a shell script in it."""

    def build(name: str, script: str, *changes: str) -> str:
        host = engine.create_host_config(network_mode="none")
        container = engine.create_container(image, command=["sh", "-ec", script], host_config=host)
        engine.start(container)
        assert engine.wait(container)["StatusCode"] == 0, engine.logs(container)
        engine.commit(container, repository=f"palaestra-{name}", changes=list(changes))
        engine.remove_container(container)
        return f"palaestra-{name}"

    return build


@pytest.fixture(scope="session")
def own_engines(repository: Path) -> Any:
    """The module `scripts/docker_engine.py`, for tests that end an engine."""
    path = repository / "scripts" / "docker_engine.py"
    spec = importlib.util.spec_from_file_location("docker_engine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def own_engine(own_engines: Any, image: str) -> Iterator[Any]:
    """Another engine, with the test image, that tests may end as long as they start it again."""
    with own_engines.PrivateEngine(tcp=True) as engine:
        own_engines.import_image(engine, image)
        yield engine


@pytest.fixture
def at_own_engine(own_engine: Any, fresh: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The other engine, as the one that DOCKER_HOST names."""
    monkeypatch.setenv("DOCKER_HOST", own_engine.host)
    return own_engine
