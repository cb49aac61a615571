"""Sampling against the definition, stop strings, and the cutting of prompts."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

from tfmot_ternary.vlm import Sampling, chunks, stopping
from tfmot_ternary.vlm.sampling import Sampler, _place, kept


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def defined(logits, sampling):
    """The probabilities as the documentation defines them: one sort of everything."""
    probabilities = softmax(logits.astype(np.float64) / sampling.temperature)
    order = sorted(range(len(logits)), key=lambda i: (-probabilities[i], i))
    order = order[: sampling.top_k or len(order)]
    whole, total, chosen = sum(probabilities[i] for i in order), 0.0, []
    for i in order:
        chosen.append(i)
        total += probabilities[i] / whole
        if sampling.top_p is not None and total >= sampling.top_p:
            break
    result = np.zeros(len(logits))
    result[chosen] = probabilities[chosen] / probabilities[chosen].sum()
    return result


@pytest.mark.parametrize("size", [5, 64, 65, 3000])
@pytest.mark.parametrize("top_k", [None, 1, 3, 64, 100])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.7, 0.999, 1.0])
def test_kept_tokens_equal_the_definition(size, top_k, top_p):
    rng = np.random.default_rng([size, top_k or 0, int(1000 * (top_p or 0))])
    sampling = Sampling(temperature=0.8, top_k=top_k, top_p=top_p)
    logits = rng.normal(0, 2, size).astype(np.float32)
    logits[rng.integers(0, size, size // 2)] = np.float32(1.5)  # many that are equally likely
    ids, weights = kept(logits, sampling)
    found = np.zeros(size)
    found[ids] = weights / weights.sum()
    # All tokens at once are weighted in float32: a few roundings of 6e-8, times an exponent of up
    # to 20. One token too many or too few would be seen here.
    np.testing.assert_allclose(found, defined(logits, sampling), rtol=1e-5, atol=1e-12)


def test_draws_have_the_probabilities():
    sampling = Sampling(temperature=1.3, top_k=4, seed=7)
    logits = np.array([0.1, 2.0, -1.0, 1.5, 0.3, -3.0], np.float32)
    sampler = Sampler(sampling)
    draws = 20_000
    counts = np.bincount([sampler(logits) for _ in range(draws)], minlength=6)
    expected = defined(logits, sampling)
    # Five standard deviations of a binomial count, for a fixed seed.
    bound = 5 * np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) <= bound).all()
    assert counts[[2, 5]].sum() == 0


@pytest.mark.parametrize("size", [1, 511, 512, 513, 5000])
def test_places_of_a_running_sum(size):
    rng = np.random.default_rng(size)
    weights = rng.integers(0, 4, size).astype(np.float32)  # integers: sums are exact
    weights[0] = 1
    total = np.cumsum(weights)
    for share in [0.0, *rng.random(50), np.nextafter(1.0, 0.0)]:
        expected = int((total <= share * total[-1]).sum())
        place = _place(weights, share)
        assert weights[place] > 0
        assert place == min(expected, int(np.flatnonzero(weights)[-1])), share


def test_seeds_and_greedy():
    logits = np.random.default_rng(0).normal(size=500).astype(np.float32)

    def drawn(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler(logits) for _ in range(10)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)
    assert Sampler(Sampling())(logits) == logits.argmax()
    # A tiny temperature is greedy in all but name, and nothing overflows.
    assert Sampler(Sampling(temperature=1e-30))(logits) == logits.argmax()
    # Tokens that the model rules out are never drawn.
    logits[10:] = -np.inf
    sampler = Sampler(Sampling(temperature=100.0, top_p=1.0, seed=0))
    assert {sampler(logits) for _ in range(200)} == set(range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature of 0"),
        ({"temperature": float("nan")}, "temperature of 0"),
        ({"temperature": float("inf")}, "temperature of 0"),
        ({"temperature": "1"}, "temperature of 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k of at least 1"),
        ({"temperature": 1.0, "top_k": 1.5}, "top_k of at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p above 0"),
        ({"temperature": 1.0, "top_p": 1.01}, "top_p above 0"),
        ({"seed": -1}, "seed of at least 0"),
        ({"top_k": 5}, "temperature above 0 with top_k"),
        ({"top_p": 0.5}, "temperature above 0 with top_k"),
    ],
)
def test_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(bad, temperature):
    logits = np.zeros(9, np.float32)
    logits[4] = bad
    with pytest.raises(ValueError, match="expected finite logits .* for token 4"):
        Sampler(Sampling(temperature=temperature))(logits)
    with pytest.raises(ValueError, match="expected finite logits"):
        Sampler(Sampling(temperature=temperature))(np.full(9, -np.inf, np.float32))


@pytest.mark.parametrize("stop", [("END",), ("ab", "bcd"), ("aab",), ("\n\n", "x"), ()])
def test_text_ends_before_the_first_stop_string(stop):
    text = "xaab abcd\n\nEND aaab"[1:]
    places = [text.index(s) for s in stop if s in text]
    expected = text[: min(places)] if places else text
    # However the text is cut into pieces.
    for size in range(1, len(text) + 1):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        found = []
        shown = list(stopping.until(iter(pieces), stop, functools.partial(found.append, 1)))
        assert "".join(shown) == expected, (size, shown)
        assert all(shown)
        assert bool(found) == bool(places)


def test_nothing_is_held_back_without_need():
    pieces = stopping.until(iter(["one ", "two", "\n", "three"]), ["\n\n"])
    assert list(pieces) == ["one ", "two", "\nthree"]


def test_bad_stop_strings():
    assert stopping.stop_strings("a b") == ("a b",)
    assert stopping.stop_strings(["a", "b"]) == ("a", "b")
    for bad in ("", ["a", ""], [3]):
        with pytest.raises(ValueError, match="stop strings of at least one character"):
            stopping.stop_strings(bad)


def cheapest(count, lengths):
    """Every way to cover a prompt, tried."""
    calls = -(-count // min(lengths))
    return min(
        sum(chosen) + chunks.CALL_COST * n
        for n in range(1, calls + 1)
        for chosen in itertools.combinations_with_replacement(lengths, n)
        if sum(chosen) >= count
    )


@pytest.mark.parametrize("lengths", [[16], [4, 16], [5, 7, 24], [40], [16, 64]])
def test_prompts_are_cut_at_the_least_cost(lengths):
    for count in range(1, 41):
        plan = chunks.plan(count, lengths, 40)
        assert sum(c.length + chunks.CALL_COST for c in plan) == cheapest(count, lengths)
        done = 0
        for chunk in plan:
            assert 0 <= chunk.begin <= done
            assert chunk.length in lengths
            assert chunk.begin + chunk.length <= 40  # nothing behind the end of the context
            assert chunk.begin + chunk.count > done
            done = chunk.begin + chunk.count
        assert done == count
