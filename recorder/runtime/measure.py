"""Metrics for Prometheus, made of values as they are when somebody asks."""

from collections.abc import Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from recorder.runtime.version import version

Value = float | Mapping[str, float]  # one number, or one for each value of a label


def gauge(name: str, what: str, value: Value, label: str = "") -> Metric:
    """Return what goes up and down."""
    return _filled(GaugeMetricFamily(name, what, labels=[label] if label else []), value)


def counter(name: str, what: str, value: Value, label: str = "") -> Metric:
    """Return what only grows; Prometheus adds `_total` to its name."""
    return _filled(CounterMetricFamily(name, what, labels=[label] if label else []), value)


def build_info(program: str) -> Metric:
    """Return which ticktape this is."""
    return gauge(f"{program}_build_info", "Which ticktape this is", {version(): 1}, "version")


def _filled(family: CounterMetricFamily | GaugeMetricFamily, value: Value) -> Metric:
    for label, one in value.items() if isinstance(value, Mapping) else [("", value)]:
        family.add_metric([label] if isinstance(value, Mapping) else [], one)
    return family
