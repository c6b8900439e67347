"""Runs the reads of PRM families on loaded models."""

from collections.abc import Mapping, Sequence

import torch

from prm.engine.attention import WholeSequences
from prm.engine.model import CausalLM
from prm.families.base import HeadRead, LogprobRead, Read, ReadOutput


def read_now(models: Mapping[str, CausalLM], reads: Sequence[Read]) -> list[ReadOutput]:
    """One output per read: each model runs its own in one forward."""
    outputs: dict[int, ReadOutput] = {}
    for name, model in models.items():
        places = [place for place, read in enumerate(reads) if read.model == name]
        logprob_reads = [(p, r) for p in places if isinstance(r := reads[p], LogprobRead)]
        if logprob_reads:
            rows = model.logprobs(
                [read.ids for _, read in logprob_reads], [read.first for _, read in logprob_reads]
            )
            for (place, _), row in zip(logprob_reads, rows, strict=True):
                outputs[place] = ReadOutput(values=tuple(row.tolist()))
        for place in places:
            if isinstance(read := reads[place], HeadRead):
                ids = torch.tensor(read.ids, device=model.device)
                hidden = model.hidden(ids, WholeSequences([len(ids)], model.device))
                values = model.head_values(hidden[list(read.positions)], read.labels)
                outputs[place] = ReadOutput(values=tuple(values.flatten().tolist()))
    return [outputs[place] for place in range(len(reads))]
