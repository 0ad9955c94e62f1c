import numpy as np
import torch

from palaestra.models.sampling import sample_tokens


def test_samples_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    uniforms = torch.from_numpy(np.random.default_rng(0).random(40_000, dtype=np.float32))
    logits = probabilities.log().expand(len(uniforms), -1)
    tokens, logprobs = sample_tokens(logits, uniforms, None)
    shares = torch.bincount(tokens, minlength=5) / len(tokens)
    assert shares[1] == 0
    assert (shares - probabilities).abs().max() < 0.01
    torch.testing.assert_close(logprobs, probabilities.log()[tokens])


def test_the_edges_of_the_unit_interval_give_possible_tokens() -> None:
    logits = torch.full((2, 1000), -float("inf"))
    logits[:, 300:700] = torch.randn(400, generator=torch.Generator().manual_seed(0))
    tokens, _ = sample_tokens(logits, torch.tensor([0.0, np.nextafter(np.float32(1), np.float32(0))]), None)
    assert tokens.tolist() == [300, 699]


def test_every_token_of_a_large_vocabulary_can_be_drawn() -> None:
    vocabulary = 152_000
    middle = (torch.arange(vocabulary)[::997] + 0.5) / vocabulary
    tokens, _ = sample_tokens(torch.zeros(len(middle), vocabulary), middle.float(), None)
    assert (tokens - torch.arange(vocabulary)[::997]).abs().max() <= 1  # float32 uniforms are 6e-8 apart


def test_temperatures_are_per_row_and_zero_is_greedy() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]]).expand(3, -1)
    temperatures = torch.tensor([1.0, 0.5, 0.0])
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.01, 0.01, 0.01]), temperatures)
    assert tokens.tolist() == [0, 0, 1]
    expected = [logits[0].log_softmax(-1)[0], (logits[0] / 0.5).log_softmax(-1)[0], logits[0].log_softmax(-1)[1]]
    torch.testing.assert_close(logprobs, torch.stack(expected))
