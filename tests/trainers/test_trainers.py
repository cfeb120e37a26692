"""The reward functions, called by the code of the trainers themselves. Where a trainer's package imports GPU libraries
at its root, the module with its reward path is loaded from its file, unchanged."""

import asyncio
import importlib
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from kudos import RewardModel
from kudos.integrations import areal_reward, trl_reward, trl_reward_async, verl_reward

os.chdir(Path(__file__).parents[2])
MODEL = "demo/model"
QUESTION, ANSWER = "What is 1+1?", "1+1=2"


@pytest.fixture(scope="module")
def model():
    with RewardModel(MODEL, device="cpu") as model:
        yield model


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def server():
    """The address of `kudos serve` from the wheel's own command."""
    command = [Path(sys.executable).with_name("kudos"), "serve", "--model", MODEL, "--device", "cpu", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    address = next(line.split("http://")[1].strip() for line in process.stderr if line.startswith("listening on"))
    yield address
    process.terminate()
    process.stderr.read()
    assert process.wait() == 0


def without_root(*packages):
    """Makes packages importable without running their `__init__`."""
    for name in packages:
        if name in sys.modules:
            continue
        parent, _, last = name.rpartition(".")
        if parent:
            path = [os.path.join(root, last) for root in sys.modules[parent].__path__]
        else:
            path = list(importlib.util.find_spec(name).submodule_search_locations)
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = path


def test_a_step_of_trl_s_trainer_has_our_rewards(model, tokenizer, tmp_path):
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    seen = []

    def recorded(prompts, completions, **columns):
        seen.extend(zip(prompts, completions))
        return [0.0] * len(prompts)

    options = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
    )
    prompts = [[{"role": "user", "content": QUESTION}]] * 4
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[trl_reward(model), trl_reward_async(model), recorded],
        args=options,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.train()
    expected = model.score([prompt + completion for prompt, completion in seen])
    log = next(entry for entry in trainer.state.log_history if "reward" in entry)
    print({key: value for key, value in log.items() if "reward" in key})
    assert len(seen) == 4
    assert log["rewards/kudos_reward/mean"] == pytest.approx(float(expected.mean()), abs=1e-5)
    assert log["rewards/kudos_reward/std"] == pytest.approx(float(expected.std(ddof=1)), rel=1e-4)


def executed_by_openrlhf(reward, tokenizer):
    """What OpenRLHF's executor makes of an answer, with the reward of a file or of a server."""
    without_root("openrlhf", "openrlhf.utils")
    agent = importlib.import_module("openrlhf.utils.agent")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    answer = tokenizer(ANSWER + "<|eot_id|>", add_special_tokens=False)["input_ids"]

    class Engine:
        async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
            output = types.SimpleNamespace(token_ids=answer, finish_reason="stop", logprobs=None)
            return types.SimpleNamespace(outputs=[output])

    sampling = types.SimpleNamespace(max_tokens=16, logprobs=None)
    executor = agent.SingleTurnAgentExecutor(reward)
    output = asyncio.run(executor.execute(text, "2", sampling, 512, tokenizer, Engine()))
    print(output["reward"], output["scores"], output["extra_logs"])
    return output


def test_openrlhf_s_executor_gets_our_reward(model, tokenizer, tmp_path):
    file = tmp_path / "reward.py"
    file.write_text(
        "from kudos.integrations import openrlhf_reward\n"
        f"reward_func = openrlhf_reward({MODEL!r}, prompt=lambda text, label: {QUESTION!r}, device='cpu')\n"
    )
    output = executed_by_openrlhf(str(file), tokenizer)
    expected = model.score(prompt=QUESTION, response=ANSWER)
    for value in (output["reward"], output["scores"], output["extra_logs"]["kudos"]):
        assert isinstance(value, torch.Tensor) and value.tolist() == [expected]


def test_openrlhf_s_executor_gets_the_server_s_reward(model, tokenizer, server):
    output = executed_by_openrlhf([f"http://{server}/get_reward"], tokenizer)
    expected = model.score(prompt=QUESTION, response=ANSWER)
    for value in (output["reward"], output["scores"]):
        assert torch.tensor(value, dtype=torch.float32).tolist() == [expected]
    assert output["extra_logs"] == {}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_verl_s_reward_loop_gets_the_server_s_reward(model, tokenizer, server, engine):
    import numpy
    from tensordict import TensorDict

    import verl
    import verl.experimental

    without_root("verl.experimental.reward_loop")
    # It starts servers of vLLM's or SGLang's; here is ours.
    servers = sys.modules["verl.experimental.reward_loop.reward_model"] = types.ModuleType("reward_model")
    servers.RewardModelManager = None
    loop = importlib.import_module("verl.experimental.reward_loop.reward_loop")
    ids = torch.tensor([tokenizer(ANSWER + "<|eot_id|>", add_special_tokens=False)["input_ids"]])
    data = verl.DataProto(
        batch=TensorDict({"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1),
        non_tensor_batch={"raw_prompt": numpy.array([[{"role": "user", "content": QUESTION}], None], dtype=object)[:1]},
    )
    # The class that Ray makes an actor of, without the servers that it would start.
    worker_class = getattr(loop.RewardLoopWorker, "__ray_actor_class__", loop.RewardLoopWorker)
    worker = object.__new__(worker_class)
    rollout = types.SimpleNamespace(name=engine)
    reward_model = types.SimpleNamespace(rollout=rollout, model_path=MODEL)
    worker.config = types.SimpleNamespace(reward=types.SimpleNamespace(reward_model=reward_model))
    worker.reward_router_address = server
    worker.input_tokenizer = worker.reward_model_tokenizer = tokenizer
    found = asyncio.run(worker.compute_score_disrm(data))
    print(found)
    # JSON has the digits that identify the float32.
    assert numpy.float32(found["reward_score"]) == model.score(prompt=QUESTION, response=ANSWER)


def test_areal_s_pool_gets_our_reward(model):
    without_root("areal", "areal.api")
    api = importlib.import_module("areal.api.reward_api")
    reward = api.AsyncRewardWrapper(areal_reward(MODEL, device="cpu", threads=1))
    found = asyncio.run(reward(QUESTION, ANSWER + "<|im_end|>", [1], [2], answer="2"))
    print(found)
    assert found == model.score(prompt=QUESTION, response=ANSWER)


def test_verl_s_reward_manager_gets_our_reward(model, tokenizer):
    import numpy
    from tensordict import TensorDict

    import verl
    import verl.experimental

    without_root("verl.experimental.reward_loop")
    naive = importlib.import_module("verl.experimental.reward_loop.reward_manager.naive")
    ids = torch.tensor([tokenizer(ANSWER, add_special_tokens=False)["input_ids"]])
    data = verl.DataProto(
        batch=TensorDict({"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1),
        non_tensor_batch={
            "data_source": numpy.array(["demo"], dtype=object),
            "reward_model": numpy.array([{"ground_truth": "2"}], dtype=object),
            "extra_info": numpy.array([{"question": QUESTION}], dtype=object),
        },
    )

    async def run():
        manager = naive.NaiveRewardManager({}, tokenizer, verl_reward(model))
        manager.loop = asyncio.get_running_loop()
        return await manager.run_single(data)

    found = asyncio.run(run())
    print(found)
    assert found["reward_score"] == model.score(prompt=QUESTION, response=ANSWER)
