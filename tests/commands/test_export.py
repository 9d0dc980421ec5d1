"""The compiled package against the backbone; compiling takes minutes, so most of it is slow."""

import json
from pathlib import Path

import pytest
import torch

from toto_robot import export
from toto_robot.backbone import load_backbone
from toto_robot.backbone.weights import sha256_of


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own, about its pytrees
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_package_equals_the_backbone(tmp_path: Path, precision: str) -> None:
    out = tmp_path / "new" / "toto.pt2"
    about = export.main(export.ExportConfig(out=out, batch=2, precision=precision, readout="mean"))
    backbone = load_backbone(precision=precision, readout="mean")
    run = torch._inductor.aoti_load_package(str(out))
    frames = torch.randint(256, (2, 128, 128, 3), dtype=torch.uint8)
    # Rounding to integers turns a difference in the last bit into one of 1/127 now and then.
    near = 1e-4 if precision == "float32" else 0.05
    torch.testing.assert_close(run(frames), backbone(frames), atol=near, rtol=near)
    assert run.get_metadata()["weights_hash"] == backbone.weights_hash == about["weights_hash"]
    written = json.loads(out.with_suffix(".json").read_text())
    assert written["input"] == ["uint8", 2, 128, 128, 3] and written["output"][1:] == [2, 128]
    assert written["sha256"] == sha256_of(out)


def test_a_package_that_differs_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for the compiler, which takes a minute: a package of other numbers, one of NaN."""
    out = tmp_path / "toto.pt2"
    monkeypatch.setattr(export, "compile_package", lambda backbone, batch, out: out.touch())
    for wrong in (torch.arange(64 * 128.0).view(1, 64, 128), torch.full((1, 64, 128), torch.nan)):
        monkeypatch.setattr(
            torch._inductor, "aoti_load_package", lambda path, wrong=wrong: lambda frames: wrong
        )
        with pytest.raises(SystemExit, match="no package was written"):
            export.main(export.ExportConfig(out=out))
        assert not out.exists()


def test_what_is_exported_is_what_forward_gives() -> None:
    backbone = load_backbone(precision="float32")
    frames = torch.randint(256, (2, 128, 128, 3), dtype=torch.uint8)
    with torch.no_grad():
        exact = export.FramesToFeatures(backbone)(frames)
    assert torch.equal(exact, backbone(frames))


def test_options() -> None:
    with pytest.raises(SystemExit, match=r"ends in \.pt2"):
        export.ExportConfig(out=Path("toto.onnx"))
    with pytest.raises(SystemExit, match="batch=0"):
        export.ExportConfig(out=Path("toto.pt2"), batch=0)


def test_weights_have_the_name_that_messages_give_them() -> None:
    config = export.parse(export.ExportConfig, ["out=x.pt2", "backbone.weights=mine.safetensors"])
    assert config.weights == "mine.safetensors"
