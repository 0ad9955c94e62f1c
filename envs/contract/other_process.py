"""Episodes played by another interpreter, with other hashes of strings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ...core.errors import ConfigError
from ..registration import make_env
from .bench import Bench, Broken, Skip, as_data, play, shown

TIME_SHARE = 0.8
"""Of the time that a check may take: the other process ends before the check does."""
_UNKNOWN = 3
_CODE = "from palaestra.envs.contract.other_process import main; main()"


def play_elsewhere(bench: Bench, scripts: Sequence[Sequence[str]], seed: int) -> list[list[dict[str, str]]]:
    """Plays each sequence of actions in a new environment of another process.

    Raises:
        Broken: The other process failed.
        Skip: It does not know the id, or a keyword is no plain data.
    """
    try:
        order = json.dumps({"id": bench.env_id, "kwargs": dict(bench.kwargs), "scripts": scripts, "seed": seed})
    except TypeError as error:
        raise Broken(f"a keyword is no plain data ({error})", 'Name callables as "module:function".') from error
    hashes = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    timeout_s = TIME_SHARE * bench.timeout_s
    path = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CODE],
            input=order,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Broken(f"another process did not play {len(scripts)} episodes in {timeout_s:g} s") from error
    if done.returncode == _UNKNOWN:
        raise Skip(f"another process does not know {bench.env_id!r}: give the id as module:Id-v0")
    if done.returncode:
        raise Broken(f"another process failed: {shown(done.stderr.strip().rpartition(chr(10))[2])}")
    return json.loads(done.stdout.rpartition("\n")[2])


def main() -> None:
    """What the other process runs: reads an order from stdin and writes the episodes to stdout, as its last line."""
    order: dict[str, Any] = json.load(sys.stdin)
    episodes: list[list[dict[str, str]]] = []
    for actions in order["scripts"]:
        try:
            env = make_env(order["id"], **order["kwargs"])
        except ConfigError:
            sys.exit(_UNKNOWN)
        with env:
            episodes.append(as_data(play(env, actions, order["seed"])))
    print(f"\n{json.dumps(episodes)}", end="")
