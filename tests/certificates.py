"""A certificate for this machine, made anew whenever the tests run: no key is kept anywhere."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trustme

_AUTHORITY = trustme.CA()
_ISSUED = _AUTHORITY.issue_cert("localhost", "127.0.0.1")

# Made as this is imported: no loop is to wait for the disk. Removed with the process.
_FOLDER = tempfile.TemporaryDirectory(prefix="kie-wav-certificates-")

#: The key and the certificate of a server at localhost and 127.0.0.1.
SERVER_PEM = Path(_FOLDER.name, "server.pem")
_ISSUED.private_key_and_cert_chain_pem.write_to_path(str(SERVER_PEM))

#: What a client has to trust to believe that server.
TRUSTED_PEM = Path(_FOLDER.name, "trusted.pem")
_AUTHORITY.cert_pem.write_to_path(str(TRUSTED_PEM))
