"""The service from Python: ``from app.client import Darkroom``."""

from app.client.darkroom import Darkroom
from app.client.errors import ApiError

__all__ = ["ApiError", "Darkroom"]
