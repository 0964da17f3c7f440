#!/bin/sh
# Lays out the file system of the image: our programs, the shared libraries that they are linked with, and nothing else: no shell, no
# package manager. deploy/Dockerfile runs it where the programs are built, so that the libraries are those that the linker saw.
#
#   image.sh <directory of the programs> <directory to make>
set -eu
programs=$1
root=$2

mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/tmp"
chmod 1777 "$root/tmp"
for program in trefoil trefoil-node trefoil-worker; do
    # Backtraces keep their function names.
    strip --strip-debug -o "$root/usr/local/bin/$program" "$programs/$program"
    needed=$(ldd "$programs/$program")
    case $needed in *"not found"*)
        echo "$needed" >&2
        exit 1
        ;;
    esac
    for library in $(echo "$needed" | grep -o '/[^ ]*'); do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
done

echo 'nonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin' >"$root/etc/passwd"
echo 'nonroot:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
# For nats-servers whose certificate a public authority signed.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
