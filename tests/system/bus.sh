# D-Bus: activation by systemd, the bus's policy, polkit, signals.

PATH_OF=/org/phppool/pool
property() { busctl get-property org.phppool "$PATH_OF/$1" org.phppool.Pool1 "$2" | cut -d' ' -f2-; }
as() { local user=$1; shift; id "$user" >/dev/null 2>&1 || useradd "$user"; runuser -u "$user" -- "$@"; }

# without: rm /usr/share/dbus-1/system-services/org.phppool.service; systemctl reload dbus
test_a_question_starts_the_service_and_it_leaves_again() {
    pool asked
    start asked
    mkdir -p /run/systemd/system/php-pool-bus.service.d
    printf '[Service]\nExecStart=\nExecStart=/usr/bin/php-pool bus --idle 2\n' >/run/systemd/system/php-pool-bus.service.d/idle.conf
    systemctl daemon-reload
    equal "$(systemctl is-active php-pool-bus.service)" inactive
    equal "$(property asked State)" '"running"'
    until_true 60 left
    equal "$(systemctl show -P Result php-pool-bus.service)" success
    for _ in 1 2 3 4 5 6 7 8 9 10; do # some of them meet it as it leaves
        equal "$(property asked State)" '"running"'
        until_true 60 left
    done
    rm -r /run/systemd/system/php-pool-bus.service.d
    systemctl daemon-reload
}
left() { [ "$(systemctl is-active php-pool-bus.service)" = inactive ]; }

# without: code src/bus/pool.rs 's/check_name(name).is_ok()).collect()/check_name(name).is_ok() \&\& self.control(name).exists()).collect()/'
# without: code src/bus/pool.rs 's/let path = self.control(name);/& let _ = std::os::unix::net::UnixStream::connect(self.run.join(format!("{name}.sock")));/' ; setting php-pool-bus.service CapabilityBoundingSet=CAP_DAC_OVERRIDE
test_sleeping_stopped_and_failed_pools_are_listed_and_none_is_woken() {
    pool my-app "pm = ondemand"
    pool gone "pm = ondemand"
    pool wrong "pm = dynmic"
    systemctl start php-pool@my-app.socket
    ! systemctl start php-pool@wrong.service || fail "it started"
    contains "$(busctl tree --list org.phppool)" "$PATH_OF/my_2dapp"
    equal "$(property my_2dapp State)" '"asleep"'
    equal "$(property my_2dapp Name)" '"my-app"'
    equal "$(property my_2dapp ProcessManager)" '"ondemand"'
    equal "$(property my_2dapp TotalProcesses)" 0
    equal "$(property gone State)" '"stopped"'
    equal "$(property wrong State)" '"failed"'
    all=$(busctl --json=short call org.phppool /org/phppool org.freedesktop.DBus.ObjectManager GetManagedObjects)
    equal "$(jq -r '.data[0]["/org/phppool/pool/my_2dapp"]["org.phppool.Pool1"].State.data' <<<"$all")" asleep
    equal "$(systemctl is-active php-pool@my-app.service)" inactive
    equal "$(systemctl is-active php-pool@gone.service)" inactive
}

# without: code units/dbus/org.phppool.Pool1.xml 's/"ListenQueueLength"/"Length"/'
# without: code units/dbus/org.phppool.Pool1.xml 's/"SlowRequest"/"Slow"/'
test_introspection_shows_what_there_is() {
    pool shown
    start shown
    text=$(busctl introspect org.phppool $PATH_OF/shown org.phppool.Pool1)
    for name in Name State ProcessManager Generation StartTime AcceptedConnections ListenQueue MaxListenQueue ListenQueueLength \
        IdleProcesses ActiveProcesses TotalProcesses MaxActiveProcesses MaxChildrenReached SlowRequests ListWorkers Reload \
        Backtrace SlowRequest WorkerExited; do
        contains "$text" ".$name "
    done
}

# without: sed -i 's/<policy context=.default.>/&<allow own="org.phppool"\/>/' /usr/share/dbus-1/system.d/org.phppool.conf; systemctl reload dbus
# without: code src/bus/caller.rs 's/uid == 0 || Some(uid) == owner/true || Some(uid) == owner/'
# without: code src/bus/object.rs 's/describe(worker, requests)/describe(worker, requests || true)/'
# without: code src/bus/caller.rs 's/Some(uid) == owner/false/'
test_anybody_sees_counters_and_nobody_elses_requests_and_reloads_nothing() {
    pool private
    script long.php <<<'<?php file_put_contents("/srv/state/private-begun", ""); sleep(60);'
    rm -f /srv/state/private-begun
    start private
    request private long.php secret=1 &
    until_true 60 test -e /srv/state/private-begun
    get=(busctl get-property org.phppool $PATH_OF/private org.phppool.Pool1)
    call=(busctl --json=short call org.phppool $PATH_OF/private org.phppool.Pool1)
    equal "$(as eve "${get[@]}" ActiveProcesses)" "u 1"
    equal "$(as eve "${get[@]}" AcceptedConnections)" "t 1"
    seen=$(as eve "${call[@]}" ListWorkers)
    equal "$(jq -r '.data[0][0].State.data' <<<"$seen")" active
    lacks "$seen" secret
    lacks "$seen" long.php
    pid=$(jq -r '.data[0][0].Pid.data' <<<"$seen")
    ! as eve "${call[@]}" Backtrace u "$pid" 2>/tmp/eve || fail "she saw it"
    contains "$(cat /tmp/eve)" "Access denied"
    ! as eve "${call[@]}" Reload 2>/tmp/eve || fail "she did it"
    contains "$(cat /tmp/eve)" "Access denied"
    ! as eve busctl call org.freedesktop.DBus / org.freedesktop.DBus RequestName su org.phppool 0 || fail "she has the name"
    # The pool's user and root.
    contains "$(as www-data "${call[@]}" ListWorkers)" secret=1
    contains "$(as www-data "${call[@]}" Backtrace u "$pid")" "sleep() /srv/long.php:1"
    ! as www-data "${call[@]}" Reload || fail "it did it"
    contains "$("${call[@]}" ListWorkers)" secret=1
    equal "$(property private Generation)" 1
    "${call[@]}" Reload
    equal "$(property private Generation)" 2
}

# without: rm /usr/share/polkit-1/actions/org.phppool.policy
# without: sed -i 's/"www"/"other"/' /usr/share/doc/php-pool/examples/deploy.rules
test_the_example_rule_lets_a_deploy_user_reload_one_pool() {
    until_true 60 systemctl is-active php-pool@www.service
    pool other
    start other
    reload() { as deploy busctl call org.phppool "$PATH_OF/$1" org.phppool.Pool1 Reload; }
    ! reload www || fail "it may without the rule"
    mkdir -p /etc/polkit-1/rules.d
    cp /usr/share/doc/php-pool/examples/deploy.rules /etc/polkit-1/rules.d/50-php-pool-deploy.rules
    chmod 644 /etc/polkit-1/rules.d/50-php-pool-deploy.rules
    before=$(property www Generation)
    until_true 60 reload www
    [ "$(property www Generation)" -gt "$before" ]
    ! reload other || fail "it may reload another, too"
    equal "$(property other Generation)" 1
    rm /etc/polkit-1/rules.d/50-php-pool-deploy.rules
}

# without: setting php-pool-bus.socket ListenDatagram= ListenDatagram=/run/php-pool/.others; systemctl restart php-pool-bus.socket
test_signals_reach_a_monitor_that_was_there_first() {
    pool told "pm = dynamic" "pm.start_servers = 1" "pm.min_spare_servers = 1" "pm.max_spare_servers = 1" \
        "slowlog = /var/log/told.slow" "request_slowlog_timeout = 1s"
    script long.php <<<'<?php sleep(20);'
    script die.php <<<'<?php posix_kill(getmypid(), 9);'
    start told
    systemctl stop php-pool-bus.service
    equal "$(systemctl is-active php-pool-bus.socket)" active
    busctl --match "type='signal',interface='org.phppool.Pool1'" monitor >/tmp/told 2>/tmp/told.err &
    monitor=$!
    until_true 60 grep -q Monitoring /tmp/told.err
    pid=$(worker_pids told)
    request told die.php secret=1 || true
    until_true 60 grep -q 'on signal 9 (SIGKILL)' /tmp/told
    contains "$(grep Member=WorkerExited /tmp/told)" "Path=$PATH_OF/told "
    contains "$(grep -A 5 Member=WorkerExited /tmp/told)" "UINT32 $pid;"
    request told long.php secret=1 >/dev/null &
    until_true 60 grep -q Member=SlowRequest /tmp/told
    request told long.php >/dev/null &
    until_true 60 grep -q Member=MaxChildrenReached /tmp/told
    lacks "$(cat /tmp/told)" secret
    kill $monitor
}

# without: code src/master/herald.rs 's/let _ = \(self.socket.send_to.*\);/\1.unwrap();/'
test_without_the_service_a_pool_goes_on() {
    pool alone
    script die.php <<<'<?php posix_kill(getmypid(), 9);'
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    start alone
    # With nobody at the socket, and with a service that cannot start.
    systemctl stop php-pool-bus.socket php-pool-bus.service
    request alone die.php || true
    equal "$(request alone hello.php)" "hello from fpm-fcgi"
    mkdir -p /run/systemd/system/php-pool-bus.service.d
    printf '[Service]\nExecStart=\nExecStart=/bin/false\n' >/run/systemd/system/php-pool-bus.service.d/false.conf
    systemctl daemon-reload
    systemctl start php-pool-bus.socket
    request alone die.php || true
    equal "$(request alone hello.php)" "hello from fpm-fcgi"
    equal "$(systemctl show -P NRestarts php-pool@alone)" 0
    rm -r /run/systemd/system/php-pool-bus.service.d
    systemctl daemon-reload
    systemctl reset-failed php-pool-bus.socket php-pool-bus.service
    systemctl start php-pool-bus.socket
    equal "$(property alone State)" '"running"'
}
