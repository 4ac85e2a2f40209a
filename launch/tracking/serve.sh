#!/usr/bin/env bash
# MLflow's server for several people, with names and passwords; what compose.yaml and attvae-mlflow.service start.
# README.md beside it says what the settings and secrets are. Ends with the server, on SIGTERM.
set -euo pipefail

fail() {
    echo "serve.sh: $*" >&2
    exit 2
}

[[ -n ${TRACKING_DATABASE:-} ]] ||
    fail 'TRACKING_DATABASE is not set: say postgresql+psycopg2://USER@HOST/DATABASE'
[[ $TRACKING_DATABASE != *://*:*@* ]] ||
    fail "TRACKING_DATABASE holds a password: put it into the secret database_password"
[[ -n ${TRACKING_ARTIFACTS:-} ]] ||
    fail 'TRACKING_ARTIFACTS is not set: say a folder or s3://BUCKET/PATH'
secrets=${CREDENTIALS_DIRECTORY:-/run/secrets}
for name in database_password admin_password cookie_key; do
    [[ -s $secrets/$name ]] || fail "no secret $secrets/$name: make it as README.md says"
done

# In the environment, where only this user and root see them: the command line and the settings are free of secrets.
PGPASSWORD=$(<"$secrets/database_password")
MLFLOW_AUTH_ADMIN_PASSWORD=$(<"$secrets/admin_password")
MLFLOW_FLASK_SERVER_SECRET_KEY=$(<"$secrets/cookie_key")
export PGPASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY

# Every user reads every experiment, and writes to his own and those that their owners have opened to him. A password
# costs 0.1 s of CPU time to check, so a worker remembers it for a few seconds, also one that was changed meanwhile.
export MLFLOW_AUTH_CONFIG_PATH=${RUNTIME_DIRECTORY:-/tmp}/attvae-mlflow-auth.ini
umask 077
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = $TRACKING_DATABASE
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 15
INI

export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # background jobs of its features for language models
exec mlflow server --app-name basic-auth --host "${TRACKING_HOST:-127.0.0.1}" --port "${TRACKING_PORT:-5000}" \
    --backend-store-uri "$TRACKING_DATABASE" --serve-artifacts --artifacts-destination "$TRACKING_ARTIFACTS"
