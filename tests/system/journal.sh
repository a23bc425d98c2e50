# The journal: fields, severities, catalog, nothing forged and nothing lost.

# entry POOL TEXT: the entry with this in its message, as JSON.
entry() {
    journalctl --sync
    journalctl --all PHP_POOL="$1" -o json --no-pager | jq -c --arg text "$2" 'select((.MESSAGE | tostring) | contains($text))' | head -n 1
}

# without: code src/log/journal.rs 's/"PHP Warning: ", 4/"PHP Warning: ", 5/'
# without: code src/log/journal.rs 's/"PHP_REQUEST_ID"/"PHP_OTHER"/'
test_entries_have_fields_and_true_severities() {
    pool says "catch_workers_output = yes" "php_admin_value[error_reporting] = 32767" "php_admin_flag[log_errors] = on"
    script warn.php <<'END'
<?php
echo $undefined;
trigger_error("a notice", E_USER_NOTICE);
trigger_error("too old", E_USER_DEPRECATED);
error_log("plain words");
fwrite(fopen("php://stderr", "w"), "printed words\n");
throw new Exception("nobody catches this");
END
    start says
    pid=$(cat "$(group says)"/workers/*/cgroup.procs)
    HTTP_X_REQUEST_ID=r-4711 request says warn.php who=me >/dev/null
    until_true 60 logged says "nobody catches this"
    until_true 60 logged says "printed words"
    for case in '4 Undefined variable' '5 a notice' '5 too old' '5 plain words' '5 printed words' '3 nobody catches this'; do
        entry=$(entry says "${case#* }")
        equal "${case#* }: $(jq -r .PRIORITY <<<"$entry")" "${case#* }: ${case%% *}"
        equal "$(jq -r '[.PHP_POOL, .PHP_WORKER, .PHP_SCRIPT, .PHP_URI, .PHP_QUERY, .PHP_REQUEST_ID] | join(" ")' <<<"$entry")" \
            "says $pid /srv/warn.php /warn.php who=me r-4711"
    done
    # As an administrator asks for it.
    contains "$(journalctl PHP_POOL=says PRIORITY=4 -o cat --no-pager)" "Undefined variable"
    lacks "$(journalctl -u php-pool@says -p 0..4 -o cat --no-pager)" "a notice"
}

# without: sed -i 's/catch_workers_output = no/catch_workers_output = yes/' /tests/journal.sh
# without: sed -i 's/"catch_workers_output = no"/& "php_admin_value[error_log] = \/dev\/stderr"/' /tests/journal.sh
test_messages_of_php_come_without_catch_workers_output_too() {
    pool quiet "catch_workers_output = no"
    script say.php <<<'<?php error_log("heard"); fwrite(fopen("php://stderr", "w"), "not heard\n");'
    start quiet
    request quiet say.php
    until_true 60 logged quiet "PHP message: heard"
    lacks "$(journal quiet)" "not heard"
}

# without: code src/log/journal.rs 's/value.contains(&b.\\n.)/false/'
# without: code src/log/journal.rs 's/== Some(Errno::EMSGSIZE as i32)/== None/'
test_a_message_of_many_lines_and_of_any_length_is_one_entry() {
    pool long "php_admin_value[log_errors_max_len] = 0"
    script long.php <<'END'
<?php
error_log("first line\nsecond line\n\nlast line");
error_log("begin " . str_repeat("x", 20000) . " end");
error_log("start " . str_repeat("é", 150000) . " stop");
function deep($n) { if ($n == 0) throw new Exception("thrown deep"); deep($n - 1); }
deep(3);
END
    start long
    request long long.php >/dev/null
    until_true 60 logged long "thrown deep"
    equal "$(entry long "first line" | jq -r .MESSAGE)" $'PHP message: first line\nsecond line\n\nlast line'
    whole=$(entry long "begin x" | jq -r .MESSAGE)
    equal "${#whole}" $((13 + 6 + 20000 + 4))
    # Longer than any packet between our processes, and than a datagram to journald.
    equal "$(entry long "start é" | jq -r '.MESSAGE | length')" $((13 + 6 + 150000 + 5))
    contains "$(entry long "thrown deep" | jq -r .MESSAGE)" $'#3 /srv/long.php(6): deep()\n#4 {main}\n  thrown in /srv/long.php on line 5'
}

# without: code src/log/journal.rs 's/value.contains(&b.\\n.)/false/'
test_what_a_request_sends_forges_no_entry() {
    pool forged "catch_workers_output = yes"
    script die.php <<<'<?php posix_kill(getmypid(), 9);'
    start forged
    request forged die.php $'a=\nPRIORITY=0\nMESSAGE=forged' || true
    until_true 60 logged forged "SIGKILL"
    equal "$(journalctl PHP_POOL=forged PRIORITY=0 -o cat --no-pager)" ""
    lacks "$(journal forged)" $'\nMESSAGE=forged'
}

# identified POOL ID SUBJECT: waits for an event, which the catalog explains.
identified() {
    until_true 90 has_id "$1" "$2"
    contains "$(journalctl -x PHP_POOL="$1" MESSAGE_ID="$2" --no-pager)" "$3"
}
has_id() { journalctl --sync && [ -n "$(journalctl -q PHP_POOL="$1" MESSAGE_ID="$2" --no-pager)" ]; }

# without: rm /usr/lib/systemd/catalog/php-pool.catalog; journalctl --update-catalog
test_every_event_has_its_identifier_and_its_explanation() {
    pool events "pm.max_children = 1" "pm = ondemand" "request_slowlog_timeout = 1s" "request_terminate_timeout = 4s" \
        "slowlog = /srv/state/events-slow" "worker.memory_max = 64M" "php_admin_value[memory_limit] = -1"
    script sleep.php <<<'<?php sleep(60);'
    script eat.php <<<'<?php for (;;) { $all[] = str_repeat("x", 1 << 20); }'
    script die.php <<<'<?php posix_kill(getmypid(), 9);'
    start events
    request events sleep.php >/dev/null &
    request events sleep.php >/dev/null &
    identified events 3f5a514f538d45929208c115c32abc14 "A request is slow"
    identified events 2ab6d92883c3487f97cdf8f357638a5a "A request has exceeded its time limit"
    identified events ea40ce8e894e4821982fd71f2c3ea80c "A pool has reached its largest size"
    wait
    request events die.php || true
    identified events 51282a4328314f1693838ac194d153e3 "A worker of a pool has died"
    request events eat.php who=me || true
    identified events b991bd98767c4958b8e0cc67010813ce "A worker was ended for want of memory"
    identified events 790ddbb7784b408695581d0beacc1987 "A new generation of workers serves a pool"
    pool events "pm = wrong"
    ! systemctl reload php-pool@events || fail "the reload succeeded"
    identified events 02287d9d79e14b19ad178e89c1e19791 "A reload has failed"
    slow=$(journalctl PHP_POOL=events MESSAGE_ID=3f5a514f538d45929208c115c32abc14 -o json --no-pager | head -n 1)
    equal "$(jq -r '[.PHP_SCRIPT, .PHP_URI, .PRIORITY] | join(" ")' <<<"$slow")" "/srv/sleep.php /sleep.php 4"
    # The two others are in lifecycle.sh (a zygote that does not answer) and cgroup.sh (no control groups).
}

# without: rm /usr/lib/systemd/catalog/php-pool.catalog; journalctl --update-catalog
test_a_dead_worker_has_its_identifier_request_and_explanation() {
    pool coroner
    script die.php <<<'<?php posix_kill(getmypid(), 9);'
    start coroner
    request coroner die.php who=me || true
    until_true 60 logged coroner "SIGKILL"
    id=$(journalctl PHP_POOL=coroner -o json --no-pager | jq -r 'select((.MESSAGE | tostring) | contains("SIGKILL")) | .MESSAGE_ID')
    entry=$(journalctl "MESSAGE_ID=$id" PHP_POOL=coroner -o json --no-pager | head -n 1)
    equal "$(jq -r .PHP_SCRIPT <<<"$entry")" /srv/die.php
    equal "$(jq -r '.PHP_URI + "?" + .PHP_QUERY' <<<"$entry")" "/die.php?who=me"
    contains "$(journalctl -x "MESSAGE_ID=$id" --no-pager)" "A worker of a pool has died"
}

# without: setting php-pool@.service LogRateLimitIntervalSec=60s LogRateLimitBurst=1000
test_a_thousand_lines_a_second_are_all_there() {
    pool loud "catch_workers_output = yes"
    # Journald's own limit is 10,000 entries in 30 s; so this is below it.
    script loud.php <<'END'
<?php
$err = fopen("php://stderr", "w");
for ($second = 0; $second < 4; $second++) {
    $next = microtime(true) + 1;
    for ($i = 0; $i < 500; $i++) {
        error_log("message $second-$i.");
        fwrite($err, "line $second-$i.\n");
    }
    usleep((int) max(0, ($next - microtime(true)) * 1e6));
}
echo "done";
END
    start loud
    equal "$(request loud loud.php)" "done"
    until_true 120 logged loud "line 3-499."
    until_true 120 logged loud "message 3-499."
    equal "$(journal loud | grep -c '^line [0-9-]*\.$')" 2000
    equal "$(journal loud | grep -c '^PHP message: message [0-9-]*\.$')" 2000
    lacks "$(journal loud)" "entries are lost"
}

# without: code src/log/journal.rs 's/set_nonblocking(true)/set_nonblocking(false)/'
test_a_stuck_journald_blocks_no_request() {
    pool stuck "catch_workers_output = yes"
    # More than all the buffers on the way take.
    script flood.php <<<'<?php for ($i = 0; $i < 3000; $i++) error_log(str_repeat("x", 1000)); echo "done";'
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    start stuck
    request stuck hello.php
    journald=$(systemctl show -P MainPID systemd-journald)
    kill -STOP "$journald"
    trap 'kill -CONT "$journald"' EXIT
    equal "$(request stuck flood.php)" "done"
    equal "$(request stuck flood.php)" "done"
    equal "$(request stuck hello.php)" "hello from fpm-fcgi"
    [ "$(php-pool ping stuck)" = pong ]
    kill -CONT "$journald"
    trap - EXIT
    until_true 60 logged stuck "entries are lost: journald did not take them"
}

# without: sed -i '/^    printf .*error_log/d' /tests/journal.sh
test_error_log_names_a_file_for_php_fpms_text_log() {
    pool text "catch_workers_output = yes"
    printf '[global]\nerror_log = /srv/state/text.log\n' >>/etc/php-pool/pool.d/text.conf
    script say.php <<<'<?php error_log("one\ntwo");'
    mkdir -p -m 1777 /srv/state
    rm -f /srv/state/text.log
    start text
    request text say.php
    until_true 60 grep -q 'said into stderr: "two"' /srv/state/text.log
    log=$(cat /srv/state/text.log)
    [[ $log =~ \[[0-9]{2}-[A-Z][a-z]{2}-[0-9]{4}\ [0-9:]{8}\]\ NOTICE:\ fpm\ is\ running,\ pid\ [0-9]+ ]] || fail "no line of php-fpm's: $log"
    contains "$log" 'WARNING: [pool text] child'
    contains "$log" 'said into stderr: "NOTICE: PHP message: one"'
    lacks "$(journal text)" "PHP message"
}

# without: sed -i 's/ "request_slowlog_timeout = 300ms"//' /tests/journal.sh
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

# without: sed -i 's/ "access.log = .dev.stderr"//' /tests/journal.sh
test_the_access_log_may_be_the_journal() {
    pool lines "access.log = /dev/stderr" 'access.format = "%m %r%Q%q %s %L"'
    script hello.php <<<'<?php echo "hello";'
    start lines
    for number in 1 2; do
        HTTP_X_REQUEST_ID=r-$number request lines hello.php "n=$number" >/dev/null
        until_true 60 logged lines "GET /hello.php?n=$number 200 r-$number"
        systemctl kill --kill-whom=main --signal=USR1 php-pool@lines
    done
}
