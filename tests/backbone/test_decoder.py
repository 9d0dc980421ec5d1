"""The decoder against transformers' Llama, the paper's sizes, and itself."""

import math

import pytest
import torch

from toto_robot.backbone.causal import NUM_SPECIALS, VIDEO_START, to_sequence
from toto_robot.backbone.decoder import SIZES, Decoder, DecoderConfig
from toto_robot.backbone.models import model_config, num_parameters

SMALL = DecoderConfig(dim=32, heads=4, layers=3, mlp=48, vocabulary=60)


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    return Decoder(SMALL).eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(SMALL.rows, (2, 17), generator=torch.Generator().manual_seed(1))


def llama_state(model: Decoder) -> dict[str, torch.Tensor]:
    """Our weights under the names of transformers' LlamaForCausalLM."""
    state = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    own = model.state_dict()
    for i in range(model.config.layers):
        theirs, ours = f"model.layers.{i}.", f"blocks.{i}."
        q, k, v = own[ours + "attention.qkv.weight"].chunk(3)
        gate, up = own[ours + "mlp.gate_up.weight"].chunk(2)
        state |= {
            theirs + "self_attn.q_proj.weight": q,
            theirs + "self_attn.k_proj.weight": k,
            theirs + "self_attn.v_proj.weight": v,
            theirs + "self_attn.o_proj.weight": own[ours + "attention.out.weight"],
            theirs + "mlp.gate_proj.weight": gate,
            theirs + "mlp.up_proj.weight": up,
            theirs + "mlp.down_proj.weight": own[ours + "mlp.down.weight"],
            theirs + "input_layernorm.weight": own[ours + "attention_norm.weight"],
            theirs + "post_attention_layernorm.weight": own[ours + "mlp_norm.weight"],
        }
    return state


@pytest.mark.parametrize("rope_base", [10_000.0, 50_000.0])
@torch.no_grad()
def test_equals_transformers_llama(tokens: torch.Tensor, rope_base: float) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = DecoderConfig(
        dim=32, heads=4, layers=3, mlp=48, vocabulary=60, rope_base=rope_base, tied=False
    )
    model = Decoder(config).eval()
    for parameter in model.parameters():  # away from the initialisation: all norms differ from 1
        parameter.add_(torch.randn_like(parameter) * 0.1)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.rows,
            hidden_size=config.dim,
            intermediate_size=config.mlp,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": rope_base},
            rope_theta=rope_base,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
    ).eval()
    llama.load_state_dict(llama_state(model), strict=True)
    theirs = llama(tokens, output_hidden_states=True)
    torch.testing.assert_close(model(tokens), theirs.logits, atol=2e-5, rtol=1e-5)
    ours = model.hidden_states(tokens)
    assert len(ours) == len(theirs.hidden_states) == config.layers + 1
    ours[-1] = model.norm(ours[-1])  # transformers norms the last one
    for state, expected in zip(ours, theirs.hidden_states, strict=True):
        torch.testing.assert_close(state, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"), [("base", 119_556_864), ("large", 276_857_856), ("1b", 1_147_234_304)]
)
def test_sizes_are_the_papers(name: str, parameters: int) -> None:
    """By hand: L (4 d^2 + 3 d m + 2 d) + 8192 d + d; Table 1 prints 120m, 280m, 1.1b."""
    c = SIZES[name]
    by_hand = c.layers * (4 * c.dim**2 + 3 * c.dim * c.mlp + 2 * c.dim) + 8193 * c.dim
    assert num_parameters(c) == by_hand == parameters


def test_untied_head_counts_twice() -> None:
    config = DecoderConfig(dim=32, heads=4, layers=3, mlp=48, vocabulary=60, tied=False)
    assert num_parameters(config) == num_parameters(SMALL) + 60 * 32


def test_unknown_size_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'large'"):
        model_config("lagre")


@torch.no_grad()
def test_truncate_equals_hooks_on_the_full_model(model: Decoder, tokens: torch.Tensor) -> None:
    seen: list[torch.Tensor] = []

    def note(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen.append(output)

    hooks = [block.register_forward_hook(note) for block in model.blocks]
    model(tokens)
    for hook in hooks:
        hook.remove()
    for k in range(1, SMALL.layers + 1):
        trunk = model.truncate(k)
        assert len(trunk.blocks) == k and not hasattr(trunk, "head")
        assert torch.equal(trunk.hidden_states(tokens)[-1], seen[k - 1])
        assert torch.equal(model.hidden_states(tokens, k)[-1], seen[k - 1])
    assert torch.equal(model.truncate(0).hidden_states(tokens)[-1], model.embedding(tokens))
    with pytest.raises(ValueError, match="0 to 3"):
        model.truncate(4)


@torch.no_grad()
def test_later_tokens_do_not_reach_earlier_states(model: Decoder, tokens: torch.Tensor) -> None:
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % SMALL.rows
    before, after = model.hidden_states(tokens)[-1], model.hidden_states(changed)[-1]
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert (before[:, 9:] - after[:, 9:]).abs().amax(dim=(0, 2)).min() > 1e-6


def test_untrained_loss_is_uniform(model: Decoder, tokens: torch.Tensor) -> None:
    assert model.loss(tokens).item() == pytest.approx(math.log(SMALL.rows), abs=0.1)


def test_sequence_is_start_then_raster_order() -> None:
    codes = torch.arange(8).view(1, 2, 2, 2)  # two frames of 2 x 2
    expected = [VIDEO_START, *range(NUM_SPECIALS, NUM_SPECIALS + 8)]
    assert to_sequence(codes).tolist() == [expected]
