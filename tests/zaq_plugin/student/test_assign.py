"""Overrides: what a key means, which one wins, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from zaq_plugin.pwlq import PWLQSpec, UniformSpec
from zaq_plugin.student.assign import Overrides, classes_at, matches, module_classes

TWO, THREE, FOUR, SIX = (PWLQSpec(bits=bits) for bits in (2, 3, 4, 6))
EIGHT = UniformSpec(bits=8)


class Conv(nn.Conv2d):
    """A convolution of one's own."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 1)
        self.conv2 = Conv(3, 3, 1)


class Wide(Block):
    """A block that is derived from another."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.layer1 = nn.Sequential(Block(), Wide())
        self.layer10 = nn.Sequential(Block())
        self.fc = nn.Linear(3, 3)


LAYERS = [
    "stem",
    "layer1.0.conv1",
    "layer1.0.conv2",
    "layer1.1.conv1",
    "layer1.1.conv2",
    "layer10.0.conv1",
    "layer10.0.conv2",
    "fc",
]


def resolved(mapping: dict, default: int | None = 8) -> dict[str, object]:
    """What each layer of the network gets, where an override says so."""
    overrides, classes = Overrides(mapping, default), module_classes(Net())
    choices = {name: overrides.find(name, classes[name]) for name in LAYERS}
    return {name: choice.weights for name, choice in choices.items() if choice is not None}


# ---- what a key means ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("fc", ["fc"]),
        ("layer1", LAYERS[1:5]),  # and not layer10
        ("layer1.0", LAYERS[1:3]),
        ("layer1.*.conv1", ["layer1.0.conv1", "layer1.1.conv1"]),
        ("*conv2", ["layer1.0.conv2", "layer1.1.conv2", "layer10.0.conv2"]),
        ("layer?", LAYERS[1:5]),  # a pattern that fits a module around
        ("layer1.[!0]", LAYERS[3:5]),
        ("*", LAYERS),
        (nn.Linear, ["fc"]),
        (Conv, ["layer1.0.conv2", "layer1.1.conv2", "layer10.0.conv2"]),
        (nn.Conv2d, LAYERS[:-1]),  # classes derived from it, too
        (Wide, LAYERS[3:5]),
        (Block, LAYERS[1:-1]),
        (Net, LAYERS),
    ],
)
def test_what_a_key_means(key: object, meant: list[str]) -> None:
    assert resolved({key: SIX}) == dict.fromkeys(meant, SIX)


def test_a_name_with_brackets_is_found_as_it_is() -> None:
    assert matches("a[0]", "a[0]")
    assert matches("a[0]", "a0")
    assert not matches("a", "ab")


def test_classes_are_those_of_the_user() -> None:
    net = Net()
    parametrizations.weight_norm(net.fc)
    classes = module_classes(net)
    assert classes["fc"] == (nn.Linear, Net)
    assert classes["layer1.1.conv2"] == (Conv, Wide, nn.Sequential, Net)
    assert classes_at("layer1.0.scale", classes) == (Block, nn.Sequential, Net)
    assert classes_at("nowhere", classes) == (Net,)


# ---- which one wins ------------------------------------------------------------------------------


def both_ways(mapping: dict) -> list[dict]:
    """The order in which overrides are given does not matter."""
    return [mapping, dict(reversed(mapping.items()))]


def one(mapping: dict, layer: str) -> object:
    results = [resolved(m)[layer] for m in both_ways(mapping)]
    assert results[0] == results[1]
    return results[0]


def test_a_name_wins_over_patterns_these_over_classes() -> None:
    rising = {Net: EIGHT, nn.Conv2d: TWO, "*": THREE, "layer1": FOUR, "layer1.0.conv1": None}
    assert one(rising, "layer1.0.conv1") is None
    del rising["layer1.0.conv1"]
    assert one(rising, "layer1.0.conv1") == FOUR
    del rising["layer1"]
    assert one(rising, "layer1.0.conv1") == THREE
    del rising["*"]
    assert one(rising, "layer1.0.conv1") == TWO
    del rising[nn.Conv2d]
    assert one(rising, "layer1.0.conv1") == EIGHT


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("layer1", "layer1.0"),  # the inner module
        ("layer1.*", "layer1.0"),
        ("layer1", "layer1.*.conv1"),
        ("*.conv1", "layer1.0"),
        ("layer[123456789]*", "layer1"),  # wildcards do not count
        ("layer1*", "layer1.?.conv?"),
        ("l*", "l??????*"),  # as many characters: the longer one
    ],
)
def test_the_most_specific_pattern_or_module_wins(less: str, more: str) -> None:
    assert one({less: THREE, more: SIX}, "layer1.0.conv1") == SIX


def test_of_two_as_specific_ones_the_first_wins() -> None:
    assert resolved({"*conv1": SIX, "conv1*": TWO, "*onv1?": TWO})["layer1.0.conv1"] == SIX
    assert resolved({"l*r1": SIX, "la*1": TWO})["layer1.0.conv1"] == SIX
    assert resolved({"la*1": TWO, "l*r1": SIX})["layer1.0.conv1"] == TWO


def test_the_most_derived_class_wins_and_the_own_one_over_those_around() -> None:
    layer = "layer1.1.conv2"  # a Conv in a Wide in a Sequential in a Net
    around = {Net: TWO, nn.Sequential: THREE, Block: FOUR, Wide: SIX}
    assert one(around, layer) == SIX
    assert one({**around, nn.Conv2d: EIGHT}, layer) == EIGHT
    assert one({**around, nn.Conv2d: EIGHT, Conv: None}, layer) is None
    del around[Wide]
    assert one(around, layer) == FOUR


def test_aliases_are_names_like_the_first() -> None:
    overrides = Overrides({"model.head": SIX, "head*": TWO}, 8)
    choice = overrides.find("head", aliases=("model.head",))
    assert choice is not None
    assert choice.weights == SIX
    assert overrides.find("tail", aliases=("model.tail",)) is None


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "weights", "activations", "own", "reason"),
    [
        (SIX, SIX, 7, False, "override 'fc'"),
        ((SIX, 4), SIX, 4, True, "override 'fc'"),
        ((EIGHT, None), EIGHT, None, True, "override 'fc'"),
        ((SIX, TWO), SIX, TWO, True, "override 'fc'"),
        ((None, 8), None, 8, True, "override 'fc' is None"),
        (None, None, 7, False, "override 'fc' is None"),
    ],
)
def test_values(
    value: object, weights: object, activations: object, own: bool, reason: str
) -> None:
    choice = Overrides({"fc": value}, 7).find("fc")  # type: ignore[dict-item]
    assert choice is not None
    assert (choice.weights, choice.activations) == (weights, activations)
    assert (choice.own_activations, choice.reason) == (own, reason)


def test_nothing_to_override() -> None:
    for empty in (None, {}):
        overrides = Overrides(empty, 8)
        assert not overrides
        assert overrides.find("fc", (nn.Linear,)) is None
        overrides.require_used({})
    assert Overrides({nn.Linear: None}, 8).find("fc", (nn.Linear,)).reason == (  # type: ignore[union-attr]
        "override Linear is None"
    )


# ---- errors --------------------------------------------------------------------------------------

A_KEY = r"a key is a layer's name, a pattern .*, the name of a module .*, or a module class; got "
A_VALUE = (
    r"expected a weight format such as a PWLQSpec, a pair \(weight format or None, "
    r"activations\), or None for a layer that stays float; got "
)


@pytest.mark.parametrize(
    ("mapping", "error", "text"),
    [
        ({3: None}, TypeError, r"^overrides\[3\]: " + A_KEY + "3"),
        ({torch.Tensor: SIX}, TypeError, r"^overrides\[Tensor\]: " + A_KEY + "<class 'torch.T"),
        ({("a", "b"): SIX}, TypeError, r"^overrides\[\('a', 'b'\)\]: " + A_KEY),
        ({"fc": 4}, TypeError, r"^overrides\['fc'\]: " + A_VALUE + r"4\."),
        ({"fc": "pwlq3"}, TypeError, r"^overrides\['fc'\]: " + A_VALUE + r"'pwlq3'\."),
        ({"fc": (SIX,)}, TypeError, r"^overrides\['fc'\]: " + A_VALUE + r"\(PWLQSpec\(bits=6"),
        ({"fc": (SIX, 8, 8)}, TypeError, r"^overrides\['fc'\]: " + A_VALUE),
        ({"fc": [SIX, 8]}, TypeError, r"^overrides\['fc'\]: " + A_VALUE + r"\[PWLQSpec"),
        ({nn.Linear: (8, SIX)}, TypeError, r"^overrides\[Linear\]: " + A_VALUE + r"\(8, PWLQ"),
        ({"fc": (SIX, "8")}, TypeError, r"^overrides\['fc'\]: activations must be a n.*; got '8'"),
        ({"fc": (SIX, True)}, TypeError, r"^overrides\['fc'\]: activations must .*; got True"),
        ({"fc": (SIX, 9)}, ValueError, r"^overrides\['fc'\]: activations.* 2 to 8 bits; got 9"),
        ({"fc": (SIX, 1)}, ValueError, r"^overrides\['fc'\]: activations.* 2 to 8 bits; got 1"),
        (["fc"], TypeError, r"^overrides must be a mapping such as .*; got \['fc'\]"),
        ("fc", TypeError, r"^overrides must be a mapping such as .*; got 'fc'"),
    ],
)
def test_nonsense_is_refused(mapping: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Overrides(mapping, 8)


def layers_of_net() -> dict[str, tuple[type, ...]]:
    classes = module_classes(Net())
    return {name: classes[name] for name in LAYERS}


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"nowhere": None}, r"matches 'nowhere'\. The model's layers are: stem, layer1\.0\.conv1"),
        ({"stme": None}, r"matches 'stme' \(did you mean 'stem'\?\)\. "),
        ({"layer2": SIX, "fc": SIX}, r"matches 'layer2' \(did you mean 'layer1.*'\?\)\. "),
        ({"layer1.1.conv3": SIX}, r"matches 'layer1\.1\.conv3' \(did you mean 'layer1\.1\.conv"),
        ({"zz*": SIX}, r"matches 'zz\*'\. The model's"),
        ({nn.Conv3d: SIX}, r"matches Conv3d \(did you mean Conv2d\?\)\. "),
        ({"zz": SIX, nn.GRU: None, "stem": None}, r"matches 'zz', GRU\. The model's"),
    ],
)
def test_a_key_that_nothing_matches(mapping: dict, text: str) -> None:
    with pytest.raises(ValueError, match="^overrides: no layer " + text):
        Overrides(mapping, 8).require_used(layers_of_net())


def test_a_key_is_of_use_where_another_one_wins() -> None:
    mapping = {"fc": SIX, "f*": TWO, nn.Linear: None, Net: None}
    Overrides(mapping, 8).require_used(layers_of_net())


def test_what_is_no_layer_may_be_meant_but_is_not_listed() -> None:
    others = {"norm": (nn.LayerNorm,)}
    Overrides({"norm": None, nn.LayerNorm: None}, 8).require_used(layers_of_net(), others)
    with pytest.raises(ValueError, match="The model's layers are: stem") as caught:
        Overrides({"gone": None}, 8).require_used(layers_of_net(), others)
    assert "norm" not in str(caught.value)


def test_a_long_list_of_layers_is_cut() -> None:
    many = {f"layer{i}": (nn.Linear,) for i in range(30)}
    with pytest.raises(ValueError, match=r"layer0, layer1, .*, layer19 \.\.\.\.$"):
        Overrides({"zz": None}, 8).require_used(many)
