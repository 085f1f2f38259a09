"""The service from Python: ``from app.client import Darkroom``."""

from app.client.darkroom import Darkroom
from app.client.errors import ApiError
from app.client.signature import SignatureError, verify_webhook

__all__ = ["ApiError", "Darkroom", "SignatureError", "verify_webhook"]
