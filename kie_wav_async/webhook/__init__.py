"""
Where callbacks arrive: a route for aiohttp, an ASGI application, a server of our own.

All three answer alike. 200 and a small JSON for everything authentic, duplicates
and unknown tasks too, so that the answer tells a peer nothing; 401 with an empty
body for whatever is not authentic, 400 for what cannot be read; 405 for all but
POST, 413 over 64 KiB, 415 for a ``Content-Encoding`` that changes bytes, 503 while the session is
closing and when its ledger cannot be written. 408 if a body takes more than 10 s,
or if 64 bodies are incomplete, another one comes, and it is the oldest; a complete
body waits for nothing. Every answer but 200 closes the connection, and nothing is
drained.

The session has to be entered in the loop that serves; for WSGI programs there is
`kie_wav_async.parse_callback`. TLS, and peers that take their time over headers,
are the reverse proxy's. Nothing of a request is logged here, and what anybody can
cause to be logged is logged once a minute at most; the access logs of your own
server are yours.

Source: docs.kie.ai, "Convert to WAV Callbacks".
"""

from __future__ import annotations

from kie_wav_async.webhook.aiohttp_route import add_callback_route
from kie_wav_async.webhook.asgi import asgi_app
from kie_wav_async.webhook.server import CallbackServer

__all__ = ["CallbackServer", "add_callback_route", "asgi_app"]
