#!/bin/sh
# Makes the keys of a cloud, and the directory that says whom its production nodes trust.
#
#   image-build/ceremony.sh DIR [HOLDER...]
#
# In earnest each holder makes a key on a machine of their own ('redoubt release keygen', in a token with
# --pkcs11-module), hands over the public half, and signs root.json there; then no machine ever has two of the keys that
# this script leaves in DIR. Needs openssl. REDOUBT names the program.
set -eu
umask 077
redoubt=${REDOUBT:-redoubt}
dir=${1:?directory that is made}
shift
[ $# -gt 0 ] || set -- alice bob carol
threshold=$(($# / 2 + 1))
mkdir "$dir"
cd "$dir"

# Releases: ed25519 keys, the root that names them, signed by a majority.
public=
for holder in "$@"; do
    "$redoubt" release keygen --out "$holder.pem"
    public="$public $holder.pub"
done
# shellcheck disable=SC2086 # names of files, split on purpose
"$redoubt" release create-root --keys $public --threshold "$threshold" \
    --expires "$(date -u -d '+2 years' +%Y-%m-%d)" --out root.json
count=0
for holder in "$@"; do
    [ "$count" -lt "$threshold" ] || break
    "$redoubt" release sign root.json --key "$holder.pem"
    count=$((count + 1))
done

# Secure Boot: the key that owns the machines' settings, and the one that signs kernel images.
for name in platform secure-boot; do
    openssl req -x509 -newkey rsa:3072 -sha256 -noenc -days 3650 -subj "/CN=Redoubt $name" \
        -keyout "$name.key" -out "$name.crt" 2> /dev/null
done
"$redoubt" image create-trust --root root.json --certificate secure-boot.crt \
    --platform-certificate platform.crt --platform-key platform.key --out trust
chmod -R a+rX trust
