# What the unit takes away, and what PHP applications rely on all the same. (mail() is in exim.sh and postfix.sh.)

# without: setting php-pool@.service ProtectSystem=no
# without: setting php-pool@.service SystemCallFilter=
test_the_unit_is_hardened() {
    pool hard
    start hard
    systemd-analyze security --no-pager --threshold=50 php-pool@hard.service | tail -n 1
    # The figures of docs/systemd.md are systemd 252's.
    ! systemctl --version | grep -q '^systemd 252 ' || equal "$(grade php-pool@hard) $(grade php8.2-fpm)" "4.4 9.6"
    # /usr is not for writing, even for root in the unit; another user's temporary files are not to be seen.
    equal "$(systemctl show -P ProtectSystem php-pool@hard.service)" yes
    equal "$(systemctl show -P PrivateTmp php-pool@hard.service)" yes
}

grade() { systemd-analyze security --no-pager "$1.service" | sed -n 's/.*Overall exposure level for .*: \([0-9.]*\) .*/\1/p'; }

# without: code src/worker/confine.rs 's/setresgid(gid, gid, gid)/setresgid(gid, gid, Gid::from_raw(0))/'
# without: code src/worker/confine.rs 's/setresuid(uid, uid, uid)/setresuid(uid, uid, Uid::from_raw(0))/; s/\*uid != 0$/*uid == 0/'
# without: code src/worker/confine.rs 's/if wanted.chroot.is_some() {/if true {/; s/None => CapabilitySet::empty(),/None => CapabilitySet::CHOWN,/'
test_php_has_the_users_identity_and_no_capability() {
    pool plain
    script who.php <<<'<?php
        $status = file_get_contents("/proc/self/status");
        preg_match_all("/^(Uid|Gid|CapInh|CapPrm|CapEff|CapAmb):\s+(.*)$/m", $status, $found);
        foreach ($found[1] as $i => $name) echo $name, "=", preg_replace("/\s+/", ",", $found[2][$i]), " ";
        echo @file_put_contents("/run/php-pool/plain/x", "") === false ? "kept out" : "wrote";'
    start plain
    id=$(id -u www-data)
    none=0000000000000000
    equal "$(request plain who.php)" \
        "Uid=$id,$id,$id,$id Gid=$id,$id,$id,$id CapInh=$none CapPrm=$none CapEff=$none CapAmb=$none kept out"
}

# without: setting php-pool@.service ProtectHome=yes
test_a_site_under_home_works() {
    id alice >/dev/null 2>&1 || useradd --create-home alice
    chmod 711 /home/alice
    mkdir -p /home/alice/www
    echo '<?php file_put_contents(__DIR__ . "/saved", "by " . posix_getpwuid(posix_geteuid())["name"]); readfile(__DIR__ . "/saved");' \
        >/home/alice/www/index.php
    chown -R alice: /home/alice/www
    pool alice "user = alice" "group = alice"
    start alice
    answer=$(SCRIPT_FILENAME=/home/alice/www/index.php REQUEST_METHOD=GET cgi-fcgi -bind -connect /run/php-pool/alice.sock)
    contains "$answer" "by alice"
}

# without: setting php-pool@.service ProtectSystem=full
test_configuration_below_etc_can_be_saved() {
    mkdir -p /etc/wiki
    chown www-data: /etc/wiki
    pool etc
    script save.php <<<'<?php file_put_contents("/etc/wiki/local.php", "saved"); readfile("/etc/wiki/local.php");'
    start etc
    equal "$(request etc save.php)" saved
}

# without: setting php-pool@.service MemoryDenyWriteExecute=yes
test_the_jit_works() {
    pool jit "php_admin_value[opcache.enable] = 1" "php_admin_value[opcache.jit_buffer_size] = 16M" "php_admin_value[opcache.jit] = function"
    script jit.php <<<'<?php function f($n) { $s = 0; for ($i = 0; $i < $n; $i++) $s += $i; return $s; }
        echo f(1000), " ", json_encode(opcache_get_status(false)["jit"]["on"]), " ", opcache_get_status(false)["jit"]["buffer_free"] < opcache_get_status(false)["jit"]["buffer_size"] ? "used" : "unused";'
    start jit
    equal "$(request jit jit.php)" "499500 true used"
}

# without: setting php-pool@.service LimitFSIZE=2500K
test_an_upload_arrives() {
    pool upload
    mkdir -p -m 1777 /srv/state
    script upload.php <<<'<?php
        $file = $_FILES["file"];
        move_uploaded_file($file["tmp_name"], "/srv/state/uploaded") || die("not moved");
        echo $file["size"], " ", md5_file("/srv/state/uploaded");'
    start upload
    head -c 3000000 /dev/urandom >/tmp/upload.bin
    {
        printf -- '--cut\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        cat /tmp/upload.bin
        printf -- '\r\n--cut--\r\n'
    } >/tmp/upload.form
    rm -f /srv/state/uploaded
    answer=$(SCRIPT_FILENAME=/srv/upload.php REQUEST_METHOD=POST CONTENT_TYPE='multipart/form-data; boundary=cut' \
        CONTENT_LENGTH=$(stat -c %s /tmp/upload.form) cgi-fcgi -bind -connect /run/php-pool/upload.sock </tmp/upload.form)
    # A file over upload_max_filesize (2M) is refused by PHP itself.
    contains "$answer" "not moved"
    pool upload "php_admin_value[upload_max_filesize] = 10M" "php_admin_value[post_max_size] = 12M"
    systemctl reload php-pool@upload
    answer=$(SCRIPT_FILENAME=/srv/upload.php REQUEST_METHOD=POST CONTENT_TYPE='multipart/form-data; boundary=cut' \
        CONTENT_LENGTH=$(stat -c %s /tmp/upload.form) cgi-fcgi -bind -connect /run/php-pool/upload.sock </tmp/upload.form)
    contains "$answer" "3000000 $(md5sum </tmp/upload.bin | cut -d' ' -f1)"
}

# without: setting php-pool@.service CapabilityBoundingSet=~CAP_SYS_PTRACE
test_the_slowlog_traces_a_worker_of_another_user() {
    pool slow "request_slowlog_timeout = 1s" "slowlog = /srv/state/slow.log"
    mkdir -p -m 1777 /srv/state
    rm -f /srv/state/slow.log /srv/state/slow-seen
    script slow.php <<<'<?php
        function outer() { inner(); }
        function inner() { while (!file_exists("/srv/state/slow-seen")) usleep(100000); }
        outer(); echo "whole";'
    start slow
    request slow slow.php >/tmp/slow &
    client=$!
    # So does who looks at the pool, or at the worker, now.
    for target in slow "$(worker_pids slow)"; do
        until_true 60 traced "$target"
        contains "$(cat /tmp/traced)" $'(2): inner()\n'
        contains "$(cat /tmp/traced)" $'(4): outer()\n'
    done
    until_true 60 grep -q 'outer() /srv/slow.php:4' /srv/state/slow.log
    touch /srv/state/slow-seen
    wait $client
    equal "$(cat /tmp/slow)" whole
    contains "$(cat /srv/state/slow.log)" "inner() /srv/slow.php:2"
    contains "$(cat /srv/state/slow.log)" "script_filename = /srv/slow.php"
}

traced() { php-pool trace "$1" >/tmp/traced && grep -qF 'inner()' /tmp/traced; }

# without: sed -i 's/ "chroot = .srv.jail"//' /tests/privileges.sh
# without: setting php-pool@.service CapabilityBoundingSet=~CAP_SYS_CHROOT
test_a_pool_may_live_in_a_root_of_its_own() {
    mkdir -p /srv/jail
    echo '<?php echo implode(" ", scandir("/")), " ", posix_geteuid(), " ", __FILE__;' >/srv/jail/where.php
    pool jailed "chroot = /srv/jail" "chdir = /"
    start jailed
    answer=$(SCRIPT_FILENAME=/where.php REQUEST_METHOD=GET cgi-fcgi -bind -connect /run/php-pool/jailed.sock)
    contains "$answer" ". .. where.php $(id -u www-data) /where.php"
}

# without: truncate -s 0 /usr/share/doc/php-pool/examples/strict.conf
test_the_strict_example_starts_and_serves() {
    pool strict
    mkdir -p /etc/systemd/system/php-pool@strict.service.d
    cp /usr/share/doc/php-pool/examples/strict.conf /etc/systemd/system/php-pool@strict.service.d/
    systemctl daemon-reload
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    start strict
    equal "$(request strict hello.php)" "hello from fpm-fcgi"
    pool usual
    start usual
    awk -v strict="$(grade php-pool@strict)" -v usual="$(grade php-pool@usual)" 'BEGIN { print "exposure:", usual, "strict:", strict; exit !(strict < usual) }'
}
