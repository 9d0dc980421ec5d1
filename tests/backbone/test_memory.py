"""Reading on from a memory against one pass over everything, for every family."""

from dataclasses import replace

import pytest
import torch

from toto_robot.backbone import selective_scan
from toto_robot.backbone.causal import CausalModel
from toto_robot.backbone.decoder import DecoderConfig
from toto_robot.backbone.gpt2 import GPT2Config
from toto_robot.backbone.mamba import MambaConfig
from toto_robot.backbone.memory import KeyValues
from toto_robot.backbone.models import make_model

FAMILIES = {
    "llama": DecoderConfig(dim=32, heads=4, layers=3, mlp=48, vocabulary=60),
    "llama, muP": DecoderConfig(
        dim=32, heads=4, layers=3, mlp=48, vocabulary=60, attention_scale=0.1, output_scale=0.5
    ),
    "gpt2": GPT2Config(dim=32, heads=4, layers=3, vocabulary=60, context=48),
    "mamba": MambaConfig(dim=32, layers=3, state=4, vocabulary=60),
}
TOKENS = torch.randint(64, (3, 40), generator=torch.Generator().manual_seed(1))


def lively(config) -> CausalModel:
    """A model with weights large enough that every token matters."""
    torch.manual_seed(0)
    model = make_model(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> CausalModel:
    return lively(FAMILIES[request.param])


@pytest.mark.parametrize("pieces", [[1] * 40, [40], [7, 1, 20, 12]])
@torch.no_grad()
def test_logits_are_those_of_a_full_pass(
    model: CausalModel, pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selective_scan, "CHUNK", 8)
    memory = model.remember(3, 40)
    read = [model.logits(model.extend(part, memory)) for part in TOKENS.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(read, dim=1), model(TOKENS), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_start_anew_alone(model: CausalModel) -> None:
    """Rows of different length side by side; the start token stays marked."""
    memory = model.remember(3, 40)
    model.extend(TOKENS[:, :1], memory)
    memory.mark()
    model.extend(TOKENS[:, 1:9], memory)
    memory.reset([0, 2])
    states = model.extend(TOKENS[:, 9:17], memory)
    anew = torch.cat([TOKENS[:, :1], TOKENS[:, 9:17]], dim=1)
    expected = model.hidden_states(anew)[-1][:, -8:]
    expected[1] = model.hidden_states(TOKENS[:, :17])[-1][1, -8:]
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def by_hand(model: CausalModel, tokens: torch.Tensor, window: list[list[int]]) -> torch.Tensor:
    """States of one sequence when token i sees only the tokens of `window[i]`, at running positions.

    The start token (index 0) is seen as if it stood just before the oldest of the others.
    """
    x = model.embedding(tokens)
    for block in model.blocks:
        rows = []
        for seen in window:
            others = [j for j in seen if j != 0]
            oldest = min(others, default=1)
            places = [oldest - 1] * (0 in seen) + others
            # The whole block on the window; the last row of its output is token i's.
            cos, sin = model.rotations(torch.tensor(places))  # pyright: ignore[reportCallIssue]
            rows.append(block(x[None, seen], cos, sin)[0, -1])
        x = torch.stack(rows)
    return x


@torch.no_grad()
def test_forgetting_is_a_sliding_window_with_the_start_kept() -> None:
    """Frames of 4 tokens, room for 3 of them, 8 frames in all, against a slow reference."""
    model = lively(FAMILIES["llama"])
    frame, frames, room = 4, 8, 3
    tokens = TOKENS[:2, : 1 + frame * frames]
    memory = model.remember(2, 1 + frame * room)
    assert isinstance(memory, KeyValues)
    states = [model.extend(tokens[:, :1], memory)]
    memory.mark()
    for t in range(frames):
        assert memory.full(frame).all() == (t >= room)
        if t >= room:
            model.forget(memory, memory.full(frame), frame)
        states.append(model.extend(tokens[:, 1 + t * frame : 1 + (t + 1) * frame], memory))
    window = [[0]]
    for i in range(1, tokens.shape[1]):
        oldest_frame = max(0, (i - 1) // frame - room + 1)
        window.append([0, *range(1 + oldest_frame * frame, i + 1)])
    for row in range(2):
        expected = by_hand(model, tokens[row], window)
        torch.testing.assert_close(torch.cat(states, dim=1)[row], expected, atol=2e-5, rtol=1e-5)
    assert memory.lengths().tolist() == [13, 13]
    memory.reset([1])  # back to the start token, turned back to where it was
    assert memory.lengths().tolist() == [13, 1]
    model.forget(memory, torch.tensor([True, False]), frame)
    again = model.extend(tokens[:, 1:5], memory)[1]
    torch.testing.assert_close(again, states[1][1], atol=1e-5, rtol=1e-5)


def test_refusals() -> None:
    gpt2 = lively(FAMILIES["gpt2"])
    with pytest.raises(ValueError, match="sequence of 49 tokens; this model has 48 positions"):
        gpt2.remember(1, 49)
    with pytest.raises(ValueError, match="absolute"):
        gpt2.forget(gpt2.remember(1, 8), torch.tensor([True]), 4)
    memory = gpt2.remember(3, 8)
    assert isinstance(memory, KeyValues)
    gpt2.extend(TOKENS[:, :6], memory)
    with pytest.raises(ValueError, match="3 more tokens after 6 .* memory for 8"):
        gpt2.extend(TOKENS[:, 6:9], memory)


@torch.no_grad()
def test_far_positions_are_as_exact_as_near_ones() -> None:
    """A window far along the stream equals the same window at the start."""
    model = lively(replace(FAMILIES["llama"], rope_base=50_000.0))
    near = model.hidden_states(TOKENS)[-1]
    x = model.embedding(TOKENS)
    cos, sin = model.rotations(torch.arange(40) + 7_000_000)  # pyright: ignore
    for block in model.blocks:
        x = block(x, cos, sin)
    torch.testing.assert_close(x, near, atol=2e-5, rtol=1e-5)
