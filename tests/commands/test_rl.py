"""`python -m toto_robot.rl` on the fake task: run folder, resume, Ctrl-C, order of errors."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import envs
from policies.policy import load_policy
from policies.ppo import PPO
from policies.teacher import PRETRAINED, teacher_folder
from toto_robot import backbone as backbones
from toto_robot import rl
from toto_robot.build import check_learner, describe_policy, make_dagger
from toto_robot.conf import register
from toto_robot.experts import check_expert
from toto_robot.overrides import check_config
from toto_robot.runs import read_metrics
from toto_robot.subject import last_part
from toto_robot.sweeps import continued

register()
SMALL = [
    "num_envs=4", "ppo.num_steps=8", "ppo.epochs=1", "ppo.minibatches=2", "ppo.hidden=[8]",
    "eval_episodes=6", "film_episodes=2", "image_size=16", "threads=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fake_envs(doubles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(task: str, num_envs: int, seed: int, obs: str, image_size: int, **more: Any) -> Any:
        assert task == "franka_pick"
        oracle = more["oracle"]
        return doubles.FakeTask(
            num_envs, obs, seed, image_size, max_episode_length=12, oracle=oracle
        )

    monkeypatch.setattr(envs, "make", make)


def small(*words: str) -> Any:
    return check_config([*SMALL, *words])


def test_a_run_from_pixels_leaves_everything_a_run_folder_holds(
    doubles: ModuleType, tmp_path: Path
) -> None:
    backbone = doubles.FakeBackbone()
    rl.train(small("total_steps=320"), tmp_path, backbone)
    reports = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["steps"] for r in reports] == list(range(32, 321, 32))
    for key in ("success_rate", "success_low", "success_high", "episode_return", "steps_per_s"):
        assert key in reports[-1]
    assert reports[-1]["encodes_per_step"] <= 1.1
    assert reports[-1]["note"] == "untrained backbone"
    evaluation = json.loads((tmp_path / "eval.json").read_text())
    assert evaluation["episodes"] == 6 and evaluation["untrained_backbone"] is True
    assert evaluation["weights_hash"] == backbone.weights_hash
    assert evaluation["success_low"] <= evaluation["success_rate"] <= evaluation["success_high"]
    for name in ("config.yaml", "env.txt", "success.png", "eval.mp4", "tensorboard"):
        assert (tmp_path / name).exists(), name
    for name in ("last", "best"):
        assert load_policy(tmp_path / "checkpoints" / name, backbone).spec.obs == "pixels"


def test_the_film_can_be_read_and_shows_the_stamp(doubles: ModuleType, tmp_path: Path) -> None:
    import av

    rl.train(small("total_steps=32"), tmp_path, doubles.FakeBackbone())
    with av.open(str(tmp_path / "eval.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) > 6
    assert frames[0][2:12, -40:, 0].mean() > 150 > frames[0][2:12, -40:, 1].mean()  # red bar


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, number: int) -> None:
    """Send ourselves a signal once `steps` environment steps are done."""
    iterate = PPO.iterate

    def iterate_then_signal(ppo: Any) -> bool:
        if ppo.num_timesteps >= steps:
            os.kill(os.getpid(), number)
        return iterate(ppo)

    monkeypatch.setattr(PPO, "iterate", iterate_then_signal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_says_how_to_resume_and_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 96, number)
        rl.train(small("obs=state", "total_steps=320"), tmp_path, None)
    assert f"resume={tmp_path}" in capsys.readouterr().out
    before = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["steps"] for r in before] == [32, 64, 96]
    assert not (tmp_path / "eval.json").exists()
    best = json.loads((tmp_path / "checkpoints/last/progress.json").read_text())["best"]

    rl.train(small("obs=state", "total_steps=320", f"resume={tmp_path}"), tmp_path, None)
    after = read_metrics(tmp_path / "metrics.jsonl")
    assert after[:3] == before
    assert after[3]["steps"] > 96 and after[-1]["steps"] >= 320
    assert [r["steps"] for r in after] == sorted({r["steps"] for r in after})
    assert json.loads((tmp_path / "checkpoints/last/progress.json").read_text())["best"] >= best
    trainer = torch.load(tmp_path / "checkpoints/last/trainer.pt", weights_only=True)
    assert trainer["num_timesteps"] == after[-1]["steps"]


def test_resuming_with_another_backbone_is_an_error(doubles: ModuleType, tmp_path: Path) -> None:
    rl.train(small("total_steps=32", "film_episodes=0"), tmp_path, doubles.FakeBackbone(0))
    config = small("total_steps=64", f"resume={tmp_path}")
    with pytest.raises(ValueError, match="was trained on toto-tiny with weights"):
        rl.train(config, tmp_path, doubles.FakeBackbone(1))


def test_same_seed_same_run(tmp_path: Path) -> None:
    def numbers(folder: str) -> list[tuple]:
        rl.train(small("obs=state", "total_steps=320", "film_episodes=0"), tmp_path / folder, None)
        reports = read_metrics(tmp_path / folder / "metrics.jsonl")
        return [(r["steps"], r["success_rate"], r["episode_return"]) for r in reports]

    assert numbers("a") == numbers("b")


def test_one_lucky_episode_does_not_beat_a_higher_return() -> None:
    def score(
        success_rate: float, episode_return: float, episodes: int = 200
    ) -> list[float] | None:
        return rl.score_of(
            {"success_rate": success_rate, "episode_return": episode_return, "episodes": episodes}
        )

    lucky, later, better = score(0.005, 100.0), score(0.0, 400.0), score(0.5, 300.0)
    assert lucky and later and better and lucky < later < better
    assert score(1.0, 1.0, episodes=3) is None


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["toto-rl", *words])
    with pytest.raises(SystemExit) as stopped:
        rl.main()
    return stopped.value.code


def test_a_wrong_option_ends_with_code_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert command(monkeypatch, "backbone=toto-tny") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "did you mean 'toto-tiny'" in lines[0]


def test_missing_weights_stop_before_the_simulator_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def no_simulator(**_: Any) -> None:
        raise AssertionError("the simulator was built first")

    def no_weights(name: str, **_: Any) -> None:
        raise FileNotFoundError(f"no weights for {name}")

    monkeypatch.setattr(envs, "make", no_simulator)
    monkeypatch.setattr(backbones, "load_backbone", no_weights)
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "backbone=toto-large") == 2
    assert "no weights for toto-large" in capsys.readouterr().err


def test_a_folder_with_a_run_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert command(monkeypatch, "obs=state", f"hydra.run.dir={tmp_path}") == 2
    assert "holds a run already" in capsys.readouterr().err


def test_dagger_learns_from_a_policy_folder_and_resumes(
    doubles: ModuleType, tmp_path: Path
) -> None:
    rl.train(small("obs=state", "total_steps=32", "film_episodes=0"), tmp_path / "expert", None)
    words = [
        "algo=dagger",
        "dagger.action_repeat=1",
        f"dagger.expert={tmp_path}/expert/checkpoints/last",
    ]
    backbone, run = doubles.FakeBackbone(), tmp_path / "student"
    rl.train(small(*words, "total_steps=128"), run, backbone)
    rl.train(small(*words, "total_steps=256", f"resume={run}"), run, backbone)
    assert [r["steps"] for r in read_metrics(run / "metrics.jsonl")] == [64, 128, 192, 256]
    assert json.loads((run / "eval.json").read_text())["episodes"] == 6
    assert load_policy(run / "checkpoints/last", backbone).spec.algo == "dagger"


def test_dagger_then_ppo_are_two_runs_and_go_on_where_they_were(
    doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    rl.train(small("obs=state", "total_steps=32", "film_episodes=0"), tmp_path / "expert", None)
    words = ["algo=dagger+ppo", "dagger.first_steps=128", "dagger.action_repeat=1",
             f"dagger.expert={tmp_path}/expert/checkpoints/last", "total_steps=128"]  # fmt: skip
    backbone, run = doubles.FakeBackbone(), tmp_path / "both"
    with monkeypatch.context() as patch:
        stop_after(patch, 64, signal.SIGINT)  # in the second part
        rl.train(small(*words), run, backbone)
    assert f"resume={run}\n" in capsys.readouterr().out
    first = (run / "dagger/metrics.jsonl").read_text()
    assert not (run / "ppo/eval.json").exists()
    with pytest.raises(FileExistsError, match="holds a run already"):
        rl.run_dir_is_free(run, small(*words))
    assert continued(small(*words), run).resume == str(run)  # of a sweep
    shutil.rmtree(run / "ppo/checkpoints")  # as if killed before its first
    rl.train(small(*words, f"resume={run}"), run, backbone)
    assert (run / "dagger/metrics.jsonl").read_text() == first
    assert read_metrics(run / "ppo/metrics.jsonl")[0]["steps"] == 32
    assert json.loads((run / "ppo/eval.json").read_text())["episodes"] == 6
    rl.train(small(*words[:-1], "total_steps=192", f"resume={run}"), run, backbone)  # longer
    assert (run / "dagger/metrics.jsonl").read_text() == first
    assert read_metrics(run / "ppo/metrics.jsonl")[-1]["steps"] >= 192
    assert last_part(run) == run / "ppo"
    student = load_policy(run / "dagger/checkpoints/last", backbone).net
    assert load_policy(run / "ppo/checkpoints/last", backbone).net.log_std.mean() < -0.5
    assert student.log_std.mean() > -1.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dagger.expert=scripted", "env=kuka_pick"], "kuka_pick has no scripted expert"),
        (["dagger.expert=nowhere"], "no policy in nowhere"),
        ([f"dagger.expert={PRETRAINED}/franka_cabinet"], "is of env=franka_cabinet"),
    ],
)
def test_an_expert_that_does_not_fit_is_named_before_the_run(
    doubles: ModuleType, words: list[str], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_learner(small("algo=dagger", *words), doubles.FakeBackbone())


def test_a_read_out_that_does_not_fit_is_named_before_the_run(doubles: ModuleType) -> None:
    with pytest.raises(ValueError, match="there is a history, not of frames"):
        check_learner(small("ppo.history=2"), backbones.load_backbone("cnn"))
    backbone = doubles.FakeBackbone()
    backbone.feature_shape = (15, 8)
    with pytest.raises(ValueError, match="square grid of tokens"):
        check_learner(small("ppo.pool=conv"), backbone)


def test_labels_of_a_run_killed_before_its_first_checkpoint_are_forgotten(
    doubles: ModuleType, tmp_path: Path
) -> None:
    config, backbone = small("algo=dagger", "total_steps=64"), doubles.FakeBackbone()
    task = envs.make("franka_pick", 4, seed=0, obs="pixels", image_size=16, oracle=True)
    spec = describe_policy(config, task, backbone)
    killed = make_dagger(config, tmp_path, task, backbone, spec)
    killed.start(64, lambda: True)
    killed.iterate()
    killed.save_trainer(tmp_path / "trainer.pt")
    again = make_dagger(config, tmp_path, task, backbone, spec)
    assert len(killed._labels) > 0 and len(again._labels) == 0


def test_dagger_from_state_is_refused() -> None:
    with pytest.raises(ValueError, match="learns from pixels, got obs=state"):
        small("algo=dagger", "obs=state")


SWITCHES = ["ppo.lr_schedule=adaptive", "ppo.random_phase=true", "ppo.asymmetric=true"]


@pytest.mark.parametrize(
    "words",
    [
        [*SWITCHES, "ppo.history=2", "ppo.pool=conv"],
        ["preset=best", "ppo.pool=conv"],
        ["preset=best", "ppo.history=2"],
    ],
)
def test_presets_with_other_read_outs_run_and_resume(
    words: list[str], doubles: ModuleType, tmp_path: Path
) -> None:
    backbone = doubles.FakeBackbone()
    rl.train(small(*words, "total_steps=64"), tmp_path, backbone)
    rl.train(small(*words, "total_steps=128", f"resume={tmp_path}"), tmp_path, backbone)
    policy = load_policy(tmp_path / "checkpoints/last", backbone)
    assert policy.spec.ppo.asymmetric and policy.spec.env_steps == 128
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["encodes_per_step"] < 1.2


def test_frames_of_a_student_s_history_lie_as_far_apart_later() -> None:
    with pytest.raises(ValueError, match="expected dagger.action_repeat=1, as ppo.action_repeat"):
        small("algo=dagger", "ppo.history=2")
    small("algo=dagger", "ppo.history=2", "dagger.action_repeat=1")
    with pytest.raises(ValueError, match="expected obs=pixels algo=ppo"):
        small("algo=dagger", "ppo.asymmetric=true", "ppo.estimate_state=true")
    with pytest.raises(ValueError, match="expected dagger.action_repeat=4"):
        small("algo=dagger", "ppo.history=2", "ppo.action_repeat=4")


def test_ppo_goes_on_from_a_dagger_policy(
    doubles: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    backbone, student = doubles.FakeBackbone(), tmp_path / "student/checkpoints/last"
    rl.train(small("obs=state", "total_steps=32", "film_episodes=0"), tmp_path / "expert", None)
    words = ["algo=dagger", f"dagger.expert={tmp_path}/expert/checkpoints/last", "total_steps=64"]
    rl.train(small(*words, "film_episodes=0"), tmp_path / "student", backbone)
    config = small(f"init={student}", "total_steps=64", "ppo.asymmetric=true", "film_episodes=0")
    assert (config.ppo.critic_warmup, config.ppo.log_std_init) == (10, -1.0)
    check_learner(config, backbone)
    rl.train(config, tmp_path / "tuned", backbone)
    assert "no critic that fits here: it starts anew" in capsys.readouterr().out
    tuned = load_policy(tmp_path / "tuned/checkpoints/last", backbone)
    obs = envs.make(
        task="franka_pick", num_envs=3, seed=1, obs="pixels", image_size=16, oracle=False
    ).reset()
    assert torch.equal(tuned.act(obs), load_policy(student, backbone).act(obs))  # warming up


def test_an_init_that_does_not_fit_stops_before_the_simulator(
    doubles: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no policy in"):
        check_learner(small(f"init={tmp_path}"), doubles.FakeBackbone())
    rl.train(small("obs=state", "total_steps=32", "film_episodes=0"), tmp_path, None)
    init = f"init={tmp_path}/checkpoints/last"
    check_learner(small("obs=state", init), None)
    with pytest.raises(ValueError, match=r"ppo.hidden=\[8\]"):
        check_learner(small("obs=state", init, "ppo.hidden=[9]"), None)


@pytest.mark.parametrize("switch", ["ppo.history=2", "ppo.estimate_state=true"])
def test_ppo_on_the_device_leaves_the_same_run_folder_and_resumes(
    switch: str, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policies.ppo_gpu import PPOGPU

    words = ["algo=ppo-gpu", *SWITCHES, switch, "ppo.critic_warmup=1"]
    backbone = doubles.FakeBackbone()
    config = small(*words, "total_steps=128")
    check_learner(config, backbone)
    iterate = PPOGPU.iterate

    def iterate_then_signal(ppo: PPOGPU) -> bool:
        if ppo.num_timesteps >= 64:
            os.kill(os.getpid(), signal.SIGINT)
        return iterate(ppo)

    with monkeypatch.context() as patch:
        patch.setattr(PPOGPU, "iterate", iterate_then_signal)
        rl.train(config, tmp_path, backbone)
    assert [r["steps"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [32, 64]
    assert not (tmp_path / "eval.json").exists()
    rl.train(small(*words, "total_steps=192", f"resume={tmp_path}"), tmp_path, backbone)
    reports = read_metrics(tmp_path / "metrics.jsonl")
    assert reports[-1]["steps"] >= 192 and reports[-1]["encodes_per_step"] < 1.3
    assert json.loads((tmp_path / "eval.json").read_text())["episodes"] == 6
    policy = load_policy(tmp_path / "checkpoints/last", backbone)
    assert policy.spec.algo == "ppo-gpu" and policy.spec.ppo.asymmetric


def test_ppo_on_the_device_names_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="cosine_epoch: expected cosine, adaptive or constant"):
        small("algo=ppo-gpu", "preset=mvp")
    with pytest.raises(ValueError, match="rsl_rl always shuffles"):
        small("algo=ppo-gpu", "ppo.shuffle=false")


def test_what_cannot_go_on_is_said_before_any_work(tmp_path):
    """A DAgger run resumed as PPO, a policy of another task's state, an expert of another rate."""
    run = tmp_path / "run"
    (run / "checkpoints/last").mkdir(parents=True)
    (run / "config.yaml").write_text("algo: dagger\n")
    with pytest.raises(ValueError, match=r"algo=dagger: resume= goes on with that.*init="):
        rl.run_dir_is_free(run, check_config(["env=franka_pick", f"resume={run}"]))
    teacher = teacher_folder("franka_pick")
    config = check_config(["env=franka_pick", "obs=state", f"init={teacher}"])
    check_learner(config, None)
    config.env.name = "franka_cabinet"
    with pytest.raises(ValueError, match="env=franka_pick, here franka_cabinet"):
        check_learner(config, None)
    config.env.name, config.env.control_rate_hz = "franka_pick", 30
    with pytest.raises(ValueError, match="control_rate_hz=60, here 30"):
        check_learner(config, None)
    with pytest.raises(ValueError, match="expert=scripted acts at any rate"):
        check_expert("teacher", "franka_pick", 30)


def test_an_estimate_that_cannot_be_is_refused_before_any_work() -> None:
    words = ("ppo.asymmetric=true", "ppo.estimate_state=true")
    with pytest.raises(ValueError, match="this backbone hands out frames"):
        check_learner(small(*words), backbones.load_backbone("cnn"))
    with pytest.raises(ValueError, match="do not fit into ppo.estimate_replay=2"):
        small(*words, "ppo.estimate_replay=2")
