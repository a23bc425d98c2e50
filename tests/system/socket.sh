# Socket activation: whatever happens to master, zygote or package, who waits in the socket is served.

# without: setting php-pool@.socket SocketMode=0666
# without: setting php-pool@.socket ExecStartPost=
# without: setting php-pool@.socket Backlog=5
test_the_socket_has_owner_mode_and_queue_of_the_pool_file() {
    pool sock1 "listen.mode = 0600" "listen.backlog = 77"
    systemctl start php-pool@sock1.socket
    equal "$(stat -c '%U %G %a' /run/php-pool/sock1.sock)" "www-data www-data 600"
    equal "$(ss -lxH src /run/php-pool/sock1.sock | awk '{print $4}')" 77
    pool sock2
    systemctl start php-pool@sock2.socket
    equal "$(stat -c '%a' /run/php-pool/sock2.sock)" 660
}

# without: code src/master/listen.rs 's/ | OFlags::NOFOLLOW//;s/^        FileType::Socket =>/        FileType::Socket | _ =>/'
test_who_puts_a_link_in_the_sockets_place_gets_nothing_but_a_socket_that_fails() {
    touch /root/secret && chmod 600 /root/secret
    mkdir -p /home/alice /etc/systemd/system/php-pool@alice.socket.d
    # In the moment between systemd's bind and what gives the socket away.
    printf '[Socket]\nExecStartPost=ln -sf /root/secret /home/alice/sock\n' >/etc/systemd/system/php-pool@alice.socket.d/10-link.conf
    for line in "listen.owner = www-data" "listen.acl_users = www-data"; do
        pool alice "listen = /home/alice/sock" "$line"
        ! systemctl start php-pool@alice.socket || fail "a link was taken for the socket"
        contains "$(journalctl -u php-pool@alice.socket)" "something else has taken its place"
        equal "$(stat -c '%U %G %a' /root/secret) $(getfacl -cps /root/secret)" "root root 600 "
    done
    rm /etc/systemd/system/php-pool@alice.socket.d/10-link.conf
    pool alice "listen = /home/alice/sock" "listen.mode = 0600" "listen.acl_users = www-data"
    systemctl start php-pool@alice.socket
    equal "$(stat -c '%U %G' /home/alice/sock) $(getfacl -cps /home/alice/sock | grep user:www-data)" "root root user:www-data:rw-"
}

# without: setting php-pool@.service ExecStart= ExecStart=/bin/false
test_a_connection_starts_the_service() {
    pool wake
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    systemctl start php-pool@wake.socket
    equal "$(systemctl is-active php-pool@wake.service)" inactive
    equal "$(request wake hello.php)" "hello from fpm-fcgi"
    equal "$(systemctl is-active php-pool@wake.service)" active
}

# without: rm /lib/systemd/system-generators/php-pool-generator
test_a_tcp_port_works_too() {
    pool port "listen = 127.0.0.1:9123"
    systemctl start php-pool@port.socket
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    contains "$(SCRIPT_FILENAME=/srv/hello.php REQUEST_METHOD=GET cgi-fcgi -bind -connect 127.0.0.1:9123)" "hello from fpm-fcgi"
}

# without: code src/master/listen.rs 's/(alone && listener.name == "listen")/(alone \&\& false)/'
test_further_addresses_of_the_socket_unit_serve_too() {
    pool many "pm.max_children = 2"
    mkdir -p /etc/systemd/system/php-pool@many.socket.d
    printf '[Socket]\nListenStream=127.0.0.1:9124\nListenStream=/run/php-pool/many.second\n' \
        >/etc/systemd/system/php-pool@many.socket.d/more.conf
    systemctl daemon-reload
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    systemctl start php-pool@many.socket
    equal "$(systemctl is-active php-pool@many.service)" inactive
    # Any of them wakes the service, and all of them serve.
    for address in /run/php-pool/many.second 127.0.0.1:9124 /run/php-pool/many.sock 127.0.0.1:9124; do
        contains "$(SCRIPT_FILENAME=/srv/hello.php REQUEST_METHOD=GET timeout 120 cgi-fcgi -bind -connect $address)" "hello from fpm-fcgi"
    done
    systemctl reload php-pool@many
    contains "$(SCRIPT_FILENAME=/srv/hello.php REQUEST_METHOD=GET timeout 120 cgi-fcgi -bind -connect 127.0.0.1:9124)" "hello from fpm-fcgi"
}

# without: systemctl mask php-pool-status@watched.socket
test_the_status_socket_is_systemds_and_answers_while_every_worker_is_busy() {
    pool watched "pm.status_listen = /run/php-pool/\$pool.status" "pm.status_path = /status" "listen.mode = 0600"
    script slow.php <<<'<?php touch("/srv/state/watched-begun"); while (!file_exists("/srv/state/watched-end")) usleep(10000); echo "whole";'
    rm -f /srv/state/watched-{begun,end}
    systemctl start php-pool-status@watched.socket
    equal "$(stat -c '%U %a' /run/php-pool/watched.status)" "www-data 600"
    equal "$(systemctl is-active php-pool@watched.service)" inactive
    systemctl start php-pool@watched.service
    request watched slow.php >/tmp/watched &
    client=$!
    until_true 60 test -e /srv/state/watched-begun
    answer=$(SCRIPT_NAME=/status SCRIPT_FILENAME=/status REQUEST_METHOD=GET cgi-fcgi -bind -connect /run/php-pool/watched.status)
    contains "$answer" "active processes:     1"
    touch /srv/state/watched-end
    wait $client
    equal "$(cat /tmp/watched)" whole
    pool watched "pm.status_listen = /run/php-pool/\$pool.elsewhere" "pm.status_path = /status" "listen.mode = 0600"
    ! php-pool reload watched 2>/tmp/watched || fail "the reload succeeded"
    contains "$(cat /tmp/watched)" "pm.status_listen has changed"
    units="php-pool@watched.socket php-pool-status@watched.socket php-pool@watched.service"
    commands="systemctl daemon-reload && systemctl stop $units && systemctl start $units"
    contains "$(cat /tmp/watched)" "$commands"
    bash -c "$commands"
    [ -S /run/php-pool/watched.elsewhere ]
    systemctl reload php-pool@watched
    pool watched "listen.mode = 0600"
    ! php-pool reload watched 2>/tmp/watched || fail "the reload succeeded"
    commands="systemctl daemon-reload && systemctl stop $units && systemctl start ${units/php-pool-status@watched.socket /}"
    contains "$(cat /tmp/watched)" "$commands"
    bash -c "$commands"
    systemctl reload php-pool@watched
}

# without: sed -i 's/ "exit_idle_time = 2s"//' /tests/socket.sh
test_an_ondemand_pool_leaves_after_its_idle_time_and_wakes_again() {
    pool nap "pm = ondemand" "pm.process_idle_timeout = 1s" "zygote_idle_time = 1s" "exit_idle_time = 2s"
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    systemctl start php-pool@nap.socket
    equal "$(request nap hello.php)" "hello from fpm-fcgi"
    until_true 60 asleep nap
    equal "$(systemctl show -P Result php-pool@nap.service)" success
    [ -z "$(pgrep -f 'pool nap')" ]
    # By its folder a pool that does not start is told from this one.
    until_true 60 [ ! -e /run/php-pool/nap ]
    equal "$(request nap hello.php)" "hello from fpm-fcgi"
}
asleep() { [ "$(systemctl is-active "php-pool@$1.service")" = inactive ]; }

# without: setting php-pool@.service KillMode=mixed
# without: setting php-pool@.socket FlushPending=yes
test_who_waits_in_the_queue_is_served_whatever_becomes_of_master_and_zygote() {
    pool again
    script slow.php <<<'<?php touch("/srv/state/again-begun"); while (!file_exists("/srv/state/again-seen")) usleep(10000);
for ($end = microtime(true) + 3; microtime(true) < $end;) usleep(10000); echo "whole";'
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI, "\n";'
    start again
    for how in 'systemctl restart php-pool@again.service' 'kill -KILL $master' 'kill -ABRT $master' 'kill -KILL $zygote'; do
        echo "$how"
        rm -f /srv/state/again-{begun,seen} /tmp/again-*
        master=$(main_pid again) zygote=$(zygote_pid again) clients=()
        request again slow.php >/tmp/again-slow &
        clients+=($!)
        until_true 60 test -e /srv/state/again-begun
        for n in 1 2 3 4 5; do
            request again hello.php >/tmp/again-$n &
            clients+=($!)
        done
        until_true 60 waits again 5
        touch /srv/state/again-seen
        eval "$how"
        request again hello.php >/tmp/again-6 & # in the middle of it
        clients+=($!)
        wait "${clients[@]}"
        equal "$(cat /tmp/again-slow)" whole
        equal "$(cat /tmp/again-[1-6] | sort | uniq -c)" "      6 hello from fpm-fcgi"
        until_true 60 systemctl is-active php-pool@again.service
        until_true 60 has_zygote again
        [ "$(main_pid again) $(zygote_pid again)" != "$master $zygote" ] || fail "nothing has happened"
    done
}
# Those whom the master has taken, and those in the socket.
waits() { [ "$(php-pool status "$1" --json | jq '[.. | objects | .listen_queue // empty][0]')" = "$2" ]; }
has_zygote() { [ -n "$(zygote_pid "$1")" ]; }

# without: setting php-pool@.service KillMode=mixed
test_a_running_request_survives_the_death_of_the_master_and_new_ones_wait() {
    pool dies "pm.max_children = 2"
    script slow.php <<<'<?php file_put_contents("/srv/state/slow-begun", ""); for ($end = microtime(true) + 4; microtime(true) < $end;) usleep(10000); echo "whole";'
    script pid.php <<<'<?php echo getmypid();'
    rm -f /srv/state/slow-begun
    start dies
    request dies slow.php >/tmp/slow &
    slow=$!
    until_true 30 test -e /srv/state/slow-begun
    kill -KILL "$(main_pid dies)"
    request dies pid.php >/tmp/next &
    next=$!
    wait $slow
    equal "$(cat /tmp/slow)" whole
    wait $next
    [ "$(cat /tmp/next)" -gt 0 ]
    equal "$(systemctl show -P NRestarts php-pool@dies)" 1
}

# without: code src/master/pool/generations.rs '/a new generation takes over"/,/^    }/s/self.restart_at = /let _ = /'
test_a_killed_zygote_costs_no_request() {
    pool zyg "pm.max_children = 2"
    script pid.php <<<'<?php echo getmypid();'
    start zyg
    first=$(zygote_pid zyg)
    kill -KILL "$first"
    [ "$(request zyg pid.php)" -gt 0 ]
    until_true 60 new_zygote zyg "$first"
    [ "$(request zyg pid.php)" -gt 0 ]
    equal "$(systemctl show -P NRestarts php-pool@zyg)" 0
}
new_zygote() { local now; now=$(zygote_pid "$1") && [ -n "$now" ] && [ "$now" != "$2" ]; }

# without: setting php-pool@.service '[Unit]' StartLimitIntervalSec=60s StartLimitBurst=5
test_failing_starts_lose_no_client_and_a_repaired_file_needs_no_reset() {
    pool broken "pm = dynmic"
    systemctl start php-pool@broken.socket
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    request broken hello.php >/tmp/broken &
    client=$!
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        systemctl start php-pool@broken.service && fail "a broken pool started"
    done
    equal "$(systemctl is-active php-pool@broken.socket)" active
    pool broken
    wait $client
    equal "$(cat /tmp/broken)" "hello from fpm-fcgi"
}

# without: setting php-pool@.service ExecReload= 'ExecReload=kill -USR2 $MAINPID'
test_a_changed_socket_fails_the_reload_with_the_commands_that_help() {
    pool moved
    start moved
    pool moved "listen.mode = 0666"
    ! php-pool reload moved 2>/tmp/moved || fail "the reload succeeded"
    contains "$(cat /tmp/moved)" "listen.mode has changed"
    units="php-pool@moved.socket php-pool@moved.service"
    commands="systemctl daemon-reload && systemctl stop $units && systemctl start $units"
    contains "$(cat /tmp/moved)" "$commands"
    ! systemctl reload php-pool@moved || fail "systemctl reload succeeded"
    bash -c "$commands"
    equal "$(stat -c '%a' /run/php-pool/moved.sock)" 666
    systemctl reload php-pool@moved
    pool moved "listen = /run/php-pool/elsewhere.sock"
    ! php-pool reload moved 2>/tmp/moved || fail "the reload succeeded"
    contains "$(cat /tmp/moved)" "listen has changed"
}

# without: setting php-pool@.socket RemoveOnStop=no
# without: sed -i 's/^PartOf=.*/PartOf=php-pool.target/' /lib/systemd/system/php-pool-status@.socket; systemctl daemon-reload
test_stopping_the_service_alone_leaves_the_socket_and_both_end_it() {
    pool ends "pm.status_listen = /run/php-pool/\$pool.status"
    start ends
    [ -S /run/php-pool/ends.status ]
    systemctl stop php-pool@ends.socket php-pool@ends.service
    [ ! -e /run/php-pool/ends.sock ]
    [ ! -e /run/php-pool/ends.status ]
    equal "$(systemctl is-active php-pool@ends.service)" inactive
}
