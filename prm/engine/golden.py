"""A version's golden scores, computed anew: the last check before it serves.

Hashes prove that the bytes are the publisher's; this proves that they are *read* as the publisher
read them: same template, same tokens, same positions, same arithmetic.
"""

from collections.abc import Mapping

import torch

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM, EngineModel
from prm.engine.reader import read_now
from prm.engine.reads import NotFinite
from prm.errors import InvalidInput, ModelFolderError
from prm.families import FAMILIES, GENERATIVE
from prm.families.generative import load_verifier
from prm.families.verdicts import verdict
from prm.manifest import GoldenScore, ModelVersion, PolicyManifest, PrmManifest
from prm.steps import join_steps
from prm.types import Trajectory

# float32 on another processor differs in the sixth digit; a wrong read differs in the first.
TOLERANCE_FLOAT32 = 1e-3
# In bfloat16 a log-prob carries an error near 0.02, and a step sums a dozen of them, of two models.
TOLERANCE_LOWER = 0.25


def golden_raw(
    version: ModelVersion,
    tokenizer: ChatTokenizer,
    models: Mapping[str, EngineModel],
    golden: GoldenScore,
) -> list[float]:
    """The raw numbers of one golden trajectory, as this process computes them."""
    manifest = version.manifest
    response, steps = join_steps(golden.steps, manifest.step_separator)
    if isinstance(manifest, PolicyManifest):
        prompt = tokenizer.encode_prompt(golden.messages)
        ids = (*prompt, *tokenizer.encode_response(response).ids)
        policy = models[version.key]
        assert isinstance(policy, CausalLM)
        return [float(policy.logprobs([ids], [len(prompt)])[0].double().sum())]
    trajectory = Trajectory(messages=golden.messages, response=response, steps=steps)
    if manifest.family == GENERATIVE.name:
        verifier = load_verifier(version, tokenizer)
        silent = read_now(models, verifier.silent(trajectory))
        return [verdict(o.values, verifier.recipe.decision_temperature) for o in silent]
    family = FAMILIES[manifest.family].load(version, tokenizer)
    encoded = family.encode(trajectory)
    outputs = read_now(models, encoded.reads)
    return [step.raw for step in family.score(encoded, outputs).steps]


def check_golden(
    version: ModelVersion, tokenizer: ChatTokenizer, models: Mapping[str, EngineModel]
) -> None:
    """Raises ModelFolderError when a golden score is not reproduced."""
    manifest: PolicyManifest | PrmManifest = version.manifest
    is_exact = all(model.dtype == torch.float32 for model in models.values())
    tolerance = TOLERANCE_FLOAT32 if is_exact else TOLERANCE_LOWER
    if isinstance(manifest, PrmManifest):
        # Raw values of an implicit PRM are β times a log-ratio, and so are their errors.
        tolerance *= min(1.0, float(manifest.recipe.get("beta", 1.0)))
    for number, golden in enumerate(manifest.golden):
        path = version.folder / "manifest.json"
        try:
            found = golden_raw(version, tokenizer, models, golden)
        except (InvalidInput, NotFinite) as error:
            raise ModelFolderError(path, f"golden score {number}: {error}") from error
        if len(found) != len(golden.raw):
            raise ModelFolderError(
                path, f"golden score {number}: {len(golden.raw)} numbers for {len(found)} steps"
            )
        for place, (ours, theirs) in enumerate(zip(found, golden.raw, strict=True)):
            # Written so that NaN is refused too.
            if not abs(ours - theirs) <= tolerance + TOLERANCE_FLOAT32 * abs(theirs):
                raise ModelFolderError(
                    path,
                    f"golden score {number}, number {place}: the manifest says {theirs:.6f}, this "
                    f"engine computes {ours:.6f}; the version is not read as it was published",
                )
