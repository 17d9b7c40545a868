#!/usr/bin/env bash
# Fetches the peers of the load harness that distributions do not package, or only in old versions: NATS, and Kafka
# with its clients and the Node that one of them needs. The harness finds them in the directory that LOAD_PEERS names.
#
# test/load/peers/fetch.sh DIRECTORY
# export LOAD_PEERS=DIRECTORY
set -uo pipefail

NATS=v2.15.3
NODE=24
KAFKA_CLIENTS=(@platformatic/kafka@2.12.1 kafkajs@2.2.4)

[ $# -eq 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1/bin" && directory=$(cd "$1" && pwd) || exit 1
failed=0

# fetch NAME TOOL FUNCTION: a peer that cannot be fetched does not prevent the others.
fetch() {
  if ! command -v "$2" > /dev/null; then
    echo "$1: skipped, because $2 is not installed" >&2
    failed=1
  elif "$3"; then
    echo "$1: fetched"
  else
    echo "$1: not fetched" >&2
    failed=1
  fi
}

kafka() {
  mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$directory/kafka"
}
nats() {
  GOBIN="$directory/bin" go install "github.com/nats-io/nats-server/v2@$NATS"
}
node() {
  local program
  program=$(npx -y "node@$NODE" -p process.execPath) && cp "$program" "$directory/bin/node"
}

clients() {
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$directory" "${KAFKA_CLIENTS[@]}"
}

fetch Kafka mvn kafka
fetch "Kafka's clients" npm clients
fetch "Node $NODE" npx node
fetch NATS go nats
exit $failed
