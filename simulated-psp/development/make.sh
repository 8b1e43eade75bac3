#!/bin/sh
# Makes the development root. See README.md: these keys are public and worthless by design.
set -eu
cd "$(dirname "$0")"
PSS="-sha384 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:48 -sigopt rsa_mgf1_md:sha384"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for name in ark ask; do
    # In two steps: genpkey alone would write DER as PKCS#1.
    openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:4096 |
        openssl pkcs8 -topk8 -nocrypt -outform DER -out "$name.pkcs8.der"
    upper=$(printf %s "$name" | tr a-z A-Z)
    # shellcheck disable=SC2086
    openssl req -new -keyform DER -key "$name.pkcs8.der" -subj "/CN=SIM-$upper-NOT-AMD" $PSS -out "$work/$name.csr"
done
cat > "$work/ca.cnf" <<'CNF'
[ca]
default_ca = own
[own]
policy = any
unique_subject = no
rand_serial = yes
[any]
commonName = supplied
[ark]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[ask]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
CNF
issue() { # certificate, extra options
    name=$1
    shift
    : > "$work/index.txt"
    # shellcheck disable=SC2086
    openssl ca -batch -notext -config "$work/ca.cnf" -extensions "$name" -keyform DER -keyfile ark.pkcs8.der \
        -startdate 20250101000000Z -enddate 20491231235959Z -md sha384 -preserveDN \
        -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:48 -sigopt rsa_mgf1_md:sha384 \
        -in "$work/$name.csr" -out "$work/$name.pem" "$@"
    openssl x509 -in "$work/$name.pem" -outform DER -out "$name.der"
}
sed -i "s|^policy|database = $work/index.txt\nnew_certs_dir = $work\npolicy|" "$work/ca.cnf"
issue ark -selfsign
issue ask -cert "$work/ark.pem"
