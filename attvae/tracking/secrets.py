"""Secrets struck out of what others may read: what MLflow gets, what stays in a log."""

import os
import re
from urllib.parse import quote

_STRUCK = "***"
_WORDS = (
    r"(?:password|passwd|passphrase|pgpass|_pass\b|_pwd\b|secret|token"
    r"|(?:api|access|account|private)_?key)"
)
_NAME = re.compile(rf"{_WORDS}(?!.*(?:file|path|dir)$)", re.IGNORECASE)
_MAY_BE_A_PATH = re.compile(r"_pass$|_pwd$|credential|passphrase", re.IGNORECASE)  # GOOGLE_APPLICATION_CREDENTIALS
_SHORTEST = 6  # a shorter value is a switch or a number, and would be struck out of innocent words

# Whatever may stand between a word and its value has a bounded length: else the time is quadratic in a long name.
_REST = r"\w{0,40}"
_GAP = r"\s{0,20}"
_SHOWN = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s"']+)"""

_PASSWORD = re.compile(r"""://(?:[^\s/:@"']*:(?:(?!://)\S)*|[^\s/"']*)@""")
_PATTERNS = (
    re.compile(  # in a URL
        rf"([?&][\w.-]{{0,40}}(?:{_WORDS}|signature|credential|sig)[\w.-]{{0,40}}=)[^&\s\"'#]+", re.IGNORECASE
    ),
    re.compile(  # token = "..."
        rf"({_WORDS}{_REST}[\"']?{_GAP}[=:]{_GAP}[\"'])[^\"'\n]{{{_SHORTEST},}}", re.IGNORECASE
    ),
    re.compile(  # TOKEN=...
        rf"({_WORDS}{_REST}(?:=|:{_GAP}))[\w+/.~-]{{{_SHORTEST},}}={{0,2}}(?![\w(\[.])", re.IGNORECASE
    ),
    re.compile(  # --token ...
        rf"((?<![\w-])--(?:[\w-]{{0,40}}[-_])?(?:{_WORDS}|pass\b)(?!iz|[\w-]{{0,40}}(?:file|path|dir)\b)[\w-]{{0,40}}"
        rf"[\"']?[ ,=]{{1,8}})(?!-){_SHOWN}",
        re.IGNORECASE,
    ),
    re.compile(  # --user me:...
        r"((?<!\S)(?:-u|--(?:proxy-)?user)[ =]{1,8})"
        r"""(?:"[^":\n]{1,99}:[^"\n]*"|'[^':\n]{1,99}:[^'\n]*'|[^\s:"']{1,99}:\S+)"""
    ),
    re.compile(
        rf"(\bauthorization[\"']?{_GAP}[:=]{_GAP}[\"']?(?:(?:Bearer|Basic|Token|Digest|Negotiate|ApiKey)\s{{1,20}})?)"
        r"[^\"'\n]+",
        re.IGNORECASE,
    ),
    re.compile(r"(\b(?:Bearer|Basic)\s{1,20})[\w+/.~-]{8,}=*"),
    re.compile(r"(\b(?:gh[pousr]_|github_pat_|glpat-|hf_|xox[abprs]-|sk-|AKIA|ASIA))[\w-]{12,}"),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END|\Z)", re.DOTALL),
)


def without_secrets(text: str) -> str:
    """`text` with what looks like a secret struck out.

    That is: user and password of URLs, keys in their queries, values of environment variables that are named as
    secrets are, values that stand behind such a name or option, tokens of known shapes, private keys.
    """
    text = _PASSWORD.sub(f"://{_STRUCK}@", text)
    values = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and _is_secret(name, value)}
    for value in sorted(values, key=len, reverse=True):
        for shown in (value, quote(value, safe="")):
            text = text.replace(shown, _STRUCK)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{_STRUCK}", text)
    return text


def _is_secret(name: str, value: str) -> bool:
    if _MAY_BE_A_PATH.search(name):
        return not value.startswith("/") and not os.path.exists(value)
    return _NAME.search(name) is not None
