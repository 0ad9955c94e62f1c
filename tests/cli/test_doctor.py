from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from palaestra.cli import doctor, sandbox_probes
from palaestra.cli.browser_probes import find_browsers
from palaestra.cli.findings import Finding, extras, pip_line
from palaestra.cli.machine_probes import _control_groups, describe_learning, describe_machine, describe_packages
from palaestra.cli.sandbox_probes import find_engines, try_isolations
from palaestra.core.errors import SandboxUnavailable
from palaestra.sandboxes import SandboxConfig


class Session:
    """As much of a sandbox as a probe needs."""

    def __init__(self, stdout: str = "42\n", status: str = "ok", message: str = "") -> None:
        self.result = SimpleNamespace(stdout=stdout, status=status, message=message)

    def exec(self, code: str) -> Any:
        assert code == "6 * 7"
        return self.result

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_each_isolation_mode_is_tried_and_says_what_it_lacks() -> None:
    def open_sandbox(config: SandboxConfig) -> Any:
        match config.backend, config.isolation:
            case "local", "namespaces":
                raise SandboxUnavailable("refused by this machine: as root, run `sysctl x=1`")
            case "local", "landlock":
                return Session()
            case "docker", "uid":
                return Session("", "sandbox_died", "the engine\nwent away")
            case _:
                raise OSError("no such engine")

    found = {finding.name: finding for finding in try_isolations(open_sandbox)}
    assert {name: finding.works for name, finding in found.items()} == {
        "local/namespaces": False, "local/landlock": True, "docker/uid": False, "docker/landlock": False,
    }  # fmt: skip
    assert found["local/namespaces"].detail == "refused by this machine: as root, run `sysctl x=1`"
    assert found["local/landlock"].detail == "what sandbox='local' takes by itself"
    assert found["local/landlock"].seconds is not None
    assert found["docker/uid"].detail == "6 * 7 gave 'sandbox_died': the engine went away"
    assert found["docker/landlock"].detail == "OSError: no such engine"


class Engine:
    """A client of a container engine."""

    def __init__(self, *tags: str, error: Exception | None = None) -> None:
        self.images = SimpleNamespace(list=lambda: [SimpleNamespace(tags=list(tags))])
        self.error = error
        self.closed = False

    def version(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {"Version": "27.1", "Platform": {"Name": "Docker Engine"}}

    def info(self) -> dict[str, Any]:
        return {"Runtimes": {"runsc": {}, "runc": {}}}

    def close(self) -> None:
        self.closed = True


def test_an_engine_says_who_it_is_and_whether_the_image_is_there() -> None:
    engine = Engine("python:3.12-slim")
    first, image = find_engines(lambda: engine)
    assert (first.works, first.detail) == (True, "Docker Engine 27.1, runtimes: runc, runsc")
    assert (image.name, image.works, image.fix) == ("image python:3.12-slim", True, "")
    assert engine.closed
    *_, image = find_engines(lambda: Engine("debian:12"))
    assert (image.works, image.fix) == (False, "docker pull python:3.12-slim")


def fail(error: Exception) -> Any:
    raise error


def test_an_engine_that_does_not_answer_has_a_line_of_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = Engine(error=ConnectionError("connection\nrefused"))
    (finding,) = find_engines(lambda: engine)
    assert (finding.works, finding.detail) == (False, "no engine answers: connection refused")
    assert "sudo apt install docker.io" in finding.fix
    assert engine.closed
    (tmp_path / "podman").touch(mode=0o755)
    (finding,) = find_engines(lambda: fail(OSError("no")))
    assert "systemctl --user start podman.socket" in finding.fix
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    (finding,) = find_engines(lambda: fail(OSError("no")))
    assert finding.fix == "see whether DOCKER_HOST=tcp://elsewhere:2375 is right"


def test_without_the_docker_package_the_pip_line_is_shown() -> None:
    (finding,) = find_engines(lambda: fail(ModuleNotFoundError("No module named 'docker'", name="docker")))
    assert (finding.works, finding.fix) == (False, pip_line("docker"))


def test_each_browser_has_to_run_a_script() -> None:
    def dump_page(path: str) -> str:
        match path:
            case "/good":
                return "<p>gives 42</p>"
            case "/mute":
                return "<p></p>"
            case "/slow":
                raise subprocess.TimeoutExpired("/slow", 30)
            case _:
                raise OSError("it ended with status 1:\nno display")

    paths = ["/good", "/mute", "/slow", "/bad"]
    found = {finding.name: finding for finding in find_browsers(paths, dump_page)}
    assert [found[path].works for path in paths] == [True, False, False, False]
    assert found["/mute"].detail == "it started, but ran no script"
    assert "timed out" in found["/slow"].detail
    assert found["/bad"].detail == "it ended with status 1: no display"
    *_, none = find_browsers([], dump_page)
    assert (none.works, none.detail) == (False, "none found")
    assert "chromium" in none.fix


def test_a_browser_that_ends_badly_is_told_by_its_last_words(tmp_path: Path) -> None:
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\necho first >&2\necho no display >&2\nexit 3\n")
    browser.chmod(0o755)
    assert list(find_browsers([str(browser)]))[1].detail == "it ended with status 3: no display"


def test_torch_is_described_or_has_a_pip_line() -> None:
    names = [finding.name for finding in describe_learning()]
    assert names == ["torch", "device"]
    (missing,) = describe_learning(lambda: fail(ModuleNotFoundError("torch")))
    assert (missing.works, missing.fix) == (False, "pip install 'palaestra[train]'")
    (broken,) = describe_learning(lambda: fail(OSError("libcuda.so: wrong architecture")))
    assert broken.detail == "it cannot be loaded: OSError: libcuda.so: wrong architecture"


def test_the_machine_is_described_whatever_is_absent(tmp_path: Path) -> None:
    facts = {finding.name: finding.detail for finding in describe_machine(f"{tmp_path}/not/there/yet")}
    assert "GiB free of" in facts[f"disk at {tmp_path}/not/there/yet"]
    assert {"Python", "system", "processors", "memory"} <= set(facts)
    assert all(facts.values())


def test_it_says_how_sessions_are_counted() -> None:
    counted = _control_groups(lambda: 2)
    assert (counted.works, counted.detail) == (True, "count what sessions use, version 2")
    watched = _control_groups(lambda: fail(OSError("/sys/fs/cgroup is not writable")))
    assert not watched.works
    assert "watching their processes: /sys/fs/cgroup is not writable" in watched.detail
    assert "Delegate=yes" in watched.fix


def test_packages_are_told_by_extra() -> None:
    assert pip_line("torch") == "pip install 'palaestra[train]'"
    assert pip_line("no-such-package") == "pip install no-such-package"
    assert "matplotlib" in extras()["report"]
    found = {finding.name: finding for finding in describe_packages()}
    assert {"palaestra", "[train]", "[report]"} <= set(found)
    assert not {"[dev]", "[test]", "[all]"} & set(found)
    assert "torch 2" in found["[train]"].detail


def broken_probe() -> Iterator[Finding]:
    yield Finding(section="machine", name="first")
    raise RuntimeError("something\nelse")


def test_a_probe_that_fails_is_a_finding_too() -> None:
    first, second = doctor.examine([broken_probe])
    assert first.name == "first"
    assert (second.section, second.name, second.works) == ("failed", "broken probe", False)
    assert second.detail == "RuntimeError: something else"


def test_the_table_shows_details_times_and_fixes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    findings = [
        Finding(section="isolation", name="local/namespaces", works=False, detail="[refused] here", fix="run `x`"),
        Finding(section="isolation", name="local/landlock", works=False),
        Finding(section="machine", name="system", detail="Linux"),
    ]
    doctor.show(findings, as_json=False)
    text = capsys.readouterr().out
    assert "[refused] here" in text
    assert "-> run `x`" in text
    assert text.count("isolation") == 1
    assert "Code cannot be isolated on this machine yet" in text
    doctor.show([Finding(section="isolation", name="local/landlock", works=True, seconds=0.123)], as_json=False)
    text = capsys.readouterr().out
    assert "opened in 0.12 s" in text
    assert "cannot" not in text


def test_the_status_tells_whether_code_can_be_isolated(palaestra: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine, for real; then as if nothing worked."""
    result = palaestra("doctor", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["ok"] is True
    found = {(finding["section"], finding["name"]): finding for finding in told["findings"]}
    assert found["isolation", "local/namespaces"]["works"] is True
    assert found["isolation", "local/namespaces"]["seconds"] > 0
    assert {section for section, _ in found} == {
        "isolation", "engines", "browsers", "learning", "machine", "packages",
    }  # fmt: skip
    monkeypatch.setattr(sandbox_probes, "try_isolations", lambda: [])
    result = palaestra("doctor", "--json")
    assert (result.exit_code, json.loads(result.stdout)["ok"]) == (1, False)


def test_nothing_but_the_core_install_is_needed(tmp_path: Path) -> None:
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "docker", "playwright", "transformers", "jinja2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["palaestra", "doctor"]
from palaestra.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pip install" in done.stdout
    assert "failed" not in done.stdout
