"""What Python callers bring: arrays of many kinds, numbers, keywords, inputs of policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import h2osim
from h2osim import Stepper, Trace, UserError
from h2osim.policies.declaration import Policy
from h2osim.traces.arrays import precision

N, HEADS = 40, 4


def softmax(n: int = N, heads: int = HEADS, seed: int = 0) -> Any:
    """Causal attention float64 [heads, n, n], its rows distributions to the last bit but one."""
    x = np.random.default_rng(seed).normal(scale=3, size=(heads, n, n))
    x[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    p = np.exp(x - x.max(axis=2, keepdims=True))
    return p / p.sum(axis=2, keepdims=True)


ROWS = softmax().astype(np.float32)


def bits(trace: Trace, layer: int = 0) -> Any:
    return np.asarray(trace.tensor(layer, "scores"))


def bfloat16(rows: Any) -> Any:
    """Rounded to bfloat16 (to nearest, ties to even), as float32."""
    pattern = np.ascontiguousarray(rows, np.float32).view(np.uint32).astype(np.uint64)
    pattern += 0x7FFF + ((pattern >> np.uint64(16)) & np.uint64(1))
    return (pattern & np.uint64(0xFFFF0000)).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_byte_orders(kind: str, order: str) -> None:
    """A big-endian float16 array was taken for one of float32 and its sums refused."""
    expected = Trace.from_scores(ROWS.astype(kind))
    found = Trace.from_scores(ROWS.astype(order + kind))
    assert np.array_equal(bits(found), bits(expected))
    assert found.tensors(0) == expected.tensors(0)
    packed = bits(expected)[None]
    for dtype in (order + "f2", order + "u2"):
        again = packed.view(np.float16).astype(dtype) if "f" in dtype else packed.astype(dtype)
        assert np.array_equal(bits(Trace.from_packed(again)), bits(expected))


@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_rows_of_half_precision_that_were_cast_up(narrow: str, wide: Any, tmp_path: Path) -> None:
    """`.float()` on a half model's attentions: "found sum 1.0002, expected 1 within 1.2e-06"."""
    half = ROWS.astype(np.float16) if narrow == "float16" else bfloat16(ROWS)
    assert precision(half.astype(wide)) == narrow
    assert (np.abs(half.sum(axis=2, dtype=np.float64) - 1) > 1e-4).any()
    trace = Trace.from_scores(half.astype(wide), group_size=2)
    # every probability of the model is there, to the bit where float16 has it
    rows, columns = np.tril_indices(N)
    wanted = half[:, rows, columns].astype(np.float16)
    assert np.array_equal(bits(trace), wanted.view(np.uint16))
    trace.verify()
    saved = h2osim.open_trace(trace.save(tmp_path / "t"))
    saved.verify()
    assert saved.manifest["layers"] == [
        {**entry, **trace.manifest["layers"][0]} for entry in saved.manifest["layers"]
    ]
    for one in (trace, saved):
        found = h2osim.replay(one, "streaming:sinks=1", 8)["recall"].values
        exact = h2osim.replay(Trace.from_scores(ROWS, group_size=2), "streaming:sinks=1", 8)
        # rows rounded to 8 binary places differ by up to 2^-8 of themselves
        np.testing.assert_allclose(found, exact["recall"].values, atol=4e-3)


def test_rows_that_are_wrong_are_not_taken_for_half_precision() -> None:
    """A row that sums to 1.0002 is refused where it was computed in float32, to 1.02 everywhere."""

    def two(a: float, b: float) -> Any:
        return np.array([[1, 0], [a, b]], np.float32)

    with pytest.raises(UserError, match=r"head 0, row 1: found sum 1\.0002.*1 within 1\.2e-06"):
        Trace.from_scores(two(0.3334, 0.6668))
    for half in (two(0.35, 0.67).astype(np.float16), bfloat16(two(0.35, 0.67))):
        with pytest.raises(
            UserError, match=r"head 0, row 1: found sum 1\.0[12].* expected 1 within"
        ):
            Trace.from_scores(half.astype(np.float32))


def test_rows_of_bfloat16_are_no_looser_than_their_rounding() -> None:
    """An entry that float16 cannot hold tells bfloat16; half a unit of its last place is 2^-8."""
    tiny = 2.0**-40
    for second, fine in ((0.653, True), (0.67, False)):
        rows = bfloat16(np.array([[1, 0, 0], [0.5, 0.5, 0], [0.35, second, tiny]], np.float32))
        assert precision(rows) == "bfloat16"
        if fine:
            assert Trace.from_scores(rows).manifest["layers"][0]["computed_in"] == "bfloat16"
        else:
            with pytest.raises(UserError, match=r"row 2: found sum 1\.0214.* within 0\.0039"):
                Trace.from_scores(rows)


def test_float32_of_ten_binary_places_is_no_bfloat16() -> None:
    """Numbers that float16 could hold but for their size have three places more than bfloat16."""
    assert precision(np.array([(1 + 2.0**-10) * 2.0**-40], np.float32)) == "float32"


def test_rows_of_float32_are_kept_as_they_were() -> None:
    """Rows that float32 explains keep their sums, even where all numbers are short (1/2, 1/4)."""
    assert "row_sum" in Trace.from_scores(np.eye(4, dtype=np.float32)).tensors(0)
    assert "computed_in" not in Trace.from_scores(ROWS).manifest["layers"][0]


def test_tensors_of_pytorch(tmp_path: Path) -> None:
    """bfloat16 and gradients ended in PyTorch's own errors, `output_attentions` in a shape."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    single = torch.tensor(ROWS)
    plain = bits(Trace.from_scores(ROWS))
    assert np.array_equal(bits(Trace.from_scores(single.clone().requires_grad_())), plain)
    trace = Trace.from_scores(single.bfloat16())
    assert np.array_equal(bits(trace), bits(Trace.from_scores(bfloat16(ROWS))))
    for attentions in (
        tuple(single[None] for _ in range(3)),  # a model's output_attentions: [1, heads, n, n] each
        torch.stack([single[None]] * 3),
        [ROWS[None]] * 3,
    ):
        trace = Trace.from_scores(attentions, v_norm1=np.ones((3, 1, HEADS, N), np.float32))
        assert trace.layers == (0, 1, 2)
        assert all(np.array_equal(bits(trace, layer), plain) for layer in trace.layers)
    with pytest.raises(UserError, match="a batch of 2 sequences; expected one"):
        Trace.from_scores(tuple(torch.stack([single, single]) for _ in range(3)))
    with pytest.raises(
        UserError, match=r"parts of different shapes \(\[1, 4, 40, 40\], \[4, 40, 40"
    ):
        Trace.from_scores([single[None], single])
    q, k = torch.randn(1, 4, 9, 8).bfloat16(), torch.randn(1, 2, 9, 8).bfloat16()
    trace = Trace.from_qk(q[:, None], k, scale=np.float32(0.3), window=np.int64(4))
    assert np.array_equal(trace.tensor(0, "q"), q[0].float().numpy())


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "complex": (lambda: ROWS * 1j, "scores: found dtype complex64, expected a float dtype"),
    "masked": (
        lambda: np.ma.masked_array(ROWS, ROWS < 0.01),
        r"scores: found a masked array with \d+ entries masked",
    ),
    "ragged": (lambda: [[1.0], [0.5, 0.5]], "scores: found list, expected an array of floats"),
    "objects": (lambda: ROWS.astype(object), "scores: found dtype object"),
    "text": (lambda: "rows", "scores: found dtype <U4"),
    "nothing": (lambda: None, "scores: found dtype object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_array_of_numbers_is_one_line(name: str) -> None:
    """Imaginary parts and masks were dropped with a warning, lists ended in NumPy's error."""
    make, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        Trace.from_scores(make())
    assert "\n" not in str(caught.value)
    for tensor in ("v_norm1", "v"):
        if make() is not None:
            with pytest.raises(UserError, match=f"{tensor}: found"):
                Trace.from_scores(ROWS, **{tensor: make()})
    with pytest.raises(UserError, match="q: found"):
        Trace.from_qk(make(), ROWS[None], scale=1.0)


def test_a_masked_array_that_masks_nothing_is_an_array() -> None:
    assert np.array_equal(
        bits(Trace.from_scores(np.ma.masked_array(ROWS))), bits(Trace.from_scores(ROWS))
    )


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """`prompt_len=np.int32(3)` was no whole number, `layers=[0.5]` was layer 0."""
    trace = Trace.from_scores(
        ROWS, group_size=np.int64(2), prompt_len=np.uint8(3), layers=np.array([5]),
        model_heads=np.int16(HEADS), provenance={"seed": np.int64(4), "share": np.float32(0.5)},
    )  # fmt: skip
    saved = h2osim.open_trace(trace.save(tmp_path / "t"))
    assert (saved.layers, saved.group_size, saved.prompt_len) == ((5,), 2, 3)
    assert saved.manifest["provenance"] == {"seed": 4, "share": 0.5}
    runs: tuple[Any, ...] = ((np.int64(8), 8), (np.float32(0.25), 0.25), (np.array([8, 9]), [8, 9]))
    prompt: Any = np.int16(4)
    for budget, same in runs:
        a = h2osim.replay(trace, "h2o", budget, prompt_len=prompt)
        b = h2osim.replay(trace, "h2o", same, prompt_len=4)
        assert np.array_equal(a["kept"], b["kept"])
    slots: Any = np.int64(20)
    assert (h2osim.allocate(trace, slots)["slots"].sum(["layer", "unit"]) == 20).all()
    nine: Any = np.int64(9)
    assert h2osim.synth("powerlaw", nine, seed=nine, layers=nine).n == 9
    with pytest.raises(UserError, match=r"group_size: found 2\.5"):
        h2osim.synth("powerlaw", 9, group_size=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [5.7, 2.0, True, "2", np.float64(2), None])
@pytest.mark.parametrize("word", ["group_size", "prompt_len", "layers"])
def test_what_is_no_whole_number_is_refused(word: str, number: Any) -> None:
    """5.7 where 5 is meant was taken for 5, or ended in a TypeError."""
    if word == "prompt_len" and number is None:
        return
    given: dict[str, Any] = {word: [number] if word == "layers" else number}
    with pytest.raises(UserError, match=f"{word}: found"):
        Trace.from_scores(ROWS, **given)


@pytest.mark.parametrize("number", [5.7, True, "2"])
def test_what_is_no_whole_number_is_refused_by_a_run(number: Any) -> None:
    """A prompt of 3.5 tokens was one of 3."""
    trace = Trace.from_scores(ROWS)
    with pytest.raises(UserError, match="prompt length"):
        h2osim.replay(trace, "h2o", 8, prompt_len=number)
    with pytest.raises(UserError, match="prompt length"):
        h2osim.optimum(trace, 8, prompt_len=number)
    with pytest.raises(UserError, match="total"):
        h2osim.allocate(trace, number)
    with pytest.raises(UserError, match="budget"):
        h2osim.replay(trace, "h2o", number)
    with pytest.raises(UserError, match="prompt_len"):
        Stepper("h2o", 8, prompt_len=number)


def test_an_unknown_keyword_is_refused_with_a_near_miss() -> None:
    """`kv_heads=2` became a field of the manifest, and the trace had a cache a head."""
    for make, word, meant in (
        (lambda **x: Trace.from_scores(ROWS, **x), "kv_heads", "group_size"),
        (lambda **x: Trace.from_scores(ROWS, **x), "promptlen", "prompt_len"),
        (
            lambda **x: Trace.from_packed(bits(Trace.from_scores(ROWS))[None], **x),
            "layer",
            "layers",
        ),
        (lambda **x: Trace.from_qk(ROWS[None], ROWS[None], scale=1.0, **x), "windows", "window"),
    ):
        with pytest.raises(UserError, match=rf"is called {word}; did you mean {meant}"):
            make(**{word: 2})


# --- inputs of policies ---------------------------------------------------------------------------

BAD_INPUTS: dict[str, tuple[Callable[[int], Any], str]] = {
    "short": (lambda n: np.zeros(n - 1), r"found shape \[39\], expected \[40\]"),
    "long": (lambda n: np.zeros(n + 1), r"found shape \[41\], expected \[40\]"),
    "one number": (lambda n: 1.0, r"found shape \[\], expected \[40\]"),
    "square": (lambda n: np.zeros((n, n)), r"found shape \[40, 40\]"),
    "complex": (lambda n: np.zeros(n, complex), r"found complex128, expected \[40\] real numbers"),
    "objects": (lambda n: [None] * n, r"found object, expected \[40\] real numbers"),
    "ragged": (lambda n: [[1.0], [1.0, 2.0]], r"found list, expected \[40\] real numbers"),
    "NaN": (lambda n: np.r_[np.zeros(n - 1), np.nan], "token 39: found NaN"),
}


def by_input(make: Callable[[int], Any]) -> Policy:
    """Keeps the tokens of the largest numbers."""

    def rank(w: float) -> float:
        return w

    return Policy(
        "by-input", "A test's.", "none", rank=rank, inputs={"w": lambda unit, _: make(unit.n)}
    )


@pytest.mark.parametrize("engine", ["naive", "numba"])
@pytest.mark.parametrize("name", BAD_INPUTS)
def test_inputs_of_the_wrong_length_or_type(name: str, engine: str) -> None:
    """Compiled loops read foreign memory behind a short input: two equal runs differed."""
    make, message = BAD_INPUTS[name]
    with pytest.raises(UserError, match=f"policy by-input: its input w.*{message}"):
        h2osim.replay(Trace.from_scores(ROWS), by_input(make), 8, engine=engine)


def test_inputs_of_whole_numbers_and_lists_are_numbers() -> None:
    trace = Trace.from_scores(ROWS)
    wanted = h2osim.replay(trace, by_input(lambda n: np.arange(n, dtype=np.float64)), 8)["kept"]
    for make in (lambda n: list(range(n)), lambda n: np.arange(n, dtype=">i2")):
        for engine in ("naive", "numba"):
            found = h2osim.replay(trace, by_input(make), 8, engine=engine)["kept"]
            assert np.array_equal(found, wanted)


def test_inputs_given_to_a_stepper() -> None:
    """The stepper takes inputs from outside, block by block."""
    row = np.array([15360], np.uint16)
    for given, message in (
        (np.full(4, np.nan), "found NaN"),
        (np.zeros(4, complex), "found complex128"),
        (np.array(list("abcd")), "found <U1"),
    ):
        stepper = Stepper(by_input(np.zeros), 2, inputs={"w": given})
        with pytest.raises(UserError, match=f"policy by-input: its input w.*{message}"):
            stepper.step(row[None])
