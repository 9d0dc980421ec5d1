"""Sampling against numbers by hand, and generation with and without a memory."""

import math

import pytest
import torch

from toto_robot.backbone.causal import NUM_SPECIALS, to_sequence
from toto_robot.backbone.decoder import DecoderConfig
from toto_robot.backbone.generation import Sampling, continue_video, draw, probabilities
from toto_robot.backbone.gpt2 import GPT2Config
from toto_robot.backbone.mamba import MambaConfig
from toto_robot.backbone.models import make_model

# Shares 0.1, 0.4, 0.2, 0.3 in this order.
LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log() + 5.0


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # shares squared
        (Sampling(temperature=0), [0, 1, 0, 0]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_k=9), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(top_p=0.65), [0, 4 / 7, 0, 3 / 7]),  # 0.4 + 0.3 cross 0.65
        (Sampling(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(top_p=1e-6), [0, 1, 0, 0]),
        (Sampling(top_k=3, top_p=0.5), [0, 4 / 7, 0, 3 / 7]),  # of 4/9, 3/9, 2/9
        (Sampling(top_k=3, top_p=0.42), [0, 1, 0, 0]),  # 4/9 alone crosses it; 0.4 would not
        (Sampling(temperature=0.5, top_p=0.6), [0, 16 / 25, 0, 9 / 25]),
    ],
)
def test_probabilities_by_hand(sampling: Sampling, expected: list[float]) -> None:
    torch.testing.assert_close(probabilities(LOGITS, sampling), torch.tensor([expected]).float())


def test_draws_follow_the_shares_and_are_never_special() -> None:
    special = torch.full((1, NUM_SPECIALS), 30.0)  # the most probable by far
    logits = torch.cat([special, LOGITS], dim=1).expand(20_000, -1)
    tokens = draw(logits, Sampling(), torch.Generator().manual_seed(0)) - NUM_SPECIALS
    shares = torch.bincount(tokens[:, 0], minlength=4) / 20_000
    for share, expected in zip(shares.tolist(), [0.1, 0.4, 0.2, 0.3], strict=True):
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / 20_000))
    few = draw(logits, Sampling(top_k=2), torch.Generator().manual_seed(0)) - NUM_SPECIALS
    assert set(few[:, 0].tolist()) == {1, 3}


def model_of(config):
    torch.manual_seed(0)
    model = make_model(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize(
    "config",
    [
        DecoderConfig(dim=32, heads=4, layers=3, mlp=48, vocabulary=60),
        GPT2Config(dim=32, heads=4, layers=3, vocabulary=60, context=13),
        MambaConfig(dim=32, layers=3, state=4, vocabulary=60),
    ],
    ids=["llama", "gpt2", "mamba"],
)
@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(top_k=20, top_p=0.9)])
def test_with_and_without_memory(config, sampling: Sampling) -> None:
    """Past the context too: 2 frames of 4 tokens are continued by 4, with a context of 3."""
    model = model_of(config)
    codes = torch.randint(60, (2, 2, 4), generator=torch.Generator().manual_seed(1))
    made = [
        continue_video(
            model, codes, 4, context=3, sampling=sampling, cached=cached,
            generator=torch.Generator().manual_seed(2),
        )
        for cached in (True, False)
    ]  # fmt: skip
    assert made[0].shape == (2, 4, 4) and made[0].unique().numel() > 3
    assert torch.equal(*made)


def test_greedy_is_the_most_probable_token_of_the_window() -> None:
    model = model_of(DecoderConfig(dim=32, heads=4, layers=3, mlp=48, vocabulary=60))
    codes = torch.randint(60, (1, 5, 4), generator=torch.Generator().manual_seed(1))
    made = continue_video(
        model, codes, 1, context=3, sampling=Sampling(temperature=0), generator=torch.Generator()
    )
    sequence = to_sequence(codes[:, -2:])  # what the context leaves of it
    for token in made.flatten().tolist():
        best = model(sequence)[0, -1, NUM_SPECIALS:].argmax().item()
        assert best == token
        sequence = torch.cat([sequence, torch.tensor([[token + NUM_SPECIALS]])], dim=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0: expected 0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0: expected a share above 0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_meaningless_sampling(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)


def test_nothing_to_continue() -> None:
    model = model_of(MambaConfig(dim=32, layers=1, state=4, vocabulary=60))
    generator = torch.Generator()
    for codes, context in ((torch.zeros(1, 0, 4), 4), (torch.zeros(1, 2, 4), 1)):
        with pytest.raises(ValueError, match="context of 2 frames or more and one frame"):
            continue_video(
                model, codes.long(), 1, context=context, sampling=Sampling(), generator=generator
            )
