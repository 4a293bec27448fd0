#!/usr/bin/env bash
# What docker-compose.yml mounts and nobody should share: keys, a certificate signed by itself, a password. What is there stays.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets # its files are read by the containers' users

random() { openssl rand -hex 24; }

if [[ ! -e secrets/api-keys ]]; then
    random > secrets/client-key
    random > secrets/prometheus-key
    echo "$(< secrets/client-key) name=client" > secrets/api-keys
    echo "$(< secrets/prometheus-key) name=prometheus" >> secrets/api-keys
fi
[[ -e secrets/grafana-password ]] || random > secrets/grafana-password
if [[ ! -e secrets/tls.crt ]]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -keyout secrets/tls.key -out secrets/tls.crt 2> /dev/null
fi
chmod 644 secrets/*
echo "deploy/compose/secrets: $(ls -m secrets)"
