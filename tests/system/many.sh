# Many pools: asleep they are sockets, awake each is its own, and asleep again nothing of them is left. What it costs is
# printed as "measured:" lines, beside php-fpm with the same pools.

now() { echo $((${EPOCHREALTIME/./} / 1000)); }
since() { echo $(($(now) - $1)); }
# Kilobytes that nobody uses and nobody need give up.
free_kb() { sync; echo 3 >/proc/sys/vm/drop_caches; awk '/^MemAvailable:/ { print $2 }' /proc/meminfo; }
pid1_kb() { awk '/^VmRSS:/ { print $2 }' /proc/1/status; }

# many FIRST LAST: pool files, by hand since pool() has systemd read each.
many() {
    local n
    for n in $(seq "$1" "$2"); do
        printf '[p%s]\nuser = www-data\nlisten = /run/php-pool/$pool.sock\nlisten.owner = www-data\npm = ondemand\npm.max_children = 2\npm.process_idle_timeout = 2s\nzygote_idle_time = 2s\nexit_idle_time = 4s\n' \
            "$n" >"/etc/php-pool/pool.d/p$n.conf"
    done
}
awake() { systemctl list-units --state=active,activating,deactivating --no-legend --plain 'php-pool@p*.service' | wc -l; }
none_awake() { [ "$(awake)" = 0 ]; }
leave() {
    systemctl stop 'php-pool@p*.socket' 'php-pool@p*.service'
    rm -f /etc/php-pool/pool.d/p[0-9]*.conf
    systemctl daemon-reload
}
# waves FIRST LAST FOLDER: one request each, ten at a time; every answer is counted.
waves() {
    local n pids=()
    rm -f /tmp/answer-*
    for n in $(seq "$1" "$2"); do
        SCRIPT_FILENAME=/srv/hello.php REQUEST_METHOD=GET timeout 300 cgi-fcgi -bind -connect "$3/p$n.sock" >"/tmp/answer-$n" &
        pids+=($!)
        if [ $((n % 10)) = 9 ]; then
            wait "${pids[@]}"
            pids=()
        fi
    done
    grep -l 'hello from fpm-fcgi' /tmp/answer-* | wc -l
}

# First, for what the other pools leave comes back only in time.
test_php_fpm_with_the_same_two_hundred_pools() {
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    fpm=$(echo /etc/php/*/fpm) version=$(basename "$(dirname /etc/php/*/fpm)")
    mkdir -p /run/php
    for n in $(seq 1000 1199); do
        printf '[p%s]\nuser = www-data\nlisten = /run/php/$pool.sock\nlisten.owner = www-data\npm = ondemand\npm.max_children = 2\npm.process_idle_timeout = 2s\n' \
            "$n" >"$fpm/pool.d/p$n.conf"
    done
    before=$(free_kb) begin=$(now)
    systemctl start "php$version-fpm"
    echo "measured: php-fpm: start $(since "$begin") ms"
    echo "measured: php-fpm, all idle: $((before - $(free_kb))) kB"
    begin=$(now)
    equal "$(waves 1000 1199 /run/php)" 200
    echo "measured: php-fpm: answered in waves of 10: $(since "$begin") ms"
    systemctl stop "php$version-fpm"
    rm "$fpm"/pool.d/p1*.conf
}

# without: sed -i -e 's/.nexit_idle_time = 4s//' -e 's/1199/1009/; s/" 200/" 10/; s/until_true 300/until_true 60/' /tests/many.sh
test_two_hundred_pools_wake_serve_and_sleep_again() {
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    many 1000 1199
    before=$(free_kb) workers=$(pgrep -c php-pool-worker || true) begin=$(now) # the package's own pool is awake
    systemctl daemon-reload
    systemctl start php-pool.target
    echo "measured: 200 pools: daemon-reload and start $(since "$begin") ms"
    none_awake
    echo "measured: 200 pools asleep: $((before - $(free_kb))) kB"
    begin=$(now)
    equal "$(waves 1000 1199 /run/php-pool)" 200
    echo "measured: 200 pools woken and answered in waves of 10: $(since "$begin") ms"
    echo "measured: $(awake) awake after the last wave: $((before - $(free_kb))) kB"
    until_true 300 none_awake
    echo "measured: 200 pools asleep again: $((before - $(free_kb))) kB"
    equal "$(systemctl list-units --state=failed --no-legend --plain 'php-pool*' | wc -l)" 0
    equal "$(pgrep -c php-pool-worker || true)" "$workers"
    leave
}

# without: sed -i -e 's/pm = ondemand/pm = static/' -e 's/1999/1009/; s/ 1000$/ 10/; s/p1500/p1005/' /tests/many.sh
# without: code src/bus/pool.rs 's/let path = self.control(name);/& let _ = std::os::unix::net::UnixStream::connect(self.run.join(format!("{name}.sock")));/' ; setting php-pool-bus.service CapabilityBoundingSet=CAP_DAC_OVERRIDE; sed -i 's/1999/1009/; s/ 1000$/ 10/; s/p1500/p1005/' /tests/many.sh
test_a_thousand_sockets_sleep_and_one_request_wakes_one() {
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    many 1000 1999
    before=$(free_kb) one=$(pid1_kb) begin=$(now)
    systemctl daemon-reload
    echo "measured: 1,000 pools: daemon-reload $(since "$begin") ms"
    begin=$(now)
    systemctl start php-pool.target
    echo "measured: 1,000 pools: start $(since "$begin") ms"
    equal "$(systemctl list-units --state=active --no-legend --plain 'php-pool@p*.socket' | wc -l)" 1000
    echo "measured: 1,000 pools asleep: $((before - $(free_kb))) kB, of it systemd $(($(pid1_kb) - one)) kB"
    none_awake
    begin=$(now)
    all=$(busctl --timeout=300 --json=short call org.phppool /org/phppool org.freedesktop.DBus.ObjectManager GetManagedObjects)
    echo "measured: 1,000 pools: GetManagedObjects $(since "$begin") ms"
    equal "$(jq '[.data[0][]["org.phppool.Pool1"].State.data | select(. == "asleep")] | length' <<<"$all")" 1000
    none_awake
    equal "$(request p1500 hello.php)" "hello from fpm-fcgi"
    equal "$(systemctl list-units --state=active --no-legend --plain 'php-pool@p*.service' | wc -l)" 1
    leave
}
