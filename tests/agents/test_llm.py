from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from palaestra.agents.llm import LLMPolicy
from palaestra.agents.rollout import EpisodeSpec, collect
from palaestra.core.errors import ModelError
from palaestra.core.messages import tool, user
from palaestra.core.trajectories import Sampling
from palaestra.envs.registration import make_vector_env
from palaestra.models.loading import ModelConfig, build_model, save_model
from palaestra.models.tokenizers import train_tokenizer

TEMPLATES = Path(__file__).parents[1] / "models" / "templates"
RESET: dict[str, Any] = {"messages": [user("Go.")], "tools": []}
STEP: dict[str, Any] = {"messages": [tool("1")]}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    torch.set_num_threads(1)
    return train_tokenizer(["Go.", "run\nx = 1", "got 1"] * 20, 290)


def make_policy(tokenizer: PreTrainedTokenizerFast, **sampling: Any) -> LLMPolicy:
    config = ModelConfig(hidden_size=32, heads=2, intermediate_size=48, context=128)
    model = build_model(config, len(tokenizer), 0, pad_id=0, eos_id=2).eval()
    return LLMPolicy(model, tokenizer, Sampling(**({"max_turn_tokens": 6, "max_context_tokens": 128} | sampling)))


def test_a_policy_is_an_agent_whose_seed_decides_its_actions(tokenizer: PreTrainedTokenizerFast) -> None:
    policy = make_policy(tokenizer)

    def episode(seed: int) -> list[str]:
        policy.reset("Go.", RESET, seed)
        first = policy.act("Go.", RESET)
        return [first, policy.act("1", STEP), policy.act("1", STEP)]

    assert episode(1) == episode(1)
    assert episode(1) != episode(2)
    assert len(set(episode(1))) > 1


def test_greedy_acting_matches_the_plain_forward(tokenizer: PreTrainedTokenizerFast) -> None:
    policy = make_policy(tokenizer, temperature=0.0)
    policy.reset("Go.", RESET, 0)
    first, second = policy.act("Go.", RESET), policy.act("1", STEP)
    stream = policy.chat.start([user("Go.")])
    for written, reply in ((first, "\n<|im_start|>tool\n1<|im_end|>\n<|im_start|>assistant\n"), (second, "")):
        begin = len(stream)
        for _ in range(6):
            with torch.no_grad():
                stream.append(int(policy.model(input_ids=torch.tensor([stream])).logits[0, -1].argmax()))
            if stream[-1] in policy.chat.end_ids:
                break
        assert policy.chat.decode(stream[begin:]) == written
        closing = "" if stream[-1] in policy.chat.end_ids else "<|im_end|>"
        stream += policy.chat.encode([closing + reply])[0]


def test_observations_without_messages_are_read_as_the_users(tokenizer: PreTrainedTokenizerFast) -> None:
    policy = make_policy(tokenizer)
    policy.reset("Go.", {}, 3)
    spoken = policy.act("Go.", {})
    policy.reset("Go.", RESET, 3)
    assert policy.act("Go.", RESET) == spoken


@pytest.mark.parametrize("name", ["qwen3_style", "llama3_style"])
def test_a_saved_model_with_a_real_template_loads_and_acts(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    reader = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|eot_id|>"],
        chat_template=(TEMPLATES / f"{name}.jinja").read_text(),
    )
    config = ModelConfig(
        architecture="qwen3" if name == "qwen3_style" else "llama",
        hidden_size=32,
        heads=2,
        intermediate_size=48,
        context=512,
    )
    save_model(build_model(config, len(reader), 0, pad_id=0, eos_id=2), reader, tmp_path / "policy")
    policy = LLMPolicy.load(tmp_path / "policy", sampling=Sampling(max_turn_tokens=6, max_context_tokens=512))
    assert not policy.model.training
    info = RESET | {"tools": [{"type": "function", "function": {"name": "run", "parameters": {}}}]}
    policy.reset("Go.", info, 0)
    assert isinstance(policy.act("Go.", info), str)
    assert isinstance(policy.act("1", STEP), str)


def test_an_episode_goes_on_when_others_make_the_engine_grow(tokenizer: PreTrainedTokenizerFast) -> None:
    """A larger engine has read nothing yet: it is given the whole conversation, not the last reply alone."""

    def episode(grow: bool) -> list[str]:
        policy = make_policy(tokenizer, temperature=0.0)
        policy.reset("Go.", RESET, 0)
        said = [policy.act("Go.", RESET)]
        for _ in range(2):
            if grow:
                policy.engine(policy.engine(1, 16).rows + 1, 128)
            said.append(policy.act("1", STEP))
        return said

    assert episode(grow=True) == episode(grow=False)


def test_any_text_of_an_environment_can_be_read(tokenizer: PreTrainedTokenizerFast) -> None:
    policy = make_policy(tokenizer)
    policy.reset("Go.", RESET, 0)
    policy.act("Go.", RESET)
    for text in ("\ud800", "\x00", "", "<|im_end|>"):
        assert isinstance(policy.act(text, {"messages": [tool(text)]}), str)


@pytest.mark.parametrize("name", ["mistral_style", "gemma_style", "zephyr_style", "qwen3_style", "llama3_style"])
def test_a_policy_of_any_template_plays_the_sandbox(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    reader = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=(TEMPLATES / f"{name}.jinja").read_text(),
    )
    config = ModelConfig(hidden_size=32, heads=2, intermediate_size=48, context=4096)
    model = build_model(config, len(reader), 0, pad_id=0, eos_id=2).eval()
    policy = LLMPolicy(model, reader)
    envs = make_vector_env("CodeSandbox-v0", 2, workers=0, on_failure="info", max_turns=3, levels=[1])
    sampling = Sampling(max_turn_tokens=6, max_context_tokens=4096)
    todo = [EpisodeSpec(task_id=None, seed=i) for i in range(2)]
    for episode in collect(policy, envs, todo, sampling=sampling, seed_parts=(0,)):
        (trajectory,) = episode.trajectories
        assert (episode.stop_reason, len(trajectory.turns)) == ("turn_limit", 3)
        (segment,) = trajectory.segments
        text = str(reader.decode(segment.token_ids_T.tolist()))
        assert "You have 3 turns" in text
        assert text.count("error: ") == 2, "every reply but the last was read"
        assert int(segment.action_mask_T.sum()) == sum(turn.stop - turn.start for turn in trajectory.turns)
    envs.close()


def test_a_missing_model_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"no model folder \./nowhere"):
        LLMPolicy.load("./nowhere")


def test_the_engine_is_kept_and_grows(tokenizer: PreTrainedTokenizerFast) -> None:
    policy = make_policy(tokenizer)
    first = policy.engine(4, 64)
    assert policy.engine(3, 32) is first
    grown = policy.engine(8, 1000)
    assert grown is not first
    assert (grown.rows, grown.max_context) == (8, 128), "the model has 128 positions"
    policy.weights_changed()
    assert (policy.version, grown.version) == (1, 1)
    policy.close()
    policy.close()
    assert policy.engine(1, 16) is not grown
