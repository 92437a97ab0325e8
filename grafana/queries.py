"""The PromQL that the dashboards share: which series are meant, and rates. Nothing about how they look.

$instance is the host, as Prometheus names what it scrapes: one, since devices and workers of two hosts have the same
names. $device and $worker choose; "All" of $device are those of $layer, so that no sum counts the bytes of a stacked
device and of the disk below it. $__rate_interval is Grafana's own: at least four scrapes.
"""

from __future__ import annotations

from llmio_probe.outputs.status import HARMLESS

HOST = 'instance="$instance"'
DEVICE = f'{HOST}, device=~"$device"'
WORKER = f'{DEVICE}, worker=~"$worker"'
CALLER = f'{HOST}, worker=~"$worker"'
"""Of metrics without a device: those of calls."""
DATA = 'op=~"read|write"'
HARMFUL = f'status!~"{"|".join(sorted(HARMLESS))}"'


def rate(metric: str, *selectors: str) -> str:
    return f"rate({metric}{{{', '.join(selectors)}}}[$__rate_interval])"


def total(by: str, metric: str, *selectors: str) -> str:
    """The summed rate by some labels; by nothing when by is empty."""
    return f"sum by ({by}) ({rate(metric, *selectors)})" if by else f"sum({rate(metric, *selectors)})"


def events(by: str, metric: str, *selectors: str) -> str:
    """How many in the time shown: for what is so rare that each one counts, which a rate hides.

    increase() knows nothing of the first one, with which a counter appears. So a counter that was not there when this
    time began is taken whole.
    """
    counter = f"{metric}{{{', '.join(selectors)}}}" if selectors else metric
    counted = f"last_over_time({counter}[$__range]) unless {counter} offset $__range or increase({counter}[$__range])"
    return f"sum by ({by}) ({counted})" if by else f"sum({counted})"


def busy(by: str, *selectors: str) -> str:
    """Of the busiest; cut off at 1, which a snapshot that came late can pass."""
    return f"clamp_max(max by ({by}) ({rate('llmio_device_busy_seconds_total', *selectors)}), 1)"


def mean(by: str, histogram: str, *selectors: str) -> str:
    """Of what was observed lately; without what had no observation, which would be 0/0."""
    return f"{total(by, f'{histogram}_sum', *selectors)} / ({total(by, f'{histogram}_count', *selectors)} > 0)"


def quantile(q: float, by: str, histogram: str, *selectors: str) -> str:
    labels = f"le, {by}" if by else "le"
    observed = total(by, f"{histogram}_count", *selectors)
    return (
        f"histogram_quantile({q}, {total(labels, f'{histogram}_bucket', *selectors)})"
        f" and {f'on ({by}) ' if by else ''}{observed} > 0"
    )


def share(part: str, whole: str) -> str:
    """Without data where there is nothing to have a share in."""
    return f"{part} / ({whole} > 0)"


def or_zero(expression: str, *lines: dict[str, str]) -> str:
    """With a line at 0 for each of these sets of labels that the expression lacks; without any, for the empty set.

    An empty panel looks like a broken one. Only for what is known to be 0 when it is not there, never for the unknown.
    """
    zeros = []
    for labels in lines or ({},):
        zero = "vector(0)"
        for name, value in labels.items():
            zero = f'label_replace({zero}, "{name}", "{value}", "", "")'
        zeros.append(zero)
    return " or ".join((expression, *zeros))
