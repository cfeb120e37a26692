#!/bin/sh
# Prints the newest version of glibc that the symbols of an ELF file need: newest-glibc.sh FILE.
set -eu
readelf -V "${1:?usage: newest-glibc.sh FILE}" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -V | tail -n 1
