from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from palaestra.core.errors import ConfigError, ModelError, StorageError
from palaestra.models.loading import ModelConfig, build_model, load_model, resolve_device, save_model

Make = Callable[..., PreTrainedModel]


def same_weights(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ------------------------------------------------------------------------------------------------------ from scratch
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_model_from_scratch_has_the_sizes_asked_for(architecture: str) -> None:
    config = ModelConfig(architecture=architecture)  # pyright: ignore[reportArgumentType]
    model = build_model(config, 637, 0, pad_id=0, eos_id=2)
    assert model.config.model_type == architecture
    assert model.config.vocab_size == 640, "a multiple of 8"
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert 0.4e6 < sum(parameter.numel() for parameter in model.parameters()) < 0.5e6
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 2)
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(128**-0.5 / 2, rel=0.05)


def test_equal_seeds_give_equal_weights_and_global_randomness_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_model(ModelConfig(), 300, 1, pad_id=0, eos_id=2)
    assert torch.equal(torch.rand(3), expected)
    assert same_weights(first, build_model(ModelConfig(), 300, 1, pad_id=0, eos_id=2))
    assert not same_weights(first, build_model(ModelConfig(), 300, 2, pad_id=0, eos_id=2))


def test_wrong_sizes_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"model\.layers=0: must be at least 1"):
        ModelConfig(layers=0)
    with pytest.raises(ConfigError, match=r"model\.kv_heads=3: must divide heads=4"):
        ModelConfig(kv_heads=3)
    with pytest.raises(ConfigError, match=r"model\.hidden_size=130"):
        ModelConfig(hidden_size=130)
    with pytest.raises(ConfigError, match=r"model\.dtype='float23'; did you mean 'float32'"):
        ModelConfig(dtype="float23")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="did you mean 'llama'"):
        ModelConfig(architecture="lama")  # pyright: ignore[reportArgumentType]


# --------------------------------------------------------------------------------------------------- saving, loading
def test_a_saved_folder_is_an_ordinary_one(
    tmp_path: Path, tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model()
    assert save_model(model, compact_tokenizer, tmp_path / "run" / "policy") == tmp_path / "run" / "policy"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy")
    assert same_weights(plain, model)
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "policy").chat_template == compact_tokenizer.chat_template
    loaded, tokenizer = load_model(tmp_path / "run" / "policy", device="cpu")
    assert same_weights(loaded, model)
    assert tokenizer.eos_token == "<|im_end|>"
    assert load_model(tmp_path / "run" / "policy", dtype="bfloat16")[0].dtype == torch.bfloat16
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["policy"], "no leftovers"


def test_saving_again_replaces_the_folder(
    tmp_path: Path, tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tiny_model(seed=1), compact_tokenizer, tmp_path / "policy")
    (tmp_path / "policy" / "stale").write_text("")
    save_model(tiny_model(seed=2), compact_tokenizer, tmp_path / "policy")
    assert same_weights(load_model(tmp_path / "policy")[0], tiny_model(seed=2))
    assert not (tmp_path / "policy" / "stale").exists()


def test_a_save_that_fails_leaves_the_old_folder_whole(
    tmp_path: Path, tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_model(seed=1), compact_tokenizer, tmp_path / "policy")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full_disk)
    with pytest.raises(StorageError, match=r"cannot write .*policy: No space left on device"):
        save_model(tiny_model(seed=2), compact_tokenizer, tmp_path / "policy")
    monkeypatch.undo()
    assert same_weights(load_model(tmp_path / "policy")[0], tiny_model(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save_model(tiny_model(), compact_tokenizer, tmp_path / "file" / "policy")


# --------------------------------------------------------------------------------------------------------- bad input
def test_what_is_not_a_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_text("")
    cases = {
        str(tmp_path / "nowhere"): "no model folder",
        "runs/x/policy": "no model folder runs/x/policy",
        "nowhere": "no model folder 'nowhere'",
        str(tmp_path / "empty"): "it has no config.json",
        str(tmp_path / "file.bin"): "is a file; give the model's folder",
    }
    for name, message in cases.items():
        with pytest.raises(ModelError) as caught:
            load_model(name)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_folders_are_one_line(
    tmp_path: Path, tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    for number, damage in enumerate(("config.json", "model.safetensors", "tokenizer.json")):
        folder = tmp_path / str(number)
        save_model(tiny_model(), compact_tokenizer, folder)
        (folder / damage).write_bytes((folder / damage).read_bytes()[:100])
        with pytest.raises(ModelError, match="cannot load the model in") as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the model in"):
        load_model(folder)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        load_model("no-such-owner/no-such-model")
    assert str(caught.value) == (
        "no model folder no-such-owner/no-such-model, and the hub cannot be reached to look for the hub id "
        "'no-such-owner/no-such-model'"
    )


def test_a_tokenizer_that_cannot_talk_is_one_line(
    tmp_path: Path, tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    mute = PreTrainedTokenizerFast(tokenizer_object=compact_tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    save_model(tiny_model(), mute, tmp_path / "mute")
    with pytest.raises(ModelError, match="the tokenizer has no chat template"):
        load_model(tmp_path / "mute")
    endless = PreTrainedTokenizerFast(
        tokenizer_object=compact_tokenizer.backend_tokenizer, chat_template=compact_tokenizer.chat_template
    )
    save_model(tiny_model(), endless, tmp_path / "endless")
    with pytest.raises(ModelError, match="the tokenizer has no end token"):
        load_model(tmp_path / "endless")


def test_a_tokenizer_that_does_not_fit_the_model_is_one_line(
    tmp_path: Path, tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tiny_model(vocab_size=300), compact_tokenizer, tmp_path / "mixed")
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the model embeds 304"):
        load_model(tmp_path / "mixed")


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ModelError, match=r"this machine has .* CUDA devices"):
        resolve_device("cuda:99")
    with pytest.raises(ModelError, match="device='gpu': write"):
        resolve_device("gpu")
    with pytest.raises(ModelError, match="dtype='float31'; did you mean"):
        load_model("a/b", dtype="float31")
