"""The model of costs adds up, and answers changes as AWS's bill would."""

import dataclasses

import pytest

from tests.benchmarks import cost


def test_a_small_export_by_hand() -> None:
    parts = cost.export(cost.SMALL)

    assert parts["API Gateway"] == pytest.approx(4 * 3.50e-6)
    assert parts["Lambda"] == pytest.approx((0.25 * 2 + 4 * 0.015) * 0.0000133334 + 5 * 0.20e-6)
    assert parts["SQS"] == pytest.approx(3 * 0.40e-6)
    assert parts["S3 requests"] == pytest.approx(2 * 0.005e-3 + 0.0004e-3)
    assert parts["internet"] == 0
    assert 0.02 < 1000 * cost.total(parts) < 0.06


def test_a_large_export_pays_for_its_parts_and_its_time() -> None:
    parts = cost.export(cost.LARGE)

    assert parts["S3 requests"] == pytest.approx((10e9 / 2**23 + 3) * 0.005e-3 + 0.0004e-3)
    assert parts["Lambda"] == pytest.approx(150 * 2 * 0.0000133334, rel=0.01)
    assert parts["S3 storage"] == pytest.approx(10 * 0.023 * 7 * 12 / 365)


def test_downloads_to_the_internet_are_what_costs_most_where_there_are_any() -> None:
    parts = cost.export(dataclasses.replace(cost.LARGE, to_internet=True))

    assert parts["internet"] == pytest.approx(0.90)
    assert max(parts, key=lambda name: parts[name]) == "internet"


def test_compression_saves_storage_and_requests() -> None:
    plain, gzip = cost.export(cost.LARGE), cost.export(cost.LARGE_GZIP)

    assert gzip["S3 storage"] == pytest.approx(plain["S3 storage"] / 3.1)
    assert gzip["S3 requests"] < plain["S3 requests"] / 3


def test_a_nat_gateway_costs_more_than_the_endpoints_and_again_by_the_gigabyte() -> None:
    endpoints, nat = cost.month(cost.Standing()), cost.month(cost.Standing(nat=True))

    assert endpoints["endpoints"] == pytest.approx(2 * 2 * 0.01 * 730)
    assert endpoints["NAT"] == nat["endpoints"] == 0
    assert nat["NAT"] == pytest.approx(2 * 0.045 * 730)
    assert cost.through_nat(cost.LARGE) == pytest.approx(0.45)


def test_the_proxy_is_paid_for_two_processors_at_least() -> None:
    assert cost.month(cost.Standing())["RDS Proxy"] == 0
    for vcpus, paid in ((1, 2), (2, 2), (8, 8)):
        parts = cost.month(cost.Standing(proxy=True, database_vcpus=vcpus))
        assert parts["RDS Proxy"] == pytest.approx(paid * 0.015 * 730)


@pytest.mark.parametrize("usage", [cost.SMALL, cost.LARGE, cost.LARGE_GZIP])
def test_higher_prices_make_everything_dearer(usage: cost.Usage) -> None:
    prices = cost.Prices()
    doubled = cost.Prices(**{name: 2 * value for name, value in dataclasses.asdict(prices).items()})

    assert cost.total(cost.export(usage, doubled)) == pytest.approx(
        2 * cost.total(cost.export(usage, prices))
    )
    assert cost.total(cost.month(cost.Standing(), doubled)) == pytest.approx(
        2 * cost.total(cost.month(cost.Standing(), prices))
    )
