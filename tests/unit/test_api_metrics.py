"""The API's own counters."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.api.metrics import make_registry


def test_peak_of_memory_is_at_least_what_is_resident_now() -> None:
    text = generate_latest(make_registry()).decode()
    values = {
        family.name: family.samples[0].value for family in text_string_to_metric_families(text)
    }
    assert values["process_peak_resident_memory_bytes"] >= 10_000_000
    assert values["process_resident_memory_bytes"] <= values["process_peak_resident_memory_bytes"]


def test_two_applications_in_one_process_keep_their_counters_apart() -> None:
    assert make_registry() is not make_registry()
    assert generate_latest(make_registry()) != b""
