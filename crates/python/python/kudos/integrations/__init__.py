"""kudos within other programs: reward functions for trainers, and scorers for engines of clusters.

Trainers call the functions of ``kudos.integrations.trainers``, which are here, too. Ray Data calls
``kudos.integrations.ray``; Spark, Daft and others call ``kudos.integrations.arrow``.
"""

from kudos.integrations._source import Model
from kudos.integrations.trainers import (
    END_TOKENS,
    Messages,
    areal_reward,
    conversation,
    openrlhf_reward,
    trl_reward,
    trl_reward_async,
    verl_reward,
)

__all__ = [
    "END_TOKENS",
    "Messages",
    "Model",
    "areal_reward",
    "conversation",
    "openrlhf_reward",
    "trl_reward",
    "trl_reward_async",
    "verl_reward",
]
