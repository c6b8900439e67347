"""A language model's body with a linear head of its own in training: a PRM that is no language
model.

    steps      the head's outputs at given positions (a class per output, as TRL's PRMTrainer)
    actions    one output per id of the vocabulary, of which each token's own is taken from the
               state before it (rePIRL with a head over actions)

The weights are transformers' token classifier, in whose layout they are saved, read by others and
imported (`prm/families/token_head.py`, `prm/families/repirl.py`). A new head is 0 throughout: the
PRM begins by saying nothing, as an implicit one does.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForTokenClassification, PreTrainedModel

from prm.engine.attention import WholeSequences
from prm.engine.heads import read_tensor
from prm.engine.loading import load_weights, read_config
from prm.errors import ModelFolderError
from prm.weights import stored_tensors
from training.data import Example
from training.models import response_mask
from training.ranks import ALONE

_WEIGHT, _BIAS = "score.weight", "score.bias"


class TrainedHead:
    """Weights with gradients, in packed batches. `model` is transformers' token classifier."""

    # A head is trained in one process.
    ranks = ALONE

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._body: nn.Module = getattr(model, model.base_model_prefix)
        assert isinstance(model.score, nn.Linear)
        self._head = model.score

    @classmethod
    def load(cls, folder: Path, outputs: int, *, device: str = "cpu") -> "TrainedHead":
        """The body of a folder, with the head that lies there too or else with a new one.

        Raises ModelFolderError for another head than this, and for an architecture of which
        transformers has no token classifier that keeps its head as `score`.
        """
        config = read_config(folder)
        body, left_over = load_weights(
            AutoModel, folder, config, device=device, dtype=torch.float32
        )
        config = deepcopy(config)
        config.num_labels = outputs
        try:
            # On no device: the body is there already.
            with torch.device("meta"):
                model = AutoModelForTokenClassification.from_config(config)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ModelFolderError(folder, f"no token classifier of its kind: {error}") from error
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise ModelFolderError(
                folder / "config.json",
                f"a {type(model).__name__} keeps its head under another name than score; take a "
                'model of another kind, or read_out "log_ratio"',
            )
        setattr(model, model.base_model_prefix, body)
        model.score = _head(folder, left_over, int(config.hidden_size), outputs).to(device)
        return cls(model.train(False))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights that train."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def save(self, folder: Path) -> None:
        """The token classifier, as transformers saves it."""
        self.model.save_pretrained(folder)

    @property
    def outputs(self) -> int:
        """Numbers that the head gives."""
        return self._head.out_features

    def steps(
        self, items: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> Float[Tensor, "steps outputs"]:
        """The outputs at each item's positions, in order; an item is its ids and they."""
        hidden, begins = self._hidden([ids for ids, _ in items])
        places = [
            begin + position
            for (_, positions), begin in zip(items, begins, strict=True)
            for position in positions
        ]
        rows = hidden.index_select(0, torch.tensor(places, device=hidden.device))
        found: Tensor = self._head(rows.float())
        return found

    def actions(self, examples: Sequence[Example]) -> Float[Tensor, "rows time"]:
        """Of each response token its own output, from the state before it; 0 behind the end.

        A row of the head per token: no [tokens, vocabulary] tensor is made.
        """
        hidden, begins = self._hidden([example.ids[:-1] for example in examples])
        sources = [
            begin + place
            for example, begin in zip(examples, begins, strict=True)
            for place in range(example.first - 1, len(example.ids) - 1)
        ]
        taken = [token for example in examples for token in example.ids[example.first :]]
        rows = hidden.index_select(0, torch.tensor(sources, device=hidden.device)).float()
        tokens = torch.tensor(taken, device=hidden.device)
        values = (rows * self._head.weight[tokens]).sum(-1) + self._head.bias[tokens]
        mask = response_mask(examples, hidden.device)
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    def _hidden(
        self, sequences: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "tokens size"], list[int]]:
        """Last hidden states of all of these side by side, and where each begins."""
        device = self.model.device
        lengths = [len(ids) for ids in sequences]
        plan = WholeSequences(lengths, device)
        packed = torch.tensor([token for ids in sequences for token in ids], device=device)
        output = self._body(
            input_ids=packed[None], position_ids=plan.position_ids, use_cache=False, plan=plan
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden, [sum(lengths[:number]) for number in range(len(lengths))]


def _head(folder: Path, left_over: frozenset[str], size: int, outputs: int) -> nn.Linear:
    """The head of the folder's checkpoint; zeros for a language model, which has none."""
    head = nn.Linear(size, outputs)
    others = sorted(name for name in left_over if not name.startswith(("lm_head.", "score.")))
    if others:
        raise ModelFolderError(folder, f"the weights hold {others[0]}, a head of another kind")
    if _WEIGHT not in left_over:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head
    stored = stored_tensors(folder)
    wanted = {_WEIGHT: (outputs, size), _BIAS: (outputs,)}
    for name, shape in wanted.items():
        found = stored[name].shape if name in stored else None
        if found != shape:
            raise ModelFolderError(
                folder,
                f"its {name} is {'missing' if found is None else f'of shape {list(found)}'}, and "
                f"this PRM's is of shape {list(shape)}; begin with a language model, or with a "
                "PRM of the same kind",
            )
    tensors = {name.removeprefix("score."): read_tensor(stored[name].path, name) for name in wanted}
    head.load_state_dict(tensors)
    return head
