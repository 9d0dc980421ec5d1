"""One compiled pass: traced as a whole, equal to the plain one, its outputs nobody else's."""

from typing import Any

import pytest
import torch

from toto_robot.backbone import load_backbone


def frames(count: int, side: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("precision", ["int8"])
def test_the_whole_pass_is_one_graph(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by dynamo without a break; run as it is, for code generation takes a minute."""
    graphs, compile = [], torch.compile

    def trace_only(function: Any, **options: Any) -> Any:
        assert options["fullgraph"] and options["mode"] is None  # CUDA graphs are for CUDA
        return compile(
            function, fullgraph=True, dynamic=False, backend=lambda g, _: graphs.append(g) or g
        )

    monkeypatch.setattr(torch, "compile", trace_only)
    monkeypatch.setattr(
        torch._dynamo.config, "recompile_limit", 1
    )  # so the second shape is beyond it
    compiled = load_backbone(compile=True, precision=precision)
    plain = load_backbone(precision=precision)
    first, second = compiled(frames(2)), compiled(frames(2).flip(0))
    torch.testing.assert_close(first, plain(frames(2)))
    torch.testing.assert_close(second, plain(frames(2).flip(0)))
    assert len(graphs) == 1 and not first.requires_grad
    assert compiled.digest() == plain.digest() and compiled.weights_hash == plain.weights_hash
    enlarged = frames(2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(compiled(enlarged), plain(enlarged))
    video = frames(3)[None]
    torch.testing.assert_close(compiled(video), plain(video))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_generated_code_gives_the_same_features() -> None:
    compiled, plain = load_backbone(compile=True), load_backbone()
    cosine = torch.nn.functional.cosine_similarity(compiled(frames(2)), plain(frames(2)), dim=-1)
    assert cosine.min() > 0.9999


@pytest.mark.gpu
def test_cuda_graphs_give_the_same_features() -> None:
    compiled, plain = (load_backbone(device="cuda", compile=c) for c in (True, False))
    outputs = [compiled(frames(n)) for n in (1, 1, 4)]
    for n, features in zip((1, 1, 4), outputs, strict=True):
        cosine = torch.nn.functional.cosine_similarity(features, plain(frames(n)), dim=-1)
        assert cosine.min() > 0.999
