"""The server with OpenAI's client: embeddings, completions in NIM's form, models, errors, keys, attempts."""

import asyncio
import base64
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from conftest import KEY, MESSAGES, RESPONSE, bits, expected, pairs


def connect(server, **options):
    options = {"api_key": "none", "max_retries": 0, "timeout": 60} | options
    return openai.OpenAI(base_url=f"{server.url}/v1", **options)


@pytest.fixture(scope="module")
def client(server):
    with connect(server) as client:
        yield client


def embedded(client, given, **options):
    """Returns the bits of the rewards of inputs."""
    answer = client.embeddings.create(model="any", input=given, **options)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return [reward for item in answer.data for reward in bits(item.embedding)]


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}], ids=["default", "float"])
def test_embeddings_of_texts_and_ids_are_rewards(client, rendered, ids_of, encoding):
    text, ids = rendered
    reward = expected(pairs([RESPONSE]))
    assert embedded(client, text, **encoding) == reward
    assert embedded(client, [text], **encoding) == reward
    assert embedded(client, ids, **encoding) == reward
    assert embedded(client, [ids], **encoding) == reward
    texts = [text, "1+1=2", "", "é ⏎ 𝄞"]
    lists = [ids, *(ids_of(text) for text in texts[1:])]
    rewards = expected([{"input_ids": ids} for ids in lists])
    assert embedded(client, texts, **encoding) == embedded(client, lists, **encoding) == rewards


def test_base64_that_is_asked_for_is_little_endian_f32(client, rendered):
    # The client decodes what it asks for itself, and leaves this to its caller.
    answer = client.embeddings.create(model="any", input=rendered[0], encoding_format="base64")
    assert [base64.b64decode(answer.data[0].embedding)] == expected(pairs([RESPONSE]))


def test_usage_and_model_come_back(client, rendered):
    text, ids = rendered
    answer = client.embeddings.create(model="a/b", input=[text, text])
    assert answer.model == "a/b"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 2 * len(ids)


def test_a_completion_is_a_reward_as_nim_writes_it(client):
    [reward] = expected([{"messages": MESSAGES}])
    answer = client.chat.completions.create(model="any", messages=MESSAGES)
    [choice] = answer.choices
    # As in NIM's documentation.
    named = {name: float(score) for name, score in (pair.split(":") for pair in choice.message.content.split(","))}
    assert {name: bits([value]) for name, value in named.items()} == {"reward": [reward]}
    # As CAMEL and NeMo Curator read it.
    [logprob] = choice.logprobs.content
    assert (logprob.token, bits([logprob.logprob])) == ("reward", [reward])
    parts = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in MESSAGES]
    answer = client.chat.completions.create(model="any", messages=parts)
    assert bits([float(answer.choices[0].message.content.split(":")[1])]) == [reward]


def test_models_are_the_served_names(client, serve):
    assert [model.id for model in client.models.list()] == ["model"]
    with connect(serve("--served-model-name", "reward", "--served-model-name", "rm")) as other:
        assert [model.id for model in other.models.list()] == ["reward", "rm"]
        assert other.embeddings.create(model="rm", input="a").model == "rm"
        with pytest.raises(openai.NotFoundError) as error:
            other.embeddings.create(model="gpt-4o", input="a")
        assert (error.value.type, error.value.code) == ("model", "404")


def test_errors_have_their_classes(client, server, serve):
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.embeddings.create(model="any", input="a " * 5000)
    assert error.value.type == "too_long" and "2048" in error.value.message
    with pytest.raises(openai.UnprocessableEntityError):
        client.embeddings.create(model="any", input=[1_000_000])
    with pytest.raises(openai.UnprocessableEntityError):
        client.embeddings.create(model="any", input="a", dimensions=3)
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="any", messages=MESSAGES, stream=True)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="any", prompt="a")
    with pytest.raises(openai.InternalServerError) as error:
        client.embeddings.create(model="any", input=["a " * 1000] * 64, extra_headers={"x-timeout-ms": "1"})
    assert error.value.status_code == 504
    with connect(serve("--body-limit-mib", "1")) as other, pytest.raises(openai.APIStatusError) as error:
        other.embeddings.create(model="any", input="a" * (2 << 20))
    assert error.value.status_code == 413
    with connect(server, timeout=0.001) as hasty, pytest.raises(openai.APITimeoutError):
        hasty.embeddings.create(model="any", input=["a " * 1000] * 64)


def test_a_full_queue_is_a_rate_limit_that_ends(serve, rendered):
    server = serve("--queue-tokens", "1000")
    text, _ = rendered
    reward = expected(pairs([RESPONSE]))
    many = [{"prompt": f"{n} " * 50, "response": str(n)} for n in range(100, 200)]
    limited = threading.Event()

    def fill():
        # Each counts for a fourth of the queue.
        while not limited.is_set():
            requests.post(f"{server.url}/v1/rewards", json=many, timeout=60)

    def ask():
        for _ in range(10_000):
            assert embedded(client, text) == reward

    with ThreadPoolExecutor(8) as pool, connect(server) as client, connect(server, max_retries=20) as patient:
        filled = [pool.submit(fill) for _ in range(8)]
        try:
            # From then on the server knows how fast it is, and how long a client should wait.
            server.wait_until("some are scored", lambda: server.metric("kudos_sequences_total") > len(many))
            with pytest.raises(openai.RateLimitError) as error:
                ask()
        finally:
            limited.set()
        assert error.value.type == "queue_full"
        assert 1 <= int(error.value.response.headers["retry-after"]) <= 60
        assert embedded(patient, text) == reward
        for future in filled:
            future.result()
    assert server.metric("kudos_refused_total") >= 1


def test_a_key_lets_its_clients_in(serve):
    server = serve(key=KEY)
    with connect(server, api_key=KEY) as client:
        reward = expected([{"messages": MESSAGES}])
        answer = client.chat.completions.create(model="any", messages=MESSAGES)
        assert bits([answer.choices[0].logprobs.content[0].logprob]) == reward
        assert [model.id for model in client.models.list()] == ["model"]
    for wrong in (KEY[:-1], KEY + "s", "none"):
        with connect(server, api_key=wrong) as client:
            for call in (lambda: client.models.list(), lambda: embedded(client, "a")):
                with pytest.raises(openai.AuthenticationError) as error:
                    call()
                assert error.value.type == "api_key"


def test_concurrent_rewards_are_those_of_one_after_the_other(server):
    objects = [{"prompt": f"What is {n}+{n}?", "response": str(2 * n)} for n in range(64)]
    rewards = expected(objects)

    async def all_at_once():
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:

            async def reward(object):
                turns = [{"role": "user", "content": object["prompt"]}]
                turns.append({"role": "assistant", "content": object["response"]})
                answer = await client.chat.completions.create(model="any", messages=turns)
                return answer.choices[0].logprobs.content[0].logprob

            return await asyncio.gather(*map(reward, objects))

    assert bits(asyncio.run(all_at_once())) == rewards
    with connect(server) as client:
        texts = [f"{object['prompt']} {object['response']}" for object in objects]
        together = embedded(client, texts)
        assert together == [reward for text in texts for reward in embedded(client, text)]
