//! Which script runs, and what of the path it is told: `cgi.fix_pathinfo` on and off, row by row.

use crate::harness::{Case, Cases, Request, Run};
use crate::support::server::{Setup, php_fpm_release};

static UNFIXED: Setup = Setup {
    name: "unfixed",
    pool: "php_admin_value[cgi.fix_pathinfo] = 0\n",
    ..Setup::BASE
};

static DISCARDED: Setup = Setup {
    name: "discarded",
    pool: "php_admin_value[cgi.fix_pathinfo] = 0\nphp_admin_value[cgi.discard_path] = 1\n",
    ..Setup::BASE
};

static ONE_WORKER: Setup = Setup {
    name: "path-one-worker",
    workers: 1,
    ..Setup::BASE
};

static AT_HOME: Setup = Setup {
    name: "path-at-home",
    workers: 1,
    pool: "chdir = {www}\n",
    ..Setup::BASE
};

static ANY_EXTENSION: Setup = Setup {
    name: "any-extension",
    pool: "security.limit_extensions =\n",
    ..Setup::BASE
};

static OWN_EXTENSIONS: Setup = Setup {
    name: "own-extensions",
    opcache: false,
    pool: "security.limit_extensions = .html .php5\n",
    ..Setup::BASE
};

/// Prints what the row is about, the variables that are set in one line and the order of all in another.
const PROBE: &str = "<?php
foreach (['SN' => 'SCRIPT_NAME', 'PI' => 'PATH_INFO', 'PT' => 'PATH_TRANSLATED', 'SELF' => 'PHP_SELF',
    'SF' => 'SCRIPT_FILENAME', 'oSN' => 'ORIG_SCRIPT_NAME', 'oPI' => 'ORIG_PATH_INFO', 'oPT' => 'ORIG_PATH_TRANSLATED',
    'oSF' => 'ORIG_SCRIPT_FILENAME'] as $short => $name) {
    if (isset($_SERVER[$name])) echo $short, '=', $_SERVER[$name], ' ';
}
echo \"\\nruns \", __FILE__, ' in ', getcwd(), \"\\n\", join(' ', array_keys($_SERVER)), \"\\nquery \", http_build_query($_GET);
";

/// The document tree of every row.
fn tree(t: &Run) {
    for file in [
        "info.php",
        "dir/info.php",
        "x.php5",
        "noext",
        "img.txt",
        "d/e/f.php",
        "sp ace.php",
        "page.phar",
    ] {
        t.file(file, PROBE);
    }
    std::os::unix::fs::symlink("info.php", t.root.join("link.php")).expect("the tree was empty");
    let unreadable = t.file("unreadable.php", PROBE);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(unreadable, mode).expect("we made it");
}

/// Status and body, as a row spells it: the document root is `W`, and of a probe only the first line counts.
fn outcome(t: &mut Run, request: &Request) -> String {
    let reply = t.send(request);
    let first = reply
        .text()
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end()
        .replace(&t.www(), "W");
    format!("{} {first}", reply.status())
}

struct Row {
    name: &'static str,
    /// Parameters besides those of every request; `W` stands for the document root, an empty name for none.
    params: &'static [(&'static str, &'static str)],
    fixed: &'static str,
    unfixed: &'static str,
}

const NOT_FOUND: &str = "404 File not found.";
const NO_INPUT: &str = "404 No input file specified.";
const DENIED: &str = "403 Access denied.";

pub fn cases() -> Vec<Case> {
    Cases::of("path_info", |c| {
        for row in ROWS {
            let run = |row: &'static Row, wanted: &'static str| {
                move |t: &mut Run| {
                    tree(t);
                    let root = t.www();
                    let mut request = t
                        .get("")
                        .unset("SCRIPT_FILENAME")
                        .unset("SCRIPT_NAME")
                        .unset("REQUEST_URI")
                        .unset("DOCUMENT_URI")
                        .set("QUERY_STRING", "q=1");
                    for (name, value) in row.params {
                        request = match *value {
                            "-" => request.unset(name),
                            value => request.set(name, value.replace('W', &root)),
                        };
                    }
                    assert_eq!(outcome(t, &request), wanted);
                }
            };
            c.same(row.name, &Setup::BASE, run(row, row.fixed));
            c.same(format!("{}_unfixed", row.name), &UNFIXED, run(row, row.unfixed));
        }
        others(c);
    })
}

static ROWS: &[Row] = &[
    Row {
        name: "a_script_is_run_and_told_its_name",
        params: &[("SCRIPT_FILENAME", "W/info.php"), ("SCRIPT_NAME", "/info.php")],
        fixed: "200 SN=/info.php SELF=/info.php SF=W/info.php",
        unfixed: "200 SN=/info.php SELF=/info.php SF=W/info.php",
    },
    Row {
        name: "a_path_that_the_web_server_split_is_left_alone",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_INFO", "/a/b"),
        ],
        fixed: "200 SN=/info.php PI=/a/b SELF=/info.php/a/b SF=W/info.php",
        unfixed: "200 SN=/info.php PI=/a/b SELF=/a/b SF=W/info.php",
    },
    Row {
        name: "an_empty_path_info_is_left_alone",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_INFO", ""),
        ],
        fixed: "200 SN=/info.php PI= SELF=/info.php SF=W/info.php",
        unfixed: "200 SN=/info.php PI= SELF= SF=W/info.php",
    },
    Row {
        name: "a_script_with_path_info_is_split",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php/a/b"),
            ("SCRIPT_NAME", "/info.php/a/b"),
            ("PATH_INFO", "/info.php/a/b"),
        ],
        fixed: "200 SN=/info.php PI=/a/b PT=W/a/b SELF=/info.php/a/b SF=W/info.php oSN=/info.php/a/b oPI=/info.php/a/b oSF=W/info.php/a/b",
        unfixed: DENIED,
    },
    Row {
        name: "a_script_with_path_info_and_a_short_script_name_is_split",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php/a/b"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_INFO", "/a/b"),
        ],
        fixed: "200 SN=/info.php PI=/a/b PT=W/a/b SELF=/info.php/a/b SF=W/info.php oSF=W/info.php/a/b",
        unfixed: DENIED,
    },
    Row {
        name: "a_script_with_path_info_but_without_the_parameter_is_split_in_the_file_name_alone",
        params: &[("SCRIPT_FILENAME", "W/info.php/a/b"), ("SCRIPT_NAME", "/info.php/a/b")],
        fixed: "200 SN=/info.php/a/b PT=W SELF=/info.php/a/b SF=W/info.php oSF=W/info.php/a/b",
        unfixed: DENIED,
    },
    Row {
        name: "without_a_document_root_a_split_path_is_not_translated",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php/a/b"),
            ("SCRIPT_NAME", "/info.php/a/b"),
            ("PATH_INFO", "/info.php/a/b"),
            ("DOCUMENT_ROOT", "-"),
        ],
        fixed: "200 SN=/info.php PI=/a/b SELF=/info.php/a/b SF=W/info.php oSN=/info.php/a/b oPI=/info.php/a/b oSF=W/info.php/a/b",
        unfixed: DENIED,
    },
    Row {
        name: "without_a_document_root_the_script_name_in_the_path_translates_it",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php/a/b"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_INFO", "/info.php/a/b"),
            ("DOCUMENT_ROOT", "-"),
        ],
        fixed: "200 SN=/info.php PI=/a/b PT=W/a/b SELF=/info.php/a/b SF=W/info.php oPI=/info.php/a/b oSF=W/info.php/a/b",
        unfixed: DENIED,
    },
    Row {
        name: "a_document_root_with_a_slash_at_its_end_translates_alike",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php/a/b"),
            ("SCRIPT_NAME", "/info.php/a/b"),
            ("PATH_INFO", "/info.php/a/b"),
            ("DOCUMENT_ROOT", "W/"),
        ],
        fixed: "200 SN=/info.php PI=/a/b PT=W/a/b SELF=/info.php/a/b SF=W/info.php oSN=/info.php/a/b oPI=/info.php/a/b oSF=W/info.php/a/b",
        unfixed: DENIED,
    },
    Row {
        name: "a_slash_after_the_script_is_path_info",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php/"),
            ("SCRIPT_NAME", "/info.php/"),
            ("PATH_INFO", "/info.php/"),
        ],
        fixed: "200 SN=/info.php PI=/ PT=W/ SELF=/info.php/ SF=W/info.php oSN=/info.php/ oPI=/info.php/ oSF=W/info.php/",
        unfixed: DENIED,
    },
    Row {
        name: "path_info_below_a_script_in_a_folder_is_split",
        params: &[
            ("SCRIPT_FILENAME", "W/d/e/f.php/x"),
            ("SCRIPT_NAME", "/d/e/f.php/x"),
            ("PATH_INFO", "/d/e/f.php/x"),
        ],
        fixed: "200 SN=/d/e/f.php PI=/x PT=W/x SELF=/d/e/f.php/x SF=W/d/e/f.php oSN=/d/e/f.php/x oPI=/d/e/f.php/x oSF=W/d/e/f.php/x",
        unfixed: DENIED,
    },
    Row {
        name: "path_info_shorter_than_what_was_cut_off_is_kept",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php/long/path"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_INFO", "/x"),
        ],
        fixed: "200 SN=/info.php PI=/x PT=W/x SELF=/info.php/x SF=W/info.php oSF=W/info.php/long/path",
        unfixed: DENIED,
    },
    Row {
        name: "a_path_translated_by_the_web_server_is_replaced",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php/a"),
            ("SCRIPT_NAME", "/info.php/a"),
            ("PATH_INFO", "/info.php/a"),
            ("PATH_TRANSLATED", "W/elsewhere"),
        ],
        fixed: "200 SN=/info.php PI=/a PT=W/a SELF=/info.php/a SF=W/info.php oSN=/info.php/a oPI=/info.php/a oPT=W/elsewhere oSF=W/info.php/a",
        unfixed: DENIED,
    },
    Row {
        name: "a_missing_script_is_not_found",
        params: &[("SCRIPT_FILENAME", "W/nope.php"), ("SCRIPT_NAME", "/nope.php")],
        fixed: NOT_FOUND,
        unfixed: NO_INPUT,
    },
    Row {
        name: "a_missing_script_with_path_info_is_not_found",
        params: &[
            ("SCRIPT_FILENAME", "W/nope.php/a/b"),
            ("SCRIPT_NAME", "/nope.php/a/b"),
            ("PATH_INFO", "/a/b"),
        ],
        fixed: NOT_FOUND,
        unfixed: DENIED,
    },
    Row {
        name: "a_folder_is_denied",
        params: &[("SCRIPT_FILENAME", "W/dir"), ("SCRIPT_NAME", "/dir")],
        fixed: DENIED,
        unfixed: DENIED,
    },
    Row {
        name: "a_folder_with_a_slash_is_not_found",
        params: &[("SCRIPT_FILENAME", "W/dir/"), ("SCRIPT_NAME", "/dir/")],
        fixed: NOT_FOUND,
        unfixed: DENIED,
    },
    Row {
        name: "without_a_script_file_name_nothing_is_found",
        params: &[("SCRIPT_NAME", "/info.php")],
        fixed: NOT_FOUND,
        unfixed: NOT_FOUND,
    },
    Row {
        name: "path_translated_stands_in_for_the_script_file_name",
        params: &[("SCRIPT_NAME", "/info.php"), ("PATH_TRANSLATED", "W/info.php")],
        fixed: "200 SN=/info.php PT=W/info.php SELF=/info.php SF=W/info.php",
        unfixed: "200 SN=/info.php PT=W/info.php SELF=/info.php",
    },
    Row {
        name: "path_translated_with_path_info_stands_in_for_the_script_file_name",
        params: &[
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_TRANSLATED", "W/info.php/a"),
            ("PATH_INFO", "/a"),
        ],
        fixed: "200 SN=/info.php PI=/a PT=W/a SELF=/info.php/a SF=W/info.php oPT=W/info.php/a",
        unfixed: DENIED,
    },
    Row {
        name: "path_translated_differs_from_the_script",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_TRANSLATED", "W/dir/info.php"),
        ],
        fixed: "200 SN=/info.php PT=W/dir/info.php SELF=/info.php SF=W/info.php",
        unfixed: "200 SN=/info.php PT=W/dir/info.php SELF=/info.php SF=W/info.php",
    },
    Row {
        name: "an_empty_script_file_name_is_denied",
        params: &[("SCRIPT_FILENAME", ""), ("SCRIPT_NAME", "/info.php")],
        fixed: DENIED,
        unfixed: DENIED,
    },
    Row {
        name: "a_path_that_goes_up_is_not_found",
        params: &[
            ("SCRIPT_FILENAME", "W/d/../info.php"),
            ("SCRIPT_NAME", "/d/../info.php"),
        ],
        fixed: NOT_FOUND,
        unfixed: NOT_FOUND,
    },
    Row {
        name: "two_dots_within_a_name_do_not_go_up",
        params: &[("SCRIPT_FILENAME", "W/in..fo.php"), ("SCRIPT_NAME", "/in..fo.php")],
        fixed: NOT_FOUND,
        unfixed: NO_INPUT,
    },
    Row {
        name: "another_extension_is_denied",
        params: &[("SCRIPT_FILENAME", "W/x.php5"), ("SCRIPT_NAME", "/x.php5")],
        fixed: DENIED,
        unfixed: DENIED,
    },
    Row {
        name: "no_extension_is_denied",
        params: &[("SCRIPT_FILENAME", "W/noext"), ("SCRIPT_NAME", "/noext")],
        fixed: DENIED,
        unfixed: DENIED,
    },
    Row {
        name: "a_phar_runs_as_a_script_does",
        params: &[("SCRIPT_FILENAME", "W/page.phar"), ("SCRIPT_NAME", "/page.phar")],
        fixed: "200 SN=/page.phar SELF=/page.phar SF=W/page.phar",
        unfixed: "200 SN=/page.phar SELF=/page.phar SF=W/page.phar",
    },
    Row {
        name: "an_upload_called_as_if_it_were_a_folder_is_denied",
        params: &[
            ("SCRIPT_FILENAME", "W/img.txt/x.php"),
            ("SCRIPT_NAME", "/img.txt/x.php"),
        ],
        fixed: DENIED,
        unfixed: NO_INPUT,
    },
    Row {
        name: "an_unreadable_script_is_denied",
        params: &[
            ("SCRIPT_FILENAME", "W/unreadable.php"),
            ("SCRIPT_NAME", "/unreadable.php"),
        ],
        fixed: DENIED,
        unfixed: DENIED,
    },
    Row {
        name: "a_link_runs_under_its_own_name",
        params: &[("SCRIPT_FILENAME", "W/link.php"), ("SCRIPT_NAME", "/link.php")],
        fixed: "200 SN=/link.php SELF=/link.php SF=W/link.php",
        unfixed: "200 SN=/link.php SELF=/link.php SF=W/link.php",
    },
    Row {
        name: "a_link_with_path_info_is_split",
        params: &[
            ("SCRIPT_FILENAME", "W/link.php/a"),
            ("SCRIPT_NAME", "/link.php/a"),
            ("PATH_INFO", "/link.php/a"),
        ],
        fixed: "200 SN=/link.php PI=/a PT=W/a SELF=/link.php/a SF=W/link.php oSN=/link.php/a oPI=/link.php/a oSF=W/link.php/a",
        unfixed: DENIED,
    },
    Row {
        name: "doubled_slashes_are_kept",
        params: &[("SCRIPT_FILENAME", "W//info.php"), ("SCRIPT_NAME", "//info.php")],
        fixed: "200 SN=//info.php SELF=//info.php SF=W//info.php",
        unfixed: "200 SN=//info.php SELF=//info.php SF=W//info.php",
    },
    Row {
        name: "blanks_in_a_name_are_nothing_special",
        params: &[
            ("SCRIPT_FILENAME", "W/sp ace.php/p q"),
            ("SCRIPT_NAME", "/sp ace.php/p q"),
            ("PATH_INFO", "/sp ace.php/p q"),
        ],
        fixed: "200 SN=/sp ace.php PI=/p q PT=W/p q SELF=/sp ace.php/p q SF=W/sp ace.php oSN=/sp ace.php/p q oPI=/sp ace.php/p q oSF=W/sp ace.php/p q",
        unfixed: DENIED,
    },
    // Apache's mod_proxy_fcgi.
    Row {
        name: "apaches_proxy_prefix_is_cut_off",
        params: &[
            ("SCRIPT_FILENAME", "proxy:fcgi://h:9000W/info.php"),
            ("SCRIPT_NAME", "/info.php"),
        ],
        fixed: "200 SN=/info.php SELF=/info.php SF=W/info.php",
        unfixed: "200 SN=/info.php SELF=/info.php SF=W/info.php",
    },
    Row {
        name: "apaches_balancer_prefix_is_cut_off",
        params: &[
            ("SCRIPT_FILENAME", "proxy:balancer://cluster/W/info.php"),
            ("SCRIPT_NAME", "/info.php"),
        ],
        fixed: "200 SN=/info.php SELF=/info.php SF=/W/info.php",
        unfixed: "200 SN=/info.php SELF=/info.php SF=/W/info.php",
    },
    Row {
        name: "apaches_proxy_prefix_is_known_in_any_case",
        params: &[
            ("SCRIPT_FILENAME", "Proxy:FCGI://h:9000W/info.php"),
            ("SCRIPT_NAME", "/info.php"),
        ],
        fixed: "200 SN=/info.php SELF=/info.php SF=W/info.php",
        unfixed: "200 SN=/info.php SELF=/info.php SF=W/info.php",
    },
    Row {
        name: "apaches_path_info_is_split",
        params: &[
            ("SCRIPT_FILENAME", "proxy:fcgi://h:9000W/info.php/a/b"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_INFO", "/a/b"),
        ],
        fixed: "200 SN=/info.php PI=/a/b PT=W/a/b SELF=/info.php/a/b SF=W/info.php oSF=W/info.php/a/b",
        unfixed: DENIED,
    },
    Row {
        name: "apaches_proxypass_script_name_is_shortened",
        params: &[
            ("SCRIPT_FILENAME", "proxy:fcgi://h:9000W/info.php/a/b"),
            ("SCRIPT_NAME", "/info.php/a/b"),
        ],
        fixed: "200 SN=/info.php PI=/a/b PT=W/a/b SELF=/info.php/a/b SF=W/info.php oSN=/info.php/a/b oSF=W/info.php/a/b",
        unfixed: DENIED,
    },
    Row {
        name: "apaches_path_info_that_differs_from_the_tail_is_replaced",
        params: &[
            ("SCRIPT_FILENAME", "proxy:fcgi://h:9000W/info.php/a/b"),
            ("SCRIPT_NAME", "/info.php/a/b"),
            ("PATH_INFO", "/info.php/a/b"),
        ],
        fixed: "200 SN=/info.php/a/b PI=/a/b PT=W/a/b SELF=/info.php/a/b/a/b SF=W/info.php oPI=/info.php/a/b oSF=W/info.php/a/b",
        unfixed: DENIED,
    },
    Row {
        name: "apaches_query_is_cut_off_the_file_name",
        params: &[
            ("SCRIPT_FILENAME", "proxy:fcgi://h:9000W/info.php?x=1"),
            ("SCRIPT_NAME", "/info.php"),
        ],
        fixed: "200 SN=/info.php SELF=/info.php SF=W/info.php",
        unfixed: "200 SN=/info.php SELF=/info.php SF=W/info.php",
    },
    Row {
        name: "apaches_query_alone_is_not_cut_off",
        params: &[("SCRIPT_FILENAME", "W/info.php?x=1"), ("SCRIPT_NAME", "/info.php")],
        fixed: NOT_FOUND,
        unfixed: DENIED,
    },
    Row {
        name: "apaches_unix_socket_doubles_the_slash",
        params: &[
            ("SCRIPT_FILENAME", "proxy:fcgi://localhost/W/info.php"),
            ("SCRIPT_NAME", "/info.php"),
        ],
        fixed: "200 SN=/info.php SELF=/info.php SF=/W/info.php",
        unfixed: "200 SN=/info.php SELF=/info.php SF=/W/info.php",
    },
    Row {
        name: "apaches_prefix_without_a_path_is_not_found",
        params: &[("SCRIPT_FILENAME", "proxy:fcgi://h"), ("SCRIPT_NAME", "/info.php")],
        fixed: NOT_FOUND,
        unfixed: DENIED,
    },
    Row {
        name: "apaches_path_without_a_document_root_is_translated_by_the_script_name",
        params: &[
            ("SCRIPT_FILENAME", "proxy:fcgi://h:9000W/info.php/a/b"),
            ("SCRIPT_NAME", "/info.php"),
            ("DOCUMENT_ROOT", "-"),
        ],
        fixed: "200 SN=/info.php PI=/a/b PT=W/a/b SELF=/info.php/a/b SF=W/info.php oSF=W/info.php/a/b",
        unfixed: DENIED,
    },
    // Apache's Action and ScriptAlias.
    Row {
        name: "a_handler_with_a_redirected_url_runs_what_is_translated",
        params: &[
            ("SCRIPT_FILENAME", "/usr/lib/cgi-bin/php"),
            ("SCRIPT_NAME", "/cgi-bin/php"),
            ("PATH_INFO", "/info.php/a"),
            ("PATH_TRANSLATED", "W/info.php/a"),
            ("REDIRECT_URL", "/info.php/a"),
        ],
        fixed: "200 SN=/info.php PI=/a PT=W/a SELF=/info.php/a SF=W/info.php oSN=/cgi-bin/php oPI=/info.php/a oPT=W/info.php/a oSF=/usr/lib/cgi-bin/php",
        unfixed: DENIED,
    },
    Row {
        name: "a_handler_with_a_redirected_url_and_no_path_info_runs_what_is_translated",
        params: &[
            ("SCRIPT_FILENAME", "/usr/lib/cgi-bin/php"),
            ("SCRIPT_NAME", "/cgi-bin/php"),
            ("PATH_INFO", "/info.php"),
            ("PATH_TRANSLATED", "W/info.php"),
            ("REDIRECT_URL", "/info.php"),
        ],
        fixed: "200 SN=/info.php SELF=/info.php SF=W/info.php oSN=/cgi-bin/php oPI=/info.php oPT=W/info.php oSF=/usr/lib/cgi-bin/php",
        unfixed: "200 SN=/cgi-bin/php PI=/info.php PT=W/info.php SELF=/info.php SF=/usr/lib/cgi-bin/php",
    },
    Row {
        name: "a_handler_whose_redirected_url_is_its_own_name_still_keeps_it",
        params: &[
            ("SCRIPT_FILENAME", "/usr/lib/cgi-bin/php"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_TRANSLATED", "W/info.php"),
            ("REDIRECT_URL", "/info.php"),
        ],
        fixed: "200 SN=/info.php SELF=/info.php SF=W/info.php oSN=/info.php oPT=W/info.php oSF=/usr/lib/cgi-bin/php",
        unfixed: "200 SN=/info.php PT=W/info.php SELF=/info.php SF=/usr/lib/cgi-bin/php",
    },
    Row {
        name: "a_redirected_url_removes_path_info_of_a_script_that_is_there",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_INFO", "/zz"),
            ("REDIRECT_URL", "/foo"),
        ],
        fixed: "200 SN=/info.php SELF=/info.php SF=W/info.php oPI=/zz",
        unfixed: "200 SN=/info.php PI=/zz SELF=/zz SF=W/info.php",
    },
    Row {
        name: "iis_repeats_the_script_name_in_path_info",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_INFO", "/info.php/a"),
            ("SERVER_SOFTWARE", "Microsoft-IIS/10.0"),
        ],
        fixed: "200 SN=/info.php PI=/a SELF=/info.php/a SF=W/info.php oPI=/info.php/a",
        unfixed: "200 SN=/info.php PI=/a SELF=/a SF=W/info.php oPI=/info.php/a",
    },
    Row {
        name: "iis_without_path_info_repeats_the_script_name_alone",
        params: &[
            ("SCRIPT_FILENAME", "W/info.php"),
            ("SCRIPT_NAME", "/info.php"),
            ("PATH_INFO", "/info.php"),
            ("SERVER_SOFTWARE", "Microsoft-IIS/10.0"),
        ],
        fixed: "200 SN=/info.php SELF=/info.php SF=W/info.php oPI=/info.php",
        unfixed: "200 SN=/info.php SELF=/info.php SF=W/info.php oPI=/info.php",
    },
];

fn others(c: &mut Cases) {
    // By ProxyPass; with SetHandler Apache sends a PATH_INFO of its own.
    c.same("apaches_encoded_path_info_is_decoded_since_8_4", &Setup::BASE, |t| {
        tree(t);
        let root = t.www();
        let info = match php_fpm_release() < [8, 4, 0] {
            true => "/pa%20th/in%2Ffo",
            false => "/pa th/in/fo",
        };
        for name in ["/info.php/pa th/in/fo", "/info.php/pa%20th/in%2Ffo"] {
            let file = format!("proxy:fcgi://h:9000{root}/info.php/pa%20th/in%2Ffo");
            let request = t.get("/").set("SCRIPT_FILENAME", file).set("SCRIPT_NAME", name);
            let wanted = format!(
                "200 SN=/info.php PI={info} PT=W{info} SELF=/info.php{info} SF=W/info.php oSN={name} oSF=W/info.php/pa%20th/in%2Ffo"
            );
            assert_eq!(outcome(t, &request), wanted);
        }
    });
    c.same(
        "the_rewritten_variables_stand_in_the_order_of_php_fpm",
        &Setup::BASE,
        |t| {
            tree(t);
            let request = t
                .get("/info.php/a/b")
                .set("PATH_INFO", "/info.php/a/b")
                .set("PATH_TRANSLATED", "/x");
            let reply = t.send(&request);
            let order = "USER HOME ORIG_PATH_TRANSLATED ORIG_SCRIPT_FILENAME ORIG_SCRIPT_NAME ORIG_PATH_INFO \
                     PATH_TRANSLATED PATH_INFO HTTP_HOST REDIRECT_STATUS";
            assert!(reply.text().contains(order), "{}", reply.text());
        },
    );
    c.same("the_working_folder_is_that_of_the_script", &Setup::BASE, |t| {
        tree(t);
        for uri in ["/info.php", "/d/e/f.php", "/link.php"] {
            let folder = t
                .file(uri.trim_start_matches('/').trim_end_matches(".php"), "")
                .parent()
                .map(|p| p.display().to_string());
            let request = t.get(uri);
            let wanted = format!(" in {}", folder.expect("it has one"));
            let text = t.send(&request).text();
            assert!(text.contains(&wanted), "{text}");
        }
    });
    c.same(
        "includes_are_found_beside_the_script_and_not_where_the_last_request_was",
        &Setup::BASE,
        |t| {
            t.file("one/part.php", "<?php echo 'one';");
            t.file("two/part.php", "<?php echo 'two';");
            t.file("one/main.php", "<?php include 'part.php'; chdir('/');");
            t.file("two/main.php", "<?php include './part.php'; chdir('..');");
            for _ in 0..6 {
                for folder in ["one", "two"] {
                    let request = t.get(&format!("/{folder}/main.php"));
                    assert_eq!(t.send(&request).text(), folder);
                }
            }
        },
    );
    c.same("a_script_that_appears_is_found", &Setup::BASE, |t| {
        let request = t.get("/later.php");
        assert_eq!(t.send(&request).status(), 404);
        t.file("later.php", "<?php echo 'here';");
        assert_eq!(t.send(&request).text(), "here");
    });
    c.same("a_path_longer_than_the_system_allows_is_not_found", &Setup::BASE, |t| {
        let request = t.get(&format!("/{}.php", "long/".repeat(1000)));
        assert_eq!(outcome(t, &request), NOT_FOUND);
    });
    c.same(
        "a_zero_byte_in_the_file_name_does_not_reach_another_file",
        &Setup::BASE,
        |t| {
            tree(t);
            let name = [t.www().as_bytes(), b"/info.php\0.txt"].concat();
            let request = t.get("/info.php").set("SCRIPT_FILENAME", name);
            t.send(&request);
        },
    );
    c.same(
        "a_relative_file_name_is_not_one_of_the_folder_that_served_before",
        &ONE_WORKER,
        |t| {
            tree(t);
            for file in ["info.php", "./info.php", "d/e/f.php"] {
                // The worker has just been there.
                let request = t.get("/info.php");
                assert_eq!(t.send(&request).status(), 200);
                assert_eq!(outcome(t, &request.set("SCRIPT_FILENAME", file)), NOT_FOUND, "{file}");
            }
        },
    );
    c.same("a_relative_file_name_is_one_of_the_folder_of_the_pool", &AT_HOME, |t| {
        t.file("info.php", "<?php");
        std::fs::write(t.root.with_file_name("at-home.php"), PROBE).expect("the folder is ours");
        for _ in 0..3 {
            let request = t
                .get("/info.php")
                .set("SCRIPT_FILENAME", "at-home.php")
                .set("SCRIPT_NAME", "/at-home.php");
            assert!(outcome(t, &request).starts_with("200 SN=/at-home.php"));
            let other = t.get("/info.php");
            t.send(&other);
        }
    });
    c.same("a_refused_script_is_named_on_stderr", &Setup::BASE, |t| {
        tree(t);
        for (uri, wanted) in [
            (
                "/x.php5",
                "Access to the script '{}/x.php5' has been denied (see security.limit_extensions)",
            ),
            ("/nope.php", "Primary script unknown"),
            (
                "/unreadable.php",
                "Unable to open primary script: {}/unreadable.php (Permission denied)",
            ),
        ] {
            let request = t.get(uri);
            let errors = t.send(&request).errors();
            assert!(errors.contains(&wanted.replace("{}", &t.www())), "{errors}");
        }
    });
    c.same("an_error_page_keeps_to_head", &Setup::BASE, |t| {
        let request = t.get("/nope.php").method("HEAD");
        let reply = t.send(&request);
        assert_eq!((reply.status(), reply.text()), (404, String::new()));
    });
    c.same("a_body_sent_to_a_missing_script_is_swallowed", &Setup::BASE, |t| {
        let request = t.get("/nope.php").post("text/plain", vec![b'x'; 200_000]);
        assert_eq!(outcome(t, &request), NOT_FOUND);
    });
    c.same(
        "path_translated_is_left_aside_if_the_path_is_discarded",
        &DISCARDED,
        |t| {
            tree(t);
            let request = t
                .get("/info.php")
                .set("PATH_TRANSLATED", t.root.join("dir/info.php").display().to_string());
            let reply = t.send(&request);
            assert!(
                reply.text().contains(&format!("runs {}/info.php", t.www())),
                "{}",
                reply.text()
            );
        },
    );
    c.same(
        "with_any_extension_allowed_a_file_of_any_name_runs",
        &ANY_EXTENSION,
        |t| {
            tree(t);
            for uri in ["/x.php5", "/noext", "/img.txt"] {
                let request = t.get(uri);
                assert!(outcome(t, &request).starts_with("200 SN="));
            }
        },
    );
    c.same(
        "with_any_extension_allowed_an_upload_called_as_a_folder_runs",
        &ANY_EXTENSION,
        |t| {
            tree(t);
            let request = t.get("/img.txt/x.php").set("PATH_INFO", "/img.txt/x.php");
            assert!(outcome(t, &request).starts_with("200 SN=/img.txt PI=/x.php"));
        },
    );
    c.same(
        "with_any_extension_allowed_a_folder_is_no_script",
        &ANY_EXTENSION,
        |t| {
            tree(t);
            let request = t.get("/dir");
            assert_eq!(outcome(t, &request), NO_INPUT);
        },
    );
    c.same(
        "the_extensions_of_the_pool_are_the_ones_allowed",
        &OWN_EXTENSIONS,
        |t| {
            tree(t);
            t.file("a.html", PROBE);
            t.file(".html", PROBE);
            for (uri, status) in [
                ("/a.html", 200),
                ("/x.php5", 200),
                ("/info.php", 403),
                ("/a.HTML", 404),
                ("/.html", 200),
            ] {
                let request = t.get(uri);
                assert_eq!(t.send(&request).status(), status, "{uri}");
            }
        },
    );
}
