#!/bin/sh
# secrets.sh DIRECTORY NAME...
# Makes what the nodes of a cluster trust each other by: an authority (ca.pem, ca.key), a certificate for each NAME, under
# which the other nodes reach it (NAME.pem, NAME.key), and a token for HTTP (token). What is there already stays.
set -eu
umask 077
mkdir -p "$1"
cd "$1"
shift
key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"

if [ ! -f ca.pem ]; then
    openssl req -x509 $key -days 3650 -subj "/CN=the authority of a replidict cluster" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout ca.key -out ca.pem
fi
for name; do
    if [ ! -f "$name.pem" ]; then
        openssl req -new $key -subj "/CN=$name" -keyout "$name.key" -out "$name.request"
        printf '%s\n' "subjectAltName=DNS:$name" "extendedKeyUsage=serverAuth,clientAuth" "keyUsage=digitalSignature" \
            "basicConstraints=CA:FALSE" "subjectKeyIdentifier=hash" "authorityKeyIdentifier=keyid" > "$name.extensions"
        openssl x509 -req -in "$name.request" -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 \
            -extfile "$name.extensions" -out "$name.pem"
        rm "$name.request" "$name.extensions"
    fi
done
[ -f token ] || openssl rand -hex 32 > token
