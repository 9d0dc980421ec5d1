"""Mamba against a step-by-step recurrence and `transformers`, and its size against the paper's."""

import pytest
import torch

from toto_robot.backbone import selective_scan
from toto_robot.backbone.mamba import MAMBA_SIZES, Mamba, MambaConfig
from toto_robot.backbone.models import model_config, num_parameters

SMALL = MambaConfig(dim=32, layers=3, state=4, vocabulary=20)


def test_size_is_near_the_papers():
    """By hand, with d = 1024, E = 2048, S = 16, rank 64; 8192 codes, a norm. The paper says 290 M."""
    block = 1024 + 3 * 2048 * 1024 + 2048 * (4 + 1 + 96 + 64 + 1 + 16 + 1)
    count = num_parameters(MAMBA_SIZES["mamba-290m"])
    assert count == 42 * block + 8193 * 1024 == 288_414_720
    assert count == pytest.approx(290e6, rel=0.01)


def reference(model: Mamba):
    """The same weights in `transformers`' model (its sequential path)."""
    from transformers import MambaConfig as TheirConfig
    from transformers import MambaForCausalLM

    c = model.config
    theirs = MambaForCausalLM(
        TheirConfig(vocab_size=c.rows, hidden_size=c.dim, state_size=c.state, expand=c.expand,
                    num_hidden_layers=c.layers, conv_kernel=c.kernel, residual_in_fp32=False,
                    time_step_rank=c.rank, layer_norm_epsilon=c.norm_eps, tie_word_embeddings=True)
    ).eval()  # fmt: skip
    state = {
        "backbone.embeddings.weight": model.embedding.weight,
        "backbone.norm_f.weight": model.norm.weight,
        "lm_head.weight": model.embedding.weight,
    }
    for i, block in enumerate(model.blocks):
        for name, tensor in block.state_dict().items():
            if name == "norm.weight":
                state[f"backbone.layers.{i}.norm.weight"] = tensor
            else:
                theirs_name = name.replace("conv.", "conv1d.")
                state[f"backbone.layers.{i}.mixer.{theirs_name}"] = tensor
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.filterwarnings("ignore")  # about its missing fast kernels
def test_logits_are_those_of_transformers(monkeypatch):
    monkeypatch.setattr(selective_scan, "CHUNK", 8)  # several chunks in a short sequence
    torch.manual_seed(0)
    model = Mamba(SMALL).eval()
    torch.nn.init.normal_(model.embedding.weight, std=1.0)
    tokens = torch.randint(24, (2, 21))
    with torch.no_grad():
        theirs = reference(model)(tokens, output_hidden_states=True)
        torch.testing.assert_close(model(tokens), theirs.logits, atol=1e-4, rtol=1e-4)
        after_blocks = model.hidden_states(tokens)[1:]  # theirs leave out the embeddings
        for ours, other in zip(after_blocks, theirs.hidden_states[:-1], strict=True):
            torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)


def test_chunks_do_not_matter_and_nothing_sees_the_future(monkeypatch):
    torch.manual_seed(0)
    model = Mamba(SMALL).eval()
    tokens = torch.randint(24, (2, 30))
    whole = model(tokens)
    monkeypatch.setattr(selective_scan, "CHUNK", 7)
    torch.testing.assert_close(model(tokens), whole, atol=1e-5, rtol=1e-5)
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 24
    torch.testing.assert_close(model(changed)[:, :12], whole[:, :12], atol=1e-5, rtol=1e-5)


def test_it_learns():
    torch.manual_seed(0)
    model, tokens = Mamba(SMALL), torch.randint(24, (4, 20))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    first = model.loss(tokens).item()
    for _ in range(60):
        optimiser.zero_grad()
        model.loss(tokens).backward()
        optimiser.step()
    assert model.loss(tokens).item() < 0.3 * first


def test_unknown_size():
    with pytest.raises(ValueError, match="unknown model 'mamba-290'.*'mamba-290m'"):
        model_config("mamba-290")
