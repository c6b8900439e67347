"""Tiny generative PRMs: published for real, run here, or made to say what a test wants."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import Qwen2Config, Qwen2ForCausalLM

from prm.backends.writing import _ENDED_BY
from prm.chat import ChatTokenizer
from prm.engine.golden import golden_raw
from prm.engine.model import CausalLM
from prm.engine.reader import read_now
from prm.engine.sampler import Sampler, SamplingParams
from prm.families.base import HeadRead, Read, ReadOutput
from prm.families.verdicts import GenerativeRecipe
from prm.manifest import GoldenScore, ModelVersion, PrmManifest
from prm.registry import publish
from prm.steps import join_steps
from prm.types import Message, Trajectory
from prm.verification import Ask, Style, Written
from tests.layouts import QWEN_CONTROL, QWEN_TEMPLATE, save_layout
from tests.published import LocalReply

PROBLEM = "Evaluate (3+4)*2-5"
STEPS = ("3+4=7", "7*2=14", "14-5=9")
# Made of what the recipes say, so that their labels are single tokens, as in real vocabularies.
CORPUS = (
    "You are a math teacher. Let's analyze the Paragraph 1 step by step: Judgement Yes\nYes\nNo "
    "Is the solution correct? yes no Step 1: boxed\ncorrect Step 2: boxed\nincorrect",
) * 8
# Qwen 2's own: transformers reads every folder of that model with it, whatever the file says.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def verdict_tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen's control tokens, trained on the recipes' own words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in QWEN_CONTROL])
    return tokenizer


def stage(folder: Path, *, seed: int = 0, context: int = 2048) -> None:
    """A random model with that tokenizer, as a checkpoint's folder."""
    tokenizer = verdict_tokenizer()
    settings: dict[str, Any] = {
        # Heads of 32: vLLM's attention on a CPU has no smaller ones.
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**settings))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_layout(tokenizer, folder, template=QWEN_TEMPLATE, eos="<|im_end|>")


def publish_generative(
    root: Path, name: str, recipe: Mapping[str, Any], *, context: int = 2048
) -> ModelVersion:
    """Publish one with golden scores computed by the engine's own code."""
    staged = Path(tempfile.mkdtemp(prefix="rung-staged-"))
    golden = GoldenScore(messages=_user(PROBLEM), steps=STEPS, raw=(0.0,) * len(STEPS))
    manifest = PrmManifest(
        name=name,
        version="1",
        created=0,
        files={},
        golden=(golden,),
        family="generative",
        recipe=GenerativeRecipe.model_validate(recipe).model_dump(mode="json"),
        threshold=0.5,
    )
    try:
        stage(staged, context=context)
        draft = ModelVersion(staged, manifest)
        loaded = {draft.key: CausalLM.load(staged)}
        raw = golden_raw(draft, ChatTokenizer(staged), loaded, golden)
        golden = golden.model_copy(update={"raw": tuple(raw)})
        return publish(root, staged, manifest.model_copy(update={"golden": (golden,)}))
    finally:
        shutil.rmtree(staged)


def trajectory(steps: Sequence[str] = STEPS, problem: str = PROBLEM) -> Trajectory:
    """A problem with these steps."""
    response, placed = join_steps(steps, "\n\n")
    return Trajectory(messages=_user(problem), response=response, steps=placed)


class LocalVerdicts:
    """A version in this process: our sampler and our reader. Keeps what was written, in order."""

    def __init__(self, version: ModelVersion) -> None:
        self._models = {version.key: CausalLM.load(version.folder)}
        self._sampler = Sampler(self._models[version.key], ChatTokenizer(version.folder))
        self.asks: list[Ask] = []
        self.written: list[Written] = []
        self.reads: list[HeadRead] = []

    async def write(self, asks: Sequence[Ask], style: Style) -> list[Written]:
        """See `VerdictModel.write`."""
        written = [self._write(ask, style) for ask in asks]
        self.asks += asks
        self.written += written
        return written

    def _write(self, ask: Ask, style: Style) -> Written:
        params = SamplingParams(
            temperature=style.temperature,
            top_p=style.top_p,
            top_k=style.top_k,
            max_tokens=ask.max_tokens,
            stop=style.stop,
        )
        (done,) = self._sampler.generate([ask.ids], params, [ask.seed])
        return Written(text=done.text, tokens=len(done.ids), ended_by=_ENDED_BY[done.finish_reason])

    async def read(self, reads: Sequence[Read]) -> LocalReply:
        """See `VerdictModel.read`."""
        self.reads += [read for read in reads if isinstance(read, HeadRead)]
        return LocalReply(outputs=read_now(self._models, reads))


class ScriptedVerdicts(LocalVerdicts):
    """Writes what `script` says of the number of an ask; reads for real, or as `logits` says.

    A script's text ends as a stop string would end it, unless it is a whole `Written`.
    """

    def __init__(
        self,
        version: ModelVersion,
        script: Callable[[int], str | Written],
        logits: Callable[[int], tuple[float, float]] | None = None,
    ) -> None:
        super().__init__(version)
        self._script = script
        self._logits = logits
        self._tokenizer = ChatTokenizer(version.folder)

    def _write(self, ask: Ask, style: Style) -> Written:
        said = self._script(len(self.asks))
        self.asks.append(ask)
        if isinstance(said, Written):
            return said
        tokens = len(self._tokenizer.encode_response(said).ids)
        return Written(text=said, tokens=tokens, ended_by="stop")

    async def write(self, asks: Sequence[Ask], style: Style) -> list[Written]:
        """See `VerdictModel.write`."""
        written = [self._write(ask, style) for ask in asks]
        self.written += written
        return written

    async def read(self, reads: Sequence[Read]) -> LocalReply:
        """See `VerdictModel.read`."""
        if self._logits is None:
            return await super().read(reads)
        first = len(self.reads)
        self.reads += [read for read in reads if isinstance(read, HeadRead)]
        return LocalReply(
            outputs=[ReadOutput(values=self._logits(first + n)) for n in range(len(reads))]
        )


def _user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def set_recipe(version: ModelVersion, **changes: Any) -> None:
    """Change a published recipe, as a careless hand would."""
    path = version.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"] |= changes
    path.write_text(json.dumps(manifest))
