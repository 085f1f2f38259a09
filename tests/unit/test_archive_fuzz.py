"""Bytes that nobody meant as an archive only raise errors of ours; ``make fuzz`` tries far more."""

from __future__ import annotations

import io

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.archives import ARCHIVES, Fuzz
from tests.security.intake import take

quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08\x00"]), st.binary())
def test_random_bytes_only_raise_our_errors(head: bytes, content: bytes) -> None:
    take(io.BytesIO(head + content), ARCHIVES)


def test_a_thousand_inputs_of_the_fuzz_only_raise_our_errors() -> None:
    fuzz = Fuzz(seed=1)
    for number in range(1000):
        fuzz.try_one(number)
    assert fuzz.escapes == []
    # Damage that never reaches deep code would prove nothing.
    assert {"packed", "items_failed", "labels", "manifest", "weights"} <= fuzz.outcomes.keys()
