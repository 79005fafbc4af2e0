"""What the suites ask."""

import base64

SYSTEM = "Antworte höflich auf Züridütsch. 日本語も可。 Смайлик: 🦀 \u2028 \"quoted\\\" \x7f"
TOOL_ARGUMENTS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def image(base64_bytes):
    """Picture data that is `base64_bytes` long in a request."""
    return bytes(range(256)) * (base64_bytes * 3 // 4 // 256)


def image_base64(base64_bytes):
    return base64.b64encode(image(base64_bytes)).decode()
