"""Every scheduler's whole trajectory against the scheduler of that name in `diffusers`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import diffusers.schedulers.scheduling_lcm
import numpy as np
import pytest
import torch

from parity.checkpoints import SD1, SD14_SCHEDULER, SD21_SCHEDULER, write_json
from parity.reference import relative_error

TOLERANCE = 1e-4
STEPS = [1, 2, 3, 4, 5, 14, 20, 50]
SHAPE = (2, 4, 5, 7)

# The names of recipes, and what they stand for in the reference.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm_solver": ("DPMSolverMultistepScheduler", {}),
    "dpm_solver_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "lcm": ("LCMScheduler", {}),
}

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# Files as checkpoints ship them, and the options of each class that change the trajectory.
CONFIGS: dict[str, dict[str, Any]] = {
    "sd14-pndm": SD14_SCHEDULER,
    "sd21-ddim": SD21_SCHEDULER,
    "pndm-v": {**SD14_SCHEDULER, "prediction_type": "v_prediction"},
    "pndm-alpha-one": {**SD14_SCHEDULER, "set_alpha_to_one": True, "steps_offset": 0},
    "pndm-trailing": {**SD14_SCHEDULER, "timestep_spacing": "trailing"},
    "pndm-linspace": {**SD14_SCHEDULER, "timestep_spacing": "linspace"},
    "ddim-defaults": {"_class_name": "DDIMScheduler"},
    "ddim-clip": {"_class_name": "DDIMScheduler", **BETAS, "clip_sample": True},
    "ddim-cosine": {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"},
    "ddim-linspace": {
        "_class_name": "DDIMScheduler",
        **BETAS,
        "clip_sample": False,
        "timestep_spacing": "linspace",
    },
    "ddim-zero-snr": {
        "_class_name": "DDIMScheduler",
        **BETAS,
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "euler-defaults": {"_class_name": "EulerDiscreteScheduler"},
    "euler-sd": {
        "_class_name": "EulerDiscreteScheduler",
        **BETAS,
        "timestep_spacing": "leading",
        "steps_offset": 1,
    },
    "euler-v": {
        "_class_name": "EulerDiscreteScheduler",
        **BETAS,
        "prediction_type": "v_prediction",
    },
    "euler-trailing": {
        "_class_name": "EulerDiscreteScheduler",
        **BETAS,
        "timestep_spacing": "trailing",
    },
    "euler-karras": {"_class_name": "EulerDiscreteScheduler", **BETAS, "use_karras_sigmas": True},
    "dpm-defaults": {"_class_name": "DPMSolverMultistepScheduler"},
    "dpm-sd": {
        "_class_name": "DPMSolverMultistepScheduler",
        **BETAS,
        "timestep_spacing": "leading",
        "steps_offset": 1,
    },
    "dpm-v": {
        "_class_name": "DPMSolverMultistepScheduler",
        **BETAS,
        "prediction_type": "v_prediction",
    },
    "dpm-heun": {"_class_name": "DPMSolverMultistepScheduler", **BETAS, "solver_type": "heun"},
    "dpm-order1": {"_class_name": "DPMSolverMultistepScheduler", **BETAS, "solver_order": 1},
    "dpm-karras": {
        "_class_name": "DPMSolverMultistepScheduler",
        **BETAS,
        "use_karras_sigmas": True,
    },
    "dpm-karras-v": {
        "_class_name": "DPMSolverMultistepScheduler",
        **BETAS,
        "use_karras_sigmas": True,
        "prediction_type": "v_prediction",
    },
    "dpm-trailing": {
        "_class_name": "DPMSolverMultistepScheduler",
        **BETAS,
        "timestep_spacing": "trailing",
    },
    "dpm-euler-at-final": {
        "_class_name": "DPMSolverMultistepScheduler",
        **BETAS,
        "euler_at_final": True,
    },
    "dpm-not-lower-order": {
        "_class_name": "DPMSolverMultistepScheduler",
        **BETAS,
        "lower_order_final": False,
    },
    "lcm-defaults": {"_class_name": "LCMScheduler"},
    "lcm-sd": {"_class_name": "LCMScheduler", **BETAS, "clip_sample": False},
    "lcm-v": {
        "_class_name": "LCMScheduler",
        **BETAS,
        "clip_sample": False,
        "prediction_type": "v_prediction",
    },
}


def fake_model(sample: np.ndarray, timestep: float) -> np.ndarray:
    """Any smooth function of both arguments; each side feeds it its own trajectory."""
    sample = np.asarray(sample, dtype=np.float64)
    wave = np.sin(2.0 * sample + timestep / 97.0) + 0.3 * np.cos(sample - timestep / 31.0)
    return (0.6 * wave + 0.2 * sample).astype(np.float32)


def noise_arrays(steps: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(steps)
    noise = random.standard_normal(SHAPE).astype(np.float32)
    return noise, random.standard_normal((steps, *SHAPE)).astype(np.float32)


def reference_trajectory(
    scheduler: Any, steps: int, noise: np.ndarray, noises: np.ndarray, monkeypatch: Any
) -> list[np.ndarray]:
    """What a `diffusers` pipeline does: scale the noise, then call, step, call, step."""
    fresh = iter(noises)
    monkeypatch.setattr(
        diffusers.schedulers.scheduling_lcm,
        "randn_tensor",
        lambda *_args, **_kwargs: torch.from_numpy(next(fresh)),
    )
    scheduler.set_timesteps(steps)
    sample = torch.from_numpy(noise) * scheduler.init_noise_sigma
    out = []
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, t)
        output = torch.from_numpy(fake_model(scaled.numpy(), float(t)))
        sample = scheduler.step(output, t, sample).prev_sample
        out.append(sample.numpy())
    return out


def our_generator(checkpoint: Any, tmp_path: Path, config: dict[str, Any]) -> Any:
    from mosaicbank import Generator

    source, target = checkpoint(SD1), tmp_path / "model"
    target.mkdir()
    for entry in source.iterdir():
        if entry.name != "scheduler":
            (target / entry.name).symlink_to(entry)
    write_json(target / "scheduler" / "scheduler_config.json", config)
    return Generator.from_pretrained(str(target), device="cpu", dtype="float32")


def compare(ours: Any, name: str | None, theirs: Any, steps: int, monkeypatch: Any) -> None:
    noise, noises = noise_arrays(steps)
    expected = reference_trajectory(theirs, steps, noise, noises, monkeypatch)
    timesteps = [float(t) for t in theirs.timesteps]
    assert ours.scheduler_timesteps(name, steps) == pytest.approx(timesteps, rel=1e-5, abs=1e-3)
    got = ours.run_scheduler(name, steps, noise, fake_model, noises=noises)
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert relative_error(a, b) <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_the_checkpoints_own_scheduler(name, checkpoint, tmp_path, monkeypatch):
    config = CONFIGS[name]
    ours = our_generator(checkpoint, tmp_path, config)
    for steps in STEPS:
        theirs = getattr(diffusers, config["_class_name"]).from_config(config)
        compare(ours, None, theirs, steps, monkeypatch)


@pytest.mark.parametrize("source", ["sd14-pndm", "sd21-ddim", "euler-sd", "dpm-karras"])
@pytest.mark.parametrize("name", NAMES)
def test_a_scheduler_named_by_the_recipe(name, source, checkpoint, tmp_path, monkeypatch):
    """`Scheduler.from_config(pipe.scheduler.config)` in the reference: the training schedule of
    the checkpoint, the named class's defaults for the rest."""
    config = CONFIGS[source]
    if name == "pndm":
        # Ours has no Runge-Kutta warm-up, which other classes' files do not rule out.
        config = {**config, "skip_prk_steps": True}
    ours = our_generator(checkpoint, tmp_path, config)
    class_name, changes = NAMES[name]
    for steps in (4, 20):
        theirs = getattr(diffusers, class_name).from_config({**config, **changes})
        compare(ours, name, theirs, steps, monkeypatch)


def test_pndm_calls_once_more_than_it_steps(generator):
    timesteps = generator(SD1).scheduler_timesteps(None, 50)
    assert len(timesteps) == 51
    assert timesteps[1] == timesteps[2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "HeunDiscreteScheduler"}, ["HeunDiscreteScheduler", "PNDM"]),
        ({"skip_prk_steps": False}, ["skip_prk_steps"]),
        ({"beta_schedule": "sigmoid"}, ["beta_schedule", "sigmoid", "scaled_linear"]),
        ({"prediction_type": "flow_prediction"}, ["prediction_type", "flow_prediction"]),
        ({"timestep_spacing": "random"}, ["timestep_spacing", "random", "leading"]),
        ({"num_train_timesteps": 0}, ["num_train_timesteps"]),
        ({"beta_start": "small"}, ["beta_start", "small"]),
        ({"beta_end": math.inf}, ["scheduler_config.json"]),
        ({"steps_offset": 900}, ["steps_offset"]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_files_that_are_refused(changes, words, checkpoint, tmp_path):
    config = {**SD14_SCHEDULER, **changes}
    with pytest.raises(ValueError) as raised:
        our_generator(checkpoint, tmp_path, config).scheduler_timesteps(None, 20)
    for word in ["scheduler_config.json", *words]:
        assert word in str(raised.value)


def test_numbers_of_steps_that_are_refused(generator):
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="steps"):
            generator(SD1).scheduler_timesteps(None, steps)
    with pytest.raises(ValueError, match="dpm_solver_karras"):
        generator(SD1).scheduler_timesteps("heun", 20)
