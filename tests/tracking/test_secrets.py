import pytest

from attvae.tracking.secrets import without_secrets


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("at http://u:p@ss@host/db: refused", "at http://***@host/db: refused"),
        ("s3://bucket/x?X-Amz-Signature=abc123&part=1", "s3://bucket/x?X-Amz-Signature=***&part=1"),
        ("https://host/x?api_key=abc&sig=z%2B#top", "https://host/x?api_key=***&sig=***#top"),
        ("tracking.token=abcdef123 train.lr=0.1", "tracking.token=*** train.lr=0.1"),
        ("+AWS_SECRET_ACCESS_KEY=abc/def+ghi=", "+AWS_SECRET_ACCESS_KEY=***"),
        ("password: 'correct horse battery'", "password: '***'"),
        ('{"hub_token": "abc-def-ghi"}', '{"hub_token": "***"}'),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("push to ghp_0123456789abcdefghij now", "push to ghp_*** now"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nabc\ndef\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----",
        ),
    ],
)
def test_what_looks_like_a_secret_is_struck_out(text, cleaned):
    assert without_secrets(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///runs/mlflow.db",
        "write to me@example.org",
        "TOKENIZERS_PARALLELISM=false",
        "token = tokenizer.next()",
        "    token: str",
        "the password is asked for",
        "https://host/page?step=100&name=samples",
        "ValueError: train.lr=0.5: expected less",
    ],
)
def test_what_does_not_stays(text):
    assert without_secrets(text) == text


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_API_KEY"])
def test_the_values_of_secret_variables_are_struck_out(monkeypatch, name):
    monkeypatch.setenv(name, "Tr0ub4dor/&3")
    assert without_secrets("login Tr0ub4dor/&3, or x=Tr0ub4dor%2F%263!") == "login ***, or x=***!"


def test_variables_that_name_a_file_and_switches_are_no_secrets(monkeypatch):
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    monkeypatch.setenv("USE_TOKEN", "true")
    assert without_secrets("see /var/run/token, it is true") == "see /var/run/token, it is true"
