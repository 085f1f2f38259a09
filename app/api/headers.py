"""What every answer carries against the ways in which browsers can be talked into things."""

from __future__ import annotations

#: The page of documentation has a policy of its own, which lets its style sheet in.
CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Permitted-Cross-Domain-Policies": "none",
    "Content-Security-Policy": CONTENT_POLICY,
}
#: Only where the request came by https, and only for this host.
TRANSPORT_POLICY = "max-age=31536000"
