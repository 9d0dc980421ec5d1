"""The selective scan against its definition token by token, and mamba-ssm's kernel by a stand-in."""

import importlib
import sys
import types
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from toto_robot.backbone import mamba, selective_scan
from toto_robot.backbone.mamba import Mamba, MambaConfig

SMALL = MambaConfig(dim=32, layers=2, state=4, vocabulary=20)


@pytest.mark.parametrize("length", [1, 2, 7, 16, 33])
def test_scan_is_the_recurrence(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    decay = torch.rand(2, length, 3, 4, generator=generator)
    drive, h = torch.randn(2, length, 3, 4, generator=generator), torch.randn(2, 3, 4)
    scanned = selective_scan.scan(decay, drive, h)
    for t in range(length):
        h = decay[:, t] * h + drive[:, t]
        torch.testing.assert_close(scanned[:, t], h, atol=1e-5, rtol=1e-5)


def test_gradients_of_the_scan_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 7, 3), (2, 7, 3), (2, 3)]
    leaves = [torch.rand(s, generator=generator, dtype=torch.float64) for s in shapes]
    assert torch.autograd.gradcheck(selective_scan.scan, [t.requires_grad_() for t in leaves])


def inputs(length: int) -> list[Tensor]:
    """x, step, bias, A, B, C, D of selective_scan, for 2 sequences, 5 channels, 3 states."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, 5), (2, length, 5), (5,), (5, 3), (2, length, 3), (2, length, 3), (5,)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[3] = -tensors[3].exp()
    return [t.requires_grad_() for t in tensors]


def definition(x, step, bias, A, B, C, D) -> tuple[Tensor, Tensor]:
    h, outputs = torch.zeros(len(x), *A.shape, dtype=A.dtype), []
    for t in range(x.shape[1]):
        dt = F.softplus(step[:, t] + bias)[..., None]
        h = (dt * A).exp() * h + dt * B[:, t, None] * x[:, t, :, None]
        outputs.append((h * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(outputs, dim=1), h


@pytest.mark.parametrize("length", [1, 8, 21])
def test_outputs_state_and_gradients(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(selective_scan, "CHUNK", 8)
    leaves = inputs(length)
    results = []
    for function in (selective_scan.selective_scan, definition):
        y, h = function(*leaves)
        loss = y.square().sum() + h.sum()
        results.append([y, h, *torch.autograd.grad(loss, leaves)])
    for own, truth in zip(*results, strict=True):
        torch.testing.assert_close(own, truth, atol=1e-4, rtol=1e-4)


def test_chunks_are_scanned_again_instead_of_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_scan, "CHUNK", 8)
    lengths = []
    original = selective_scan.scan_chunk

    def spy(A, h, x, *rest):
        lengths.append(x.shape[1])
        return original(A, h, x, *rest)

    monkeypatch.setattr(selective_scan, "scan_chunk", spy)
    y, _ = selective_scan.selective_scan(*inputs(20))
    assert lengths == [8, 8, 4]
    y.sum().backward()
    assert lengths == [8, 8, 4, 4, 8, 8]
    with torch.no_grad():
        selective_scan.selective_scan(*inputs(3))
    assert len(lengths) == 7


@pytest.fixture
def stand_in() -> Iterator[list[tuple]]:
    """A module under mamba-ssm's name that computes the same by its definition; its calls."""
    calls = []

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None,
                          delta_softplus=False, return_last_state=False):  # fmt: skip
        assert z is None and delta_softplus and return_last_state and delta_bias is not None
        assert u.dtype == delta.dtype == B.dtype == C.dtype
        assert A.dtype == delta_bias.dtype == torch.float32
        calls.append(u.shape)
        x, step, B, C = (t.transpose(1, 2) for t in (u, delta, B, C))  # theirs: [batch, ., length]
        y, h = definition(x, step, delta_bias, A, B, C, D)
        return y.transpose(1, 2).to(u.dtype), h

    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.__dict__["selective_scan_fn"] = selective_scan_fn
    names = ["mamba_ssm", "mamba_ssm.ops", interface.__name__]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, interface)
        importlib.reload(selective_scan)
    selective_scan.FUSED_DEVICES.add("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mamba, "selective_scan", selective_scan.selective_scan)
        yield calls
    importlib.reload(selective_scan)


def test_kernel_is_used_where_present(stand_in: list[tuple]) -> None:
    torch.manual_seed(0)
    model, tokens = Mamba(SMALL), torch.randint(24, (2, 30))
    fused = [model.loss(tokens), *torch.autograd.grad(model.loss(tokens), [*model.parameters()])]
    assert stand_in == 4 * [(2, 64, 29)]  # 2 passes through 2 blocks
    selective_scan.FUSED_DEVICES.discard("cpu")
    plain = [model.loss(tokens), *torch.autograd.grad(model.loss(tokens), [*model.parameters()])]
    assert len(stand_in) == 4
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_kernel_only_from_an_empty_state(stand_in: list[tuple]) -> None:
    """It takes no first state: a memory's first tokens go through it, later ones do not."""
    model, tokens = Mamba(SMALL).eval(), torch.randint(24, (2, 30))
    with torch.no_grad():
        memory = model.remember(2, 30)
        states = [model.extend(part, memory) for part in tokens.split([20, 10], dim=1)]
        assert stand_in == 2 * [(2, 64, 20)]
        whole = model.hidden_states(tokens)[-1]
    torch.testing.assert_close(torch.cat(states, dim=1), whole, atol=1e-5, rtol=1e-5)
