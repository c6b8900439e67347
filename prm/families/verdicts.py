"""What families that write a verdict in words have in common: recipe, labels, arithmetic.

A sample's verdict is p = σ((ln p(good) − ln p(bad)) / T), of the two label tokens alone; a step's
score is the mean of p over its samples, and its raw number the logit of that mean.
"""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prm.chat import ChatTokenizer
from prm.errors import ModelFolderError
from prm.families.base import EncodedTrajectory, HeadRead, Recipe, Settings
from prm.families.bound import HeadFamily
from prm.families.texts import problem_of, refuse_control_tokens
from prm.manifest import Finite, ModelVersion
from prm.types import Trajectory

# Any server's seed has at least 32 bits, signed.
SEED_RANGE = 1 << 31
# Tokens more than counted apart that a text and what follows it may have, tokenised together.
JOINT = 8

# What the authors' scripts set, by recipe; a manifest may state otherwise. Sources: the docstrings
# of `genprm.py` and `thinkprm.py`.
AUTHORS: Settings = {
    "genprm": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 2048},
    "thinkprm": {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 8172},
}


class GenerativeRecipe(Recipe):
    """How often, how freely and how long a generative PRM writes, and what it is asked.

    `max_tokens` bounds what is written for one verdict; `seed` and the text decide the samples.
    `top_k` 0 is all tokens.
    Of GenPRM alone: `analyze` and `verify` choose the blocks that are written before the verdict.
    Code in a verify block is never run: `execute_code` says so, and can say nothing else.
    Of ThinkPRM alone: `step_scores`, see `thinkprm.py`.
    """

    name: Literal["genprm", "thinkprm"]
    samples: int = Field(default=1, ge=1, le=64)
    temperature: Finite = Field(ge=0, le=10)
    top_p: Finite = Field(gt=0, le=1)
    top_k: int = Field(ge=0)
    max_tokens: int = Field(ge=1)
    decision_temperature: Finite = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    analyze: bool = True
    verify: bool = False
    execute_code: Literal[False] = False
    step_scores: Literal["prefix", "verdicts"] = "prefix"

    by_name = AUTHORS
    # Which settings are of one recipe alone, and what they are when nothing is said.
    _own: ClassVar[Settings] = {
        "genprm": {"analyze": True, "verify": False},
        "thinkprm": {"step_scores": "prefix"},
    }

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for name, settings in self._own.items():
            for setting, usual in settings.items():
                if name != self.name and getattr(self, setting) != usual:
                    raise ValueError(f"{setting} is a setting of {name}, not of {self.name}")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 need a temperature above 0: they would all be equal")
        if self.samples > 1 and self.name == "genprm" and not (self.analyze or self.verify):
            raise ValueError("samples above 1 need analyze or verify: nothing else is sampled")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The ids of the two tokens that tell the labels apart after `tail`, the text before them.

    The last `lead` characters of the tail belong to these tokens.
    """

    tail: str
    texts: tuple[str, str]
    ids: tuple[int, int]
    lead: int

    @classmethod
    def of(
        cls, version: ModelVersion, tokenizer: ChatTokenizer, tail: str, texts: tuple[str, str]
    ) -> "Labels":
        """Labels must begin with different tokens. Raises ModelFolderError when they do not.

        Tail and label are tokenised together: after a space, Qwen's `yes` is the token ` yes`.
        """
        encoded = tokenizer.encode_response(tail + texts[0])
        good, bad = encoded.ids, tokenizer.encode_response(tail + texts[1]).ids
        shared = _shared(good, bad)
        if shared >= min(len(good), len(bad)):
            raise ModelFolderError(
                version.folder / "tokenizer.json",
                f"labels {texts[0]!r} and {texts[1]!r} after {tail!r}: one continues the other",
            )
        lead = len(tail) - encoded.char_offsets[shared][0]
        return cls(tail=tail, texts=texts, ids=(good[shared], bad[shared]), lead=lead)

    def single(self, version: ModelVersion, tokenizer: ChatTokenizer) -> "Labels":
        """The same, when each label is one token to its end; else raises ModelFolderError."""
        for text, label in zip(self.texts, self.ids, strict=True):
            ids = tokenizer.encode_response(self.tail + text).ids
            if ids[-1] != label:
                raise ModelFolderError(
                    version.folder / "tokenizer.json",
                    f"the label {text!r} after {self.tail!r} is several tokens here, the last of "
                    f"them {ids[-1]}; this recipe needs it to be one",
                )
        return self


class VerdictFamily(HeadFamily[GenerativeRecipe]):
    """What both kinds can do without writing anything.

    As a family it reads verdicts with nothing written before them: see `silent`.
    """

    labels: Labels

    @abstractmethod
    def silent(self, trajectory: Trajectory) -> list[HeadRead]:
        """One read per step, of verdicts with nothing written before them.

        They hang on no sampling, so golden scores are made of them. Raises InvalidInput for a
        trajectory that the model cannot read.
        """

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`."""
        return self._read_apart(self.silent(trajectory))

    def raw(self, outputs: Sequence[float]) -> float:
        """See `HeadFamily.raw`; of the logits, or log-probs, of one sample's two labels."""
        good, bad = outputs
        return (good - bad) / self.recipe.decision_temperature

    def read(self, ids: tuple[int, ...]) -> HeadRead:
        """Ask for both labels' logits after these ids."""
        return HeadRead(
            model=self._model,
            ids=ids,
            positions=(len(ids) - 1,),
            width=2,
            labels=self.labels.ids,
        )

    def shortened(self, text: str, tokens: int) -> str:
        """As much of a written text as these many tokens hold.

        Sampled bytes that make no character become a sign of three bytes when they are read again.
        """
        encoded = self._tokenizer.encode_response(text)
        if len(encoded.ids) <= tokens:
            return text
        return text[: encoded.char_offsets[tokens][0]]

    def _check_texts(self, trajectory: Trajectory) -> None:
        texts = [problem_of(trajectory), *(step.text for step in trajectory.steps)]
        self._check_least(*texts)
        refuse_control_tokens(trajectory, self._tokenizer)


def mean_logit(logits: Sequence[float]) -> float:
    """The logit of the mean of σ(logit): finite for finite logits, whatever their size.

    ln(mean) and ln(1 − mean) are summed apart, so neither is lost to rounding.

    >>> mean_logit([2.0, -2.0])
    0.0
    """
    return _log_sum(map(_log_sigmoid, logits)) - _log_sum(_log_sigmoid(-x) for x in logits)


def seed_of(recipe: GenerativeRecipe, ids: Sequence[int], sample: int) -> int:
    """The seed of one sample of what follows these ids: the same for the same request."""
    text = f"{recipe.seed}:{sample}:{','.join(map(str, ids))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % SEED_RANGE


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))


def _log_sigmoid(value: float) -> float:
    return min(value, 0.0) - math.log1p(math.exp(-abs(value)))


def _log_sum(logs: Any) -> float:
    logs = list(logs)
    largest = max(logs)
    return float(largest + math.log(math.fsum(math.exp(log - largest) for log in logs)))
