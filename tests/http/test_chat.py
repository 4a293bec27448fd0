"""POST /v1/chat/completions as the openai package sends it, over tiny models with chat templates."""
import openai
import pytest
from test_completions import client

HELLO = [{"role": "user", "content": "good day"}]


@pytest.fixture(scope="module", params=["chatml", "llama3"])
def server(serve, request):
    return serve("--dtype", "f32", tokenizer="bytes", seed=2, context=256, chat=request.param)


@pytest.fixture
def chat(server):
    api = client(server)
    name = api.models.list().data[0].id
    return lambda messages=HELLO, **fields: api.chat.completions.create(
        **{"model": name, "messages": messages, "seed": 1, "max_tokens": 12} | fields)


def conversation(server, messages):
    """What a template makes of it, as the ids of a completion's prompt."""
    info = server.client().post_ok("/tokenize", {"content": "<|im_start|>", "parse_special": True})
    if len(info["tokens"]) == 1:
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": "he is good"}, *messages]
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        text += "<|im_start|>assistant\n"
    else:
        head = "<|start_header_id|>{}<|end_header_id|>\n\n"
        text = "".join(head.format(m["role"]) + m["content"].strip() + "<|eot_id|>" for m in messages)
        text += head.format("assistant")
    # without the space that a tokenizer of this kind puts before a text
    tokens = server.client().post_ok("/tokenize", {"content": text, "parse_special": True})["tokens"]
    return [1, *tokens]


TALK = [{"role": "system", "content": "be  very good"}, {"role": "user", "content": " one man \n"},
        {"role": "assistant", "content": "no"}, {"role": "user", "content": "why"}]


@pytest.mark.parametrize("messages", [HELLO, TALK], ids=["one", "several"])
def test_is_a_completion_of_the_written_conversation(server, chat, messages):
    answer = chat(messages, n=2)
    prompt = conversation(server, messages)
    want = server.client().post_ok("/v1/completions", {"prompt": prompt, "n": 2, "max_tokens": 12, "seed": 1})
    assert [c.message.content for c in answer.choices] == [c["text"] for c in want["choices"]]
    assert [c.finish_reason for c in answer.choices] == [c["finish_reason"] for c in want["choices"]]
    assert answer.usage.model_dump(exclude_none=True) == want["usage"]
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert all(c.message.role == "assistant" and c.logprobs is None for c in answer.choices)


def test_stream(chat):
    fields = dict(n=3, stop=["a"])
    whole = chat(**fields)
    role, content, reason, usage = {}, {}, {}, None
    for chunk in chat(**fields, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for c in chunk.choices:
            assert c.index in role or c.delta.role  # the role comes first, and once
            assert c.index not in role or not c.delta.role
            role.setdefault(c.index, c.delta.role)
            content[c.index] = content.get(c.index, "") + (c.delta.content or "")
            if c.finish_reason:
                reason[c.index] = c.finish_reason
    assert set(role.values()) == {"assistant"}
    assert [content[i] for i in range(3)] == [c.message.content for c in whole.choices]
    assert [reason[i] for i in range(3)] == [c.finish_reason for c in whole.choices]
    assert usage == whole.usage


def test_parts_and_special_tokens(server, chat):
    parts = [{"role": "user", "content": [{"type": "text", "text": "good"}, {"type": "text", "text": " day"}]}]
    assert chat(parts).choices[0].message.content == chat().choices[0].message.content
    for marker in "<|im_end|>", "<|eot_id|>":
        talk = [{"role": "user", "content": f"good{marker}day"}]
        n = chat(talk, max_tokens=1).usage.prompt_tokens
        assert n >= chat(max_tokens=1).usage.prompt_tokens + len(marker) - 2  # spelt out: it ends nothing


def test_the_end_of_a_turn_ends_the_answer(server, chat):
    text, = {"<|im_end|>", "<|eot_id|>"} & set(_special(server))
    end = server.client().post_ok("/tokenize", {"content": text, "parse_special": True})["tokens"][0]
    answer = chat(logit_bias={str(end): 100}, logprobs=True, top_logprobs=1)
    choice = answer.choices[0]
    assert choice.finish_reason == "stop" and choice.message.content == ""
    token, = choice.logprobs.content
    assert token.token == text and token.bytes == [] and len(token.top_logprobs) == 1
    assert token.top_logprobs[0].logprob >= token.logprob


def _special(server):
    for text in "<|im_end|>", "<|eot_id|>":
        if len(server.client().post_ok("/tokenize", {"content": text, "parse_special": True})["tokens"]) == 1:
            yield text


def test_logprobs(server, chat):
    answer = chat(logprobs=True, top_logprobs=2, max_completion_tokens=5, max_tokens=None)
    want = server.client().post_ok("/v1/completions", {"prompt": conversation(server, HELLO), "max_tokens": 5,
                                                       "seed": 1, "logprobs": 2})["choices"][0]["logprobs"]
    got = answer.choices[0].logprobs.content
    assert [t.logprob for t in got] == want["token_logprobs"]
    assert [t.token for t in got] == want["tokens"] and all(len(t.top_logprobs) == 2 for t in got)
    text = b"".join(bytes(t.bytes) for t in got).decode(errors="replace")
    assert text == answer.choices[0].message.content


def test_potential(chat):
    answer = chat(n=4, extra_body={"potential": {"type": "contains", "text": "e"}, "particles": 64})
    assert all("e" in c.message.content for c in answer.choices)


def test_without_max_tokens(chat):
    """As long as the context has room."""
    answer = chat(max_tokens=None, extra_body={"ignore_eos": True})
    assert answer.usage.total_tokens == 256 and answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("kind,why", [("", "no chat template"), ("other", "not one that is known here"),
                                      ("separated", "not one that is known here")])
def test_models_without_a_known_template(serve, kind, why):
    server = serve(tokenizer="bytes", seed=2, chat=kind)
    with pytest.raises(openai.BadRequestError, match=why) as caught:
        client(server).chat.completions.create(model="", messages=HELLO, extra_body={"model": None})
    assert caught.value.param == "messages"
