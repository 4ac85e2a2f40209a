"""Secrets struck out of what others may read: what MLflow gets, what stays in a log."""

import os
import re
from urllib.parse import quote

_STRUCK = "***"
_WORDS = r"(?:password|passwd|secret|token|api_?key|access_?key|private_?key)"
_NAME = re.compile(rf"{_WORDS}(?!.*(?:file|path|dir)$)", re.IGNORECASE)
_SHORTEST = 6  # a shorter value is a switch or a number, and would be struck out of innocent words

_PASSWORD = re.compile(r"://[^\s/\"']*@")
_PATTERNS = (
    re.compile(rf"([?&][\w.-]*(?:{_WORDS}|signature|credential|sig)[\w.-]*=)[^&\s\"'#]+", re.IGNORECASE),  # in a URL
    re.compile(rf"({_WORDS}\w*[\"']?\s*[=:]\s*[\"'])[^\"'\n]{{{_SHORTEST},}}", re.IGNORECASE),  # token = "..."
    re.compile(rf"({_WORDS}\w*(?:=|:\s*))[\w+/.~-]{{{_SHORTEST},}}={{0,2}}(?![\w(\[.])", re.IGNORECASE),  # TOKEN=...
    re.compile(r"(\b(?:Bearer|Basic)\s+)[\w+/.~-]{8,}=*"),
    re.compile(r"(\b(?:gh[pousr]_|github_pat_|glpat-|hf_|xox[abprs]-|sk-|AKIA|ASIA))[\w-]{12,}"),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END|\Z)", re.DOTALL),
)


def without_secrets(text: str) -> str:
    """`text` with what looks like a secret struck out.

    That is: user and password of URLs, keys in their queries, values of environment variables that are named as
    secrets are, values that stand behind such a name, tokens of known shapes, private keys.
    """
    text = _PASSWORD.sub(f"://{_STRUCK}@", text)
    values = {value for name, value in os.environ.items() if _NAME.search(name) and len(value) >= _SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        for shown in (value, quote(value, safe="")):
            text = text.replace(shown, _STRUCK)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{_STRUCK}", text)
    return text
