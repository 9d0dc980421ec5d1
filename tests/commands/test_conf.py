"""Options: defaults, errors with the nearest valid name, run folder, resuming."""

from datetime import datetime
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from toto_robot.conf import GROUPS, RLConfig, register
from toto_robot.overrides import check_config, complete_overrides, config_keys
from toto_robot.rl import as_plain
from toto_robot.sweeps import complete_sweep

register()


def test_defaults_depend_on_what_is_observed() -> None:
    pixels, state = check_config([]), check_config(["obs=state"])
    assert (pixels.num_envs, pixels.total_steps) == (64, 200_000)
    assert (state.num_envs, state.total_steps, state.threads) == (256, 2_000_000, 1)
    assert pixels.backbone.name == "toto-tiny" and pixels.env.name == "franka_pick"


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_a_group_composes_to_its_own_name(group: str) -> None:
    for name in GROUPS[group]:
        chosen = getattr(check_config([f"{group}={name}"]), group)
        assert name == (chosen if group == "preset" else chosen.name)


def test_options_reach_the_dataclasses() -> None:
    config = check_config(["backbone.weights=random", "ppo.hidden=[8,8]", "ppo.gamma=0.9"])
    assert config.backbone.weights == "random"
    assert config.ppo.hidden == [8, 8] and config.ppo.gamma == 0.9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env=franka_pik", "env=franka_pik does not exist; did you mean 'franka_pick'"),
        ("backbone=toto-tny", "did you mean 'toto-tiny'.*Valid: .*toto-base"),
        ("obs=pixel", "did you mean 'pixels'"),
        ("algo=pppo", "did you mean 'ppo'"),
        ("sed=1", "option 'sed' does not exist; did you mean 'seed'"),
        ("backbone.layr=1", "did you mean 'backbone.layer'.*Valid: backbone.name"),
        ("epochs=3", "did you mean 'ppo.epochs'"),
        ("seed=abc", "seed: .*'abc'.*Integer"),
        ("ppo.gamma=2", "ppo.gamma=2.0: expected 0 to 1"),
        ("num_envs=0", "num_envs=0: expected at least 1"),
        ("ppo.minibatches=5", "do not divide into ppo.minibatches=5"),
        ("franka_pick", "cannot read 'franka_pick': expected key=value"),
    ],
)
def test_a_wrong_option_is_one_line_with_the_nearest_name(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_config([override])
    assert "\n" not in str(caught.value)


def test_the_run_folder_says_when_what_and_which_seed() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5)
    words = complete_overrides(["seed=7"], now)
    assert words[-1] == "hydra.run.dir='outputs/2026-01-02/03-04-05_franka_pick_toto-tiny_s7'"
    words = complete_overrides(["obs=state", "hydra.run.dir=/tmp/x"], now)
    assert words == ["obs=state", "hydra.run.dir=/tmp/x"]
    assert "_franka_pick_state_s0" in complete_overrides(["obs=state"], now)[-1]


def test_resuming_takes_the_options_of_the_run_and_what_is_given_again(tmp_path: Path) -> None:
    run = tmp_path / "a run, with = and 'quotes'"
    run.mkdir()
    saved = check_config(["obs=state", "seed=5", "ppo.hidden=[8]", "backbone=toto-base"])
    (run / "config.yaml").write_text(OmegaConf.to_yaml(as_plain(saved)))
    quoted = str(run).replace("'", "\\'")
    words = complete_overrides([f"resume='{quoted}'", "total_steps=99"])
    config = check_config(words)
    assert config.resume == str(run)
    assert (config.obs, config.seed, config.total_steps) == ("state", 5, 99)
    assert config.ppo.hidden == [8] and config.backbone.name == "toto-base"
    assert any(word.startswith("hydra.run.dir=") for word in words)


def test_resuming_from_something_else_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        complete_overrides([f"resume={tmp_path}"])


def test_keys_are_those_of_the_dataclass() -> None:
    keys = config_keys(RLConfig)
    assert {"seed", "backbone.weights", "ppo.learning_rate", "env.camera"} <= set(keys)
    assert "defaults" not in keys


def test_a_preset_stands_between_the_defaults_and_what_is_given() -> None:
    mvp = check_config(["ppo.std_power=1", "preset=mvp"])
    assert mvp.ppo.lr_schedule == "cosine_epoch" and mvp.ppo.std_power == 1
    assert (
        mvp.ppo.learning_rate == 1e-3
        and check_config(["preset=mvp-kuka"]).ppo.learning_rate == 5e-4
    )
    best, held = check_config(["preset=best"]), check_config(["preset=held", "obs=state"])
    assert best.ppo.estimate_state and best.ppo.action_repeat == held.ppo.action_repeat == 4
    assert best.env.steps_after_success == held.env.steps_after_success == 30
    assert check_config(["preset=best", "env.steps_after_success=8"]).env.steps_after_success == 8
    assert check_config(["preset=best", "env=kuka_pick"]).env.name == "kuka_pick"
    with pytest.raises(ValueError, match="obs=state algo=ppo.*preset=held is"):
        check_config(["preset=best", "obs=state"])
    with pytest.raises(ValueError, match="preset=mpv does not exist; did you mean 'mvp'"):
        check_config(["preset=mpv"])


@pytest.mark.parametrize(
    ("words", "preset"),
    [
        (["algo=dagger+ppo"], "finetune"),
        (["init=some/policy"], "finetune"),
        (["init=some/policy", "ppo.learning_rate=0.1"], "finetune"),
        (["init=some/policy", "preset=mvp"], "mvp"),
        (["init=some/policy", "preset=default"], "default"),
        (["init=some/policy", "algo=dagger"], None),
        (["init=some/policy", "algo=ppo-gpu"], None),
        (["init=null"], None),
        ([], None),
    ],
)
def test_ppo_from_a_trained_policy_takes_small_steps(words: list[str], preset: str | None) -> None:
    config = check_config(complete_overrides(words))
    assert config.preset == preset
    rate = 1e-5 if preset == "finetune" else 1e-3
    assert config.ppo.learning_rate == (0.1 if "ppo.learning_rate=0.1" in words else rate)
    sweep = complete_sweep(["-m", "seed=0,1", *words])
    assert ("preset=finetune" in sweep) == (preset == "finetune")


@pytest.mark.parametrize("words", [[], ["preset=mvp", "ppo.epochs=3"]])
def test_a_resumed_run_keeps_its_preset(words: list[str], tmp_path: Path) -> None:
    config = check_config(words)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(as_plain(config)))
    again = check_config(complete_overrides([f"resume={tmp_path}"]))
    assert again.ppo == config.ppo and again.preset == config.preset


def test_a_resumed_run_takes_a_new_preset_and_no_other_task(tmp_path: Path) -> None:
    config = check_config(["ppo.epochs=3", "ppo.num_queries=2"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(as_plain(config)))
    resume = f"resume={tmp_path}"
    again = check_config(complete_overrides([resume, "preset=held", "env=franka_pick"]))
    held = check_config(["preset=held", "ppo.epochs=3", "ppo.num_queries=2"])
    assert again.ppo == held.ppo and again.env == held.env and again.preset == "held"
    with pytest.raises(ValueError, match="goes on with env=franka_pick, got env=kuka_cabinet"):
        complete_overrides([resume, "env=kuka_cabinet"])
    with pytest.raises(ValueError, match="with backbone=toto-tiny, got backbone=mae-tiny"):
        complete_overrides([resume, "backbone=mae-tiny"])


def test_a_swept_start_takes_small_steps_in_all_jobs_or_says_that_some_would() -> None:
    for word in ("init=a,b", "algo=dagger,dagger+ppo"):
        assert "preset=finetune" in complete_sweep(["-m", word, "preset=finetune"])
        assert "preset=finetune" in complete_sweep(["-m", word])
    with pytest.raises(ValueError, match="some of these jobs"):
        complete_sweep(["-m", "algo=ppo,dagger+ppo"])
    assert "preset=mvp" in complete_sweep(["-m", "algo=ppo,dagger+ppo", "preset=mvp"])
