//! What outlives a request and what must not be shared: opcache, sessions, APCu, random numbers.

use std::collections::HashSet;

use crate::harness::{Case, Cases, Request, Run, wait_until};
use crate::support::fcgi::Reply;
use crate::support::server::Setup;

static OPCACHE: Setup = Setup {
    name: "opcache",
    workers: 2,
    ..Setup::BASE
};

static OPCACHE_ONE: Setup = Setup {
    name: "opcache-one",
    workers: 1,
    ..Setup::BASE
};

static NO_OPCACHE: Setup = Setup {
    name: "no-opcache",
    workers: 2,
    opcache: false,
    ..Setup::BASE
};

static UNCHECKED: Setup = Setup {
    name: "opcache-unchecked",
    workers: 2,
    ini: "opcache.validate_timestamps = 0\n",
    ..Setup::BASE
};

static JIT: Setup = Setup {
    name: "jit",
    ini: "opcache.jit_buffer_size = 16M\nopcache.jit = tracing\n",
    workers: 2,
    ..Setup::BASE
};

static PRELOADED: Setup = Setup {
    name: "preloaded",
    workers: 2,
    ini: "opcache.preload = {www}/preload.php\nopcache.preload_user = www-data\n",
    files: &[(
        "preload.php",
        "<?php\nclass Preloaded { const SAID = 'preloaded'; static $n = 0; }\nfunction preloaded() { return ++Preloaded::$n; }\n",
    )],
    ..Setup::BASE
};

static SESSIONS: Setup = Setup {
    name: "sessions",
    ini: "session.save_path = {home}\nsession.gc_probability = 0\n",
    ..Setup::BASE
};

static SHARED: Setup = Setup {
    name: "apcu",
    ini: "extension = apcu\napc.shm_size = 8M\n",
    ..Setup::BASE
};

static FFI: Setup = Setup {
    name: "ffi",
    ini: "extension = ffi\nffi.enable = 1\n",
    ..Setup::BASE
};

static RANDOM: Setup = Setup {
    name: "random",
    ini: "session.save_path = {home}\n",
    ..Setup::BASE
};

pub fn cases() -> Vec<Case> {
    Cases::of("state", |c| {
        opcache(c);
        sessions(c);
        apcu(c);
        locks(c);
        random(c);
    })
}

/// Code that waits until `count` requests have come as far as this, so that each of them has a worker of its own.
fn meet(count: usize) -> String {
    format!(
        "touch(__DIR__ . '/met/' . $_GET['n']); $until = microtime(true) + 15;
         while (count(glob(__DIR__ . '/met/*')) < {count}) {{
             if (microtime(true) > $until) exit('the others did not come');
             usleep(1000); clearstatcache();
         }}\n"
    )
}

/// Runs `code` in `count` workers at the same time.
fn together(t: &Run, count: usize, code: &str) -> Vec<Reply> {
    t.writable("met");
    let request = t.page(&format!("{}{code}", meet(count)));
    let open = |n: usize| {
        let mut connection = t.connect();
        connection.send(&request.clone().query(&format!("n={n}")).bytes());
        connection
    };
    let connections: Vec<_> = (0..count).map(open).collect();
    connections
        .into_iter()
        .map(|mut connection| connection.reply(1))
        .collect()
}

fn opcache(c: &mut Cases) {
    const STATUS: &str =
        "$s = opcache_get_status()['scripts'][__FILE__] ?? null; echo $s === null ? 'none' : $s['hits'];";
    c.same("a_script_is_compiled_once_for_all_workers", &OPCACHE, |t| {
        let request = t.page(STATUS);
        let hits: Vec<String> = (0..6).map(|_| t.send(&request).text()).collect();
        assert_eq!(hits[1..], ["1", "2", "3", "4", "5"]);
    })
    .alone();
    c.same(
        "a_script_compiled_by_one_worker_is_there_for_the_other",
        &OPCACHE,
        |t| {
            let replies = together(
                t,
                2,
                "echo getmypid(), ' ', opcache_is_script_cached(__FILE__) ? 'cached' : 'not cached';",
            );
            let texts: Vec<String> = replies.iter().map(Reply::text).collect();
            assert!(
                texts.iter().all(|text| text.ends_with(" cached")) && texts[0] != texts[1],
                "{texts:?}"
            );
        },
    )
    .alone();
    c.same("a_script_that_changes_is_compiled_again", &OPCACHE, |t| {
        for n in 0..5 {
            assert_eq!(t.php(&format!("echo {n};")).text(), n.to_string());
        }
    });
    c.same(
        "a_script_that_changes_is_not_looked_at_if_php_is_told_so",
        &UNCHECKED,
        |t| {
            assert_eq!(t.php("echo 'old';").text(), "old");
            assert_eq!(t.php("echo 'new';").text(), "old");
            t.file(
                "reset.php",
                "<?php var_dump(opcache_invalidate(__DIR__ . '/index.php', true));",
            );
            let request = t.get("/reset.php");
            assert_eq!(t.send(&request).text(), "bool(true)\n");
            assert_eq!(t.php("echo 'new';").text(), "new");
        },
    );
    c.same("a_script_that_changes_folders_is_where_it_says", &UNCHECKED, |t| {
        t.writable("made");
        let code = "
            $here = __DIR__ . '/made'; $told = [];
            $go = function ($folder) use (&$told) { $told[] = @chdir($folder); $told[] = basename((string) getcwd()); };
            for ($n = 0; $n < 3; $n++) {
                mkdir(\"$here/a\"); $go(\"$here/a\");
                file_put_contents('f', 'x'); $told[] = file_exists(\"$here/a/f\");
                rename(\"$here/a\", \"$here/b\"); $go(\"$here/a\"); $told[] = file_exists('f');
                unlink(\"$here/b/f\"); rmdir(\"$here/b\"); $go(\"$here/b\");
            }
            chdir(__DIR__); $told[] = basename(getcwd()) === basename(__DIR__);
            echo json_encode($told);";
        let told = t.php(code).text();
        assert!(
            told.starts_with("[true,\"a\",true,false,\"b\",true,false,\"\",true,"),
            "{told}"
        );
    });
    // Where PHP does not look at files for a while, php-pool does not go to a folder again for a second.
    c.same(
        "a_folder_that_another_takes_the_place_of_is_left_soon",
        &UNCHECKED,
        |t| {
            let script = "<?php clearstatcache(); echo fileinode('.') === fileinode(__DIR__) ? 'here' : 'elsewhere';";
            t.file("release/main.php", script);
            let request = t.get("/release/main.php");
            for _ in 0..4 {
                assert_eq!(t.send(&request).text(), "here");
            }
            let (release, old) = (t.root.join("release"), t.root.join("old"));
            std::fs::rename(&release, &old).expect("it is there");
            t.file("release/main.php", script);
            // Each of both workers may have been there.
            wait_until("requests run in the new folder", || {
                (0..8).all(|_| t.send_unrecorded(&request).text() == "here")
            });
            t.file(
                "release/away.php",
                "<?php chdir('..'); echo basename(getcwd()) === 'release' ? 'still' : 'away';",
            );
            let away = t.get("/release/away.php");
            for _ in 0..4 {
                assert_eq!(t.send(&away).text(), "away");
                assert_eq!(t.send(&request).text(), "here");
            }
        },
    );
    c.same("a_script_deleted_after_it_was_cached_is_an_error", &OPCACHE_ONE, |t| {
        let request = t.page("echo 'here';");
        assert_eq!(t.send(&request).text(), "here");
        std::fs::remove_file(t.root.join("index.php")).expect("it is there");
        assert_eq!(t.send(&request).status(), 500);
    });
    c.same("a_reset_of_the_cache_reaches_all_workers", &OPCACHE, |t| {
        let request = t.page("echo isset($_GET['reset']) ? var_export(opcache_reset(), true) : (opcache_is_script_cached(__FILE__) ? 'cached' : 'not cached');");
        t.send_unrecorded(&request);
        assert_eq!(t.send(&request.clone().query("reset")).text(), "true");
        t.send_unrecorded(&request);
        assert_eq!(t.send(&request).text(), "cached");
    })
    .alone();
    c.same("opcache_is_on_and_says_so", &OPCACHE, |t| {
        let reply = t.php(
            "$s = opcache_get_status(false); var_dump($s['opcache_enabled'], $s['cache_full'], extension_loaded('Zend OPcache'),
                ini_get('opcache.enable'), opcache_get_configuration()['directives']['opcache.enable_cli']);",
        );
        assert!(reply.text().starts_with("bool(true)\nbool(false)\nbool(true)\n"), "{}", reply.text());
    });
    c.same("without_opcache_there_is_none", &NO_OPCACHE, |t| {
        assert_eq!(
            t.php("var_dump(function_exists('opcache_get_status'));").text(),
            "bool(false)\n"
        );
    });
    c.same("a_script_that_is_replaced_by_a_rename_is_seen", &OPCACHE, |t| {
        t.page("echo 'old';");
        let request = t.get("/index.php");
        assert_eq!(t.send(&request).text(), "old");
        let new = t.file("new.php", "<?php echo 'new';");
        std::fs::rename(new, t.root.join("index.php")).expect("the folder is ours");
        assert_eq!(t.send(&request).text(), "new");
    });
    c.same("the_jit_computes_what_the_interpreter_does", &JIT, |t| {
        let code =
            "function f($n) { $a = 0; for ($i = 1; $i < $n; $i++) { $a = ($a * 31 + $i % 7) & 0xffffff; } return $a; }
                    echo f(300000), ' ', opcache_get_status(false)['jit']['on'] ? 'jit' : 'no jit';";
        let wanted = (1_u64..300_000).fold(0, |a, i| (a * 31 + i % 7) & 0xff_ffff);
        for _ in 0..3 {
            assert_eq!(t.php(code).text(), format!("{wanted} jit"));
        }
    });
    c.same("what_was_preloaded_is_there_in_every_request", &PRELOADED, |t| {
        for _ in 0..4 {
            assert_eq!(
                t.php("echo Preloaded::SAID, preloaded(), preloaded();").text(),
                "preloaded12"
            );
        }
    });
}

fn sessions(c: &mut Cases) {
    c.same("a_session_is_kept_from_request_to_request", &SESSIONS, |t| {
        let request = t
            .page("session_start(); echo $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1;")
            .set("HTTP_COOKIE", "PHPSESSID=kept");
        for n in 1..5 {
            assert_eq!(t.send(&request).text(), n.to_string());
        }
    });
    c.same("a_new_session_sets_its_cookie_and_forbids_caching", &SESSIONS, |t| {
        let request = t.page("session_start(); echo strlen(session_id());");
        let reply = t.send_unrecorded(&request);
        let cookie = reply.header("Set-Cookie");
        let names: Vec<String> = reply
            .headers()
            .iter()
            .map(|line| {
                if line.starts_with("Set-Cookie") {
                    "cookie".into()
                } else {
                    line.clone()
                }
            })
            .collect();
        t.note(names.join("\n"));
        assert!(
            cookie[0].starts_with("PHPSESSID=") && cookie[0].ends_with("; path=/"),
            "{cookie:?}"
        );
        assert!(reply.header("Cache-Control")[0].contains("no-store"));
        assert_eq!(reply.text(), (cookie[0].len() - "PHPSESSID=; path=/".len()).to_string());
    });
    c.same("a_session_of_one_request_is_not_that_of_the_next", &SESSIONS, |t| {
        let request = t.page("session_start(); echo count($_SESSION); $_SESSION['secret'] = 1;");
        for _ in 0..8 {
            assert_eq!(t.send_unrecorded(&request).text(), "0");
        }
    });
    c.same("two_requests_of_one_session_wait_for_each_other", &SESSIONS, |t| {
        t.writable("at");
        t.file(
            "first.php",
            "<?php session_start(); touch('at/first'); $until = microtime(true) + 15;
             while (!file_exists('at/second') && microtime(true) < $until) { usleep(1000); clearstatcache(); }
             usleep(50000); clearstatcache(); echo file_exists('at/inside') ? 'not locked' : 'locked'; $_SESSION['by'] = 'first';",
        );
        t.file("second.php", "<?php touch('at/second'); session_start(); touch('at/inside'); echo $_SESSION['by'] ?? 'nobody';");
        let (first, second) = (t.get("/first.php"), t.get("/second.php"));
        let cookie = |request: Request| request.set("HTTP_COOKIE", "PHPSESSID=locked").bytes();
        let (mut one, mut two) = (t.connect(), t.connect());
        one.send(&cookie(first));
        crate::harness::wait_until("the first has its session", || t.root.join("at/first").exists());
        two.send(&cookie(second));
        assert_eq!(t.reply(&mut one, 1).text(), "locked");
        assert_eq!(t.reply(&mut two, 1).text(), "first");
    })
    .alone();
    c.same("a_session_is_written_after_a_fatal_error", &SESSIONS, |t| {
        let request = t
            .page("session_start(); echo $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1; no_such_function();")
            .set("HTTP_COOKIE", "PHPSESSID=fatal");
        for _ in 0..3 {
            t.send(&request);
        }
    });
    c.same("a_session_is_written_when_the_request_is_finished_early", &SESSIONS, |t| {
        let request = t
            .page("session_start(); echo $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1; session_write_close(); fastcgi_finish_request();")
            .set("HTTP_COOKIE", "PHPSESSID=finished");
        for n in 1..4 {
            assert_eq!(t.send(&request).text(), n.to_string());
        }
    });
    c.same("upload_progress_is_no_obstacle", &SESSIONS, |t| {
        let request = t
            .page("session_start(); echo json_encode($_POST), count($_SESSION);")
            .set("HTTP_COOKIE", "PHPSESSID=progress")
            .post("multipart/form-data; boundary=B", "--B\r\nContent-Disposition: form-data; name=\"PHP_SESSION_UPLOAD_PROGRESS\"\r\n\r\nx\r\n--B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"f\"\r\n\r\ncontent\r\n--B--\r\n");
        t.send(&request);
    });
}

fn apcu(c: &mut Cases) {
    c.same("what_one_worker_stores_another_fetches", &SHARED, |t| {
        let code = "if ($_GET['n'] === '0') apcu_store('x', ['from' => 'zero']);
                    while (!apcu_exists('x')) usleep(1000); echo json_encode(apcu_fetch('x'));";
        for reply in together(t, 2, code) {
            assert_eq!(reply.text(), r#"{"from":"zero"}"#);
        }
    })
    .alone();
    c.same("four_workers_count_together_without_losing_one", &SHARED, |t| {
        let code = "for ($i = 0; $i < 5000; $i++) { apcu_inc('count'); apcu_store(\"key{$_GET['n']}-$i\", $i, 5); apcu_fetch('key0-' . $i); }
                    apcu_inc('done'); $until = microtime(true) + 15;
                    while (apcu_fetch('done') < 4 && microtime(true) < $until) usleep(1000);
                    echo apcu_fetch('count');";
        for reply in together(t, 4, code) {
            assert_eq!((reply.text().as_str(), reply.errors().as_str()), ("20000", ""));
        }
    })
    .alone();
    c.same("an_entry_is_made_by_one_worker_alone", &SHARED, |t| {
        let code = "echo apcu_entry('made', function () { usleep(20000); return getmypid() . '-' . hrtime(true); });";
        let made: HashSet<String> = together(t, 4, code).iter().map(Reply::text).collect();
        assert_eq!(made.len(), 1, "{made:?}");
    })
    .alone();
}

/// What extensions build on: a lock in shared memory knows its owner by glibc's thread id, which must be the worker's own.
fn locks(c: &mut Cases) {
    c.same("a_process_shared_rwlock_keeps_the_other_worker_out", &FFI, |t| {
        t.writable("lock");
        let code = r#"
            $c = FFI::cdef('void *mmap(void *, size_t, int, int, int, long); int open(const char *, int, int);
                int ftruncate(int, long); int pthread_rwlockattr_init(void *);
                int pthread_rwlockattr_setpshared(void *, int); int pthread_rwlock_init(void *, void *);
                int pthread_rwlock_wrlock(void *); int pthread_rwlock_unlock(void *);');
            $fd = $c->open(__DIR__ . '/lock/memory', 0102, 0666);
            $c->ftruncate($fd, 4096);
            $lock = $c->mmap(null, 4096, 3, 1, $fd, 0);
            $words = $c->cast('long *', $lock);
            if ($_GET['n'] === '0') {
                $attributes = $c->new('long[16]');
                $c->pthread_rwlockattr_init($attributes);
                $c->pthread_rwlockattr_setpshared($attributes, 1);
                $c->pthread_rwlock_init($lock, $attributes);
                $words[100] = 1;
            }
            $until = microtime(true) + 15;
            while (!$words[100] && microtime(true) < $until) usleep(1000);
            for ($i = 0; $i < 300; $i++) {
                $error = $c->pthread_rwlock_wrlock($lock);
                if ($error) exit("wrlock answers $error");
                $seen = $words[101];
                usleep(30);
                $words[101] = $seen + 1;
                $c->pthread_rwlock_unlock($lock);
            }
            $words[102 + $_GET['n']] = 1;
            while (!($words[102] && $words[103]) && microtime(true) < $until) usleep(1000);
            echo $words[101];"#;
        for reply in together(t, 2, code) {
            assert_eq!((reply.text().as_str(), reply.errors().as_str()), ("600", ""));
        }
    })
    .alone();
}

fn random(c: &mut Cases) {
    let differs = |c: &mut Cases, name: &str, code: &'static str| {
        c.same(name, &RANDOM, move |t| {
            for _ in 0..2 {
                let _ = std::fs::remove_dir_all(t.root.join("met"));
                let values: Vec<String> = together(t, 4, code).iter().map(Reply::text).collect();
                let distinct: HashSet<&String> = values.iter().collect();
                assert_eq!(distinct.len(), 4, "four workers drew {values:?}");
            }
        })
        .alone();
    };
    differs(c, "mt_rand_differs_between_workers", "echo mt_rand();");
    differs(c, "rand_differs_between_workers", "echo rand();");
    differs(
        c,
        "random_int_differs_between_workers",
        "echo random_int(0, PHP_INT_MAX);",
    );
    differs(c, "lcg_value_differs_between_workers", "echo lcg_value();");
    differs(
        c,
        "uniqid_differs_between_workers",
        "echo substr(uniqid('', true), -8);",
    );
    differs(
        c,
        "shuffle_differs_between_workers",
        "echo str_shuffle('abcdefghijklmnopqrstuvwxyz');",
    );
    differs(
        c,
        "array_rand_differs_between_workers",
        "echo join(' ', array_rand(range(0, 99), 20));",
    );
    differs(c, "session_ids_differ_between_workers", "echo session_create_id();");
    differs(
        c,
        "openssl_bytes_differ_between_workers",
        "echo bin2hex(openssl_random_pseudo_bytes(8));",
    );
    differs(
        c,
        "password_salts_differ_between_workers",
        "echo crypt('x', substr(password_hash('x', PASSWORD_BCRYPT, ['cost' => 4]), 0, 29));",
    );
    c.same("random_numbers_differ_from_request_to_request", &RANDOM_ONE, |t| {
        let request = t.page("echo mt_rand(), ' ', rand(), ' ', lcg_value(), ' ', random_int(0, PHP_INT_MAX);");
        let drawn: HashSet<String> = (0..20).map(|_| t.send_unrecorded(&request).text()).collect();
        assert_eq!(drawn.len(), 20);
    });
    c.same("a_seed_gives_the_same_numbers_in_every_request", &RANDOM_ONE, |t| {
        let request =
            t.page("mt_srand(42); echo mt_rand(), ' ', mt_rand(1, 100), ' ', join(' ', array_rand(range(0, 9), 3));");
        let first = t.send(&request).text();
        assert_eq!(t.send(&request).text(), first);
    });
    c.same("a_seed_of_one_request_is_not_that_of_the_next", &RANDOM_ONE, |t| {
        let request = t.page("echo mt_rand(); mt_srand(42);");
        let drawn: HashSet<String> = (0..10).map(|_| t.send_unrecorded(&request).text()).collect();
        assert_eq!(drawn.len(), 10);
    });
}

static RANDOM_ONE: Setup = Setup {
    name: "random-one",
    workers: 1,
    ..Setup::BASE
};
