"""`palaestra serve`: a model behind OpenAI's and vLLM's calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigError

LOCAL = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "VLLM_API_KEY"


def serve(
    model: Annotated[str, typer.Option(metavar="FOLDER_OR_HUB_ID", help="Any transformers causal LM.")],
    name: Annotated[str, typer.Option(help="What requests call it. (default: the folder's name or hub id)")] = "",
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    rows: Annotated[int, typer.Option(min=1, help="Requests sampled at the same time; further ones queue.")] = 32,
    max_context_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens of a prompt and its answer; memory grows with it.")
    ] = 4096,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto (as saved).")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="torch's threads. (default: all cores)")] = None,
    weight_updates: Annotated[
        bool,
        typer.Option("--weight-updates", help="Let requests change the weights; they name folders of this machine."),
    ] = False,
) -> None:
    """Serve a model to evaluations and to training, as vLLM does, on whatever this machine has.

    Examples:

    ```
    palaestra serve --model runs/quickstart/policy --port 8000
    palaestra eval CodeSandbox-v0 --base-url http://127.0.0.1:8000/v1 --model policy

    palaestra serve --model runs/quickstart/sft --weight-updates     # to be trained:
    palaestra train mine.toml rollout.engine=http rollout.engine_url=http://127.0.0.1:8000
    ```

    **Calls**: /health, /v1/models, /v1/completions (text or token ids; `return_token_ids`, `logprobs`, `seed`,
    `stop_token_ids`), /v1/chat/completions (`tools` and `tool_calls` in Hermes' form). Requests are sampled together
    and answered as each ends; a prompt that goes on from an earlier answer reads only what is new. Equal seeds give
    equal answers. There is no streaming.

    **Weight updates** (off unless asked for) are vLLM's: /v1/load_lora_adapter and /v1/unload_lora_adapter;
    /collective_rpc with `reload_weights`, /pause, /resume, /reset_prefix_cache, /update_weight_version.

    **A key** is asked from every request but /health, where the variable VLLM_API_KEY holds one. Ctrl-C ends the
    server.
    """
    import torch

    from ..models.loading import load_model
    from ..models.served_model import ServedModel
    from ..models.server import ModelServer

    key = os.environ.get(KEY_VARIABLE, "")
    if weight_updates and host not in LOCAL and not key:
        raise ConfigError(
            f"--weight-updates --host={host}: others could change the weights; set the variable {KEY_VARIABLE} to a key"
        )
    if threads:
        torch.set_num_threads(threads)
    loaded, tokenizer = load_model(model, dtype=dtype, device=device)
    positions = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)
    context = min(max_context_tokens, positions or max_context_tokens)
    called = name or (Path(model).name if Path(model).is_dir() else model)
    served = ServedModel(loaded, tokenizer, name=called, folder=model, rows=rows, max_context=context)
    server = ModelServer(served, host=host, port=port, api_key=key, weight_updates=weight_updates)
    print(f"serving {called} at {server.url} ({context} tokens, {rows} at a time); Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")
