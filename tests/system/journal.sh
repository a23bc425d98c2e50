# The journal: fields, severities, catalog, nothing forged and nothing lost.

test_entries_have_fields_and_true_severities() {
    pool says "catch_workers_output = yes" "php_admin_value[error_reporting] = 32767" "php_admin_flag[log_errors] = on"
    script warn.php <<<'<?php echo $undefined; trigger_error("a notice", E_USER_NOTICE); error_log("plain words");'
    start says
    request says warn.php >/dev/null
    until_true 60 logged says "Undefined variable"
    entry=$(journalctl PHP_POOL=says -o json --no-pager | jq -c 'select((.MESSAGE | tostring) | contains("Undefined variable"))')
    equal "$(jq -r .PRIORITY <<<"$entry")" 4
    equal "$(jq -r .PHP_POOL <<<"$entry")" says
    [ "$(jq -r .PHP_WORKER <<<"$entry")" -gt 0 ]
    contains "$(journalctl PHP_POOL=says PRIORITY=4 -o cat --no-pager)" "Undefined variable"
    lacks "$(journalctl PHP_POOL=says PRIORITY=4 -o cat --no-pager)" "a notice"
    contains "$(journalctl PHP_POOL=says PRIORITY=5 -o cat --no-pager)" "a notice"
}

test_what_a_request_sends_forges_no_entry() {
    pool forged "catch_workers_output = yes"
    script die.php <<<'<?php posix_kill(getmypid(), 9);'
    start forged
    request forged die.php $'a=\nPRIORITY=0\nMESSAGE=forged' || true
    until_true 60 logged forged "SIGKILL"
    equal "$(journalctl PHP_POOL=forged PRIORITY=0 -o cat --no-pager)" ""
    lacks "$(journal forged)" $'\nMESSAGE=forged'
}

test_a_dead_worker_has_its_identifier_request_and_explanation() {
    pool coroner
    script die.php <<<'<?php posix_kill(getmypid(), 9);'
    start coroner
    request coroner die.php who=me || true
    until_true 60 logged coroner "SIGKILL"
    id=$(journalctl PHP_POOL=coroner -o json --no-pager | jq -r 'select((.MESSAGE | tostring) | contains("SIGKILL")) | .MESSAGE_ID')
    entry=$(journalctl "MESSAGE_ID=$id" PHP_POOL=coroner -o json --no-pager | head -n 1)
    equal "$(jq -r .PHP_SCRIPT <<<"$entry")" /srv/die.php
    contains "$(jq -r .PHP_URI <<<"$entry")" /die.php
    contains "$(journalctl -x "MESSAGE_ID=$id" --no-pager)" "A worker of a pool has died"
}

test_a_thousand_lines_are_all_there() {
    pool loud "catch_workers_output = yes"
    script loud.php <<<'<?php for ($i = 0; $i < 1000; $i++) fwrite(STDERR_OR_LOG(), "line $i\n"); function STDERR_OR_LOG() { static $f; return $f ??= fopen("php://stderr", "w"); } echo "done";'
    start loud
    equal "$(request loud loud.php)" "done"
    until_true 60 logged loud "line 999"
    equal "$(journal loud | grep -c '^line ')" 1000
}

test_a_slow_request_is_one_entry_with_its_stack() {
    pool slow "slowlog = /var/log/php-pool-slow.log" "request_slowlog_timeout = 300ms"
    script slow.php <<<'<?php
function wait(int $seconds, array $more) { sleep($seconds); }
wait(2, []); echo "done";'
    start slow
    equal "$(request slow slow.php $'a=b\nMESSAGE=forged')" "done"
    id=3f5a514f538d45929208c115c32abc14
    until_true 60 has_entry "MESSAGE_ID=$id" PHP_POOL=slow
    equal "$(journalctl "MESSAGE_ID=$id" PHP_POOL=slow -o json --no-pager | wc -l)" 1
    entry=$(journalctl "MESSAGE_ID=$id" PHP_POOL=slow -o json --no-pager)
    equal "$(jq -r .PRIORITY <<<"$entry")" 4
    equal "$(jq -r .PHP_SCRIPT <<<"$entry")" /srv/slow.php
    equal "$(jq -r .PHP_METHOD <<<"$entry")" GET
    contains "$(jq -r .PHP_URI <<<"$entry")" /slow.php
    contains "$(jq -r .PHP_QUERY <<<"$entry")" a=b
    [ "$(jq -r .PHP_DURATION_USEC <<<"$entry")" -ge 300000 ]
    equal "$(jq -r .PHP_BACKTRACE <<<"$entry")" "#0 /srv/slow.php(2): sleep(int)
#1 /srv/slow.php(3): wait(int, array)
#2 {main}"
    contains "$(jq -r .MESSAGE <<<"$entry")" "executing too slow ("
    contains "$(jq -r .MESSAGE <<<"$entry")" "#0 /srv/slow.php(2): sleep(int)"
    # One entry for all of it; the file has the record.
    lacks "$(journal slow)" "finished trace of"
    contains "$(cat /var/log/php-pool-slow.log)" "] sleep() /srv/slow.php:2"
    contains "$(journalctl -x "MESSAGE_ID=$id" --no-pager)" "A request is slow"
}
has_entry() { [ -n "$(journalctl "$@" -o cat --no-pager)" ]; }
