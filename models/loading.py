"""Causal language models and their tokenizers: made from a config, loaded from a folder or hub id, saved atomically.

A folder may hold an adapter alone (`adapters`), which names its base. Every way in which loading fails for a
reason outside this program is a one-line `ModelError`. It knows nothing about chat formats (`chat`) or decoding
(`engine`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import ConfigError, ModelError, StorageError, did_you_mean
from .adapters import CONFIG_FILE, LoRAConfig, base_of_adapter, has_adapter, merge_adapter, read_adapter, write_adapter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16", "auto")
ARCHITECTURES = ("llama", "qwen3")
_VOCAB_MULTIPLE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A model to load (`path`), or the sizes of one to make from scratch (no `path`)."""

    path: str | None = None
    """A folder, or a hub id; None makes a new model from the sizes below."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """`auto` takes the dtype that the weights were saved in."""
    device: str = "auto"
    """`auto` takes CUDA where there is one, else the CPU."""
    attention: str = "sdpa"
    """Attention implementation of transformers: `sdpa`, `eager`, or `flash_attention_2` where that is installed."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone for the backward pass, which computes the layer again: less memory, about a third
    more time, equal gradients."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Train a low-rank adapter instead of the weights."""
    architecture: Literal["llama", "qwen3"] = "llama"
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 1
    intermediate_size: int = 384
    context: int = 512
    """Greatest number of positions, in tokens."""
    tie: bool = True
    """Whether the output layer shares the embedding's weights."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)}: must be at least 1")
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ConfigError(f"model.hidden_size={self.hidden_size}: must be an even multiple of heads={self.heads}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"model.kv_heads={self.kv_heads}: must divide heads={self.heads}")
        for name, valid in (("dtype", DTYPES), ("architecture", ARCHITECTURES)):
            if getattr(self, name) not in valid:
                raise ConfigError(f"model.{name}={getattr(self, name)!r}{did_you_mean(getattr(self, name), valid)}")


def resolve_device(device: str) -> torch.device:
    """Gives the device that `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"`, ... means on this machine.

    Raises:
        ModelError: There is no such device here.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device={device!r}: write 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device={device!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return resolved


def build_model(config: ModelConfig, vocab_size: int, seed: int, *, pad_id: int, eos_id: int) -> PreTrainedModel:
    """Makes a model with random weights; equal arguments give equal weights and global random state is left alone.

    Args:
        config: Sizes, architecture, dtype and device.
        vocab_size: Number of the tokenizer's tokens; the model's is the next multiple of 8.
        seed: Seed of the weights.
        pad_id: Padding token of the tokenizer.
        eos_id: End token of the tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    sizes: dict[str, Any] = {
        "vocab_size": -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.hidden_size // config.heads,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tie,
        "rms_norm_eps": 1e-6,
        # Half the usual 1/sqrt(d): with tied embeddings the first logits stay small (found by the learning runs).
        "initializer_range": config.hidden_size**-0.5 / 2,
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
    }
    model_config = (LlamaConfig if config.architecture == "llama" else Qwen3Config)(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        model = AutoModelForCausalLM.from_config(model_config, attn_implementation=config.attention)
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    model.to(device=resolve_device(config.device), dtype=dtype)  # pyright: ignore[reportArgumentType]
    return model


def load_model(
    folder_or_hub_id: str | Path, dtype: str = "float32", device: str = "auto", attention: str = "sdpa"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer as `from_pretrained` does.

    The folder of an adapter (peft's format) gives its base with the adapter in it.

    Raises:
        ModelError: The folder is missing or holds no model, the hub cannot be reached, the tokenizer has no chat
            template or no end token, or the device is not here. One line each.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r}{did_you_mean(dtype, DTYPES)}")
    target = resolve_device(device)
    name = _checked_name(str(folder_or_hub_id))
    if _is_adapter(Path(name)):
        return _load_adapted(Path(name), dtype, device, attention)
    with _one_line_errors(name), _no_progress_bars():
        tokenizer = AutoTokenizer.from_pretrained(name)
        check_tokenizer(tokenizer, name)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name, dtype="auto" if dtype == "auto" else getattr(torch, dtype), attn_implementation=attention
        )
    embeddings: Any = model.get_input_embeddings()
    embedded = embeddings.weight.shape[0]
    if len(tokenizer) > embedded:
        raise ModelError(f"{name}: the tokenizer has {len(tokenizer)} tokens, the model embeds {embedded}")
    model.to(target)  # pyright: ignore[reportArgumentType]
    return model, tokenizer


def _load_adapted(
    folder: Path, dtype: str, device: str, attention: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base of an adapter with the adapter in it; a base that is an adapter's folder itself is merged."""
    from transformers import AutoTokenizer

    model, tokenizer = load_model(base_of_adapter(folder), dtype, device, attention)
    if has_adapter(model):
        merge_adapter(model)
    with _one_line_errors(str(folder)):
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            check_tokenizer(tokenizer, str(folder))
        read_adapter(model, folder)
    return model, tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Checks that a tokenizer can hold a conversation.

    Raises:
        ModelError: It has no chat template, or no end token.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"{name}: the tokenizer has no chat template; use an instruction-tuned model, or set "
            "tokenizer.chat_template and save it"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{name}: the tokenizer has no end token; set tokenizer.eos_token and save it")


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    state: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Writes a model folder; a reader sees the old folder or the whole new one, never a part.

    Args:
        model: The model. One with an adapter gives the folder of the adapter alone, in peft's format.
        tokenizer: Its tokenizer.
        folder: Where to.
        state: What to save instead of the model's own state, such as `adapters.merged_state(model)`; the folder is an
            ordinary one then.

    Raises:
        StorageError: The folder cannot be written (no permission, full disk).
    """
    target = Path(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror}") from error
    try:
        temporary.chmod(0o755)
        with _no_progress_bars():
            if has_adapter(model) and state is None:
                write_adapter(model, temporary)
            else:
                model.save_pretrained(temporary, state_dict=state)
            tokenizer.save_pretrained(temporary)
        _replace_folder(temporary, target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # what a full disk gives while weights are written
            raise
        raise StorageError(f"cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _replace_folder(source: Path, target: Path) -> None:
    """Moves a folder over another one; POSIX cannot replace a folder that is not empty, so the old one steps aside."""
    if not target.exists():
        source.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(aside / target.name)
    try:
        source.rename(target)
    except OSError:
        (aside / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _checked_name(name: str) -> str:
    """Gives the folder's path or the hub id, after checking what can be checked without loading."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not _is_adapter(path):
            raise ModelError(f"{name} is not a model folder: it has no config.json")
        return str(path)
    if path.exists():
        raise ModelError(f"{name} is a file; give the model's folder, or a hub id such as 'Qwen/Qwen3-0.6B'")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no model folder {name}")
    if "/" not in name:
        raise ModelError(f"no model folder {name!r} (a hub id is written 'owner/name')")
    return name


def _is_adapter(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() and not (path / "config.json").is_file()


def recompute_activations(model: PreTrainedModel) -> None:
    """Switches gradient checkpointing on; passes without gradient, or in evaluation mode, stay as they are.

    Raises:
        ModelError: The architecture does not support it.
    """
    new_name = "activation_checkpointing_enable"  # transformers 5.20; before, "gradient"
    enable: Any = getattr(model, new_name if hasattr(model, new_name) else "gradient_checkpointing_enable")
    try:
        enable({"use_reentrant": False})  # works with a frozen embedding, too
    except ValueError as error:
        raise ModelError(f"model.gradient_checkpointing=true: {error}") from error


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turns what `from_pretrained` raises for missing, damaged or unreachable models into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(_explain(name, error)) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keeps bars for files that take milliseconds off the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _explain(name: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = " ".join(str(error).split())
    if Path(name).is_dir():
        return f"cannot load the model in {name}: {lines[0]}"
    unreachable = ("couldn't connect", "offline", "connection", "resolve", "max retries", "timed out")
    if any(word in text.lower() for word in unreachable):
        return f"no model folder {name}, and the hub cannot be reached to look for the hub id {name!r}"
    return f"no model folder {name}, and the hub has no usable model {name!r}: {lines[0]}"
