"""The reference policy of the KL: a frozen model, or the policy with its adapter off, which needs no second copy.

An adapter that SFT has trained cannot be switched off to give the SFT policy: off, it gives the model that SFT began
with. So SFT's adapter is merged into the weights, and GRPO starts with a new one: off, that gives the policy after SFT.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..models.adapters import adapter_off, has_adapter


class Reference:
    """Gives the reference's model while it is needed.

    Args:
        policy: The model that is trained.
        frozen: The reference; None = the policy with its adapter off, or a copy of it as it is now where it has none.
    """

    def __init__(self, policy: nn.Module, frozen: nn.Module | None = None) -> None:
        self._policy = policy
        if frozen is None and not has_adapter(policy):
            frozen = copy.deepcopy(policy)
        self._frozen = None if frozen is None else frozen.eval().requires_grad_(False)

    @contextmanager
    def model(self) -> Iterator[nn.Module]:
        """The model to score with; the policy must not be used otherwise meanwhile."""
        if self._frozen is not None:
            yield self._frozen
            return
        training = self._policy.training
        self._policy.eval()
        try:
            with adapter_off(self._policy):
                yield self._policy
        finally:
            self._policy.train(training)
