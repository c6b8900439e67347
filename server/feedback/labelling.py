"""From what a caller said to a label: which response, which PRM learns from it, right or wrong."""

import time
import uuid
from dataclasses import replace

from prm.errors import InvalidInput, NotFound, UnknownModel
from prm.steps import cut_steps
from prm.tasks import off_loop_if_long
from prm.types import Trajectory
from search.answers import Extraction, MathAnswers, extract_answer
from server.feedback.memory import Memory
from server.feedback.types import Answer, Label, Source
from server.schemas.common import messages_of
from server.schemas.feedback import FeedbackIn
from server.serving import Serving


class Labelling:
    """Makes labels of feedback. Errors name the fields, behind `at` in a batch."""

    def __init__(self, memory: Memory, serving: Serving, math: MathAnswers) -> None:
        self._memory = memory
        self._serving = serving
        self._math = math

    async def label(self, item: FeedbackIn, key_id: str, at: str = "") -> Label:
        """One label. Raises NotFound for what is not remembered, InvalidInput, Unavailable."""
        answer, prm, source = await self._response(item, at)
        model = self._model(item, prm, at)
        if prm is None or prm.partition("@")[0] != model:
            # Another PRM's score says nothing about this one's.
            answer = replace(answer, score=None, prm_correct=None)
            prm = None
            field = "response" if source == "text" else _id_field(item)
            await self._check_length(answer, model, f"{at}{field}")
        correct, note = item.correct, None
        if correct is None and item.answer is not None:
            correct, note = await self._compare(answer, item.answer)
        return Label(
            id=f"fb-{uuid.uuid4().hex}",
            created=int(time.time()),
            key_id=key_id,
            model=model,
            version=None if prm is None else prm.partition("@")[2],
            source=source,
            source_id=item.search_id or item.score_id,
            answer=answer,
            correct=correct,
            given_answer=item.answer,
            note=note,
            metadata=item.metadata or {},
        )

    async def _response(self, item: FeedbackIn, at: str) -> tuple[Answer, str | None, Source]:
        """The response, NAME@VERSION of the PRM that scored it, and where it is from."""
        if item.response is not None:
            if not item.response.strip():
                raise InvalidInput(f"{at}response: holds only white space", param=f"{at}response")
            messages = messages_of(item.problem, item.messages)
            return Answer(messages=messages, response=item.response), None, "text"
        field = _id_field(item)
        answer_id = item.search_id or item.score_id
        assert answer_id is not None, "the wire type asks for one"
        source: Source = "score"
        if field == "search_id":
            source = "chat" if answer_id.startswith("chatcmpl-") else "search"
        served = await self._memory.find(answer_id)
        if served is None or (served.kind == "score") != (field == "score_id"):
            raise NotFound(f"{at}{field}: {self._gone(answer_id)}", param=f"{at}{field}")
        index = item.index or 0
        if index >= len(served.answers):
            raise InvalidInput(
                f"{at}index: {index}, and {answer_id} has {len(served.answers)}, counted from 0",
                param=f"{at}index",
            )
        return served.answers[index], served.prm, source

    def _gone(self, answer_id: str) -> str:
        hours = self._memory.hours
        kept = f"answers are kept for {hours:g} hours" if hours else "this server keeps no answers"
        return f"nothing is known of {answer_id!r}: {kept}; send problem and response instead"

    def _model(self, item: FeedbackIn, prm: str | None, at: str) -> str:
        """The name of the PRM that learns from it. Raises UnknownModel, InvalidInput."""
        if item.model is not None:
            name = item.model.partition("@")[0]
            return self._serving.scorer(name, param=f"{at}model").manifest.name
        if prm is not None:
            return prm.partition("@")[0]
        names = sorted({scorer.manifest.name for scorer in self._serving.snapshot.scorers.values()})
        if len(names) == 1:
            return names[0]
        known = f"name the PRM that is to learn from it: {', '.join(names)}"
        raise InvalidInput(
            f"{at}model: {known if names else 'no PRM is served here'}", param=f"{at}model"
        )

    async def _check_length(self, answer: Answer, model: str, field: str) -> None:
        """Raises InvalidInput for what the PRM cannot read: nobody could train it on that."""
        try:
            scorer = self._serving.scorer(model, param="model")
        except UnknownModel:  # it is served no more, and may be again
            return
        try:
            steps = cut_steps(answer.response, scorer.step_separator)
            trajectory = Trajectory(
                messages=answer.messages, response=answer.response, steps=steps, is_cut=True
            )
            await off_loop_if_long(answer.num_characters, scorer.check, trajectory)
        except InvalidInput as error:
            raise InvalidInput(f"{field}: {error}", param=field) from error

    async def _compare(self, answer: Answer, right: str) -> tuple[bool | None, str | None]:
        """Whether the response's final answer is the right one; or None, and why it is not known.

        Raises Unavailable.
        """
        stated = answer.answer or extract_answer(answer.response, Extraction())
        if stated is None:
            return None, "the response states no final answer that could be compared"
        outcome = await self._math.is_equal(
            extract_answer(right, Extraction()) or right.strip(), stated
        )
        if outcome == "undecided":
            return None, f"whether the response's answer {stated!r} is equal could not be decided"
        return outcome == "equal", None


def _id_field(item: FeedbackIn) -> str:
    return "search_id" if item.search_id is not None else "score_id"
