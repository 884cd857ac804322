"""Params, MACs, latency, memory and budgets."""

from __future__ import annotations

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from netsmith.errors import BudgetError
from netsmith.search.budget import Bound, Budget, format_count, parse_count
from netsmith.trace.cost import count_macs, count_params, measure_latency, memory_bytes, peak_bytes


def test_params_and_macs_of_known_layers():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, bias=False))
    assert count_params(net) == 3 * 8 * 9 + 8 + 8 * 9
    assert count_macs(net, (3, 10, 10)) == 100 * 3 * 8 * 9 + 64 * 8 * 9
    assert count_macs(nn.Linear(5, 7), (4, 5)) == 4 * 5 * 7


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4)
    assert count_params(nn.Sequential(layer, nn.ReLU(), layer)) == 20
    assert count_macs(nn.Sequential(layer, nn.ReLU(), layer), (4,)) == 32


@pytest.mark.parametrize(
    ("name", "params", "macs"), [("resnet18", 11_689_512, 1.8141e9), ("vit_tiny_patch16_224", 5_717_416, 1.2537e9)]
)
def test_macs_of_published_networks(name, params, macs):
    model = timm.create_model(name)
    assert count_params(model) == params
    assert count_macs(model, (3, 224, 224)) == pytest.approx(macs, rel=5e-5)


class Keeps(nn.Module):
    """Keeps what it computed, and a tensor that is not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.extra = torch.ones(4)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.last is None:
            self.last = self.layer.weight * 2
        return self.layer(x) * self.extra


def test_counting_leaves_the_module_as_it_was():
    module = nn.Sequential(Keeps(), nn.BatchNorm1d(4)).train()
    assert count_macs(module, (4,)) == 16
    assert module[0].last is None
    assert module.training
    assert module[1].num_batches_tracked == 0
    assert not module[0].layer.weight.is_meta


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum().item() >= 0 else x


def test_code_that_reads_values_is_counted_on_real_tensors():
    assert count_macs(Reads(), (4,)) == 16


def test_latency_is_in_milliseconds_and_keeps_the_mode():
    net = nn.Linear(4, 4).train()
    assert 0 < measure_latency(net, torch.randn(2, 4), warmup=1, runs=3) < 1000
    assert net.training


def test_memory_is_weights_and_the_largest_layer():
    net = nn.Sequential(nn.Linear(10, 100, bias=False), nn.ReLU(), nn.Linear(100, 5, bias=False))
    assert peak_bytes(net, (10,)) == 4 * 200
    assert memory_bytes(net, (10,), 3) == 4 * 1500 + 3 * 4 * 200


@pytest.mark.parametrize(
    ("value", "number"), [(500000, 500000), ("0.5M", 500000), ("3G", 3e9), ("1e6", 1e6), ("250 k", 250e3), ("2B", 2e9)]
)
def test_numbers_are_read(value, number):
    assert parse_count(value) == number


@pytest.mark.parametrize("value", ["many", "", "M", None, True, [1]])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(BudgetError, match=r"expected a number such as 500000, '0.5M' or '3G', not"):
        parse_count(value)


def test_a_budget_from_what_a_user_writes():
    budget = Budget.model_validate({"params": "0.5M", "macs": {"min": "1G", "max": 3e9}})
    assert budget.params == Bound(max=500_000)
    assert budget.macs == Bound(min=1_000_000_000, max=3e9)
    assert budget.latency_ms is None
    assert str(budget) == "params at most 500k, macs between 1G and 3G"
    assert budget.check(params=500_000, macs=2e9, latency_ms=1e9) == []
    assert budget.check(params=500_001, macs=5e8) == [
        "params 500k is not at most 500k (500,001 against 500,000)",
        "macs 500M is not between 1G and 3G",
    ]
    assert str(Budget()) == "no bounds"
    assert Budget(latency_ms=5).check(latency_ms=7.25) == ["latency_ms 7.25 ms is not at most 5 ms"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"params": -1}, "finite number of at least 0, not max: -1"),
        ({"params": {"min": "2M", "max": "1M"}}, "min must not exceed max, but min is 2M and max is 1M; swap them"),
        ({"params": {"most": 3}}, "a bound has the keys min and max, not 'most'"),
        ({"params": {}}, "a bound has the keys min and max, not none at all"),
        ({"params": "big"}, "expected a number such as"),
        ({"param": 3}, "Extra inputs are not permitted"),
    ],
)
def test_faulty_budgets_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        Budget.model_validate(given)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (812, "812"),
        (269722, "269.72k"),
        (500_000, "500k"),
        (1.2537e9, "1.25G"),
        (999_999, "1M"),
        (2.5, "2.5"),
    ],
)
def test_counts_for_people(n, text):
    assert format_count(n) == text
    assert format_count(12.345, "ms") == "12.35 ms" or format_count(12.345, "ms") == "12.34 ms"
