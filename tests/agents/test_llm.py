from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from palaestra.agents.llm import LLMPolicy
from palaestra.core.errors import ModelError
from palaestra.core.messages import tool, user
from palaestra.core.trajectories import Sampling
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
