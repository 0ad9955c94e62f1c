"""The contract of sandboxes, kept in containers."""

import pytest
from containers import open_docker

from palaestra.sandboxes import self_check
from palaestra.sandboxes.contract.bench import Check
from palaestra.sandboxes.contract.catalogue import CHECKS

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.number}-{check.name.replace(' ', '_')}")
@pytest.mark.parametrize("mode", ["uid", "landlock"])
def test_each_mode_keeps_the_contract(mode: str, check: Check, image: str) -> None:
    report = self_check(lambda limits: open_docker(image, mode, limits=limits), only=[check.number], require=("fork",))
    assert report.ok, report.results[0].finding
