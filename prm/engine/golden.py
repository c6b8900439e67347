"""A version's golden scores, computed anew: the last check before it serves.

Hashes prove that the bytes are the publisher's; this proves that they are *read* as the publisher
read them: same template, same tokens, same positions, same arithmetic.
"""

import math
from collections.abc import Mapping

import torch

from prm.chat import ChatTokenizer
from prm.engine.model import EngineModel
from prm.engine.reader import read_now
from prm.engine.reads import NotFinite
from prm.errors import InvalidInput, ModelFolderError
from prm.families import FAMILIES
from prm.families.base import LogprobRead
from prm.golden import golden_difference, golden_trajectory
from prm.manifest import GoldenScore, ModelVersion, PolicyManifest

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
    trajectory = golden_trajectory(golden, manifest.step_separator)
    if isinstance(manifest, PolicyManifest):
        prompt = tokenizer.encode_prompt(trajectory.messages)
        ids = (*prompt, *tokenizer.encode_response(trajectory.response).ids)
        (output,) = read_now(models, [LogprobRead(model=version.key, ids=ids, first=len(prompt))])
        return [math.fsum(output.values)]
    family = FAMILIES[manifest.family].load(version, tokenizer)
    encoded = family.encode(trajectory)
    outputs = read_now(models, encoded.reads)
    return [step.raw for step in family.score(encoded, outputs).steps]


def check_golden(
    version: ModelVersion, tokenizer: ChatTokenizer, models: Mapping[str, EngineModel]
) -> None:
    """Raises ModelFolderError when a golden score is not reproduced."""
    is_exact = all(model.dtype == torch.float32 for model in models.values())
    for number, golden in enumerate(version.manifest.golden):
        path = version.folder / "manifest.json"
        try:
            found = golden_raw(version, tokenizer, models, golden)
        except (InvalidInput, NotFinite) as error:
            raise ModelFolderError(path, f"golden score {number}: {error}") from error
        difference = golden_difference(
            version,
            number,
            found,
            absolute=TOLERANCE_FLOAT32 if is_exact else TOLERANCE_LOWER,
            relative=TOLERANCE_FLOAT32,
        )
        if difference is not None:
            raise ModelFolderError(
                path, f"{difference}; the version is not read as it was published"
            )
