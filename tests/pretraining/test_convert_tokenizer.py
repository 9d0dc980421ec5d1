"""Released dVAE files: exact sizes, the released layout, and files that must not be trusted."""

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from pretraining import convert_tokenizer
from pretraining.convert_tokenizer import Config, convert, read_released
from toto_robot.backbone import load_backbone, names
from toto_robot.backbone.dvae import DVAE, DVAE_SIZES, map_pixels
from toto_robot.backbone.tokenizers import load_tokenizer
from toto_robot.backbone.vqgan import VQGAN, VQGANConfig

WIDTHS = (8, 16, 32, 64)
SMALL = replace(
    DVAE_SIZES["dalle"], vocabulary=32, encoder_widths=WIDTHS, decoder_widths=WIDTHS,
    decoder_input=8,
)  # fmt: skip


def test_published_parameter_counts():
    """OpenAI's release: 53,786,240 in the encoder and 43,829,766 in the decoder."""
    with torch.device("meta"):
        model = DVAE(DVAE_SIZES["dalle"])
    count = {half: sum(p.numel() for p in getattr(model, half).parameters())
             for half in ("encoder", "decoder")}  # fmt: skip
    assert count == {"encoder": 53_786_240, "decoder": 43_829_766}


class Conv2d(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * 0.3)
        self.b = nn.Parameter(torch.randn(outputs) * 0.1)
        self.kernel = kernel

    def forward(self, x):
        return nn.functional.conv2d(x, self.w, self.b, padding=(self.kernel - 1) // 2)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernels):
        super().__init__()
        self.post_gain = 1 / 64
        self.id_path = Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        hidden, path, now = outputs // 4, {}, inputs
        for i, kernel in enumerate(kernels, 1):
            after = outputs if i == 4 else hidden
            path[f"relu_{i}"], path[f"conv_{i}"] = nn.ReLU(), Conv2d(now, after, kernel)
            now = after
        self.res_path = nn.Sequential()
        for name, layer in path.items():
            self.res_path.add_module(name, layer)

    def forward(self, x):
        return self.id_path(x) + self.post_gain * self.res_path(x)


class Half(nn.Module):
    def __init__(self, first: Conv2d, widths, start: int, kernels, between, last: Conv2d):
        super().__init__()
        self.blocks = nn.Sequential()
        self.blocks.add_module("input", first)
        now = start
        for g, width in enumerate(widths, 1):
            group = nn.Sequential()
            for b in (1, 2):
                group.add_module(f"block_{b}", Block(now, width, kernels))
                now = width
            if g < len(widths):
                group.add_module(*between())
            self.blocks.add_module(f"group_{g}", group)
        output = nn.Sequential()
        output.add_module("relu", nn.ReLU())
        output.add_module("conv", last)
        self.blocks.add_module("output", output)

    def forward(self, x):
        return self.blocks(x)


@pytest.fixture
def dall_e(monkeypatch):
    """Modules that pickle just as the released files do: the classes above under their names."""
    package, layers = ModuleType("dall_e"), ModuleType("dall_e.encoder")
    for cls in (Conv2d, Block, Half):
        monkeypatch.setattr(cls, "__module__", "dall_e.encoder")
        setattr(layers, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "dall_e", package)
    monkeypatch.setitem(sys.modules, "dall_e.encoder", layers)
    torch.manual_seed(0)
    encoder = Half(
        Conv2d(3, 8, 7), WIDTHS, 8, (3, 3, 3, 1), lambda: ("pool", nn.MaxPool2d(2)),
        Conv2d(64, 32, 1),
    )  # fmt: skip
    decoder = Half(
        Conv2d(32, 8, 1), WIDTHS[::-1], 8, (1, 3, 3, 3),
        lambda: ("upsample", nn.Upsample(scale_factor=2, mode="nearest")), Conv2d(8, 6, 1),
    )  # fmt: skip
    return encoder, decoder


@pytest.fixture
def released(dall_e, tmp_path) -> Path:
    for name, module in zip(("encoder", "decoder"), dall_e, strict=True):
        torch.save(module, tmp_path / f"{name}.pkl")
    return tmp_path


def test_pickled_modules_become_a_tokenizer_with_the_same_outputs(dall_e, released, monkeypatch):
    monkeypatch.delitem(sys.modules, "dall_e.encoder")  # whoever converts does not have the package
    monkeypatch.delitem(sys.modules, "dall_e")
    config = Config(encoder=released / "encoder.pkl", decoder=released / "decoder.pkl",
                    out=released / "out")  # fmt: skip
    convert(config, SMALL)
    model, about = load_tokenizer(released / "out")
    assert about["can_decode"] is True and set(about["released"]) == {"encoder", "decoder"}
    frames = torch.randint(256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    pixels = map_pixels(frames.to(torch.uint8))
    encoder, decoder = dall_e
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(pixels), encoder(pixels), atol=1e-5, rtol=1e-5)
        codes = encoder(pixels).argmax(1)
        assert torch.equal(model.encoder.encode(frames.to(torch.uint8)), codes)
        one_hot = nn.functional.one_hot(codes, 32).permute(0, 3, 1, 2).float()
        expected = decoder(one_hot)[:, :3].sigmoid()
        torch.testing.assert_close(model.decoder(one_hot), expected, atol=1e-5, rtol=1e-5)


def test_the_hubs_encoder_gives_the_same_codes(tmp_path):
    """Against `transformers`' own implementation of the port, at small size."""
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    torch.manual_seed(0)
    port = FlavaImageCodebook(
        FlavaImageCodebookConfig(hidden_size=8, vocab_size=32, num_blocks_per_group=2)
    ).eval()
    for parameter in port.parameters():
        nn.init.normal_(parameter, std=0.2)
    torch.save(port.state_dict(), tmp_path / "pytorch_model.bin")
    convert(Config(encoder=tmp_path / "pytorch_model.bin", out=tmp_path / "out"), SMALL)
    model, about = load_tokenizer(tmp_path / "out")
    assert about["can_decode"] is False
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(256, (2, 32, 32, 3), generator=generator).to(torch.uint8)
    with torch.no_grad():
        logits = port.blocks(map_pixels(frames))
        torch.testing.assert_close(model.encoder(map_pixels(frames)), logits, atol=1e-4, rtol=1e-4)


class Hostile:
    """Pickles into a call of `os.system`."""

    def __reduce__(self):
        return os.system, ("touch hostile_code_ran",)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": {"blocks.input.w": x}}])
def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch, wrap):
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(Hostile()), tmp_path / "encoder.pkl")
    with pytest.raises(ValueError, match=r"asks for (posix|nt|os)\.system"):
        read_released(tmp_path / "encoder.pkl")
    assert not (tmp_path / "hostile_code_ran").exists()


def test_a_plain_pickle_and_a_truncated_file_are_refused(released, tmp_path):
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps(Hostile(), protocol=2))
    whole = (released / "encoder.pkl").read_bytes()
    cut = tmp_path / "cut.pkl"
    cut.write_bytes(whole[: len(whole) // 2])
    for path in (plain, cut):
        with pytest.raises(ValueError, match="not a file of weights"):
            read_released(path)


def test_another_architecture_is_named(released):
    other = replace(SMALL, vocabulary=64)
    config = Config(encoder=released / "encoder.pkl", out=released / "out")
    with pytest.raises(ValueError, match=r"layers\.\d+\.weight: \(32, 64, 1, 1\) instead of \(64"):
        convert(config, other)
    swapped = Config(encoder=released / "decoder.pkl", out=released / "out")
    with pytest.raises(ValueError, match="does not hold this architecture"):
        convert(swapped, SMALL)
    assert not (released / "out").exists()


def test_the_command(released, monkeypatch, capsys):
    monkeypatch.setitem(DVAE_SIZES, "small", SMALL)
    words = [f"encoder={released / 'encoder.pkl'}", f"out={released / 'out'}", "size=small"]
    monkeypatch.setattr(sys, "argv", ["convert_tokenizer", *words])
    convert_tokenizer.main()
    assert "tokenizer.safetensors sha256" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["convert_tokenizer", *words[1:], "encoder=nowhere.pkl"])
    with pytest.raises(SystemExit, match="nowhere.pkl does not exist"):
        convert_tokenizer.main()


def test_a_lightning_checkpoint_becomes_a_tokenizer(tmp_path, monkeypatch):
    """In taming-transformers' layout: weights under `state_dict`, the training's own beside them."""
    callbacks = ModuleType("pytorch_lightning.callbacks")
    keeper = type("ModelCheckpoint", (), {"__module__": callbacks.__name__})
    callbacks.ModelCheckpoint = keeper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, callbacks.__name__, callbacks)
    torch.manual_seed(0)
    small = VQGANConfig(vocabulary=16, channels=32, multipliers=(1, 2), blocks=1,
                        attention_levels=(1,), code_channels=8)  # fmt: skip
    model = VQGAN(small).eval()
    model.decoder.codebook.load_state_dict(model.encoder.codebook.state_dict())
    state = {}
    for name, tensor in model.state_dict().items():
        half, _, rest = name.partition(".")
        released = f"{half}.{rest.removeprefix('net.')}" if rest.startswith("net.") else rest
        state["quantize.embedding.weight" if rest == "codebook.weight" else released] = tensor
    state["loss.discriminator.main.0.weight"] = torch.zeros(3)
    checkpoint = {
        "epoch": 12, "global_step": np.int64(5), "state_dict": state,
        "callbacks": {keeper: {"best_model_score": torch.tensor(0.5)}}, "optimizer_states": [],
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "last.ckpt")
    for name in (callbacks.__name__, "pytorch_lightning"):  # whoever converts does not have it
        monkeypatch.delitem(sys.modules, name)
    convert(Config(vqgan=tmp_path / "last.ckpt", out=tmp_path / "out"), small)
    loaded, about = load_tokenizer(tmp_path / "out")
    assert about["resolution"] == 32 and about["can_decode"] is True  # 16 tokens of 2 px
    frames = torch.randint(256, (1, 8, 8, 3)).to(torch.uint8)
    codes = model.encoder.encode(frames)
    assert torch.equal(loaded.encoder.encode(frames), codes)
    assert torch.equal(loaded.decoder.decode(codes), model.decoder.decode(codes))
    with pytest.raises(ValueError, match="missing|shapes"):
        convert(Config(vqgan=tmp_path / "last.ckpt", out=tmp_path / "no"), replace(small, blocks=2))


def test_the_tokenizer_of_a_backbone_makes_its_codes(tmp_path: Path):
    """The packaged backbone's encoder, taken out, tokenizes as the backbone does."""
    packaged = Path(names.__file__).parent / "pretrained" / "toto-tiny.safetensors"
    convert_tokenizer.take_out(packaged, tmp_path, None)
    tokenizer, about = load_tokenizer(tmp_path)
    assert about["resolution"] == 128 and about["can_decode"] is False
    frames = torch.randint(256, (2, 128, 128, 3)).to(torch.uint8)
    expected = load_backbone("toto-tiny", weights=str(packaged)).tokenize(frames)
    assert torch.equal(tokenizer.encoder.encode(frames), expected)
