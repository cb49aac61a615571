"""The generation loop: on an interpreter that only remembers, then on real files."""

from __future__ import annotations

import threading
import time

import causal_lms
import numpy as np
import pytest
from fake_interpreter import IMAGE, VOCABULARY, FakeInterpreter, metadata, next_logits

from tfmot_ternary import runtime
from tfmot_ternary.vlm import Generator, Sampling, convert_causal_lm
from tfmot_ternary.vlm import metadata as metadata_lib
from tfmot_ternary.vlm.sampling import Sampler


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Returns (metadata fields) -> (Generator, its FakeInterpreter)."""
    (tmp_path / "model.spm").write_bytes(causal_lms.tokenizer_proto(VOCABULARY))

    def made(image=None, **changes):
        record = metadata(image, **changes)
        fake = FakeInterpreter(record)
        monkeypatch.setattr(metadata_lib, "read", lambda path: record)
        monkeypatch.setattr(runtime, "make_interpreter", lambda path, **_: fake)
        return Generator(tmp_path / "model.tflite"), fake

    return made


def expected_ids(prompt, count, choose=np.argmax):
    """The loop without any cache: the whole context for each token."""
    context, new = list(prompt), []
    for _ in range(count):
        new.append(int(choose(next_logits(context))))
        context.append(new[-1])
    return new


def prompt_of(count):
    return np.random.default_rng(count).integers(2, VOCABULARY, count).tolist()


@pytest.mark.parametrize("count", range(1, 41))
def test_prompts_of_every_length(make, count):
    generator, fake = make()
    # The context before: nothing of it may be seen.
    list(generator.generate_ids(prompt_of(33), max_new_tokens=3))
    fake.calls.clear()
    prompt, room = prompt_of(count), 41 - count
    found = list(generator.generate_ids(prompt))
    assert found == expected_ids(prompt, room)
    assert generator.finish_reason == "context"
    prefills = [call for call in fake.calls if call[0] != "decode"]
    assert fake.calls[: len(prefills)] == prefills
    assert all(first + length <= 40 for _, first, length, _ in prefills)
    # The last token needs no step: nothing follows it.
    steps = [first for name, first, _, _ in fake.calls if name == "decode"]
    assert steps == list(range(count, 40))


def test_a_prompt_about_an_image_goes_in_one_call(make):
    generator, fake = make(IMAGE)
    image = np.full((8, 8, 3), 9, np.uint8)
    for count in (1, 4, 5, 16):
        prompt = prompt_of(count)
        found = list(generator.generate_ids(prompt, image, 3))
        assert found == expected_ids([9] * 4 + prompt, 3)
    prefills = [call for call in fake.calls if call[0].startswith("prefill")]
    assert [(name, count) for name, _, _, count in prefills] == [
        ("prefill_4", 1),
        ("prefill_4", 4),
        ("prefill_16", 5),
        ("prefill_16", 16),
    ]
    with pytest.raises(ValueError, match="prompt of 1 to 16 tokens, got 17.*prefill length"):
        generator.generate_ids(prompt_of(17), image)


def test_a_text_that_is_not_chunked_goes_in_one_call(make):
    generator, fake = make(chunked=False)
    for count in (1, 4, 5, 16):
        assert list(generator.generate_ids(prompt_of(count), max_new_tokens=3)) == expected_ids(
            prompt_of(count), 3
        )
    lengths = [length for name, _, length, _ in fake.calls if name != "decode"]
    assert lengths == [4, 4, 16, 16]
    with pytest.raises(ValueError, match="prompt of 1 to 16 tokens, got 17"):
        generator.generate_ids(prompt_of(17))


def test_an_image_is_encoded_once(make):
    generator, fake = make(IMAGE)

    def encoded():
        return sum(call[0] == "encode_image" for call in fake.calls)

    image = np.full((8, 8, 3), 9, np.uint8)
    first = generator.prefill([5], image)
    generator.prefill([5, 6], image.copy())
    generator.generate("sum", image, 2)
    generator.score("sum", image, "two")
    assert encoded() == 1
    image[0, 0] = 255  # another picture in the same array
    assert not np.array_equal(generator.prefill([5], image), first)
    assert encoded() == 2


def test_reasons_to_end(make):
    generator, fake = make()
    assert generator.finish_reason is None
    prompt = prompt_of(5)
    list(generator.generate_ids(prompt, max_new_tokens=4))
    assert generator.finish_reason == "length"
    list(generator.generate_ids(prompt))
    assert generator.finish_reason == "context"
    iterator = generator.generate_ids(prompt)
    next(iterator)
    assert generator.finish_reason is None
    third = expected_ids(prompt, 3)[2]

    def end_at_the_third(logits):
        if logits.argmax() == third:
            logits[1] = 100
        return logits

    fake.change = end_at_the_third
    assert list(generator.generate_ids(prompt)) == expected_ids(prompt, 2)
    assert generator.finish_reason == "end"


def test_stream_and_stop_strings(make):
    generator, _ = make()
    text = generator.generate("sum", max_new_tokens=20)
    pieces = list(generator.generate("sum", None, 20, stream=True))
    assert len(pieces) > 5
    assert "".join(pieces) == text
    for begin in (0, 3, len(text) // 2):
        stop = text[begin : begin + 4]
        wanted = text[: text.index(stop)]
        assert generator.generate("sum", max_new_tokens=20, stop=stop) == wanted
        assert generator.finish_reason == "stop"
        streamed = generator.generate("sum", None, 20, stream=True, stop=["@@", stop])
        assert "".join(streamed) == wanted
    assert generator.generate("sum", max_new_tokens=20, stop=["@@"]) == text
    assert generator.finish_reason == "length"
    # Nothing is computed behind the string.
    steps = generator.generate("sum", stream=True, stop=text[:2])
    assert not list(steps)


def test_sampling_follows_the_seed(make):
    generator, _ = make()
    prompt, sampling = prompt_of(6), Sampling(temperature=1.5, top_k=20, top_p=0.9, seed=11)
    found = list(generator.generate_ids(prompt, max_new_tokens=12, sampling=sampling))
    assert found == expected_ids(prompt, 12, Sampler(sampling))
    assert found == list(generator.generate_ids(prompt, max_new_tokens=12, sampling=sampling))
    assert found != expected_ids(prompt, 12)


def test_score_counts_every_answer_token(make):
    generator, fake = make()
    score = generator.score("sum", None, "two three")
    prompt = generator.tokenizer.encode_prompt("sum")
    answer = [*generator.tokenizer.encode("two three"), 1]
    assert score.token_ids.tolist() == answer
    for i, token in enumerate(answer):
        logits = next_logits([*prompt, *answer[:i]]).astype(np.float64)
        # Sums of float64 in another order.
        assert score.log_probs[i] == pytest.approx(
            logits[token] - np.log(np.exp(logits).sum()), rel=1e-12
        )
        assert score.greedy[i] == (logits.argmax() == token)
    assert len([c for c in fake.calls if c[0] == "decode"]) == len(answer) - 1
    with pytest.raises(ValueError, match="answer of at most"):
        generator.score("sum", None, "zebra " * 30)


def test_a_new_prompt_takes_over(make):
    generator, _ = make()
    first = generator.generate_ids(prompt_of(5))
    assert [next(first), next(first)] == expected_ids(prompt_of(5), 2)
    second = generator.generate_ids(prompt_of(7))
    assert next(first) == expected_ids(prompt_of(5), 3)[2]  # nothing has run for the second
    assert next(second) == expected_ids(prompt_of(7), 1)[0]
    with pytest.raises(RuntimeError, match="newer one has taken its place"):
        next(first)
    assert [next(second), next(second)] == expected_ids(prompt_of(7), 3)[1:]
    # Calls below the loop change the context too.
    generator.decode(5, 3)
    with pytest.raises(RuntimeError, match="newer one"):
        next(second)
    # A text that is left in the middle is in nobody's way.
    stream = generator.generate("sum", stream=True)
    next(stream)
    assert list(generator.generate_ids(prompt_of(5), max_new_tokens=4)) == expected_ids(
        prompt_of(5), 4
    )


def test_one_thread_at_a_time(make):
    generator, fake = make()
    generator.prefill([5, 6])
    inside, leave = threading.Event(), threading.Event()

    def wait(logits):
        inside.set()
        assert leave.wait(10)
        return logits

    fake.change = wait
    thread = threading.Thread(target=generator.decode, args=(7, 2))
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(RuntimeError, match="one Generator per thread"):
            generator.prefill([5])
    finally:
        leave.set()
        thread.join()
    fake.change = lambda logits: logits
    np.testing.assert_array_equal(generator.decode(8, 3), next_logits([5, 6, 7, 8]))


def test_interrupts_leave_a_generator_that_works(make):
    generator, fake = make()

    def interrupted(logits):
        raise KeyboardInterrupt

    for prepare in (lambda: None, lambda: next(generator.generate_ids([5, 6]))):
        prepare()
        fake.change = interrupted
        with pytest.raises(KeyboardInterrupt):
            generator.generate("sum")
        fake.change = lambda logits: logits
        assert list(generator.generate_ids([5, 6], max_new_tokens=3)) == expected_ids([5, 6], 3)


def test_steps_from_outside(make):
    generator, _ = make()
    np.testing.assert_array_equal(generator.prefill([5, 6, 7]), next_logits([5, 6, 7]))
    np.testing.assert_array_equal(generator.decode(8, 3), next_logits([5, 6, 7, 8]))
    # Over what is there: the rest is forgotten.
    np.testing.assert_array_equal(generator.decode(9, 1), next_logits([5, 9]))
    for position, message in [(3, "from 0 to 2"), (-1, "from 0 to 2"), (40, "context is full")]:
        with pytest.raises(ValueError, match=message):
            generator.decode(5, position)
    for token in (-1, VOCABULARY):
        with pytest.raises(ValueError, match="token id from 0 to 63"):
            generator.decode(token, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "at least one token"),
        ({"prompt": "  "}, "at least one token"),
        ({"prompt": 5}, "text as str"),
        ({"prompt": "zebra " * 30}, "prompt of 1 to 40 tokens.*cache_length"),
        ({"prompt": "sum", "image": np.zeros((8, 8, 3))}, "expected no image"),
        ({"prompt": "sum", "max_new_tokens": 0}, "max_new_tokens from 1"),
        ({"prompt": "sum", "max_new_tokens": 500}, "larger cache_length"),
        ({"prompt": "sum", "stop": ["a", ""]}, "at least one character"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_prompts(make, arguments, message, stream):
    generator, fake = make()
    with pytest.raises(ValueError, match=message):
        generator.generate(**arguments, stream=stream)
    assert not fake.calls


def test_an_image_that_is_missing(make):
    generator, _ = make(IMAGE)
    with pytest.raises(ValueError, match="is a vision-language model; pass `image`"):
        generator.generate("sum")


def test_broken_logits(make):
    generator, fake = make()
    fake.change = lambda logits: np.full_like(logits, np.nan)
    with pytest.raises(ValueError, match="expected finite logits from the model, got nan"):
        generator.generate("sum")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefill_lengths": []}, "ascending prefill_lengths"),
        ({"prefill_lengths": [16, 4]}, "ascending prefill_lengths"),
        ({"prefill_lengths": [41]}, "fits in the context"),
        ({"cache_length": 0}, "fits in the context"),
    ],
)
def test_lengths_that_no_conversion_writes(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_signatures_of_another_model(make, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(FakeInterpreter, "get_signature_list", lambda self: {"serving_default": None})
        with pytest.raises(ValueError, match=r"signatures \['decode', 'prefill_16', 'prefill_4'\]"):
            make()
    generator, fake = make()
    fake.metadata = metadata(IMAGE)
    with pytest.raises(ValueError, match="do not belong together"):
        Generator(generator.path)


def test_python_takes_little_time_per_token(make):
    """Beside the interpreter's call a step costs microseconds: thousands of steps a second."""
    generator, fake = make()
    logits = next_logits([5])
    runner = type("Runner", (), {"__call__": lambda self, **inputs: {"logits": logits[None]}})()
    generator._session._decode = runner
    del fake
    times = []
    for _ in range(5):
        start = time.perf_counter()
        list(generator.generate_ids([5]))
        times.append((time.perf_counter() - start) / 40)
    assert min(times) < 200e-6  # about 10 on a quiet machine


@pytest.fixture(scope="module")
def text_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "model.tflite"
    convert_causal_lm(causal_lms.gemma(), path, prefill_lengths=[3, 8], cache_length=30)
    return path


def test_chunks_of_a_real_model_equal_single_steps(text_path):
    generator, stepped = Generator(text_path), Generator(text_path)
    for count in (1, 3, 5, 17, 29, 30):
        prompt = prompt_of(count)
        whole = generator.prefill(prompt)
        steps = stepped.prefill(prompt[:1])
        for position in range(1, count):
            steps = stepped.decode(prompt[position], position)
        # The same sums in other orders: 1e-4 of the largest logit is some hundred roundings.
        assert np.abs(whole - steps).max() <= 1e-4 * np.abs(steps).max(), count
        if count < 30:
            after, expected = generator.decode(7, count), stepped.decode(7, count)
            assert np.abs(after - expected).max() <= 1e-4 * np.abs(expected).max(), count


def test_several_generators_in_threads(text_path):
    prompts = [prompt_of(count) for count in (4, 9, 14, 19)]
    one = Generator(text_path)
    expected = [list(one.generate_ids(prompt)) for prompt in prompts]
    generators = [Generator(text_path, num_threads=1 + i % 2) for i in range(len(prompts))]
    found = [[] for _ in prompts]

    def run(i):
        for _ in range(3):
            found[i].append(list(generators[i].generate_ids(prompts[i])))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[ids] * 3 for ids in expected]


def test_open_texts_of_two_generators_do_not_meet(text_path):
    generators = Generator(text_path), Generator(text_path)
    prompts = prompt_of(6), prompt_of(11)
    expected = [list(g.generate_ids(p)) for g, p in zip(generators, prompts, strict=True)]
    texts = [g.generate_ids(p) for g, p in zip(generators, prompts, strict=True)]
    pairs = list(zip(*texts, strict=False))
    assert [list(ids) for ids in zip(*pairs, strict=True)] == [e[: len(pairs)] for e in expected]


def test_a_context_that_runs_full(text_path):
    generator = Generator(text_path)
    prompt = next(
        p
        for p in map(prompt_of, range(5, 30))
        if len(p) + len(list(generator.generate_ids(p))) == 31
    )
    assert generator.finish_reason == "context"
    new = list(generator.generate_ids(prompt))
    # The last token follows from all 30 positions; there is no place for itself.
    logits = generator.prefill([*prompt, *new[:-1]])
    assert int(logits.argmax()) == new[-1]
    with pytest.raises(ValueError, match="context is full"):
        generator.decode(new[-1], 30)
