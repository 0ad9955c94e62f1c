"""The engine in this process with each turn's randomness drawn as a server draws it, to compare the two."""

from __future__ import annotations

from dataclasses import replace

from palaestra.models.engine import GenerationRequest
from palaestra.models.http_engine import turn_seed
from palaestra.models.local_engine import LocalEngine
from palaestra.models.served_model import sampling_generator


class SeededEngine(LocalEngine):
    """A `LocalEngine` whose turns are those of `HttpEngine` on our server."""

    def submit(self, request: GenerationRequest) -> None:
        super().submit(replace(request, generator=sampling_generator(turn_seed(request.generator))))
