"""A downloaded checkpoint of every family, tiny: what its authors would have on a hub."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tokenizers import AddedToken

from prm.families import pqm, qwen, skywork
from prm.families.outcome import OutcomeRecipe
from prm.families.reason_eval import ReasonEvalRecipe
from prm.families.repirl import RepirlRecipe
from prm.families.token_head import TokenHeadRecipe
from tests import generative
from tests.layouts import (
    LLAMA_CONTROL,
    LLAMA_TEMPLATE,
    byte_level_layout,
    save_layout,
    sentencepiece_layout,
)
from tests.own_heads import qwen_layout, random_head, save_checkpoint, stage_qwen
from tests.published import random_lm

BEGIN = "<|begin_of_text|>"
# The ids that Math-Shepherd's card names.
CARD_IDS = {648: "▁+", 387: "▁-", 12902: "▁ки"}


def stage_llama_chat(folder: Path) -> None:
    """A chat model that nothing tells from any other."""
    folder.mkdir(exist_ok=True)
    tokenizer = byte_level_layout(LLAMA_CONTROL, bos=BEGIN)
    random_lm("llama", vocab=tokenizer.get_vocab_size()).save_pretrained(folder)
    save_layout(tokenizer, folder, template=LLAMA_TEMPLATE, bos=BEGIN, eos="<|eot_id|>")


def stage_shepherd(folder: Path) -> None:
    """Mistral's layout, with the card's ids."""
    folder.mkdir(exist_ok=True)
    tokenizer = sentencepiece_layout(CARD_IDS, size=13_000)
    random_lm("mistral", vocab=tokenizer.get_vocab_size()).save_pretrained(folder)
    save_layout(tokenizer, folder, bos="<s>", eos="</s>")


def stage_pqm(folder: Path) -> None:
    """A value head beside a language head, and a marker in the vocabulary."""
    tokenizer = byte_level_layout((*LLAMA_CONTROL, "[PRM]"), bos=BEGIN)
    save_checkpoint(
        folder,
        random_head(pqm.HEAD, size=32),
        architecture="LlamaForCausalLM",
        kind="llama",
        vocab=tokenizer.get_vocab_size(),
        prefix="pretrained_model.",
        with_lm_head=True,
    )
    save_layout(tokenizer, folder, template=LLAMA_TEMPLATE, bos=BEGIN, eos="<|eot_id|>")


def stage_repirl(folder: Path) -> None:
    """A classifier with a label per id of its vocabulary."""
    vocab = qwen_layout().get_vocab_size()
    layout = RepirlRecipe(outputs=vocab).head
    stage_qwen(layout, qwen_layout(), architecture="Qwen2ForTokenClassification")(folder)


def stage_reason_eval(folder: Path) -> None:
    """Three classes, and a padding token of its own."""
    tokenizer = sentencepiece_layout()
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True, normalized=False)])
    save_checkpoint(
        folder,
        random_head(ReasonEvalRecipe().head, size=32),
        architecture="ReasonEval_34B",
        kind="llama",
        vocab=tokenizer.get_vocab_size(),
        config={"score_dim": 3, "bias": False},
    )
    save_layout(tokenizer, folder, bos="<s>", eos="</s>")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<pad>"}))


def stage_generative(folder: Path) -> None:
    """A causal LM with the words of a verifier."""
    folder.mkdir(exist_ok=True)
    generative.stage(folder)


# By family: what the folder is called, and how it is made.
CHECKPOINTS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "qwen": (
        "Qwen2.5-Math-PRM-7B",
        stage_qwen(
            qwen.HEAD,
            qwen_layout("<extra_0>"),
            architecture="Qwen2ForProcessRewardModel",
            # As published: the class is code of its own, which must never be asked for.
            config={"auto_map": {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}},
        ),
    ),
    "skywork": (
        "Skywork-o1-Open-PRM",
        stage_qwen(skywork.HEAD, qwen_layout(), architecture="Qwen2ForPrmModel", with_lm_head=True),
    ),
    "token_head": (
        "trl-prm",
        stage_qwen(
            TokenHeadRecipe().head,
            qwen_layout(),
            architecture="Qwen2ForTokenClassification",
            config={"num_labels": 2},
        ),
    ),
    "repirl": ("rePIRL", stage_repirl),
    "outcome": (
        "Qwen2.5-Math-RM",
        stage_qwen(
            OutcomeRecipe.model_validate({"name": "qwen-math-rm"}).head,
            qwen_layout(),
            architecture="Qwen2ForRewardModel",
            with_lm_head=True,
        ),
    ),
    "reason_eval": ("ReasonEval-34B", stage_reason_eval),
    "pqm": ("PQM", stage_pqm),
    "math_shepherd": ("math-shepherd-mistral-7b-prm", stage_shepherd),
    "rlhflow": ("Llama3.1-8B-PRM-Deepseek-Data", stage_llama_chat),
    "generative": ("GenPRM-1.5B", stage_generative),
}


def checkpoint(folder: Path, family: str) -> Path:
    """A checkpoint of this family in a folder of its own below."""
    name, stage = CHECKPOINTS[family]
    (folder / name).mkdir(parents=True)
    stage(folder / name)
    return folder / name
