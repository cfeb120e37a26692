"""Reward functions for trainers, in the signatures that these call.

Each takes an open ``RewardModel``, or a model's folder with the options of ``RewardModel``: that is
opened at the first call, once in each process. None of them imports a trainer.
"""

from __future__ import annotations

import math
import os
from typing import Any, Awaitable, Callable, Dict, List, Sequence

from kudos import Errors
from kudos.integrations._source import Model, Source

Messages = Sequence[Dict[str, Any]]

#: Tokens with which text that a trainer decoded may end.
END_TOKENS = ("<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "</s>", "<eos>")


def conversation(prompt: str | Messages, completion: str | Messages) -> List[Dict[str, Any]]:
    """Returns the messages of a prompt and its completion, each a text or messages."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    return before + answer


def _optional(rewards: Any) -> List[float | None]:
    return [None if math.isnan(reward) else reward for reward in rewards.tolist()]


def trl_reward(model: Model, *, errors: Errors = "raise", **options: Any) -> Callable[..., List[float | None]]:
    """Returns an entry of ``reward_funcs`` of TRL's trainers.

    With ``errors="nan"`` the reward of what cannot be scored is ``None``, which TRL leaves out.
    """
    source = Source(model, options)

    def kudos_reward(prompts: Any, completions: Any, completion_ids: Any = None, **columns: Any) -> List[float | None]:
        rows = [conversation(*row) for row in zip(prompts, completions)]
        return _optional(source.model().score(rows, errors=errors))

    return kudos_reward


def trl_reward_async(model: Model, *, errors: Errors = "raise", **options: Any) -> Callable[..., Awaitable[List[float | None]]]:
    """Returns a coroutine function for ``reward_funcs``, which TRL awaits beside others."""
    source = Source(model, options)

    async def kudos_reward(prompts: Any, completions: Any, completion_ids: Any = None, **columns: Any) -> List[float | None]:
        rows = [conversation(*row) for row in zip(prompts, completions)]
        return _optional(await source.model().ascore(rows, errors=errors))

    return kudos_reward


def verl_reward(
    model: Model, *, prompt: str | Callable[[Dict[str, Any]], str | Messages] = "question", **options: Any
) -> Callable[..., Awaitable[float]]:
    """Returns the ``compute_score`` of verl's ``custom_reward_function``.

    verl passes the response alone. The prompt is what ``extra_info`` has under the key ``prompt``, or
    what the function ``prompt`` returns for ``extra_info``: a text, or messages.
    """
    source = Source(model, options)

    def prompt_of(extra_info: Dict[str, Any]) -> str | Messages:
        if callable(prompt):
            return prompt(extra_info)
        if prompt not in extra_info:
            keys = ", ".join(map(str, extra_info)) or "nothing"
            raise KeyError(f"`extra_info` has no `{prompt}`, the prompt; it has {keys}: give `prompt=` another key")
        return extra_info[prompt]  # type: ignore[no-any-return]

    async def compute_score(
        data_source: Any,
        solution_str: str,
        ground_truth: Any,
        extra_info: Dict[str, Any] | None = None,
        reward_router_address: Any = None,
        reward_model_tokenizer: Any = None,
        **others: Any,
    ) -> float:
        reward = await source.model().ascore(conversation(prompt_of(extra_info or {}), solution_str))
        return float(reward)

    return compute_score


def openrlhf_reward(
    model: Model,
    *,
    prompt: Callable[[str, Any], str | Messages] = lambda prompt, label: prompt,
    end_tokens: Sequence[str] = END_TOKENS,
    **options: Any,
) -> Callable[..., Dict[str, Any]]:
    """Returns the ``reward_func`` of a file for OpenRLHF's ``--reward.remote_url``.

    A query is a prompt and the response to it; end tokens behind that are left out. Where OpenRLHF
    applied the policy's chat template to prompts, ``prompt`` returns the text or the messages of one.
    """
    source = Source(model, options)

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **others: Any) -> Dict[str, Any]:
        rows = []
        for query, text, label in zip(queries, prompts, labels):
            if not query.startswith(text):
                raise ValueError(f"the query {query[:80]!r} does not begin with its prompt {text[:80]!r}")
            rows.append(conversation(prompt(text, label), _without(query[len(text) :], end_tokens)))
        rewards: Any = source.model().score(rows)
        try:
            import torch  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            pass
        else:
            rewards = torch.from_numpy(rewards)
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"kudos": rewards}}

    return reward_func


def _without(text: str, end_tokens: Sequence[str]) -> str:
    text = text.rstrip()
    while (end := next((end for end in end_tokens if text.endswith(end)), None)) is not None:
        text = text[: -len(end)].rstrip()
    return text


class areal_reward:
    """A ``reward_fn`` for AReaL, which calls it in a pool of processes: give the model's folder.

    ``prompt`` returns the text or the messages of a prompt, as for ``openrlhf_reward``; it gets the
    text and the row's other columns.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        prompt: Callable[[str, Dict[str, Any]], str | Messages] | None = None,
        end_tokens: Sequence[str] = END_TOKENS,
        **options: Any,
    ) -> None:
        self.source, self.prompt, self.end_tokens = Source(model, options), prompt, tuple(end_tokens)
        self.__name__ = "kudos_reward"

    def __call__(self, prompt: str, completions: str, prompt_ids: Any = None, completion_ids: Any = None, **columns: Any) -> float:
        before = prompt if self.prompt is None else self.prompt(prompt, columns)
        row = conversation(before, _without(completions, self.end_tokens))
        return float(self.source.model().score(row))
