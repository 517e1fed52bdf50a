import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from zaq_plugin.pwlq import PWLQSpec, UniformSpec
from zaq_pt2e import PWLQQuantizer, audit, lower, pack, unpack
from zaq_pt2e.packing import codes_and_codebook


def converted_of(net, images, export, *args, **options):
    prepared = prepare_pt2e(export(net, images), PWLQQuantizer(*args, **options))
    with torch.no_grad():
        prepared(images)
        return convert_pt2e(prepared)


def weight_bytes(model):
    return sum(
        v.numel() * v.element_size()
        for k, v in model.state_dict().items()
        if not v.is_floating_point() and "zero_point" not in k
    )


@pytest.fixture
def wide(images):
    """A layer large enough that codes outweigh codebooks."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 32, 7)).eval()


def test_packed_codes_compute_the_same_and_take_their_bits(wide, images, export):
    converted = converted_of(wide, images, export, PWLQSpec(bits=3), exclude=["0"])
    packed = pack(converted)
    with torch.no_grad():
        assert torch.equal(packed(images), converted(images))
        assert torch.equal(unpack(packed)(images), converted(images))
    numel = wide[1].weight.numel()
    assert weight_bytes(converted) == numel
    levels = PWLQSpec(bits=3).num_levels
    assert weight_bytes(packed) <= numel * 4 / 8 + 32 * levels
    assert [str(n.target) for n in packed.graph.nodes].count("zaq.pwlq_dequantize.default") == 1


def test_a_round_trip_gives_the_same_integers(net, images, export):
    converted = converted_of(net, images, export, PWLQSpec(bits=2))
    back = unpack(pack(converted))

    def integers(model):
        nodes = [n for n in model.graph.nodes if "dequantize_per_channel" in str(n.target)]
        return [getattr(model, n.args[0].target) for n in nodes]

    pairs = list(zip(integers(converted), integers(back), strict=True))
    assert len(pairs) == 3
    assert all(torch.equal(a, b) for a, b in pairs)


def test_saved_and_loaded(net, images, export, tmp_path):
    converted = converted_of(net, images, export, PWLQSpec(bits=2))
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    for model in (converted, pack(converted)):
        path = tmp_path / "model.pt2"
        torch.export.save(torch.export.export(model, (images,), dynamic_shapes=shapes), path)
        loaded = torch.export.load(path).module()
        with torch.no_grad():
            assert torch.equal(loaded(images[:4]), converted(images[:4]))
        assert str(audit(loaded)) == str(audit(converted))
        steps = [n.args[1] for n in converted.graph.nodes if "per_tensor" in str(n.target)]
        lowered = lower(loaded, (images,))
        assert (lowered(images) - converted(images)).abs().max() <= max(steps)
        kernels = {r.kernel.split(".")[0] for r in audit(loaded, lowered=lowered)}
        assert kernels == {"onednn"}


def test_a_weight_only_model_has_no_int8_kernels(net, images, export):
    prepared = prepare_pt2e(export(net, images), PWLQQuantizer(activations=None))
    with pytest.raises(ValueError, match="no layer runs on an int8 kernel"):
        lower(convert_pt2e(prepared), (images,))


def test_eight_bit_weights_do_not_get_smaller(net, images, export):
    converted = converted_of(net, images, export, UniformSpec(bits=8), include=["fc"])
    with pytest.raises(ValueError, match="no int8 weight was packed"):
        pack(converted)
    with pytest.raises(ValueError, match="the model holds no packed weight"):
        unpack(converted)


@given(
    st.lists(st.integers(-127, 127), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(0, 1),
)
def test_codes_and_codebook_reproduce_any_integers(levels, channels, axis):
    generator = torch.Generator().manual_seed(len(levels))
    book = torch.tensor(levels, dtype=torch.int8)
    picked = torch.randint(len(levels), (channels, 5), generator=generator)
    weight = book[picked] if axis == 0 else book[picked].t().contiguous()
    codes, codebook = codes_and_codebook(weight, axis)
    assert codes.shape == weight.shape
    assert codebook.shape[1] <= len(set(levels))
    rows = torch.gather(codebook, 1, codes.movedim(axis, 0).long())
    assert torch.equal(rows.movedim(0, axis), weight)
