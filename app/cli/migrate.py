"""``darkroom migrate``: makes a fresh installation ready, and an older one up to date."""

from __future__ import annotations

from app.cli.console import say


def migrate() -> None:
    """Make roles (with ADMIN_DATABASE_URL), schema, bucket (with S3_ENDPOINT_URL) and first key.

    Safe to run again, and from several machines at once. The key is printed once, by the run
    that made it.
    """
    from app.db.session import Database
    from app.settings import load_settings
    from app.stack.prepare import prepare_database
    from app.storage.s3 import ObjectStore
    from app.tenants.admin_keys import ensure_first_key

    settings = load_settings()
    admin = settings.admin_database_url
    prepare_database(
        url=settings.database_url.get_secret_value(),
        system_url=settings.system_url,
        admin_url=admin.get_secret_value() if admin else None,
    )
    say("the schema is up to date")
    # On AWS a bucket comes with rules of its own: whoever runs it makes it.
    if settings.s3_endpoint_url:
        ObjectStore.from_settings(settings).ensure_bucket(settings.bucket)
        say(f"the bucket {settings.bucket} is there")
    pepper = settings.key_pepper.get_secret_value()
    if pepper:
        db = Database.from_settings(settings)
        try:
            key = ensure_first_key(db, pepper)
        finally:
            db.close()
        if key is not None:
            say(f"the first key, shown this once: {key}")
