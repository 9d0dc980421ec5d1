"""Whole models trained on the target set: what reaches them, and what a kill leaves."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pretraining.downstream import tuning
from pretraining.downstream.classify import Exam, tune
from pretraining.downstream.clips import Clip, View
from pretraining.downstream.features import encode
from pretraining.downstream.finetune import FineTuned, kept, mixed, rand_augment, smooth
from pretraining.downstream.hybrid import Hybrid
from pretraining.downstream.live import LiveProbes
from pretraining.downstream.tuning import LiveClips, TuneConfig, batch_rows, parts_of
from pretraining.sources import images, videos
from toto_robot.backbone import FrozenBackbone, load_backbone
from toto_robot.backbone.names import load_with_head, random_with_head
from toto_robot.backbone.torchvision_ops import need_torchvision


@pytest.fixture(scope="module")
def tiny() -> FrozenBackbone:
    return load_backbone("toto-tiny", all_layers=True, readout="tokens").at_resolution(
        32
    )  # 16 tokens


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], torch.Tensor]:
    """Red or blue, with noise."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("colours")
    for i in range(40):
        picture = random.integers(0, 60, (32, 40, 3), np.uint8)
        picture[..., 0 if i % 2 else 2] += 180
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
    return [Clip(source) for source in images(folder)], torch.arange(40) % 2


def options(out: Path, **other) -> TuneConfig:
    given = {"mode": "hybrid", "layers": (0, 4), "epochs": 3, "batch_size": 6, "rates": (1e-3, 1e-2),
             "workers": 1, "device": "cpu"}  # fmt: skip
    return TuneConfig(data=out, out=out, **(given | other))


def frames_and_classes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (4, 2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return frames, torch.tensor([0, 1, 0, 1])


def test_labels_reach_the_heads_and_never_the_model(tiny, tmp_path):
    torch.manual_seed(0)
    network = Hybrid(options(tmp_path), tiny, 2).train()
    parts = network.losses(*frames_and_classes())
    parts["heads_nats"].backward(retain_graph=True)
    assert all(p.grad is None for p in network.model.parameters())
    assert all(p.grad is not None for p in network.heads.parameters())
    network.zero_grad()
    parts["next_token_nats"].backward()
    assert all(p.grad is None for p in network.heads.parameters())
    found = network.model.get_parameter("blocks.7.mlp.down.weight").grad
    plain = load_with_head("toto-tiny")[1]
    codes = tiny.tokenize(frames_and_classes()[0])
    with tiny.matmul():
        loss = plain.clip_losses(codes).mean()
    loss.backward()
    assert parts["next_token_nats"].item() == pytest.approx(loss.item(), rel=1e-5)
    expected = plain.get_parameter("blocks.7.mlp.down.weight").grad
    assert found is not None and expected is not None
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_random_model_is_the_one_that_the_backbone_reads():
    backbone, model = load_backbone("random-tiny", all_layers=True), random_with_head("random-tiny")
    ours = model.truncate(8).state_dict()
    assert all(torch.equal(t, ours[name]) for name, t in backbone.trunk.state_dict().items())


@pytest.mark.parametrize("mode", ["live", "hybrid", "finetune"])
def test_training_finds_the_classes_and_a_kill_changes_nothing(
    tiny, pictures, tmp_path, mode, monkeypatch
):
    clips, classes = pictures
    exam = Exam((clips[:30], classes[:30]), (clips[30:], classes[30:]), 2)
    config = options(tmp_path / "whole", mode=mode, epochs=4, lr=1e-3, checkpoint_s=0.0)
    if mode == "finetune":
        config = replace(config, mixup=0.0, cutmix=0.0)
    before = tiny.digest()
    whole = tune("imagenet", config, tiny, exam)
    assert [fit.layer for fit in whole.fits] == ([8] if mode == "finetune" else [0, 4])
    right = (whole.fits[-1].logits.argmax(1) == classes[30:]).float().mean()
    assert right >= 0.9 and tiny.digest() == before

    killed, real = replace(config, out=tmp_path / "killed"), tuning.set_lr
    calls = []

    def kill(*arguments):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(tuning, "set_lr", kill)
    with pytest.raises(KeyboardInterrupt):
        tune("imagenet", killed, tiny, exam)
    monkeypatch.setattr(tuning, "set_lr", real)
    again = tune("imagenet", killed, tiny, exam)
    for one, other in zip(whole.fits, again.fits, strict=True):
        assert torch.equal(one.logits, other.logits) and one.rate == other.rate
    with pytest.raises(ValueError, match="comes from other settings"):
        tune("imagenet", replace(killed, lr=2e-3), tiny, exam)


def test_live_probes_see_what_cached_ones_see_and_keep_heads_alone(tiny, tmp_path):
    config = options(tmp_path, mode="live", grid=2)
    probes = LiveProbes(config, tiny, 2).eval()
    frames, classes = frames_and_classes()
    states = encode(tiny, frames, (0, 4), grid=2)
    wanted = probes.heads(states)
    assert torch.equal(probes.predict(frames), wanted) and wanted.shape == (4, 4, 2)
    assert probes.losses(frames, classes)["heads_nats"].requires_grad
    assert all(name.startswith("heads.") for name in probes.state_dict())


def test_randaugment_treats_all_frames_of_a_clip_alike():
    try:
        need_torchvision()
    except ImportError as error:
        pytest.skip(str(error))
    frames = torch.zeros(3, 2, 32, 32, 3, dtype=torch.uint8)
    frames[:, :, 4:20, 8:14] = torch.tensor([200, 90, 30], dtype=torch.uint8)
    assert rand_augment(0)(frames) is frames
    torch.manual_seed(1)
    first = rand_augment(9)(frames)
    torch.manual_seed(1)
    assert torch.equal(first, rand_augment(9)(frames))
    assert first.shape == frames.shape and first.dtype == torch.uint8
    assert torch.equal(first[:, 0], first[:, 1]) and not torch.equal(first, frames)


def test_a_signal_saves_and_the_same_command_goes_on(tiny, pictures, tmp_path, monkeypatch):
    clips, classes = pictures
    exam = Exam((clips[:30], classes[:30]), (clips[30:], classes[30:]), 2)
    config, real, calls = options(tmp_path, epochs=2), tuning.set_lr, []
    handler = signal.getsignal(signal.SIGTERM)

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(tuning, "set_lr", stop)
    with pytest.raises(SystemExit, match="stopped after step 3"):
        tune("imagenet", config, tiny, exam)
    signal.signal(signal.SIGTERM, handler)
    tune("imagenet", config, tiny, exam)
    assert len(calls) == 2 * (27 // 6)  # no step twice
    assert signal.getsignal(signal.SIGTERM) == handler


def test_corrupt_pictures_are_named_once_for_all(tiny, pictures, tmp_path):
    clips, classes = pictures
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    sources = [*(clip.source for clip in clips[:9]), *images(tmp_path)]
    data = LiveClips([Clip(s) for s in sources], classes[:10], 32, 1, tmp_path)
    (batch,) = data.batches([np.array([9, 0, 1])])
    assert batch[0].shape == (2, 1, 32, 32, 3) and batch[2].tolist() == [0, 1]
    again = LiveClips(data.clips, classes[:10], 32, 1, tmp_path)
    assert list(again.skipped) == ["broken.png"]


def test_clips_are_one_sequence(tiny, films, tmp_path):
    clips = [Clip(source, View(frames=2, stride=3)) for source in videos(films)]
    config = options(tmp_path, epochs=1, batch_size=2, layers=(4,), augment=False)
    found = tune("kinetics", config, tiny, Exam((clips[:4], torch.tensor([0, 1, 0, 1])),
                 (clips[4:], torch.tensor([0])), 2))  # fmt: skip
    assert found.kept.tolist() == [True] and found.fits[0].logits.shape == (1, 2)


def test_attention_sees_both_ways(tiny, tmp_path):
    network = FineTuned(options(tmp_path, mode="finetune", smoothing=0.0), tiny, 2).eval()
    codes = tiny.tokenize(frames_and_classes()[0])
    seen = []
    network.trunk.blocks[1].register_forward_hook(lambda *call: seen.append(call[2]))
    changed = codes.clone()
    changed[:, -1, -1, -1] += 1
    for each in (codes, changed):
        network(each)
    assert not torch.allclose(seen[0][:, 1], seen[1][:, 1])  # the first token knows of the last
    causal = [tiny.trunk.hidden_states(tiny.trunk.sequence(c))[2][:, 1] for c in (codes, changed)]
    assert torch.equal(*causal)


def test_rates_fall_from_the_head_to_the_embedding(tiny, tmp_path):
    network = FineTuned(options(tmp_path, mode="finetune", batch_size=128), tiny, 2)
    scale = {id(p): group["lr_scale"] for group in network.groups(1000) for p in group["params"]}
    assert len(scale) == len(list(network.parameters()))
    assert scale[id(network.head.weight)] == pytest.approx(2.5e-4)
    assert scale[id(network.trunk.blocks[7].mlp.down.weight)] == pytest.approx(2.5e-4 * 0.65)
    assert scale[id(network.trunk.embedding.weight)] == pytest.approx(2.5e-4 * 0.65**9)


def test_mixing_by_hand():
    torch.manual_seed(0)
    frames = torch.stack([torch.full((1, 8, 8, 3), v, dtype=torch.uint8) for v in (0, 100, 200)])
    target = smooth(torch.tensor([0, 1, 2]), 3, 0.0)
    values = torch.tensor([0.0, 100.0, 200.0])
    for alphas in ((0.8, 0.0), (0.0, 1.0)):
        for _ in range(20):
            out, shares = mixed(frames, target, *alphas)
            assert torch.allclose(out.float().mean((1, 2, 3, 4)), shares @ values, atol=0.6)
            assert torch.allclose(shares.sum(1), torch.ones(3))
            if alphas[1]:
                assert set(out.unique().tolist()) <= {0, 100, 200}
    assert mixed(frames, target, 0.0, 0.0)[0] is frames
    assert torch.allclose(smooth(torch.tensor([1]), 4, 0.1), torch.tensor([[0.025, 0.925, 0.025, 0.025]]))  # fmt: skip
    assert F.cross_entropy(torch.zeros(1, 4), smooth(torch.tensor([1]), 4, 0.1)).item() == (
        pytest.approx(np.log(4))
    )


def test_dropped_rows_and_their_mean():
    torch.manual_seed(0)
    found = kept(torch.ones(4000, 1, 1), 0.25)
    assert found.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert found.mean().item() == pytest.approx(1.0, abs=0.03)


def test_rows_of_steps():
    rows = np.arange(10, 20)
    steps = list(batch_rows(rows, 4, seed=0, first=0, steps=5))
    assert [len(batch) for batch in steps] == [4] * 5
    assert len(set(np.concatenate(steps[:2]).tolist())) == 8
    later = list(batch_rows(rows, 4, seed=0, first=3, steps=5))
    assert all(np.array_equal(a, b) for a, b in zip(later, steps[3:], strict=True))
    train, choosing = parts_of(40, 2, seed=0)
    assert len(choosing) == 4 and not set(train // 2) & set(choosing // 2)


def test_only_causal_models_of_codes_are_trained(tmp_path):
    mae = load_backbone("mae-tiny", all_layers=True)
    with pytest.raises(ValueError, match="mode=hybrid trains a causal model of codes; mae-tiny"):
        Hybrid(options(tmp_path), mae, 2)
    with pytest.raises(ValueError, match="pooling=linear"):
        Hybrid(options(tmp_path, pooling="linear"), mae, 2)
    with pytest.raises(ValueError, match="mode=live: pooling=linear"):
        LiveProbes(options(tmp_path, mode="live", pooling="linear"), mae, 2)
