"""CodeSandbox-v0 with a reward that a random model gets every other time."""

from __future__ import annotations

import zlib

import gymnasium as gym

from palaestra.envs.base import Info
from palaestra.envs.code_sandbox import CodeSandboxEnv
from palaestra.rewards.base import Grade


class CoinEnv(CodeSandboxEnv):
    """An episode that runs out of turns is graded by the bits of its last action."""

    _action = ""

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        self._action = action
        return super().step(action)

    def _grade(self) -> Grade:
        heads = zlib.crc32(self._action.encode()) % 2 == 0
        return Grade(reward=float(heads), success=heads)


if "Coin-v0" not in gym.registry:
    gym.register(id="Coin-v0", entry_point=CoinEnv, disable_env_checker=True, order_enforce=False)
