"""Structure strings are read, written back, refused with a pointer, and turned into layer problems."""

import math

import pytest

from impls.nn.structure import (
    PUBLISHED,
    AveragePool,
    Conv,
    Dense,
    Dropout,
    Flatten,
    MaxPool,
    Structure,
    parse,
    problems,
    steps,
)
from impls.specs import SpecError, arguments

PUBLISHED_PARAMETERS = {
    "olivetti": (33136, 264808, 268968, 133944, 266120, 69576, 266184, 135552, 134400, 270112, 147136),
    "mnist": (118282, 669706, 932362, 1610250, 1012362, 879754, 484714, 435306, 452202, 452202),
    "cifar10": (
        *(2103818, 2103818, 1050890, 1050890, 1054730, 581706, 539418, 611498, 591274, 591274, 550570, 550570),
    ),
}


def test_every_kind_of_layer_is_read():
    """One of each, with its arguments and default activation."""
    layers = (Conv(5, 8, "relu"), MaxPool(4), AveragePool(2), Dropout(0.25), Flatten(), Dense(64), Dense(40, "softmax"))
    assert parse("C(5,8,r);M(4);A(2);DR(0.25);F();D(64);D(40,sm);") == Structure(layers)


def test_the_long_form_is_the_short_one_spelt_out():
    """And is read back."""
    structure = parse("64x64x1->C(5,8,r)x2;M(4);A(2);DR(0.25);F();D(64);D(40,sm);")
    long = "64x64x1->C(5,8,relu);C(5,8,relu);M(4);A(2);DR(0.25);F();D(64);D(40,softmax);"
    assert structure.long == long
    assert parse(long) == structure


@pytest.mark.parametrize(
    "text",
    [
        "C(3,8,r)x2;F();D(4,sm);",
        "C(3,8,r)\u00d72;F();D(4,sm)",
        "C(3,8,relu);C(3,8,r); F(); D(4,softmax)",
        " C( 3, 8, relu )x2 ; F( ) ;D(4,sm) ; ",
    ],
)
def test_spellings_of_one_structure_are_equal(text):
    """Repetition, long activations, blanks and the last semicolon are a matter of taste."""
    assert str(parse(text)) == "C(3,8,r)x2;F();D(4,sm);"


def test_an_image_shape_before_the_arrow_is_kept_and_must_agree():
    """A structure written for one image shape is refused for another."""
    structure = parse("8x6x1->F();D(3,t)")
    assert structure.image_shape == (8, 6, 1)
    assert parse(str(structure)) == structure
    assert len(problems(structure, (8, 6, 1), 2)) == 1
    with pytest.raises(SpecError, match=r"is for images of \(8, 6, 1\), not \(8, 8, 1\)"):
        problems(structure, (8, 8, 1), 2)


@pytest.mark.parametrize(
    ("text", "character", "message"),
    [
        ("", 1, "expected one of the layers"),
        ("C(3,8,r);X(2)", 10, "expected one of the layers"),
        ("C(3;8)", 4, "expected a comma and the number of filters"),
        ("C(3,8,rel)", 7, "unknown activation 'rel'"),
        ("M(2);F(3)", 8, "expected a closing bracket"),
        ("M(2) F()", 6, "expected a semicolon"),
        ("M(2);D(0)", 6, "units=0 must be at least 1"),
        ("DR(1)", 1, "rate=1.0 must be at least 0 and below 1"),
        ("C(3,8)x0", 8, "how often the layer is repeated"),
        ("D(3)y2", 5, "expected a semicolon"),
    ],
)
def test_an_error_points_at_the_character(text, character, message):
    """The caret under the text stands where the message says."""
    with pytest.raises(SpecError) as caught:
        parse(text)
    first, shown, caret = str(caught.value).split("\n")
    assert message in first
    assert f"at character {character} " in first
    assert shown == f"  {text}"
    assert caret == " " * (character + 1) + "^"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("F();C(3,8)", r"layer c1, C\(3,8\), .*: needs an image, but gets a row of 64"),
        ("D(3)", r"layer d0, D\(3\), .*: needs a row, but gets an image"),
        ("M(4);M(4)", r"layer m1, M\(4\), .*: its window is larger than the image"),
    ],
)
def test_shapes_that_do_not_chain_name_the_layer(text, message):
    """The message says which layer, and what it was given."""
    with pytest.raises(SpecError, match=message):
        problems(parse(text), (8, 8, 1), 5)


def test_problems_are_same_convolutions_side_by_side_pools_and_dense_layers():
    """Relu is fused, other activations are not; an incomplete window is dropped."""
    found = problems(parse("C(3,4,r);M(2);DR(0.5);C(5,2,t);F();D(6,r);D(3,sm)"), (7, 9, 2), 5)
    assert [str(case) for case in found] == [
        "conv2d:5x7x9x2,k3x3,f4,relu",
        "maxpool2d:5x7x9x4,pool2x2",
        "conv2d:5x3x4x4,k5x5,f2",
        "dense:5x24,u6,relu",
        "dense:5x6,u3",
    ]


def test_there_are_33_published_structures():
    """Eleven, ten and twelve, numbered from one."""
    numbers = {name: [p.number for p in PUBLISHED if p.dataset == name] for name in PUBLISHED_PARAMETERS}
    assert numbers == {name: list(range(1, len(n) + 1)) for name, n in PUBLISHED_PARAMETERS.items()}


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p.dataset}:{p.number}")
def test_a_published_structure_has_the_published_number_of_parameters(published):
    """Counted twice, from the layers and from the shapes of their problems; the text form reads back."""
    expected = PUBLISHED_PARAMETERS[published.dataset][published.number - 1]
    shapes = (
        a.shape for case in published.problems() if case.op != "maxpool2d" for a in arguments(case.spec, "forward")[1:3]
    )
    assert sum(step.parameters for step in steps(published.structure, published.image_shape)) == expected
    assert sum(math.prod(shape) for shape in shapes) == expected
    assert parse(str(published.structure)) == published.structure
