# The packages, as they are right after installation.

test_the_www_pool_works_right_after_installation_and_nginx_by_the_snippet() {
    until_true 60 systemctl is-active php-pool@www.service
    mkdir -p /var/www/html
    echo '<?php echo PHP_SAPI, " ", php_ini_loaded_file(), " ", $_SERVER["PATH_INFO"] ?? "none";' >/var/www/html/i.php
    printf 'server { listen 8088; root /var/www/html; include snippets/php-pool.conf; }\n' >/etc/nginx/sites-enabled/test
    systemctl start nginx
    contains "$(curl -s http://127.0.0.1:8088/i.php)" "fpm-fcgi /etc/php/"
    contains "$(curl -s http://127.0.0.1:8088/i.php)" "/php-pool/php.ini none"
    contains "$(curl -s http://127.0.0.1:8088/i.php/extra)" " /extra"
}

test_phpenmod_knows_the_sapi_and_its_trigger_reloads_the_pools() {
    until_true 60 systemctl is-active php-pool@www.service
    contains "$(phpquery -S)" php-pool
    version=$(phpquery -V | tail -n 1)
    [ -e "/etc/php/$version/php-pool/conf.d/10-opcache.ini" ]
    before=$(php-pool status www | grep -o 'generation [0-9]*')
    phpdismod -s php-pool calendar
    dpkg-trigger "/etc/php/$version/php-pool/conf.d"
    dpkg --configure --pending
    [ "$(php-pool status www | grep -o 'generation [0-9]*')" != "$before" ]
}

test_a_new_file_is_a_new_pool_and_its_removal_the_end_of_it() {
    pool extra
    systemctl start php-pool.target
    until_true 60 systemctl is-active php-pool@extra.service
    systemctl stop php-pool@extra.socket php-pool@extra.service
    rm /etc/php-pool/pool.d/extra.conf
    systemctl daemon-reload
    lacks "$(ls /run/systemd/generator/php-pool.target.wants)" extra
}

test_a_bad_file_is_a_failing_unit_with_the_reason_and_disturbs_no_other() {
    printf '[other]\nlisten = 9000\n' >/etc/php-pool/pool.d/odd.conf
    printf '[café]\nlisten = 9000\n' >/etc/php-pool/pool.d/café.conf
    systemctl daemon-reload
    ! systemctl start php-pool@odd.service || fail "it started"
    contains "$(systemctl status --no-pager -l php-pool@odd.service)" "must hold [odd] alone"
    ! systemctl start "php-pool@$(systemd-escape café).service" || fail "it started"
    contains "$(systemctl status --no-pager -l "php-pool@$(systemd-escape café).service")" "cannot name a pool"
    equal "$(systemctl is-active php-pool@www.service)" active
    rm /etc/php-pool/pool.d/{odd,café}.conf
    systemctl daemon-reload
}

test_a_thousand_pool_files_cost_what_they_should() {
    generator=/lib/systemd/system-generators/php-pool-generator
    cost() {
        rm -rf /tmp/units && mkdir /tmp/units
        local begin=$EPOCHREALTIME
        $generator /tmp/units /tmp/units /tmp/units
        echo $(((${EPOCHREALTIME/./} - ${begin/./}) / 1000))
    }
    files() {
        local n
        for ((n = $1; n <= $2; n++)); do
            printf '[p%s]\nuser = www-data\nlisten = /run/php-pool/$pool.sock\npm = ondemand\npm.max_children = 2\n' "$n" >"/etc/php-pool/pool.d/p$n.conf"
        done
    }
    files 1000 1249
    few=$(cost)
    files 1250 1999
    many=$(cost)
    echo "250 files: $few ms, 1,000 files: $many ms"
    equal "$(ls /tmp/units/php-pool.target.wants | grep -c 'p1.*socket')" 1000
    # Four times the files, and room for the machine's moods: more would not be linear.
    [ "$many" -lt $((few * 8 + 500)) ]
    rm /etc/php-pool/pool.d/p1*.conf
}

test_a_purge_leaves_nothing() {
    version=$(phpquery -V | tail -n 1)
    rm -rf /etc/php-pool/pool.d/[!w]*.conf
    dpkg --purge "php-pool-php$version" php-pool
    equal "$(find / -xdev -path /proc -prune -o -path /tests -prune -o -path /vm -prune -o \
        -path '/var/log/journal' -prune -o -path '/sys' -prune -o -path /tmp -prune -o -path /var/cache -prune -o \
        -name '*php-pool*' -print)" ""
    equal "$(ls -d /run/php-pool /sys/fs/cgroup/php.slice/php-pool.slice 2>/dev/null)" ""
    lacks "$(systemctl list-units --all 'php-pool*' --no-legend)" php-pool
}
