"""Continue a film from its first frames with a pre-trained model, and film the result.

    python -m pretraining.generate backbone=toto-tiny clip=clip.mp4 out=continued.mp4 frames=12

Writes the film (.mp4, or .gif) and a JSON beside it. From left to right: the original, the original
through the tokenizer (no continuation can look better), the continuation. A green bar marks the
frames that were given, an orange one those that the model made.
"""

import sys
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pretraining.video import read_frames
from toto_robot.backbone.causal import CausalModel
from toto_robot.backbone.generation import Sampling, continue_video
from toto_robot.backbone.names import load_with_head
from toto_robot.backbone.tokenizers import TokenDecoder, TokenEncoder, read_decoder
from toto_robot.backbone.weights import write_json
from toto_robot.cli import parse

GREEN, ORANGE = (60, 200, 80), (255, 140, 0)
BAR = 3  # px


@dataclass(frozen=True, kw_only=True)
class Config:
    """Continue a film from its first frames with a pre-trained model."""

    clip: Path
    out: Path = Path("continued.mp4")  # .mp4 or .gif
    backbone: str = "toto-tiny"
    weights: str | None = None  # file, folder or hub repository; None: as load_backbone
    tokenizer: Path | None = None  # file or folder that has the decoder; None: beside the weights
    frames: int = 12  # to make
    prompt: int | None = None  # frames given; None: as many as the model reads before another one
    first: int = 0  # frame of the clip at which the prompt begins
    stride: int | None = None  # every how many-th frame; None: as in the model's training
    context: int | None = None  # frames per sequence; None: as in the model's training
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    samples: int = 1  # continuations, side by side
    scale: int = 2  # enlargement of the film
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.out.suffix not in (".mp4", ".gif"):
            raise SystemExit(f"out={self.out}: expected a name that ends in .mp4 or .gif")
        for name, least in (("frames", 1), ("samples", 1), ("scale", 1), ("first", 0)):
            if getattr(self, name) < least:
                raise SystemExit(f"{name}={getattr(self, name)}: expected {least} or more")


@dataclass(frozen=True)
class Parts:
    """What generating takes, and how the model was trained."""

    encoder: TokenEncoder
    model: CausalModel
    decoder: TokenDecoder
    weights_hash: str
    resolution: int
    context: int
    stride: int


def find_decoder(weights: Path, given: Path | None) -> Path:
    """The file that makes pictures of codes; SystemExit says where it was looked for."""
    folder = given if given and given.is_dir() else weights.parent
    places = [folder / f"{name}.safetensors" for name in (f"{weights.stem}-decoder", "tokenizer")]
    if given and not given.is_dir():
        places = [given]
    for place in places:
        if place.is_file():
            return place
    raise SystemExit(
        f"no decoder for the codes of {weights} (looked for {' and '.join(map(str, places))}): give "
        "tokenizer=<folder or file>, or make one with python -m pretraining.train_tokenizer "
        f"data=<films> out=<folder> decoder_for={weights}"
    )


def load(config: Config) -> Parts:
    """Model with head, encoder and decoder; the settings of its training where none are given."""
    encoder, model, about, path = load_with_head(config.backbone, config.weights)
    if model.config.patch:
        raise SystemExit(
            f"{path} reads patches of pixels and predicts no codes: nothing to draw from"
        )
    decoder = read_decoder(find_decoder(path, config.tokenizer), about["encoder_sha256"])
    trained = about.get("trained", {})
    context = config.context or int(trained.get("frames", 16))
    stride = config.stride or int(trained.get("stride", 1))
    if context < 2:
        raise SystemExit(
            f"{path} was trained on single frames: it has not learned what comes next; give "
            "context= to try all the same"
        )
    return Parts(
        encoder=encoder.to(config.device),
        model=model.to(config.device),
        decoder=decoder.to(config.device),
        weights_hash=about["sha256"],
        resolution=int(about["resolution"]),
        context=context,
        stride=stride,
    )


def read_clip(config: Config, parts: Parts, prompt: int) -> UInt8[Tensor, "T R R 3"]:
    """The given frames and, as far as the clip goes, those that followed in truth."""
    if not config.clip.is_file():
        raise SystemExit(f"clip={config.clip} does not exist")
    last = config.first + (prompt + config.frames - 1) * parts.stride
    frames = []
    for i, frame in enumerate(read_frames(config.clip, parts.resolution)):
        if i >= config.first and (i - config.first) % parts.stride == 0 and i <= last:
            frames.append(frame)
    if len(frames) < prompt:
        needed = config.first + (prompt - 1) * parts.stride + 1
        raise SystemExit(
            f"{config.clip} has too few frames: {prompt} given ones, every {parts.stride}th from "
            f"frame {config.first}, need {needed}; use prompt=, stride= or first="
        )
    return torch.from_numpy(np.stack(frames))


def frames_per_s(clip: Path) -> Fraction:
    with av.open(str(clip)) as container:
        return Fraction(container.streams.video[0].average_rate or 30)


def mark(frames: UInt8[Tensor, "T H W 3"], colours: list[tuple[int, int, int]]) -> Tensor:
    """A bar on top of each frame."""
    marked = frames.clone()
    for frame, colour in zip(marked, colours, strict=True):
        frame[:BAR] = torch.tensor(colour, dtype=torch.uint8)
    return marked


def side_by_side(
    panels: list[UInt8[Tensor, "T H W 3"]], scale: int
) -> UInt8[np.ndarray, "T H W 3"]:
    """Panels with a dark gap between them, enlarged without smoothing, of even width and height."""
    gap = torch.zeros_like(panels[0][:, :, :2])
    parts = [part for panel in panels for part in (panel, gap)][:-1]
    film = torch.cat(parts, dim=2).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    height, width = (side // 2 * 2 for side in film.shape[1:3])
    return film[:, :height, :width].numpy()


def write_film(film: UInt8[np.ndarray, "T H W 3"], rate: Fraction, path: Path) -> None:
    """H.264 with full colour resolution, or an endless GIF, by the name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        pictures = [Image.fromarray(frame) for frame in film]
        shared = Image.fromarray(np.concatenate(film[:: max(1, len(film) // 8)])).quantize(128)
        pictures = [
            picture.quantize(palette=shared, dither=Image.Dither.NONE) for picture in pictures
        ]
        hold = [round(1000 / rate)] * (len(film) - 1) + [1000]  # ms
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=hold, loop=0)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = film.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for picture in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def psnr(a: UInt8[Tensor, "T H W 3"], b: UInt8[Tensor, "T H W 3"]) -> list[float]:
    """In dB, of each frame."""
    error = (a / 255 - b / 255).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return [round(value, 2) for value in (-10 * error.log10()).tolist()]


def measure(
    truth: UInt8[Tensor, "T H W 3"],
    decoded: UInt8[Tensor, "T H W 3"],
    made: UInt8[Tensor, "M H W 3"],
    prompt: int,
) -> dict[str, list[float]]:
    """Each made frame against what was filmed; beside it what costs nothing, and what is possible."""
    count = min(len(made), len(truth) - prompt)
    real = truth[prompt : prompt + count]
    still = decoded[prompt - 1].expand(count, -1, -1, -1)
    return {
        "psnr_continued": psnr(real, made[:count]),
        "psnr_last_frame_repeated": psnr(real, still),
        "psnr_tokenizer": psnr(real, decoded[prompt : prompt + count]),
    }


@torch.inference_mode()
def generate(
    config: Config, parts: Parts, codes: Int[Tensor, "P h w"]
) -> Int[Tensor, "samples frames h w"]:
    """Codes of the continuations, with a progress bar over frames."""
    generator = torch.Generator(config.device).manual_seed(config.seed)
    sampling = Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
    given = codes.flatten(1).expand(config.samples, -1, -1)
    with tqdm(total=config.frames, unit="frame", desc="continuing") as bar:
        made = continue_video(
            parts.model, given, config.frames, context=parts.context, sampling=sampling,
            generator=generator, on_frame=bar.update,
        )  # fmt: skip
    return made.unflatten(2, codes.shape[1:])


def main(config: Config) -> dict[str, Any]:
    parts = load(config)
    prompt = config.prompt or parts.context - 1
    if not 1 <= prompt < parts.context:
        raise SystemExit(
            f"prompt={prompt}: this model reads {parts.context} frames at a time, so 1 to "
            f"{parts.context - 1} can be given"
        )
    truth = read_clip(config, parts, prompt)
    with torch.inference_mode():
        codes = parts.encoder.encode(truth.to(config.device))
        decoded = parts.decoder.decode(codes).cpu()
        made = generate(config, parts, codes[:prompt])
        pictures = [parts.decoder.decode(sample).cpu() for sample in made]

    # The film. Where the clip ends before the continuation does, its last frame stays.
    colours = [GREEN] * prompt + [ORANGE] * config.frames
    missing = len(colours) - len(truth)
    panels = []
    for panel in (truth, decoded):
        panel = torch.cat([panel, panel[-1:].expand(missing, -1, -1, -1)])
        panels.append(mark(panel, [GREEN] * prompt + [(90, 90, 90)] * config.frames))
    panels += [mark(torch.cat([decoded[:prompt], p]), colours) for p in pictures]
    write_film(
        side_by_side(panels, config.scale), frames_per_s(config.clip) / parts.stride, config.out
    )
    report = {
        **{k: str(v) for k, v in asdict(config).items()},
        "weights_hash": parts.weights_hash,
        "prompt": prompt,
        "context": parts.context,
        "stride": parts.stride,
        **measure(truth, decoded, pictures[0], prompt),
    }
    write_json(config.out.with_suffix(".json"), report)
    print(f"{config.out}: {prompt} frames given, {config.frames} made, every {parts.stride}th")
    for name in ("psnr_continued", "psnr_last_frame_repeated", "psnr_tokenizer"):
        print(f"  {name}: {' '.join(f'{value:.1f}' for value in report[name])} dB")
    return report


if __name__ == "__main__":
    try:
        main(parse(Config, sys.argv[1:]))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
