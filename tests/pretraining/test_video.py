"""Videos as they are cut and kept."""

from pathlib import Path

import av
import numpy as np
import pytest

from pretraining.sources import Source
from pretraining.video import CorruptVideoError, count_frames, decode


def write_video(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "250"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            picture = np.full((64, 64, 3), 2 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def cut(path: Path, out: Path, seconds: float, packets: int | None = None) -> None:
    """From there on, nothing encoded anew, as `ffmpeg -ss <seconds> -c copy` does; `packets`: no more."""
    with av.open(str(path)) as source, av.open(str(out), "w") as container:
        own = source.streams.video[0]
        stream = container.add_stream_from_template(own)
        assert own.time_base is not None
        shift = int(seconds / own.time_base)
        for packet in [p for p in source.demux(own) if p.size][:packets]:
            assert packet.pts is not None and packet.dts is not None
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            container.mux(packet)


def test_a_cut_that_hides_frames_is_not_damaged(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4", 60)
    cut(tmp_path / "whole.mp4", tmp_path / "cut.mp4", 0.5)
    for name, frames in (("whole.mp4", 60), ("cut.mp4", 45)):
        path = tmp_path / name
        assert len(list(decode(path))) == frames
        assert count_frames(Source(name, path, "video", path.stat().st_size)) == frames


def test_a_cut_of_which_the_end_is_missing_is_damaged(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4", 60)
    cut(tmp_path / "whole.mp4", tmp_path / "cut.mp4", 0.5)
    content = (tmp_path / "cut.mp4").read_bytes()
    half = content.index(b"mdat") + 4 + (len(content) - content.index(b"mdat")) // 3
    moov = content.index(b"moov") - 4
    damaged = content[:half] + bytes(moov - half) + content[moov:]
    (tmp_path / "cut.mp4").write_bytes(damaged)
    with pytest.raises(CorruptVideoError):
        list(decode(tmp_path / "cut.mp4"))
