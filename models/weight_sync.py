"""How a server gets new weights: they are written to a folder that it sees too, and it is asked to load them.

The calls are vLLM's; see `http_engine`. Each version has a folder of its own, because vLLM's cache of prefixes knows
adapters by name and path; the one before is removed when the new one is loaded.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol

from ..core.errors import ConfigError, EnvironmentFailure
from .http_client import HttpClient, Refused


class WeightSync(Protocol):
    """One way to bring weights to a server."""

    model: str
    """What requests name, so that these weights answer."""
    is_versioned: ClassVar[bool]
    """Whether that name belongs to one version alone."""
    label: str | None
    """What the server calls these weights when it says what has sampled a completion; None where it does not."""

    def send(self, version: int) -> None:
        """Writes the weights as they are now and has the server load them."""
        ...

    def close(self) -> None:
        """Removes what was written."""
        ...


class _Folders:
    """Folders of versions; the newest stays, because a server that is started anew may have to read it."""

    def __init__(self, root: Path, save: Callable[[Path], object]) -> None:
        self._root, self._save = root.absolute(), save
        self._kept: Path | None = None
        self.run = secrets.token_hex(3)
        """In every name, so that two runs on one server do not take each other's weights for their own."""
        self._written = 0

    def write(self, version: int) -> Path:
        """Writes the weights into a folder whose name is used once."""
        if not self._written:
            for left in self._root.glob("policy-*"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
        self._written += 1
        folder = self._root / f"policy-{self.run}-v{version}-{self._written}"
        self._save(folder)
        return folder

    def keep(self, folder: Path | None) -> None:
        """Removes the folder that was kept before."""
        if self._kept is not None and self._kept != folder:
            shutil.rmtree(self._kept, ignore_errors=True)
        self._kept = folder


class FolderSync:
    """The whole model, loaded in place of the server's; requests go on under the server's own name for it."""

    is_versioned: ClassVar[bool] = False

    def __init__(self, client: HttpClient, root: Path, save: Callable[[Path], object], model: str) -> None:
        self.model = model
        self.label: str | None = None
        self._client, self._folders = client, _Folders(root, save)

    def send(self, version: int) -> None:
        """See `WeightSync.send`."""
        folder = self._folders.write(version)
        self._post("/pause?mode=wait")
        try:
            self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            self._client.post("/reset_prefix_cache", {}, _succeeded)
            self._label(f"policy-{self._folders.run}-v{version}")
        except BaseException:
            with contextlib.suppress(Refused, EnvironmentFailure):
                self._client.post("/resume", {}, bytes, tries=1)
            raise
        self._post("/resume")
        self._folders.keep(folder)

    def _label(self, label: str) -> None:
        try:
            self._post("/update_weight_version", {"new_version": label})
            self.label = label
        except _Missing:
            self.label = None  # an older server, which does not say what has sampled

    def _post(self, path: str, body: object = None) -> None:
        try:
            self._client.post(path, body or {}, bytes)
        except Refused as error:
            if error.status == 404:
                raise _Missing(
                    f"{self._client.root} does not take weights ({path} is missing): start vLLM with "
                    "VLLM_SERVER_DEV_MODE=1 in its environment (palaestra serve: with --weight-updates)"
                ) from error
            raise ConfigError(f"{self._client.root} refuses the weights: {error}") from error

    def close(self) -> None:
        """See `WeightSync.close`."""
        self._folders.keep(None)


class AdapterSync:
    """A LoRA adapter, under a name that belongs to one version alone: older ones cannot answer by mistake.

    Where `save` writes nothing there is no adapter yet, and the server's own model answers.
    """

    is_versioned: ClassVar[bool] = True

    def __init__(self, client: HttpClient, root: Path, save: Callable[[Path], object], model: str) -> None:
        self.model = self._base = model
        self.label: str | None = None
        self._client, self._folders = client, _Folders(root, save)

    def send(self, version: int) -> None:
        """See `WeightSync.send`."""
        folder = self._folders.write(version)
        self._unload()  # first, so that the server needs room for one adapter only
        if not folder.is_dir():
            return
        try:
            self._client.post("/v1/load_lora_adapter", {"lora_name": folder.name, "lora_path": str(folder)}, bytes)
        except Refused as error:
            if error.status == 404 and error.said.startswith("Not Found"):  # the path, not the folder
                raise ConfigError(
                    f"{self._client.root} does not take adapters: start vLLM with --enable-lora, and with "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment (palaestra serve: with --weight-updates)"
                ) from error
            if error.status != 400 or "already been loaded" not in error.said:  # by a try whose answer was lost
                raise ConfigError(f"{self._client.root} refuses the adapter: {error}") from error
        self.model = folder.name
        self._folders.keep(folder)

    def _unload(self) -> None:
        if self.model != self._base:
            with contextlib.suppress(Refused, EnvironmentFailure):  # it is gone, or the server is new
                self._client.post("/v1/unload_lora_adapter", {"lora_name": self.model}, bytes, tries=1)
            self.model = self._base

    def close(self) -> None:
        """See `WeightSync.close`."""
        self._unload()
        self._folders.keep(None)


class _Missing(ConfigError):
    """The server has no such path."""


def _succeeded(raw: bytes) -> None:
    """Reads what `/reset_prefix_cache` answers; older servers answer nothing."""
    if raw and json.loads(raw).get("success") is False:
        raise ValueError("the prefix cache could not be reset")
