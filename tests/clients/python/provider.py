"""What the scripted provider tells about itself."""

import ssl
import json
import urllib.request

from runner import PROVIDER


def aborted():
    """How many exchanges the other side has broken off so far."""
    with urllib.request.urlopen(PROVIDER + "/control", timeout=5, context=ssl.create_default_context()) as reply:
        return json.load(reply)["aborted"]
