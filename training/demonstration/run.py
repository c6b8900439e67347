"""From nothing to published models: `run` is the whole story.

The policy imitates a pupil with systematic slips; the implicit PRM sees only which of the policy's
answers came out right. Whatever is chosen is chosen on validation problems; the test problems are
looked at once, after that.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from prm.registry import publish
from training.demonstration.figures import Choice, choose, measure
from training.demonstration.report import write_report
from training.demonstration.settings import DemoSettings
from training.demonstration.staged import POLICY, PRM, Staged
from training.demonstration.stages import Groups, roll_out, train_policy, train_prm


def run(settings: DemoSettings, out: Path, version: str, command: str) -> Mapping[str, Any]:
    """Train, choose, measure and publish both models under `out`; returns the evaluation.

    Raises FileExistsError, before any work, when that version is already there.
    """
    refuse_published(out, version)
    torch.set_num_threads(settings.threads)
    started, cpu_started = time.monotonic(), time.process_time()
    with TemporaryDirectory(prefix="rung-demo-") as folder:
        policy, prm = Path(folder) / "policy", Path(folder) / "prm"
        train_policy(settings, policy)
        graded = roll_out(settings, policy, "train", settings.prm_problems, settings.prm_samples)
        train_prm(settings, policy, prm, graded)

        staged = Staged(settings, version, int(time.time()), policy, prm)
        samples = settings.test_samples
        validation = roll_out(settings, policy, "validation", settings.validation_problems, samples)
        choice = choose(staged, validation)
        test = roll_out(settings, policy, "test", settings.test_problems, samples)
        evaluation = {
            "command": command,
            "minutes": round((time.monotonic() - started) / 60, 1),
            "cpu_minutes": round((time.process_time() - cpu_started) / 60, 1),
            "torch": torch.__version__,
            "settings": asdict(settings),
            **measure(staged, choice, test),
        }
        release(staged, choice, validation, evaluation, out)
    write_report(out, evaluation)
    return evaluation


def refuse_published(out: Path, version: str) -> None:
    """Raises FileExistsError when either model already has this version under `out`."""
    for name in (POLICY, PRM):
        if (out / name / version).exists():
            raise FileExistsError(
                f"{out / name / version} is already published, and versions never change; "
                "choose another --version or another --out"
            )


def release(
    staged: Staged, choice: Choice, validation: Groups, evaluation: Mapping[str, Any], out: Path
) -> None:
    """Publish the policy, then the PRM that pins it; golden scores are validation rollouts."""
    notes = {
        "training": {
            key: evaluation[key]
            for key in ("command", "minutes", "cpu_minutes", "torch", "settings")
        },
        "metrics": {key: evaluation[key] for key in ("rollouts", "answers", "steps")},
    }
    policy_manifest = staged.policy_manifest.model_copy(update=notes)
    policy = publish(
        out,
        staged.policy_folder,
        policy_manifest.model_copy(update={"golden": staged.golden(policy_manifest, validation)}),
    )
    recipe = choice.manifest.recipe
    pinned = {**recipe["reference"], "weights_sha256": policy.weights_sha256}
    prm_manifest = choice.manifest.model_copy(
        update={**notes, "recipe": {**recipe, "reference": pinned}}
    )
    publish(
        out,
        staged.prm_folder,
        prm_manifest.model_copy(update={"golden": staged.golden(prm_manifest, validation)}),
    )
