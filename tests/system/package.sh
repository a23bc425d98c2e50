# The packages, as they are right after installation.

# without: systemctl stop php-pool@www.socket php-pool@www.service
# without: sed -i '/PATH_INFO/d' /etc/nginx/snippets/php-pool.conf
# without: rm /etc/php/*/php-pool/php.ini; systemctl reload php-pool@www
test_the_www_pool_works_right_after_installation_and_nginx_by_the_snippet() {
    until_true 60 systemctl is-active php-pool@www.service
    mkdir -p /var/www/html
    echo '<?php echo PHP_SAPI, " ", php_ini_loaded_file(), " ", $_SERVER["PATH_INFO"] ?: "none";' >/var/www/html/i.php
    printf 'server { listen 8088; root /var/www/html; include snippets/php-pool.conf; }\n' >/etc/nginx/sites-enabled/test
    systemctl start nginx
    contains "$(curl -s http://127.0.0.1:8088/i.php)" "fpm-fcgi /etc/php/"
    contains "$(curl -s http://127.0.0.1:8088/i.php)" "/php-pool/php.ini none"
    contains "$(curl -s http://127.0.0.1:8088/i.php/extra)" " /extra"
}

# without: rm /usr/lib/php/*/sapi/php-pool
# without: sed -i /php-pool/d /var/lib/dpkg/triggers/File
test_phpenmod_knows_the_sapi_and_its_trigger_reloads_the_pools() {
    until_true 60 systemctl is-active php-pool@www.service
    version=$(phpquery -V | tail -n 1)
    contains "$(phpquery -S -v "$version")" php-pool
    [ -e "/etc/php/$version/php-pool/conf.d/10-opcache.ini" ]
    before=$(php-pool status www | grep -o 'generation [0-9]*')
    phpdismod -s php-pool calendar
    dpkg-trigger --by-package=php-common "/etc/php/$version/php-pool/conf.d"
    dpkg --configure --pending
    [ "$(php-pool status www | grep -o 'generation [0-9]*')" != "$before" ]
}

# repacked PACKAGE DIR: what is installed of a package, as a package with a higher version, in DIR. Sets nothing and asks no network.
repacked() {
    local tree file
    tree=$(mktemp -d)
    chmod 755 "$tree"
    mkdir -p "$2" "$tree/DEBIAN"
    dpkg-query -s "$1" | sed -e '/^Status:/d' -e '/^Conffiles:/,/^[^ ]/{/^Conffiles:/d;/^ /d}' -e 's/^Version: .*/&+next/' >"$tree/DEBIAN/control"
    for file in /var/lib/dpkg/info/"$1"{,:amd64}.{conffiles,triggers,preinst,postinst,prerm,postrm,shlibs}; do
        [ ! -e "$file" ] || cp "$file" "$tree/DEBIAN/${file##*.}"
    done
    dpkg-query -L "$1" | while read -r file; do
        if [ -d "$file" ] && [ ! -L "$file" ]; then
            mkdir -p "$tree$file"
        elif [ -e "$file" ] || [ -L "$file" ]; then
            mkdir -p "$tree$(dirname "$file")" && cp -a "$file" "$tree$file"
        fi
    done
    dpkg-deb -Znone -b "$tree" "$2" >/dev/null
    rm -r "$tree"
}
generation() { php-pool status "$1" | grep -o 'generation [0-9]*'; }
# programs POOL: those of its zygotes; an earlier one may be ending.
programs() { readlink $(sed 's|.*|/proc/&/exe|' "$(group "$1")/zygote/cgroup.procs") || true; }

# without: sed -i 's/php-pool reload/true/' /var/lib/dpkg/info/php-pool-php*.postinst
# without: code src/cli/worker.rs 's/(is_set_up(name), number(name))/number(name)/'
test_a_newer_php_serves_the_pools_that_name_none_as_soon_as_it_is_set_up() {
    until_true 60 systemctl is-active php-pool@www.service
    version=$(phpquery -V | tail -n 1)
    pool named "php.version = $version"
    start named
    before=$(generation named)
    # As it is while its package is unpacked.
    cp -r "/usr/lib/php-pool/$version" /usr/lib/php-pool/99.0
    systemctl reload php-pool@www
    contains "$(programs www)" "/$version/"
    lacks "$(programs www)" /99.0/
    mkdir -p /etc/php/99.0/php-pool
    touch /etc/php/99.0/php-pool/php.ini
    DEBIAN_FRONTEND=noninteractive DPKG_MAINTSCRIPT_PACKAGE=php-pool-php$version \
        "/var/lib/dpkg/info/php-pool-php$version.postinst" configure
    contains "$(programs www)" /99.0/
    equal "$(generation named)" "$before"
    rm -r /usr/lib/php-pool/99.0 /etc/php/99.0 /etc/php-pool/pool.d/named.conf
    systemctl reload php-pool@www
    systemctl stop php-pool@named.socket php-pool@named.service
    systemctl daemon-reload
}

# without: sed -i '/libphp.*php-pool/d' /var/lib/dpkg/triggers/File
# without: sed -i /php-pool/d /var/lib/dpkg/triggers/File
test_an_upgrade_of_an_extension_or_of_libphp_reloads_the_pools() {
    until_true 60 systemctl is-active php-pool@www.service
    version=$(phpquery -V | tail -n 1)
    for package in "php$version-opcache" "libphp$version-embed"; do
        before=$(generation www) master=$(main_pid www)
        rm -rf /tmp/repacked
        repacked "$package" /tmp/repacked
        DEBIAN_FRONTEND=noninteractive dpkg -i /tmp/repacked/*.deb
        contains "$(dpkg-query -W -f '${Version}' "$package")" +next
        [ "$(generation www)" != "$before" ] || fail "$package: the pool has not been reloaded"
        equal "$(main_pid www)" "$master"
    done
    # What is no part of PHP reloads nothing.
    before=$(generation www)
    repacked jq /tmp/other
    dpkg -i /tmp/other/*.deb
    equal "$(generation www)" "$before"
}

# without: rm /lib/systemd/system-generators/php-pool-generator
test_names_with_dashes_and_dots_are_pools_and_others_are_refused() {
    for name in my-shop shop.example.org _x; do
        pool "$name"
        systemctl start php-pool.target
        until_true 60 systemctl is-active "php-pool@$name.service"
        script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
        equal "$(request "$name" hello.php)" "hello from fpm-fcgi"
        equal "$(systemctl show -P Slice "php-pool@$name")" "php-pool-$(systemd-escape "$name").slice"
    done
    printf '[a b]\nlisten = 9000\n' >'/etc/php-pool/pool.d/a b.conf'
    systemctl daemon-reload
    ! systemctl start "php-pool@$(systemd-escape 'a b').service" || fail "it started"
    says "php-pool@$(systemd-escape 'a b').service" "cannot name a pool"
    rm '/etc/php-pool/pool.d/a b.conf' /etc/php-pool/pool.d/{my-shop,shop.example.org,_x}.conf
    systemctl stop php-pool@{my-shop,shop.example.org,_x}.{socket,service}
    systemctl daemon-reload
}

# without: echo 'complete -F _php-pool php-pool; _php-pool() { :; }' >/usr/share/bash-completion/completions/php-pool
test_bash_completes_commands_and_pools() {
    completed() {
        bash -c '. /usr/share/bash-completion/bash_completion; . /usr/share/bash-completion/completions/php-pool
            COMP_WORDS=(php-pool "$1") COMP_CWORD=1 COMP_LINE="php-pool $1" COMP_POINT=${#COMP_LINE}
            $(complete -p php-pool | sed "s/.*-F \([^ ]*\).*/\1/") php-pool "$1" php-pool
            printf "%s\n" "${COMPREPLY[@]}"' - "$1"
    }
    contains "$(completed re)" reload
    contains "$(completed tr)" trace
}

# without: rm /lib/systemd/system-generators/php-pool-generator
test_a_new_file_is_a_new_pool_and_its_removal_the_end_of_it() {
    pool extra
    systemctl start php-pool.target
    until_true 60 systemctl is-active php-pool@extra.service
    systemctl stop php-pool@extra.socket php-pool@extra.service
    mv /etc/php-pool/pool.d/extra.conf{,.off}
    systemctl daemon-reload
    lacks "$(ls /run/systemd/generator/php-pool.target.wants)" extra
    systemctl start php-pool.target
    equal "$(systemctl is-active php-pool@extra.socket php-pool@extra.service)" $'inactive\ninactive'
    rm /etc/php-pool/pool.d/extra.conf.off
}

# without: rm /lib/systemd/system-generators/php-pool-generator
# without: code src/generator/mod.rs 's/let _ = write_units(&file, target);/&\n        if file.ends_with("odd.conf") { return; }/'
test_a_bad_file_is_a_failing_unit_with_the_reason_and_disturbs_no_other() {
    printf '[other]\nlisten = 9000\n' >/etc/php-pool/pool.d/odd.conf
    printf '[café]\nlisten = 9000\n' >/etc/php-pool/pool.d/café.conf
    pool tidy
    ! systemctl start php-pool@odd.service || fail "it started"
    says php-pool@odd.service "must hold \[odd\] alone"
    ! systemctl start "php-pool@$(systemd-escape café).service" || fail "it started"
    says "php-pool@$(systemd-escape café).service" "cannot name a pool"
    equal "$(systemctl is-active php-pool@www.service)" active
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    # By name it would start without the generator, too.
    systemctl start php-pool.target
    until_true 60 systemctl is-active php-pool@tidy.service
    equal "$(request tidy hello.php)" "hello from fpm-fcgi"
    systemctl stop php-pool@tidy.socket php-pool@tidy.service
    rm /etc/php-pool/pool.d/{odd,café,tidy}.conf
    systemctl daemon-reload
}

# without: cd /lib/systemd/system-generators; rm php-pool-generator; printf '%s\n' '#!/bin/bash' 'n=$(ls /etc/php-pool/pool.d | wc -l)' 'sleep $((n * n * n / 20000000))' 'exec -a php-pool-generator php-pool "$@"' >php-pool-generator; chmod +x php-pool-generator
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
    cost >/dev/null # the first one reads the program from the disk
    few=$(cost)
    files 1250 1999
    many=$(cost)
    echo "measured: generator: 250 files: $few ms, 1,000 files: $many ms"
    equal "$(ls /tmp/units/php-pool.target.wants | grep -c 'p1.*socket')" 1000
    # Four times the files, and room for the machine's moods: more would not be linear.
    [ "$many" -lt $((few * 8 + 500)) ]
    rm /etc/php-pool/pool.d/p1*.conf
}

# bumped DIR: our packages with a higher version, in DIR.
bumped() {
    local deb tree
    mkdir -p "$1"
    for deb in /vm/debs/php-pool*.deb; do
        tree=$(mktemp -d)
        dpkg-deb -R "$deb" "$tree"
        sed -i -e 's/^Version: .*/&+next/' -e 's/php-pool (= \([^)]*\))/php-pool (= \1+next)/' "$tree/DEBIAN/control"
        dpkg-deb -Znone -b "$tree" "$1" >/dev/null
        rm -r "$tree"
    done
}
# visit NUMBER: asks again and again until /tmp/visited is there, and keeps every answer.
visit() {
    until [ -e /tmp/visited ]; do
        curl -sS --max-time 300 -w ' %{http_code}\n' http://127.0.0.1:8089/visit.php 2>&1 || echo "curl $?"
    done >"/tmp/visits.$1"
}
more_visits() { [ "$(cat /tmp/visits.* | wc -l)" -ge $(($1 + 20)) ]; }

# exporter: enables it, and has it start.
exporter() {
    systemctl enable --now php-pool-exporter.socket
    curl -sS --max-time 120 http://127.0.0.1:9253/metrics >/dev/null
}

# without: setting php-pool@.service ExecReload= 'ExecReload=kill -KILL $MAINPID'
# without: printf '#!/bin/sh\n[ "$2" != try-restart ] || exit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d
test_an_upgrade_is_not_noticed_by_visitors() {
    until_true 60 systemctl is-active php-pool@www.service
    exporter
    mkdir -p /var/www/html
    echo '<?php echo "here";' >/var/www/html/visit.php
    script long.php <<<'<?php file_put_contents("/srv/state/long-begun", ""); while (!file_exists("/srv/state/upgraded")) usleep(50000); echo "whole";'
    rm -f /tmp/visited /tmp/visits.* /srv/state/{long-begun,upgraded}
    printf 'server { listen 8089; root /var/www/html; include snippets/php-pool.conf; }\n' >/etc/nginx/sites-enabled/visits
    systemctl start nginx
    systemctl reload nginx
    bumped /tmp/next
    before=$(main_pid www) workers=$(worker_pids www)
    PATIENCE=600 request www long.php >/tmp/long &
    long=$!
    until_true 60 test -e /srv/state/long-begun
    visit 1 &
    one=$!
    visit 2 &
    two=$!
    until_true 120 more_visits 0
    DEBIAN_FRONTEND=noninteractive dpkg -i /tmp/next/*.deb
    until_true 120 more_visits "$(cat /tmp/visits.* | wc -l)"
    touch /tmp/visited
    wait $one $two
    echo "measured: $(cat /tmp/visits.* | wc -l) visits over an upgrade"
    equal "$(sort /tmp/visits.* | uniq -c | grep -v ' here 200$')" ""
    # What was running goes on, in the old program, until it is done.
    kill -0 $long || fail "the long request has ended: $(cat /tmp/long)"
    touch /srv/state/upgraded
    wait $long
    equal "$(cat /tmp/long)" whole
    equal "$(main_pid www)" "$before"
    equal "$(readlink "/proc/$before/exe")" /usr/bin/php-pool
    equal "$(systemctl show -P NRestarts php-pool@www)" 0
    until_true 60 all_new
    for pid in $workers; do
        [ ! -e "/proc/$pid" ] || fail "the worker $pid is still there"
    done
    equal "$(systemctl is-active php-pool-bus.socket)" active
    # It is nothing to a visitor, and so may be restarted: an old one's program has been deleted.
    equal "$(readlink "/proc/$(systemctl show -P MainPID php-pool-exporter)/exe")" /usr/bin/php-pool
    rm /etc/nginx/sites-enabled/visits
}
all_new() { ! readlink $(printf '/proc/%s/exe ' $(worker_pids www)) | grep -v "^/usr/lib/php-pool/.*/php-pool-worker$"; }

# without: echo '#!/bin/sh' >/var/lib/dpkg/info/php-pool.prerm
# without: sed -i 's/php-pool-exporter[^ ]*//' /var/lib/dpkg/info/php-pool.prerm
test_a_removal_keeps_the_configuration_and_an_installation_takes_it_up_again() {
    exporter
    echo 'env[KEPT] = still here' >>/etc/php-pool/pool.d/www.conf
    version=$(phpquery -V | tail -n 1)
    dpkg --remove "php-pool-php$version" php-pool
    grep -q KEPT /etc/php-pool/pool.d/www.conf
    [ -e "/etc/php/$version/php-pool/php.ini" ]
    equal "$(systemctl list-units --no-legend --plain 'php-pool*')" ""
    [ ! -e /run/php-pool/www.sock ]
    DEBIAN_FRONTEND=noninteractive dpkg --force-confold -i /vm/debs/php-pool*.deb
    until_true 60 systemctl is-active php-pool@www.service
    script kept.php <<<'<?php echo getenv("KEPT");'
    equal "$(request www kept.php)" "still here"
    equal "$(systemctl is-active php-pool-exporter.socket)" active
}

# without: echo '#!/bin/sh' >/var/lib/dpkg/info/php-pool.postrm
# without: sed -i 's/php-pool-exporter/php-pool-nothing/' /var/lib/dpkg/info/php-pool.postrm
test_a_purge_leaves_nothing() {
    exporter
    version=$(phpquery -V | tail -n 1)
    rm -rf /etc/php-pool/pool.d/[!w]*.conf
    dpkg --purge "php-pool-php$version" php-pool
    equal "$(find / -xdev -path /proc -prune -o -path /tests -prune -o -path /vm -prune -o \
        -path '/var/log/journal' -prune -o -path '/sys' -prune -o -path /tmp -prune -o -path /var/cache -prune -o \
        -name '*php-pool*' -print)" ""
    equal "$(ls -d /run/php-pool /sys/fs/cgroup/php.slice/php-pool.slice 2>/dev/null)" ""
    lacks "$(systemctl list-units --all 'php-pool*' --no-legend)" php-pool
}
