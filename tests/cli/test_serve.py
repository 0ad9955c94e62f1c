"""`palaestra serve` as a process: evaluated, trained on, killed in the midst of a rollout, and stopped."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from server_process import ServerProcess

from palaestra.agents.llm import LLMPolicy
from palaestra.agents.rollout import EpisodeSpec, collect
from palaestra.core.trajectories import Episode, Sampling
from palaestra.envs.registration import make_vector_env
from palaestra.models.http_client import EndpointConfig, HttpClient
from palaestra.models.http_engine import HttpEngine, HttpEngineConfig
from palaestra.models.loading import ModelConfig, build_model, load_model, save_model
from palaestra.models.tokenizers import train_tokenizer

KEY = "a key"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="kills process groups"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that writes noise."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["Take x, drop 2 items.", "run\ndef f(x):\n    return max(x)", "got 5"] * 20, 320)
    config = ModelConfig(hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=48, context=256)
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(build_model(config, len(tokenizer), 0, pad_id=0, eos_id=2), tokenizer, path)
    return path


def started(folder: Path, port: int = 0) -> ServerProcess:
    command = [sys.executable, "-P", "-m", "palaestra", "serve", "--model", str(folder), "--port", str(port)]
    return ServerProcess(
        [*command, "--rows", "8", "--threads", "1", "--weight-updates"], r"at (http://\S+/v1)", {"VLLM_API_KEY": KEY}
    )


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with started(folder) as server:
        yield server


def test_it_is_evaluated_with_the_results_that_its_folder_has(
    palaestra: Any, fails: Any, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = (
        "eval", "CodeSandbox-v0", "--base-url", server.url, "-n", 4, "--env", "prompt_style=compact",
        "--env", "max_turns=2", "--max-turn-tokens", 8, "--greedy",
    )  # fmt: skip
    fails(palaestra(*evaluation, "--model", "tiny"), "status 401: Unauthorized")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fails(palaestra(*evaluation, "--model", "huge"), "`huge` does not exist; this server has tiny")
    result = palaestra(*evaluation, "--model", "tiny", "--json", tmp_path / "figures.json")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["n"], figures["failures"], figures["usage"]["requests"]) == (4, 0, 8)
    assert figures["usage"]["completion_tokens"] <= 64


def test_a_run_is_trained_on_it(
    palaestra: Any, fails: Any, server: ServerProcess, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = (
        "train", "quickstart", f"run={tmp_path / 'run'}", f"model={folder}", f"reference={folder}", "stages=['grpo']",
        "processes=1", "env.max_turns=2", "env.prompt_style=compact", "rollout.max_turn_tokens=8",
        "rollout.max_context_tokens=200", "grpo.steps=2", "grpo.groups_per_step=2", "grpo.group_size=2",
        "evaluation.n=4", "rollout.engine=http", f"rollout.engine_url={server.url}", "report=false",
    )  # fmt: skip
    fails(palaestra(*run), "status 401: Unauthorized; set the variable VLLM_API_KEY")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    result = palaestra(*run)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["sft_failures"], summary["rl_failures"]) == (0, 0)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "grpo"] == [1, 2]
    label = client(server).get("/weight_info")["weight_version"]
    assert label.startswith("policy-"), "it was given weights"
    assert int(label.rpartition("-v")[2]) >= 2
    assert not list((tmp_path / "run" / "weights").iterdir()), "which nobody needs any more"


def client(server: ServerProcess) -> HttpClient:
    config = EndpointConfig(base_url=server.url, model="tiny", api_key=KEY)
    return HttpClient(config, server.url.removesuffix("/v1"))


def test_what_is_wrong_is_said_in_one_line(palaestra: Any, fails: Any, folder: Path, server: ServerProcess) -> None:
    fails(palaestra("serve", "--model", "/no/where"), "no model folder /no/where")
    fails(
        palaestra("serve", "--model", folder, "--host", "0.0.0.0", "--weight-updates"),
        "others could change the weights; set the variable VLLM_API_KEY",
    )
    port = server.url.split(":")[2].removesuffix("/v1")
    fails(palaestra("serve", "--model", folder, "--port", port), f"cannot listen at 127.0.0.1:{port}")


def test_killed_in_a_rollout_and_started_again(server: ServerProcess, folder: Path, tmp_path: Path) -> None:
    """SIGKILL: what was under way is a failure of infrastructure, never a reward; a new server gets the weights."""
    model, tokenizer = load_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    envs = make_vector_env(
        "CodeSandbox-v0", 4, workers=0, on_failure="info", max_turns=3, prompt_style="compact", families=["compose"]
    )
    specs = [EpisodeSpec(task_id=None, seed=i) for i in range(12)]
    sampling = Sampling(max_turn_tokens=12, max_context_tokens=250)

    def collected(policy: LLMPolicy, on_episode: Callable[[Episode], None] | None = None) -> list[Episode]:
        return collect(policy, envs, specs, sampling=sampling, seed_parts=("killed",), on_episode=on_episode)

    def streams(episode: Episode) -> list[list[int]]:
        return [segment.token_ids_T.tolist() for segment in episode.trajectories[0].segments]

    config = HttpEngineConfig(
        url=server.url, folder=tmp_path / "weights", api_key=KEY, tries=2, first_pause_s=0.05, timeout_s=30.0
    )
    policy = LLMPolicy(
        model,
        tokenizer,
        make_engine=lambda rows, context: HttpEngine(
            config, lambda target: save_model(model, tokenizer, target), rows, context
        ),
    )
    whole = collected(policy)
    ended: list[Episode] = []

    def kill_after_three(episode: Episode) -> None:
        ended.append(episode)
        if len(ended) == 3:
            server.kill()

    killed = collected(policy, kill_after_three)
    failed = [episode for episode in killed if episode.failed]
    assert len(failed) >= 5, "nobody answered any more"
    assert all(math.isnan(episode.reward) and episode.success is None for episode in failed)
    assert {episode.failure["kind"] for episode in failed if episode.failure} == {"endpoint"}
    assert all(
        streams(episode) == streams(other) for episode, other in zip(killed, whole, strict=True) if not episode.failed
    )
    with started(folder, int(server.url.split(":")[2].removesuffix("/v1"))) as second:
        assert client(second).get("/weight_info") == {"weight_version": "default"}
        again = collected(policy)
        assert not any(episode.failed for episode in again)
        assert [streams(episode) for episode in again] == [streams(episode) for episode in whole]
        policy.close()
        assert second.interrupt() == 0, "Ctrl-C"
        assert second.lines[-1] == "stopped\n", second.lines
    envs.close()
