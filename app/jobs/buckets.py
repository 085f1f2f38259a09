"""The buckets that an input names: whether the tenant's jobs may read them, and can."""

from __future__ import annotations

from app.locations import Location, Locations
from app.storage.s3 import ObjectStore
from app.tenants.locations import not_allowed

#: Different buckets that one manifest or list may name; each is asked for.
_MAX_BUCKETS = 100


class Buckets:
    """Asks the store once per bucket whether it is there, and of a hundred at most."""

    def __init__(self, store: ObjectStore, own_bucket: str, locations: Locations) -> None:
        self._store = store
        self._own_bucket = own_bucket
        self._locations = locations
        self._named: set[str] = set()
        #: Of those that were asked for.
        self._faults: dict[str, str | None] = {}

    def root_fault(self, kind: str, location: Location) -> str | None:
        """What is wrong with a prefix or a manifest, as ``kind`` says, before it is read.

        Raises:
            ForbiddenError: ``location_not_allowed``.
        """
        if location.bucket == self._own_bucket:
            return self._belongs_to_us()
        if not self._locations.allows(location.bucket, location.key):
            raise not_allowed([(f"/input/{kind}", location)], self._locations)
        return None

    def item_fault(self, bucket: str, key: str) -> str | None:
        """What is wrong with a line or an item, so that nothing of the input is recognised.

        One where the tenant's jobs may not read fails by itself when its turn comes; the store
        is asked nothing about it, so that the answer tells nothing of it either.
        """
        if bucket == self._own_bucket:
            return self._belongs_to_us()
        if bucket not in self._named and len(self._named) >= _MAX_BUCKETS:
            return f"one input names at most {_MAX_BUCKETS} buckets, and {bucket} is one more"
        self._named.add(bucket)
        if not self._locations.allows(bucket, key):
            return None
        if bucket not in self._faults:
            there = self._store.bucket_exists(bucket)
            self._faults[bucket] = None if there else f"there is no bucket {bucket}"
        return self._faults[bucket]

    def _belongs_to_us(self) -> str:
        return f"the bucket {self._own_bucket} belongs to the service"
