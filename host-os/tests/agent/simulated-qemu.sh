#!/bin/bash
# Stands in for QEMU in tests of the restart policy. SIMULATED_QEMU says what it does:
#   crash  says so and ends at once
#   ready  plays a guest that is ready until it is asked to power off
#   silent says nothing and waits
echo $$ >> "$SIMULATED_QEMU_PIDS"
case $SIMULATED_QEMU in
crash)
    echo 'simulated crash' >&2
    exit 3
    ;;
silent)
    exec sleep 1000
    ;;
esac
for argument in "$@"; do
    case $argument in socket,id=host,fd=*) fd=${argument##*=} ;; esac
done
frame() {
    printf '%b%s' "$(printf '\\x%02x\\x%02x\\x00\\x00' $((${#1} & 255)) $((${#1} >> 8)))" "$1" >&"$fd"
}
frame '{"type":"hello","version":2}'
while :; do
    frame '{"type":"health","phase":"ready","uptime_s":1,"replica_restarts":0,"memory_used":1,"addresses":[],"heap":"none: simulated","error":""}'
    # A message ends with a brace; none comes within a second unless something is wanted.
    if read -r -t 1 -d '}' -u "$fd" message 2>/dev/null && [[ $message == *power_off* ]]; then
        exit 0
    fi
done
