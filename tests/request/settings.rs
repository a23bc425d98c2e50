//! What php.ini, the pool, `.user.ini` and the web server may set, and for how long; `doc_root` and `user_dir`.

use crate::harness::{Case, Cases, Run};
use crate::support::server::{Setup, php_fpm_release};

static POOL: Setup = Setup {
    name: "pool-settings",
    pool: "php_value[memory_limit] = 77M\nphp_admin_value[error_prepend_string] = fixed\nphp_flag[html_errors] = on\n\
           php_admin_flag[log_errors] = on\nphp_value[error_reporting] = E_ALL & ~E_NOTICE\n\
           php_value[session.name] = FROMPOOL\nphp_admin_value[session.name] = ADMIN\n\
           php_value[precision] = 5\nphp_value[precision] = 6\nphp_value[upload_max_filesize] = 3M\n\
           php_admin_value[disable_functions] = \"exec, passthru system\"\nphp_admin_value[disable_classes] = ZipArchive\n\
           php_value[date.timezone] = Europe/Zurich\n",
    ini: "disable_functions = shell_exec\nmemory_limit = 66M\nprecision = 4\nshort_open_tag = 0\n",
    arguments: &[
        "-d",
        "serialize_precision=9",
        "-dshort_open_tag=1",
        "-d",
        "default_charset=latin1",
    ],
    ..Setup::BASE
};

static PREPENDED: Setup = Setup {
    name: "prepended",
    pool: "php_value[auto_prepend_file] = {www}/prepend.inc\n",
    ..Setup::BASE
};

static EXTENSION: Setup = Setup {
    name: "pool-extension",
    opcache: false,
    pool: "php_admin_value[extension] = calendar\nphp_value[no.such.directive] = 1\n",
    ..Setup::BASE
};

static EXTENSION_DIR: Setup = Setup {
    name: "pool-extension-dir",
    pool: "php_admin_value[extension_dir] = /nonexistent\n",
    ..Setup::BASE
};

static USER_INI: Setup = Setup {
    name: "user-ini",
    // Nothing is remembered, so that every case finds its own files.
    ini: "user_ini.cache_ttl = 0\n",
    pool: "php_value[precision] = 5\nphp_admin_value[serialize_precision] = 6\n",
    ..Setup::BASE
};

static HOST_SECTION: Setup = Setup {
    name: "user-ini-host",
    workers: 1,
    deaths: true,
    ..USER_INI
};

static OTHER_USER_INI: Setup = Setup {
    name: "other-user-ini",
    ini: "user_ini.cache_ttl = 0\nuser_ini.filename = site.ini\n",
    ..Setup::BASE
};

static CACHED_USER_INI: Setup = Setup {
    name: "cached-user-ini",
    workers: 1,
    ini: "user_ini.cache_ttl = 300\n",
    ..Setup::BASE
};

static NO_USER_INI: Setup = Setup {
    name: "no-user-ini",
    ini: "user_ini.filename =\n",
    ..Setup::BASE
};

static SECTIONS: Setup = Setup {
    name: "ini-sections",
    ini: "precision = 4\n[HOST=special.example]\nprecision = 7\n[PATH={www}/settings-path_sections_of_php_ini_apply_below_their_folder]\nserialize_precision = 8\n",
    ..Setup::BASE
};

static DOC_ROOT: Setup = Setup {
    name: "doc-root",
    ini: "doc_root = {www}/root\n",
    opcache: false,
    ..Setup::BASE
};

static DOC_ROOT_UNFIXED: Setup = Setup {
    name: "doc-root-unfixed",
    pool: "php_admin_value[cgi.fix_pathinfo] = 0\nphp_admin_value[doc_root] = {www}/root\n",
    ..Setup::BASE
};

static USER_DIR: Setup = Setup {
    name: "user-dir",
    ini: "user_dir = public_html\n",
    ..Setup::BASE
};

static OPEN_BASEDIR: Setup = Setup {
    name: "open-basedir",
    pool: "php_admin_value[open_basedir] = {www}/settings-open_basedir_bounds_the_script_and_what_it_opens/in\n",
    ..Setup::BASE
};

pub fn cases() -> Vec<Case> {
    Cases::of("settings", |c| {
        pool(c);
        user_ini(c);
        by_request(c);
        roots(c);
    })
}

/// Code that prints settings.
fn print(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("echo '{name}=', ini_get('{name}'), \"\\n\";\n"))
        .collect()
}

fn pool(c: &mut Cases) {
    let setting = |c: &mut Cases, name: &str, directives: &'static [&'static str], wanted: &'static str| {
        c.same(name, &POOL, move |t| {
            assert_eq!(t.php(&print(directives)).text(), wanted);
        });
    };
    setting(
        c,
        "a_php_value_overrides_php_ini",
        &["memory_limit"],
        "memory_limit=77M\n",
    );
    setting(
        c,
        "an_admin_value_overrides_a_php_value",
        &["session.name"],
        "session.name=ADMIN\n",
    );
    setting(
        c,
        "of_two_values_for_one_key_the_first_line_wins",
        &["precision"],
        "precision=5\n",
    );
    setting(
        c,
        "flags_are_one_or_zero",
        &["html_errors", "log_errors"],
        "html_errors=1\nlog_errors=1\n",
    );
    setting(
        c,
        "constants_in_a_value_are_computed",
        &["error_reporting"],
        match php_fpm_release() < [8, 4, 0] {
            true => "error_reporting=32759\n",
            // Without E_STRICT.
            false => "error_reporting=30711\n",
        },
    );
    setting(
        c,
        "the_command_line_overrides_php_ini",
        &["serialize_precision", "short_open_tag", "default_charset"],
        "serialize_precision=9\nshort_open_tag=1\ndefault_charset=latin1\n",
    );
    setting(
        c,
        "a_per_directory_value_can_be_set_by_the_pool",
        &["upload_max_filesize"],
        "upload_max_filesize=3M\n",
    );
    c.same("a_script_may_change_a_php_value_and_not_an_admin_value", &POOL, |t| {
        let reply = t.php(
            "var_dump(ini_set('memory_limit', '88M'), ini_get('memory_limit'));
             var_dump(ini_set('error_prepend_string', 'x'), ini_get('error_prepend_string'));
             ini_restore('memory_limit'); var_dump(ini_get('memory_limit'));
             print_r(ini_get_all('session')['session.name']);",
        );
        assert!(
            reply
                .text()
                .starts_with("string(3) \"77M\"\nstring(3) \"88M\"\nbool(false)\nstring(5) \"fixed\"\n")
        );
    });
    c.same("what_a_script_set_is_undone_for_the_next_request", &POOL, |t| {
        let request = t.page("echo ini_get('memory_limit'), ' ', setlocale(LC_ALL, 0), ' ', date_default_timezone_get(); ini_set('memory_limit', '99M'); setlocale(LC_ALL, 'C.UTF-8'); date_default_timezone_set('Asia/Tokyo');");
        for _ in 0..12 {
            let text = t.send(&request).text();
            assert!(text.starts_with("77M LC_CTYPE=C") && text.ends_with(" Europe/Zurich"), "{text}");
        }
    });
    c.same("disabled_functions_of_the_pool_add_to_those_of_php_ini", &POOL, |t| {
        let reply = t.php(
            "foreach (['exec', 'passthru', 'system', 'shell_exec', 'popen'] as $f) var_dump(function_exists($f));
             var_dump(ini_get('disable_functions')); exec('true');",
        );
        assert!(
            reply.text().starts_with(&("bool(false)\n".repeat(4) + "bool(true)\n")),
            "{}",
            reply.text()
        );
        assert!(
            reply.errors().contains("Call to undefined function exec()"),
            "{}",
            reply.errors()
        );
    });
    c.same("disabled_classes_cannot_be_used", &POOL, |t| {
        t.php("var_dump(class_exists('ArrayObject'), ini_get('disable_classes'));");
    });
    c.same("a_prepended_file_runs_before_each_script", &PREPENDED, |t| {
        std::fs::write(t.root.with_file_name("prepend.inc"), "<?php $prepended = 'yes';").expect("the folder is ours");
        assert_eq!(t.php("echo $prepended;").text(), "yes");
    });
    c.same("the_ini_file_is_the_one_given", &Setup::BASE, |t| {
        let reply = t.php("echo basename(php_ini_loaded_file()), var_export(php_ini_scanned_files(), true);");
        assert!(reply.text().starts_with("php.ini"), "{}", reply.text());
    });
    c.same("an_extension_named_by_the_pool_is_loaded", &EXTENSION, |t| {
        let reply = t.php("var_dump(extension_loaded('calendar'), jdtogregorian(2460000));");
        assert_eq!(reply.text(), "bool(true)\nstring(9) \"2/24/2023\"\n");
    });
    c.same(
        "a_folder_of_extensions_of_the_pool_hides_none_of_php_ini",
        &EXTENSION_DIR,
        |t| {
            let reply = t.php("var_dump(extension_loaded('posix'), ini_get('extension_dir'));");
            assert_eq!(reply.text(), "bool(true)\nstring(12) \"/nonexistent\"\n");
        },
    );
    c.same("host_sections_of_php_ini_apply_to_their_server_name", &SECTIONS, |t| {
        let request = t.page("echo ini_get('precision');");
        assert_eq!(t.send(&request).text(), "4");
        assert_eq!(
            t.send(&request.clone().set("SERVER_NAME", "Special.Example")).text(),
            "7"
        );
        assert_eq!(t.send(&request).text(), "4");
    });
    c.same("path_sections_of_php_ini_apply_below_their_folder", &SECTIONS, |t| {
        assert_eq!(t.php("echo ini_get('serialize_precision');").text(), "8");
    });
}

fn user_ini(c: &mut Cases) {
    c.same("settings_of_a_folder_apply_to_its_scripts", &USER_INI, |t| {
        t.file("a/.user.ini", "precision = 11\nupload_max_filesize = 9M\n");
        t.file(
            "a/x.php",
            format!("<?php {}", print(&["precision", "upload_max_filesize"])),
        );
        t.file("x.php", format!("<?php {}", print(&["precision"])));
        for _ in 0..4 {
            let (inside, outside) = (t.get("/a/x.php"), t.get("/x.php"));
            assert_eq!(t.send(&inside).text(), "precision=11\nupload_max_filesize=9M\n");
            assert_eq!(t.send(&outside).text(), "precision=5\n");
        }
    });
    c.same("deeper_folders_override_those_above", &USER_INI, |t| {
        t.file(".user.ini", "precision = 11\nmax_input_vars = 7\n");
        t.file("a/.user.ini", "precision = 12\n");
        t.file(
            "a/b/x.php",
            format!("<?php {}", print(&["precision", "max_input_vars"])),
        );
        let request = t.get("/a/b/x.php");
        assert_eq!(t.send(&request).text(), "precision=12\nmax_input_vars=7\n");
    });
    c.same("folders_above_the_document_root_are_not_looked_at", &USER_INI, |t| {
        t.file(".user.ini", "precision = 11\n");
        t.file("a/.user.ini", "max_input_vars = 7\n");
        t.file(
            "a/b/x.php",
            format!("<?php {}", print(&["precision", "max_input_vars"])),
        );
        let request = t
            .get("/a/b/x.php")
            .set("DOCUMENT_ROOT", t.root.join("a").display().to_string());
        assert_eq!(t.send(&request).text(), "precision=5\nmax_input_vars=7\n");
    });
    c.same(
        "a_script_outside_the_document_root_has_its_own_folder_only",
        &USER_INI,
        |t| {
            t.file("a/.user.ini", "precision = 11\n");
            t.file("a/b/.user.ini", "max_input_vars = 7\n");
            t.file(
                "a/b/x.php",
                format!("<?php {}", print(&["precision", "max_input_vars"])),
            );
            let request = t
                .get("/a/b/x.php")
                .set("DOCUMENT_ROOT", t.root.join("elsewhere").display().to_string());
            assert_eq!(t.send(&request).text(), "precision=5\nmax_input_vars=7\n");
        },
    );
    c.same("without_a_document_root_no_file_is_read", &USER_INI, |t| {
        t.file(".user.ini", "precision = 11\n");
        let request = t.page(&print(&["precision"])).unset("DOCUMENT_ROOT");
        t.send(&request);
    });
    c.same("admin_values_are_not_overridden", &USER_INI, |t| {
        t.file(".user.ini", "serialize_precision = 11\nprecision = 11\n");
        assert_eq!(
            t.php(&print(&["serialize_precision", "precision"])).text(),
            "serialize_precision=6\nprecision=11\n"
        );
    });
    c.same("settings_of_the_system_are_not_for_users", &USER_INI, |t| {
        t.file(
            ".user.ini",
            "disable_functions = strlen\ncgi.fix_pathinfo = 0\nenable_dl = 1\nexpose_php = 0\n",
        );
        let reply = t.php("echo strlen('four'), ini_get('cgi.fix_pathinfo');");
        assert_eq!(reply.text(), "41");
    });
    c.same("section_heads_are_passed_over_and_entries_count", &USER_INI, |t| {
        t.file(".user.ini", "[PHP]\nprecision = 11\n[anything]\nmax_input_vars = 7\n");
        assert_eq!(
            t.php(&print(&["precision", "max_input_vars"])).text(),
            "precision=11\nmax_input_vars=7\n"
        );
    });
    c.differs(
        "sections_for_a_host_or_a_path_in_the_file_do_no_harm",
        &HOST_SECTION,
        "A section [HOST=…] or [PATH=…] in a .user.ini, or a setting with an index, ends the worker of php-fpm; we leave them out.",
        |t| {
            let wanted = if t.is_php_pool() { "precision=11\n" } else { "" };
            for (folder, more) in [("h", "[HOST=other.example]\nprecision = 7\n"), ("p", "[PATH=/x]\nprecision = 8\n"), ("a", "a[b] = c\n")] {
                t.file(&format!("{folder}/.user.ini"), format!("precision = 11\n{more}"));
                t.file(&format!("{folder}/x.php"), format!("<?php {}", print(&["precision"])));
                let request = t.get(&format!("/{folder}/x.php"));
                for _ in 0..2 {
                    assert_eq!(t.send(&request).text(), wanted, "{more}");
                }
            }
        },
    );
    c.same(
        "a_syntax_error_in_the_file_is_reported_and_the_script_runs",
        &USER_INI,
        |t| {
            t.file(".user.ini", "precision = 11\nfoo = )(\n");
            t.php(&print(&["precision"]));
        },
    );
    c.same("a_file_may_prepend_a_script", &USER_INI, |t| {
        t.file("before.inc", "<?php echo 'before ';");
        t.file(
            ".user.ini",
            "auto_prepend_file = before.inc\nauto_append_file = before.inc\n",
        );
        assert_eq!(t.php("echo 'script ';").text(), "before script before ");
    });
    c.same("post_limits_of_the_file_come_too_late_for_the_body", &USER_INI, |t| {
        t.file(".user.ini", "post_max_size = 10\n");
        let request = t
            .page("var_dump($_POST);")
            .post("application/x-www-form-urlencoded", "a=01234567890123456789");
        let reply = t.send(&request);
        assert!(reply.text().contains("[\"a\"]"), "{}", reply.text());
    });
    c.same("the_file_may_have_another_name", &OTHER_USER_INI, |t| {
        t.file("site.ini", "precision = 11\n");
        t.file(".user.ini", "precision = 12\n");
        assert_eq!(t.php(&print(&["precision"])).text(), "precision=11\n");
    });
    c.same("without_a_name_no_file_is_read", &NO_USER_INI, |t| {
        t.file(".user.ini", "precision = 12\n");
        assert_eq!(t.php(&print(&["precision"])).text(), "precision=14\n");
    });
    c.same("a_file_is_remembered_for_the_cache_time", &CACHED_USER_INI, |t| {
        t.file(".user.ini", "precision = 11\n");
        assert_eq!(t.php(&print(&["precision"])).text(), "precision=11\n");
        t.file(".user.ini", "precision = 12\n");
        assert_eq!(t.php(&print(&["precision"])).text(), "precision=11\n");
    });
}

fn by_request(c: &mut Cases) {
    c.same("the_web_server_sets_values_for_the_request", &VALUES_SET, |t| {
        let request = t
            .page(&print(&["precision", "serialize_precision", "expose_php"]))
            .set("PHP_VALUE", "precision=9\nserialize_precision = \"11\"")
            .set("PHP_ADMIN_VALUE", "expose_php=0");
        let reply = t.send(&request);
        assert_eq!(reply.text(), "precision=9\nserialize_precision=11\nexpose_php=0\n");
        assert!(reply.header("X-Powered-By").is_empty());
    });
    c.same(
        "a_script_cannot_change_an_admin_value_of_the_request",
        &VALUES_FIXED,
        |t| {
            let request = t
                .page("var_dump(ini_set('precision', 3), ini_get('precision'));")
                .set("PHP_ADMIN_VALUE", "precision=9");
            assert_eq!(t.send(&request).text(), "bool(false)\nstring(1) \"9\"\n");
        },
    );
    c.same("a_script_can_change_a_value_of_the_request", &VALUES_CHANGED, |t| {
        let request = t
            .page("var_dump(ini_set('precision', 3), ini_get('precision'));")
            .set("PHP_VALUE", "precision=9");
        assert_eq!(t.send(&request).text(), "string(1) \"9\"\nstring(1) \"3\"\n");
    });
    c.differs(
        "a_value_of_one_request_is_gone_in_the_next",
        &VALUES_KEPT,
        "php-fpm keeps what `PHP_VALUE` and `PHP_ADMIN_VALUE` set for all later requests of that worker, also those of \
         another site; we undo it when the request ends.",
        |t| {
            t.file("before.inc", "<?php echo 'prepended ';");
            let request = t.page(&print(&["precision", "memory_limit"]));
            let before = t.root.join("before.inc").display().to_string();
            let with = request
                .clone()
                .set("PHP_VALUE", format!("precision=9\nauto_prepend_file={before}"))
                .set("PHP_ADMIN_VALUE", "memory_limit=33M");
            assert_eq!(t.send(&with).text(), "prepended precision=9\nmemory_limit=33M\n");
            let after = t.send(&request).text();
            if t.is_php_pool() {
                assert_eq!(after, "precision=14\nmemory_limit=128M\n");
            } else {
                assert_eq!(after, "prepended precision=9\nmemory_limit=33M\n");
            }
        },
    );
    c.differs(
        "a_value_of_the_request_is_undone_after_a_fatal_error_too",
        &VALUES_KEPT_FATAL,
        "php-fpm keeps it, see above.",
        |t| {
            let request = t.page("echo ini_get('precision'); if (isset($_GET['die'])) { no_such_function(); }");
            t.send(&request.clone().query("die").set("PHP_VALUE", "precision=9"));
            assert_eq!(t.send(&request).text(), if t.is_php_pool() { "14" } else { "9" });
        },
    );
    c.differs(
        "a_value_of_the_request_does_not_override_an_admin_value_of_the_pool",
        &FIXED,
        "In php-fpm whoever reaches the socket can lift what `php_admin_value` fixes; for us the pool's word is final.",
        |t| {
            let request = t.page(&print(&["precision", "serialize_precision"]));
            let with = request
                .clone()
                .set("PHP_VALUE", "precision=9")
                .set("PHP_ADMIN_VALUE", "serialize_precision=9");
            let wanted = if t.is_php_pool() {
                "precision=5\nserialize_precision=6\n"
            } else {
                "precision=9\nserialize_precision=9\n"
            };
            assert_eq!(t.send(&with).text(), wanted);
        },
    );
    c.same(
        "values_of_the_request_apply_to_how_the_body_is_read",
        &ONE_WORKER_BODY,
        |t| {
            let request = t
                .page("var_dump($_POST);")
                .set("PHP_VALUE", "enable_post_data_reading=0")
                .post("application/x-www-form-urlencoded", "a=1");
            assert_eq!(t.send(&request).text(), "array(0) {\n}\n");
        },
    );
    let wrong = |c: &mut Cases, name: &str, value: &'static str, wanted: &'static str| {
        c.same(name, &ONE_WORKER, move |t| {
            let request = t.page("echo 'ran';").set("PHP_VALUE", value);
            let reply = t.send(&request);
            assert_eq!(reply.text(), "ran");
            assert!(reply.errors().contains(wanted), "{}", reply.errors());
        });
    };
    wrong(
        c,
        "an_unknown_setting_of_the_request_is_reported",
        "no.such=1",
        "unable to set 'no.such'",
    );
    wrong(
        c,
        "a_section_in_a_setting_of_the_request_is_reported",
        "[x]",
        "only classic entries are allowed",
    );
    wrong(
        c,
        "an_array_in_a_setting_of_the_request_is_reported",
        "a[b]=1",
        "only classic entries are allowed",
    );
    wrong(
        c,
        "a_setting_of_the_request_without_a_value_is_reported",
        "precision",
        "empty value for key 'precision'",
    );
    c.same(
        "a_setting_of_the_request_that_is_no_ini_text_does_no_harm",
        &ONE_WORKER,
        |t| {
            let request = t
                .page("echo 'ran';")
                .set("PHP_VALUE", "a = )(\n")
                .set("PHP_ADMIN_VALUE", "");
            assert_eq!(t.send(&request).text(), "ran");
        },
    );
    c.differs(
        "functions_disabled_by_the_request_are_gone_for_that_request",
        &DISABLED_BY_REQUEST,
        "php-fpm never gets a function back that a request disabled; our worker is replaced after such a request.",
        |t| {
            let request = t.page("var_dump(function_exists('str_rot13'));");
            let without = request.clone().set("PHP_ADMIN_VALUE", "disable_functions=str_rot13");
            assert_eq!(t.send(&without).text(), "bool(false)\n");
            let wanted = if t.is_php_pool() {
                "bool(true)\n"
            } else {
                "bool(false)\n"
            };
            assert_eq!(t.send(&request).text(), wanted);
        },
    );
    c.differs(
        "an_extension_named_by_the_request_is_there_for_that_request",
        &EXTENSION_BY_REQUEST,
        "In php-fpm it stays in that worker; our worker is replaced.",
        |t| {
            let request = t.page("var_dump(extension_loaded('calendar'));");
            assert_eq!(
                t.send(&request.clone().set("PHP_VALUE", "extension=calendar")).text(),
                "bool(true)\n"
            );
            let wanted = if t.is_php_pool() {
                "bool(false)\n"
            } else {
                "bool(true)\n"
            };
            assert_eq!(t.send(&request).text(), wanted);
        },
    );
}

static ONE_WORKER: Setup = Setup {
    name: "values",
    workers: 1,
    ..Setup::BASE
};
static ONE_WORKER_BODY: Setup = Setup {
    name: "values-body",
    workers: 1,
    ..Setup::BASE
};
/// Each by itself: php-fpm keeps what was set.
static VALUES_SET: Setup = Setup {
    name: "values-set",
    workers: 1,
    ..Setup::BASE
};
static VALUES_FIXED: Setup = Setup {
    name: "values-admin",
    workers: 1,
    ..Setup::BASE
};
static VALUES_CHANGED: Setup = Setup {
    name: "values-changed",
    workers: 1,
    ..Setup::BASE
};
static VALUES_KEPT: Setup = Setup {
    name: "values-kept",
    workers: 1,
    ..Setup::BASE
};
static VALUES_KEPT_FATAL: Setup = Setup {
    name: "values-kept-fatal",
    workers: 1,
    ..Setup::BASE
};
static EXTENSION_BY_REQUEST: Setup = Setup {
    name: "values-extension",
    workers: 1,
    ..Setup::BASE
};
static DISABLED_BY_REQUEST: Setup = Setup {
    name: "values-disable",
    workers: 1,
    ..Setup::BASE
};
static FIXED: Setup = Setup {
    name: "values-fixed",
    workers: 1,
    pool: "php_admin_value[precision] = 5\nphp_admin_value[serialize_precision] = 6\n",
    ..Setup::BASE
};

fn roots(c: &mut Cases) {
    /// Scripts below `doc_root` and in the case's own folder that say which one they are.
    fn scripts(t: &Run) -> String {
        let name = t
            .root
            .file_name()
            .expect("it has a name")
            .to_string_lossy()
            .into_owned();
        let below = t.root.with_file_name("root").join(&name);
        std::fs::create_dir_all(&below).expect("the folder is ours");
        for (folder, said) in [(&below, "below doc_root"), (&t.root, "script file name")] {
            let code =
                format!("<?php echo '{said} '; var_dump($_SERVER['DOCUMENT_ROOT'] ?? null, $_SERVER['PHP_SELF']);");
            std::fs::write(folder.join("x.php"), code).expect("the folder is ours");
        }
        std::fs::write(below.join("x.txt"), "<?php echo 'not allowed';").expect("the folder is ours");
        format!("/{name}/x.php")
    }
    c.same("doc_root_decides_what_is_run", &DOC_ROOT, |t| {
        let uri = scripts(t);
        let request = t.get("/x.php").set("SCRIPT_NAME", &uri);
        assert!(t.send(&request).text().starts_with("below doc_root"));
    });
    c.same("doc_root_stands_in_for_a_missing_document_root", &DOC_ROOT, |t| {
        let uri = scripts(t);
        let request = t.get("/x.php").set("SCRIPT_NAME", &uri).unset("DOCUMENT_ROOT");
        t.send(&request);
    });
    c.same(
        "doc_root_of_the_pool_works_without_fixing_the_path",
        &DOC_ROOT_UNFIXED,
        |t| {
            let uri = scripts(t);
            let request = t.get("/x.php").set("SCRIPT_NAME", &uri);
            assert!(t.send(&request).text().starts_with("below doc_root"));
            t.send(&request.set("PATH_INFO", &uri).set("SCRIPT_NAME", "/other.php"));
        },
    );
    c.same("a_script_that_is_not_below_doc_root_is_not_found", &DOC_ROOT, |t| {
        scripts(t);
        let request = t.get("/x.php").set("SCRIPT_NAME", "/no/such.php");
        assert_eq!(t.send(&request).status(), 404);
    });
    c.differs(
        "the_extension_is_checked_on_the_file_that_runs",
        &DOC_ROOT,
        "With `doc_root` php-fpm checks SCRIPT_FILENAME and then runs another file; we check the one that runs.",
        |t| {
            let uri = scripts(t).replace(".php", ".txt");
            let request = t.get("/x.php").set("SCRIPT_NAME", &uri);
            let reply = t.send(&request);
            if t.is_php_pool() {
                assert_eq!((reply.status(), reply.text().as_str()), (403, "Access denied.\n"));
            } else {
                assert_eq!(reply.text(), "not allowed");
            }
        },
    );
    c.same("user_dir_is_the_folder_of_the_user_in_the_uri", &USER_DIR, |t| {
        scripts(t);
        for uri in [
            "/~no-such-user/x.php",
            "/~root/no-such-file.php",
            "/~root",
            "/x.php",
            "/~",
            "/~/x.php",
        ] {
            let request = t.get("/x.php").set("SCRIPT_NAME", uri);
            // (What php-fpm says of the reason is whatever errno happens to be.)
            let reply = t.send_unrecorded(&request);
            t.note(format!("{uri} {} {}", reply.status(), reply.text()));
        }
    });
    c.same("open_basedir_bounds_the_script_and_what_it_opens", &OPEN_BASEDIR, |t| {
        t.file(
            "in/x.php",
            "<?php var_dump(@file_get_contents('../out/secret'), file_get_contents('open'));",
        );
        t.file("in/open", "open");
        t.file("out/secret", "secret");
        t.file("out/x.php", "<?php echo 'never';");
        let (inside, outside) = (t.get("/in/x.php"), t.get("/out/x.php"));
        assert_eq!(t.send(&inside).text(), "bool(false)\nstring(4) \"open\"\n");
        let reply = t.send(&outside);
        assert!(reply.status() != 200 && !reply.text().contains("never"), "{reply}");
    });
}
