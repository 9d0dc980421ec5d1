"""The arrows of the architecture: who may import whom, and where each heavy dependency may live."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"toto_robot", "envs", "policies", "pretraining", "real_world"}

# Room -> the rooms it may import. A dotted name allows that module only.
ARROWS = {
    "toto_robot/backbone": set(),
    "envs": set(),
    "policies": {"toto_robot.backbone", "envs.spec"},
    "pretraining": {
        "toto_robot.backbone",
        "toto_robot.cli",
        "toto_robot.intervals",
        "toto_robot.themes",
    },
    "real_world": {"policies", "toto_robot.backbone", "toto_robot.cli", "toto_robot.runs", "envs"},
    "toto_robot": {"toto_robot.backbone", "envs", "policies", "pretraining"},
}

# Dependency -> path prefixes where it may be imported.
PINNED = {
    "mujoco": ("envs/",),
    "mujoco_warp": ("envs/warp_rendering.py",),
    "stable_baselines3": ("policies/",),
    "hydra": ("toto_robot/",),
    "omegaconf": ("toto_robot/",),
    "pyrealsense2": ("real_world/realsense_sdk.py", "tests/"),
    "rsl_rl": ("policies/ppo_gpu.py",),
    "tensordict": ("policies/ppo_gpu.py",),
    "robomimic": ("policies/robomimic_bc.py",),
    "pyarrow": ("policies/lerobot.py", "tests/"),
    "h5py": (
        "policies/demonstrations.py",
        "policies/feature_cache.py",
        "real_world/episode_file.py",
        "real_world/run_files.py",
        "tests/",
    ),
    "franky": ("real_world/franka.py", "real_world/franka_twin.py", "tests/"),
    "pyspacemouse": ("real_world/devices.py",),
    "evdev": ("real_world/keys_evdev.py",),
    "rerun": ("real_world/live.py", "tests/"),
    "timm": ("toto_robot/backbone/timm_encoder.py",),
    "torchvision": (
        "pretraining/downstream/finetune.py",
        "pretraining/downstream/sta_detector.py",
        "policies/torchvision_stub.py",
        "toto_robot/backbone/torchvision_ops.py",
    ),
    "lmdb": ("pretraining/downstream/sta_data.py", "tests/"),
    "transformers": ("pretraining/train_mae.py", "tests/"),
    "rliable": ("toto_robot/report_curves.py",),
    "jinja2": (
        "toto_robot/report.py",
        "real_world/run_report.py",
        "pretraining/downstream/report.py",
    ),
}


def room_of(path: str) -> str:
    return "toto_robot/backbone" if path.startswith("toto_robot/backbone") else path.split("/")[0]


def imports_of(source: str) -> set[str]:
    """Dotted names that a module imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def complaints(path: str, source: str) -> list[str]:
    room, found = room_of(path), []
    own = room.replace("/", ".")
    for name in sorted(imports_of(source)):
        package = name.split(".")[0]
        if package in OURS and not (name + ".").startswith(own + "."):
            allowed = ARROWS[room]
            if not any((name + ".").startswith(rule + ".") for rule in allowed):
                found.append(f"{path} imports {name}; {room} may import only {sorted(allowed)}")
        places = PINNED.get(package)
        if places and not path.startswith(places):
            found.append(f"{path} imports {name}, which belongs in {places}")
    return found


def test_every_import_follows_the_arrows():
    files = [p for room in OURS for p in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 20
    problems = [
        line for p in files for line in complaints(p.relative_to(ROOT).as_posix(), p.read_text())
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("policies/x.py", "from envs.mujoco_engine import MujocoEngine"),
        ("policies/x.py", "import envs"),
        ("pretraining/x.py", "import policies.ppo"),
        ("envs/x.py", "from toto_robot.backbone import load_backbone"),
        ("toto_robot/backbone/x.py", "import pretraining"),
        ("toto_robot/rl.py", "import mujoco"),
        ("pretraining/x.py", "from stable_baselines3 import PPO"),
    ],
)
def test_a_wrong_arrow_is_noticed(path, source):
    assert complaints(path, source)
