"""The server's own interface with HTTP libraries: requests, aiohttp and httpx."""

import asyncio
import itertools
import json

import aiohttp
import httpx
import pytest
import requests
from conftest import PROMPT, RESPONSES, bits, expected, pairs, results_of

LINES = {"Content-Type": "application/x-ndjson"}
OBJECTS = [{"id": n, "prompt": f"What is {n}+{n}?", "response": str(2 * n)} for n in range(200)]


def line(object):
    return json.dumps(object).encode() + b"\n"


def test_requests_keep_a_connection_alive(server):
    with requests.Session() as session:
        answers = [session.post(f"{server.url}/v1/rewards", json=object, timeout=60) for object in OBJECTS]
        pools = session.get_adapter(server.url).poolmanager.pools
        [pool] = [pools[key] for key in pools.keys()]
        assert (pool.num_connections, pool.num_requests) == (1, len(OBJECTS))
    assert all(answer.status_code == 200 for answer in answers)
    # Requests keep their `id`, and all bits.
    assert [answer.json() for answer in answers] == results_of(OBJECTS)
    assert bits(answer.json()["reward"] for answer in answers) == expected(OBJECTS)


def test_requests_send_an_object_and_a_list(server):
    several = {"id": 1, "prompt": PROMPT, "responses": RESPONSES}
    mixed = [several, {"id": {"a": 2}, "messages": []}, OBJECTS[0], {"id": "b"}]
    answer = requests.post(f"{server.url}/v1/rewards", json=several, timeout=60)
    assert [answer.json()] == results_of([several])
    assert bits(answer.json()["rewards"]) == expected(pairs())
    answer = requests.post(f"{server.url}/v1/rewards", json=mixed, timeout=60)
    results = results_of(mixed)
    assert [list(result)[1] for result in results] == ["rewards", "error", "reward", "error"]
    for index in (1, 3):
        # The line of a file.
        del results[index]["error"]["place"]
    assert (answer.status_code, answer.json()) == (200, results)
    answer = requests.post(f"{server.url}/v1/rewards", json=mixed[1], timeout=60)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "invalid_input")


def test_requests_stream_lines_both_ways(server):
    body = (line(object) for object in OBJECTS)
    with requests.post(f"{server.url}/v1/rewards", data=body, headers=LINES, stream=True, timeout=60) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert [json.loads(text) for text in answer.iter_lines()] == results_of(OBJECTS)


def test_httpx_streams_lines_both_ways(server):
    with httpx.Client(timeout=60) as client:
        body = (line(object) for object in OBJECTS)
        with client.stream("POST", f"{server.url}/v1/rewards", content=body, headers=LINES) as answer:
            assert [json.loads(text) for text in answer.iter_lines()] == results_of(OBJECTS)

    async def stream():
        async def body():
            for object in OBJECTS:
                yield line(object)

        async with (
            httpx.AsyncClient(timeout=60) as client,
            client.stream("POST", f"{server.url}/v1/rewards", content=body(), headers=LINES) as answer,
        ):
            return [json.loads(text) async for text in answer.aiter_lines()]

    assert asyncio.run(stream()) == results_of(OBJECTS)


def run(of_session):
    """Runs a function of an aiohttp session."""

    async def within_session():
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session:
            return await of_session(session)

    return asyncio.run(within_session())


async def reward(session, url, object):
    async with session.post(f"{url}/v1/rewards", json=object) as answer:
        return await answer.json()


def test_aiohttp_has_the_same_rewards_from_64_requests_at_once(server):
    async def all_at_once(session):
        return await asyncio.gather(*(reward(session, server.url, object) for object in OBJECTS[:64]))

    async def one_after_the_other(session):
        return [await reward(session, server.url, object) for object in OBJECTS[:64]]

    together = run(all_at_once)
    assert together == run(one_after_the_other) == results_of(OBJECTS[:64])
    assert bits(result["reward"] for result in together) == expected(OBJECTS[:64])


def test_aiohttp_reads_each_result_before_it_sends_the_next_line(server):
    async def converse(session):
        read = asyncio.Event()
        results = []

        async def lines():
            for object in OBJECTS[:20]:
                read.clear()
                yield line(object)
                await read.wait()

        async with session.post(f"{server.url}/v1/rewards", data=lines(), headers=LINES) as answer:
            async for text in answer.content:
                results.append(json.loads(text))
                read.set()
        return results

    assert run(converse) == results_of(OBJECTS[:20])


def test_a_cancelled_request_is_scored_no_further(serve):
    server = serve()
    numbers = itertools.count()
    many = [{"prompt": f"What is {n}+1?", "response": "1 " * 100} for n in itertools.islice(numbers, 3000)]

    async def cancel(session):
        request = asyncio.create_task(reward(session, server.url, many))
        while await asyncio.to_thread(server.metric, "kudos_waiting_sequences") == 0:
            pass
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        # A line of a stream that is given up, too.
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.5):
                body = b"".join(map(line, many))
                await (await session.post(f"{server.url}/v1/rewards", data=body, headers=LINES)).read()

    run(cancel)
    server.wait_until("nothing waits", lambda: server.metric("kudos_waiting_sequences") == 0)
    assert server.metric("kudos_sequences_total") < 2 * len(many)
    assert run(lambda session: reward(session, server.url, OBJECTS[0])) == results_of(OBJECTS[:1])[0]


def test_requests_under_way_have_their_answers(serve):
    server = serve()
    many = [{"prompt": f"What is {n}+1?", "response": str(n + 1)} for n in range(1000)]

    async def end(session):
        requests = [asyncio.create_task(reward(session, server.url, many)) for _ in range(4)]
        while await asyncio.to_thread(server.metric, "kudos_waiting_sequences") < 3000:
            assert not any(request.done() for request in requests)
        server.terminate()
        for results in await asyncio.gather(*requests):
            assert bits(result["reward"] for result in results) == expected(many)

    run(end)
