"""Outcome rewards: a problem and a response in, a reward or an error out. No torch."""

from training.verifiers.base import Outcome, Verifier, count_errors, grade_all
from training.verifiers.code import CodeVerifier
from training.verifiers.exact import TaskJudge
from training.verifiers.mathematics import MathVerifier
from training.verifiers.pool import VerifierPool

__all__ = [
    "CodeVerifier",
    "MathVerifier",
    "Outcome",
    "TaskJudge",
    "Verifier",
    "VerifierPool",
    "count_errors",
    "grade_all",
]
