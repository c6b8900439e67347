"""λ-GRPO: each process step of a group counts once, however many responses went through it.

"GRPO is Secretly a Process Reward Model" (Sullivan and Koller, arXiv 2509.21154). With its outcome
rewards GRPO optimises the process rewards

    R_{i,t} = mean of r_j over λ(i, t),   A_{i,t} = (R_{i,t} − mean)/std   (see `prefix_sets`)

each multiplied by |λ| (Eq. 8): a popular prefix is pushed up, or down with what is good behind it,
as often as it was taken. Dividing each token's loss, its KL term too, by |λ| takes that away; the
outer denominator stays the number of tokens.

Theorem 1 (Σ over tokens with the advantage a_i equals Σ with A_{i,t}, in value and gradient) needs
one token-level normaliser for the group, a ratio that is 1, and equal log-probs on shared prefixes.
The authors' code is the per-sequence mean by default, and at their micro-batch of 1 whatever its
setting says. Not to be mixed up with arXiv 2510.06870, of the same name.

Three things to know. Responses that are copies of each other share one weight, so that the gradient
shrinks as entropy falls: compare with GRPO at matched gradient norm, too. It is no unbiased policy
gradient: every distinct prefix that was visited weighs about the same. Where nothing is shared it
is GRPO.
"""

from jaxtyping import Float, Int
from torch import Tensor

from training.groups import standardise
from training.prefix_sets import PrefixSets
from training.settings.outcome import LambdaGrpo


def lambda_weights(
    weights: Float[Tensor, "rows time"], sets: PrefixSets
) -> Float[Tensor, "rows time"]:
    """The token weights of `training.weighting`, each divided by |λ|; not scaled up again."""
    return weights * sets.loss_weights()


def process_advantages(
    rewards: Float[Tensor, "rows"],
    group: Int[Tensor, "rows"],
    sets: PrefixSets,
    settings: LambdaGrpo,
) -> Float[Tensor, "rows time"]:
    """A_{i,t}, the advantage of the induced PRM: what the group taught about each step.

    For the PRM-aware objective of Theorem 1, and to look at. λ-GRPO itself takes GRPO's a_i with
    λ's weights, which sums to A(λ) once per step.
    """
    standard = standardise(rewards, group, scale=settings.scale, epsilon=settings.epsilon)
    # Standardising is affine: the mean of a set's advantages is its mean reward, standardised.
    return sets.mean_rewards(standard)
