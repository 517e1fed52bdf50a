"""Compiled and parallel models are quantized as the model inside."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from zaq_plugin import UniformSpec
from zaq_plugin.ptq import fold_batch_norm, simulate
from zaq_plugin.ptq.equalise import equalise
from zaq_plugin.ptq.fold import remembered_statistics
from zaq_plugin.ptq.wrappers import unwrapped, without_prefixes
from zaq_plugin.strategies import Request, apply
from zaq_plugin.zero_shot import DistillOptions, distill_images

WRAPPERS = {
    "parallel": nn.DataParallel,
    "compiled": torch.compile,
    "averaged": AveragedModel,
    "compiled parallel": lambda m: torch.compile(nn.DataParallel(m)),
    "parallel compiled": lambda m: nn.DataParallel(torch.compile(m)),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()
    )
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    return model.eval()


@pytest.fixture(params=WRAPPERS)
def pair(request):
    model = network()
    wrapped = WRAPPERS[request.param](model).eval()
    return (wrapped.module if request.param == "averaged" else model), wrapped


def test_the_model_inside_is_found(pair):
    model, wrapped = pair
    assert unwrapped(wrapped) is model
    assert unwrapped(model) is model


def test_every_entry_takes_it_as_the_model_inside(pair):
    model, wrapped = pair
    x = torch.randn(2, 3, 6, 6)
    folded = fold_batch_norm(wrapped)
    assert type(folded) is nn.Sequential
    assert folded.zaq_folding.folded == (("0", "1"),)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)
    assert set(remembered_statistics(wrapped, folded)) == {"0"}
    student = simulate(wrapped, UniformSpec(8), None)
    assert [r.name for r in student.zaq_audit.records] == ["0", "3"]
    equalised = equalise(nn.DataParallel(folded), (x,))
    assert [(p.first, p.second) for p in equalised.pairs] == [("0", "3")]
    torch.testing.assert_close(equalised.model(x), model(x), rtol=1e-4, atol=1e-5)
    options = DistillOptions(steps=1, batch_size=2)
    images = [
        distill_images(m, 2, (3, 6, 6), options=options, rng=torch.Generator().manual_seed(0))
        for m in (model, wrapped)
    ]
    torch.testing.assert_close(*images, rtol=0, atol=0)


class Parted(nn.Module):
    """A model whose body is wrapped."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.body, self.head = wrap(network()[:3]), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("name", ["parallel", "parallel compiled", "averaged"])
def test_parts_are_unwrapped_in_the_copy(name):
    model, x = Parted(WRAPPERS[name]).eval(), torch.randn(2, 3, 6, 6)
    body = model.body
    plain = Parted(lambda part: part).eval()
    plain.head.load_state_dict(model.head.state_dict())
    folded = fold_batch_norm(model)
    assert folded.zaq_folding.folded == (("body.0", "body.1"),)
    assert set(remembered_statistics(model, folded)) == {"body.0"}
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-5, atol=1e-5)
    student = simulate(model, UniformSpec(8), None)
    assert [r.name for r in student.zaq_audit.records] == ["body.0", "head"]
    assert model.body is body


def test_strategies_take_it(pair):
    model, wrapped = pair
    x = torch.randn(4, 3, 6, 6)
    request = Request(8, 8, example_inputs=(x,), images=x)
    right, got = (apply("rq", m, request).model(x) for m in (model, wrapped))
    torch.testing.assert_close(got, right, rtol=0, atol=0)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_go_in_any_order(prefix):
    own = network().state_dict()
    assert without_prefixes({prefix + k: v for k, v in own.items()}, own) == own
    assert without_prefixes({prefix + k: v for k, v in own.items()}) == own


def test_the_names_of_real_wrappers_go():
    own = list(network().state_dict())
    for wrap in WRAPPERS.values():
        assert list(without_prefixes(wrap(network()).state_dict(), own)) == own


def test_a_part_that_was_compiled_by_itself():
    class Net(nn.Module):
        def __init__(self, compiled: bool) -> None:
            super().__init__()
            part = nn.Linear(2, 2)
            self.backbone, self.head = (torch.compile(part) if compiled else part), nn.Linear(2, 2)

    assert set(without_prefixes(Net(True).state_dict())) == set(Net(False).state_dict())


def test_a_part_of_the_name_module_keeps_its_name():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    own = Net().state_dict()
    assert list(without_prefixes(own, own)) == ["module.weight", "module.bias"]
    wrapped = {f"module.{k}": v for k, v in own.items()}
    assert list(without_prefixes(wrapped, own)) == ["module.weight", "module.bias"]


def test_names_that_would_become_one_stay():
    state = {"a._orig_mod.weight": 1, "a.weight": 2}
    assert without_prefixes(state) == state
