"""The server with the clients of Hugging Face, LlamaIndex and Cohere."""

import asyncio

import cohere
import pytest
from cohere.core.api_error import ApiError
from conftest import KEY, MESSAGES, PROMPT, RESPONSE, RESPONSES, bits, expected, pairs, ranked
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference


@pytest.mark.parametrize("path", ["/", "/predict", ""])
def test_huggingface_hub_classifies(server, rendered, ids_of, path):
    text, _ = rendered
    client = InferenceClient(server.url + path, timeout=60)
    for given, object in [(text, pairs([RESPONSE])[0]), ("1+1=2", {"input_ids": ids_of("1+1=2")})]:
        answer = client.text_classification(given)
        # The client takes the first item of the list that TEI answers with.
        assert answer.label == "LABEL_0"
        assert bits([answer.score]) == expected([object])


def test_huggingface_hub_has_errors_and_keys(server, serve):
    with pytest.raises(HfHubHTTPError) as error:
        InferenceClient(f"{server.url}/predict", timeout=60).text_classification("a " * 5000)
    assert error.value.response.status_code == 422
    assert "too_long" in str(error.value) or "2048" in str(error.value)
    with pytest.raises(HfHubHTTPError):
        # It asks for values that are not served.
        InferenceClient(f"{server.url}/", timeout=60).text_classification("a", top_k=2)
    url = f"{serve(key=KEY).url}/predict"
    assert InferenceClient(url, token=KEY, timeout=60).text_classification("a").label == "LABEL_0"
    with pytest.raises(HfHubHTTPError) as error:
        InferenceClient(url, token="another", timeout=60).text_classification("a")
    assert error.value.response.status_code == 401


def test_llama_index_reranks(server, serve):
    best = ranked(pairs())

    def order(**options):
        nodes = [NodeWithScore(node=TextNode(id_=str(index), text=text)) for index, text in enumerate(RESPONSES)]
        nodes = TextEmbeddingInference(top_n=3, **options).postprocess_nodes(nodes, QueryBundle(PROMPT))
        return [(int(node.node.node_id), *bits([node.score])) for node in nodes]

    assert order(base_url=server.url) == best[:3]
    assert order(base_url=serve(key=KEY).url, auth_token=f"Bearer {KEY}") == best[:3]


def test_cohere_reranks_by_v1_and_v2(server):
    best = ranked(pairs())
    given = {"model": "any", "query": PROMPT, "documents": RESPONSES}
    for make in (cohere.Client, cohere.ClientV2):
        client = make("none", base_url=server.url, timeout=60)
        for options, count in [({}, 4), ({"top_n": 2}, 2), ({"top_n": 100}, 4)]:
            answer = client.rerank(**given, **options)
            results = [(result.index, *bits([result.relevance_score])) for result in answer.results]
            assert results == best[:count]
    answer = cohere.Client("none", base_url=server.url, timeout=60).rerank(**given, return_documents=True)
    assert [result.document.text for result in answer.results] == [RESPONSES[index] for index, _ in best]

    async def rerank():
        async with cohere.AsyncClientV2("none", base_url=server.url, timeout=60) as client:
            return await asyncio.gather(*(client.rerank(**given) for _ in range(8)))

    for answer in asyncio.run(rerank()):
        assert [(result.index, *bits([result.relevance_score])) for result in answer.results] == best


def test_cohere_has_errors_and_keys(server, serve):
    once = {"max_retries": 0}
    client = cohere.ClientV2("none", base_url=server.url, timeout=60)
    with pytest.raises(cohere.UnprocessableEntityError):
        client.rerank(model="any", query=PROMPT, documents=["a " * 5000], request_options=once)
    with pytest.raises(cohere.UnprocessableEntityError):
        client.rerank(model="any", query=PROMPT, documents=["a"], max_tokens_per_doc=3, request_options=once)
    url = serve("--served-model-name", "reward", key=KEY).url
    given = {"query": PROMPT, "documents": [RESPONSE], "request_options": once}
    answer = cohere.ClientV2(KEY, base_url=url, timeout=60).rerank(model="reward", **given)
    assert bits([answer.results[0].relevance_score]) == expected([{"messages": MESSAGES}])
    with pytest.raises(cohere.NotFoundError):
        cohere.ClientV2(KEY, base_url=url, timeout=60).rerank(model="rerank-v4", **given)
    with pytest.raises(ApiError) as error:
        cohere.ClientV2("another", base_url=url, timeout=60).rerank(model="reward", **given)
    assert error.value.status_code == 401
