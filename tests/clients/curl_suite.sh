#!/usr/bin/env bash
# curl through nullhop: HTTP and TLS versions, framing, and requests that must be refused. python/runner.py explains the
# variables and the lines printed; arguments pick the cases whose name contains one of them.
set -uo pipefail

direct=${NULLHOP_DIRECT:-0}
if [[ $direct == 1 ]]; then
    openai=$PROVIDER_BASE
else
    openai=$NULLHOP_BASE/openai
fi
chat=$openai/v1/chat/completions
models=$openai/v1/models
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Sends a request with what every one needs; prints the status, then what else was asked for. The body is in $work/body,
# head and trailers are in $work/head.
request() {
    rm -f "$work/body" "$work/head"
    touch "$work/body" "$work/head"
    curl --silent --show-error --max-time 12 --noproxy '*' --cacert "$NULLHOP_CA" --output "$work/body" \
        --dump-header "$work/head" --write-out '%{http_code}' --header "authorization: Bearer ${NULLHOP_KEY:-sk-test}" \
        --header 'content-type: application/json' --header "x-case: curl_suite/$name" "$@"
}

# Expects a status, then the rest is a request.
answers() {
    local wanted=$1 status
    shift
    status=$(request "$@" 2>"$work/error")
    [[ $status == "$wanted" ]] && return
    echo "status $status, wanted $wanted: $(head -c 200 "$work/error" "$work/body" | tr '\n' ' ')"
    return 1
}

equal() { [[ $1 == "$2" ]] || { echo "got '${1:0:200}', wanted '${2:0:200}'"; return 1; }; }
head_has() { grep -qi -- "$1" "$work/head" || { echo "no $1 in the head: $(tr '\r\n' '  ' < "$work/head")"; return 1; }; }
body_has() { grep -q -- "$1" "$work/body" || { echo "no $1 in: $(head -c 200 "$work/body")"; return 1; }; }
body_is_empty() { equal "$(stat --format %s "$work/body")" 0; }
# To a HEAD, curl writes the head where else the body goes.
only_head() { cmp "$work/body" "$work/head"; }
digest() { sha256sum | cut -c 1-64; }

# Each version of HTTP and TLS.
unary() { answers 200 "$@" --data '{"model":"m","messages":[]}' "$chat" && body_has '"choices"'; }
stream() {
    answers 200 "$@" --no-buffer --data '{"model":"count-50","stream":true,"messages":[]}' "$chat" &&
        head_has 'content-type: text/event-stream' && equal "$(grep -c '^data: ' "$work/body")" 53 &&
        equal "$(grep '^data: ' "$work/body" | tail -1)" 'data: [DONE]'
}
speaks() { equal "$(request --write-out '%{http_version}' "${@:2}" "$models")" "$1"; }

# 100 ms between events: collected ones would come late or not at all.
stream_arrives_as_it_is_sent() {
    request "$@" --max-time 1.5 --no-buffer --data '{"model":"slow","stream":true,"messages":[]}' "$chat" &> "$work/error"
    local count
    count=$(grep -c '^data: ' "$work/body")
    ((count >= 6)) || { echo "$count events in 1.5 s"; return 1; }
}

head_request() { answers 200 "$@" --head --header 'x-script: size=9;header=x-canary:41' "$models" && head_has 'x-canary: 41' && only_head; }
empty_post() { answers 200 "$@" --request POST --data '' "$chat"; }
not_modified() { answers 304 "$@" --header 'x-script: status=304' "$models" && body_is_empty; }
no_content() { answers 204 "$@" --header 'x-script: status=204' "$models" && body_is_empty; }
compressed_is_fine() { answers 200 "$@" --compressed --data '{"model":"m","messages":[]}' "$chat" && body_has '"choices"'; }

expect_continue() {
    answers 200 "$@" --header 'Expect: 100-continue' --expect100-timeout 5 --data-binary "@$work/2mb" "$chat" &&
        head_has '^HTTP/1.1 100'
}

echoed_upload() {
    answers 200 "$@" --header 'x-script: echo=1' --request POST --upload-file - "$chat" < "$work/2mb" &&
        equal "$(digest < "$work/body")" "$(digest < "$work/2mb")"
}

trailers() {
    answers 200 "$@" --header 'te: trailers' --header 'x-script: size=1000;trailer=x-sum:41' "$models" &&
        equal "$(stat --format %s "$work/body")" 1000 && head_has '^x-sum: *41'
}

download() {
    local bytes=100000000
    answers 200 "$@" --header "x-script: size=$bytes" "$models" && equal "$(stat --format %s "$work/body")" $bytes || return
    [[ -f $work/wanted ]] || curl --silent --noproxy '*' --cacert "$NULLHOP_CA" --header "x-script: size=$bytes" \
        "$PROVIDER_BASE/v1/models" | digest > "$work/wanted"
    equal "$(digest < "$work/body")" "$(< "$work/wanted")"
}

one_connection() {
    equal "$(request "$@" --write-out '%{http_code}:%{num_connects} ' "$models" --output "$work/body" "$models")" '200:1 200:0 '
}

parallel() {
    request "$@" --parallel --parallel-immediate --parallel-max 50 --write-out '%{http_code}\n' "$models?[1-50]" \
        > "$work/codes" 2> "$work/error"
    equal "$(grep -c '^200' "$work/codes")" 50
}

# nullhop's own answers.
hint_for_a_wrong_base() {
    answers 404 "$@" --data '{}' "$NULLHOP_BASE/openai/chat/completions" && body_has '/openai/v1' &&
        head_has 'x-should-retry: false' && head_has 'content-type: application/json'
}
trace() { answers 405 "$@" --request TRACE "$models"; }
absolute_form() { answers 400 "$@" --request-target https://other.example/openai/v1/models "$NULLHOP_BASE/"; }
other_host() { answers 421 "$@" --header 'host: other.example' "$models"; }
dot_segments() { answers 400 "$@" --path-as-is "$NULLHOP_BASE/openai/v1/../x"; }
big_header() {
    { printf 'x-big: '; head -c 70000 /dev/zero | tr '\0' a; } > "$work/header"
    answers 431 "$@" --header "@$work/header" "$models"
}
hello() { answers 200 "$@" --head "$NULLHOP_BASE/anthropic/api/hello" && only_head; }
body_over_the_limit() { answers 413 "$@" --data-binary "@$work/33mb" "$chat" && body_has 'request_too_large'; }
endless_body_over_the_limit() {
    answers 413 "$@" --request POST --upload-file - "$chat" < "$work/33mb" && body_has 'request_too_large'
}

passed=0 failed=0
# Runs one case: its name, the function, curl's options.
run() {
    name=$1
    local filter wanted=1 reason
    for filter in "${filters[@]}"; do
        wanted=0
        [[ $name == *"$filter"* ]] && wanted=1 && break
    done
    ((wanted)) || return
    if reason=$("${@:2}" 2>&1); then
        echo "ok $name"
        passed=$((passed + 1))
    else
        echo "FAIL $name: $(tr '\r\n' '  ' <<< "$reason" | head -c 400)"
        failed=$((failed + 1))
    fi
}

filters=("$@")
head -c 2000000 /dev/urandom > "$work/2mb"
truncate --size 34603008 "$work/33mb"

# curl would offer the protocol `http/1.0` in the handshake and nothing else, which hardly any server knows.
http10='http1.0 --no-alpn'
run http1.1/speaks speaks 1.1 --http1.1
run http2/speaks speaks 2 --http2
run tls1.2/speaks speaks 2 --tlsv1.2 --tls-max 1.2
run tls1.3/speaks speaks 2 --tlsv1.3
for version in "$http10" http1.1 http2 'tlsv1.2 --tls-max 1.2' tlsv1.3; do
    # shellcheck disable=SC2086 # the words are options
    for function in unary stream stream_arrives_as_it_is_sent; do
        run "${version%% *}/$function" $function --$version
    done
done
for version in http1.1 http2; do
    for function in head_request empty_post not_modified no_content compressed_is_fine echoed_upload trailers download \
        one_connection parallel; do
        run "$version/$function" $function --$version
    done
done
run http1.0/download download --http1.0 --no-alpn
run http1.1/expect_continue expect_continue --http1.1
if [[ $direct != 1 ]]; then
    for version in http1.1 http2; do
        for function in hint_for_a_wrong_base trace other_host dot_segments hello body_over_the_limit \
            endless_body_over_the_limit; do
            run "$version/$function" $function --$version
        done
    done
    # Not over HTTP/2: nghttp2 itself refuses to send more than 64 KiB of header block.
    run http1.1/big_header big_header --http1.1
    run http1.1/absolute_form absolute_form --http1.1
fi
echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))
