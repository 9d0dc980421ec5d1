"""GPT-2 against `transformers`, and its size against the paper's."""

import pytest
import torch

from toto_robot.backbone.gpt2 import GPT2, GPT2_SIZES, GPT2Config
from toto_robot.backbone.models import model_config, num_parameters

SMALL = GPT2Config(dim=32, heads=4, layers=3, context=24, vocabulary=20)


def test_size_is_near_the_papers():
    """By hand: 12 d^2 + 13 d per block; 8192 codes, 4097 positions, a norm. The paper says 280 M."""
    count = num_parameters(GPT2_SIZES["gpt2-280m"])
    assert count == 21 * (12 * 1024**2 + 13 * 1024) + (8192 + 4097 + 2) * 1024 == 277_106_688
    assert count == pytest.approx(280e6, rel=0.02)
    assert count == pytest.approx(num_parameters(model_config("large")), rel=0.002)


def reference(model: GPT2):
    """The same weights in `transformers`' model, whose matrices are transposed."""
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    c = model.config
    theirs = GPT2LMHeadModel(
        TheirConfig(vocab_size=c.rows, n_positions=c.context, n_embd=c.dim, n_layer=c.layers,
                    n_head=c.heads, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    ).eval()  # fmt: skip
    state = {
        "transformer.wte.weight": model.embedding.weight,
        "transformer.wpe.weight": model.positions.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
        "lm_head.weight": model.embedding.weight,
    }
    parts = {"ln_1": "attention_norm", "attn.c_attn": "qkv", "attn.c_proj": "out",
             "ln_2": "mlp_norm", "mlp.c_fc": "up", "mlp.c_proj": "down"}  # fmt: skip
    for i in range(c.layers):
        for name, own in parts.items():
            part = model.blocks[i].get_submodule(own)
            weight = part.weight if name.startswith("ln") else part.weight.T
            state |= {f"transformer.h.{i}.{name}.weight": weight,
                      f"transformer.h.{i}.{name}.bias": part.bias}  # fmt: skip
    theirs.load_state_dict(state)
    return theirs


def test_logits_and_hidden_states_are_those_of_transformers():
    torch.manual_seed(0)
    model = GPT2(SMALL).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(24, (2, 17))
    with torch.no_grad():
        theirs = reference(model)(tokens, output_hidden_states=True)
        torch.testing.assert_close(model(tokens), theirs.logits, atol=1e-4, rtol=1e-4)
        own = model.hidden_states(tokens)
        assert len(own) == 4
        for ours, other in zip(own[:-1], theirs.hidden_states[:-1], strict=True):
            torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)
        # their last state is already normalised
        torch.testing.assert_close(model.norm(own[-1]), theirs.hidden_states[-1],
                                   atol=1e-4, rtol=1e-4)  # fmt: skip


def test_it_is_causal_and_learns():
    torch.manual_seed(0)
    model = GPT2(SMALL)
    tokens = torch.randint(24, (4, 20))
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 24
    torch.testing.assert_close(model(tokens)[:, :12], model(changed)[:, :12])
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    first = model.loss(tokens).item()
    for _ in range(40):
        optimiser.zero_grad()
        model.loss(tokens).backward()
        optimiser.step()
    assert model.loss(tokens).item() < 0.3 * first


def test_errors():
    with pytest.raises(ValueError, match="25 tokens; this model has 24 positions"):
        GPT2(SMALL)(torch.zeros(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match="unknown model 'gpt2-280'.*'gpt2-280m'"):
        model_config("gpt2-280")
    with pytest.raises(ValueError, match="dim 30 does not divide into 4 heads"):
        GPT2Config(dim=30, heads=4, layers=1)
