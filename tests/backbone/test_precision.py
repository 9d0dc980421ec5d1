"""What computes in 16 bits under autocast on a CPU, and what stays in 32."""

import pytest
import torch
from torch import nn

from toto_robot.backbone.causal import CausalConfig
from toto_robot.backbone.decoder import DecoderConfig
from toto_robot.backbone.gpt2 import GPT2Config
from toto_robot.backbone.mamba import MambaConfig
from toto_robot.backbone.models import make_model

SMALL = {
    "decoder": DecoderConfig(dim=32, heads=4, layers=2, mlp=48, vocabulary=60),
    "gpt2": GPT2Config(dim=32, heads=4, layers=2, context=1024, vocabulary=60),
    "mamba": MambaConfig(dim=32, layers=2, state=4, vocabulary=60),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("length", [40, 600])  # PyTorch's attention, and ours in blocks
def test_products_in_16_bits_the_rest_in_32(name: str, length: int) -> None:
    """Residual stream, norms, losses, gradients: float32. Matrix products: bfloat16."""
    config: CausalConfig = SMALL[name]
    torch.manual_seed(0)
    model, tokens = make_model(config), torch.randint(64, (1, length))
    exact = model.token_losses(tokens)
    seen: dict[type, set[torch.dtype]] = {}

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        seen.setdefault(type(module), set()).add(output.dtype)

    for module in model.modules():
        module.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.token_losses(tokens)
    losses.mean().backward()
    linear = seen.pop(nn.Linear)
    assert linear == {torch.bfloat16}
    assert {nn.RMSNorm, nn.LayerNorm} & seen.keys() and nn.Embedding in seen
    stream = [nn.RMSNorm, nn.LayerNorm, nn.Embedding, type(model.blocks[0])]
    assert all(seen[kind] == {torch.float32} for kind in stream if kind in seen)
    assert losses.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert 0 < (losses - exact).abs().max() < 0.05
