//! Response headers and the status line.

use crate::harness::{Case, Cases};
use crate::support::server::Setup;

static RFC2616: Setup = Setup {
    name: "rfc2616",
    ini: "cgi.rfc2616_headers = 1\n",
    ..Setup::BASE
};

static NPH: Setup = Setup {
    name: "nph",
    opcache: false,
    ini: "cgi.nph = 1\n",
    ..Setup::BASE
};

static QUIET: Setup = Setup {
    name: "quiet",
    ini: "expose_php = 0\ndefault_mimetype =\ndefault_charset =\n",
    ..Setup::BASE
};

static BUFFERED: Setup = Setup {
    name: "buffered",
    ini: "output_buffering = 4096\n",
    ..Setup::BASE
};

const POWERED: &str = "X-Powered-By: PHP/8.2.35";
const HTML: &str = "Content-type: text/html; charset=UTF-8";

pub fn cases() -> Vec<Case> {
    Cases::of("headers", |c| {
        status(c);
        types(c);
        fields(c);
        methods(c);
        spellings(c);
    })
}

/// A case in which `code` leads to exactly these header lines; `{powered}` and `{html}` are the usual ones.
fn lines(c: &mut Cases, name: &str, setup: &'static Setup, code: &'static str, wanted: &'static [&'static str]) {
    c.same(name, setup, move |t| {
        let reply = t.php(code);
        // The patch level of PHP is that of the machine; that both servers have the same is compared anyway.
        let got: Vec<String> = reply
            .headers()
            .into_iter()
            .map(|line| {
                if line.starts_with("X-Powered-By: PHP/8") {
                    POWERED.to_owned()
                } else {
                    line
                }
            })
            .collect();
        assert_eq!(got, wanted, "{reply}");
    });
}

fn status(c: &mut Cases) {
    let same = |c: &mut Cases, name: &str, code: &'static str, wanted: &'static [&'static str]| {
        lines(c, name, &Setup::BASE, code, wanted);
    };
    same(
        c,
        "an_ordinary_answer_has_no_status_line",
        "echo 'x';",
        &[POWERED, HTML],
    );
    same(
        c,
        "a_code_gets_its_phrase",
        "http_response_code(503);",
        &["Status: 503 Service Unavailable", POWERED, HTML],
    );
    same(
        c,
        "an_unknown_code_stands_alone",
        "http_response_code(799);",
        &["Status: 799", POWERED, HTML],
    );
    same(
        c,
        "the_code_200_needs_no_status_line",
        "http_response_code(404); http_response_code(200);",
        &[POWERED, HTML],
    );
    same(
        c,
        "an_http_line_sets_code_and_phrase",
        "header('HTTP/1.1 404 Nope');",
        &["Status: 404 Nope", POWERED, HTML],
    );
    same(
        c,
        "an_http_line_with_200_is_nothing",
        "header('HTTP/1.1 200 Fine');",
        &[POWERED, HTML],
    );
    same(
        c,
        "an_http_line_without_a_phrase_works",
        "header('HTTP/1.0 404');",
        &["Status: 404", POWERED, HTML],
    );
    same(
        c,
        "an_http_line_of_nonsense_is_passed_on",
        "header('HTTP/1.1 x');",
        &["Status: x", POWERED, HTML],
    );
    same(
        c,
        "a_status_header_passes_through_in_its_place",
        "header('X-A: 1'); header('Status: 418 Teapot'); header('X-B: 2');",
        &[POWERED, "X-A: 1", "Status: 418 Teapot", "X-B: 2", HTML],
    );
    same(
        c,
        "a_status_header_takes_the_place_of_a_code",
        "http_response_code(404); header('Status: 418 Teapot');",
        &[POWERED, "Status: 418 Teapot", HTML],
    );
    same(
        c,
        "an_http_line_wins_over_a_status_header",
        "header('HTTP/1.1 404 Nope'); header('Status: 418 Teapot');",
        &["Status: 404 Nope", POWERED, HTML],
    );
    same(
        c,
        "the_code_argument_of_header_counts",
        "header('X-A: 1', true, 402);",
        &["Status: 402 Payment Required", POWERED, "X-A: 1", HTML],
    );
    same(
        c,
        "an_empty_header_with_a_code_sets_the_code",
        "header(':', true, 403);",
        &["Status: 403 Forbidden", POWERED, ":", HTML],
    );
    same(
        c,
        "a_location_redirects",
        "header('Location: /x');",
        &["Status: 302 Found", POWERED, "Location: /x", HTML],
    );
    same(
        c,
        "a_location_keeps_201_and_other_redirects",
        "http_response_code(201); header('Location: /x');",
        &["Status: 201 Created", POWERED, "Location: /x", HTML],
    );
    same(
        c,
        "a_location_with_a_code_has_that_code",
        "header('Location: /x', true, 308);",
        &["Status: 308 Permanent Redirect", POWERED, "Location: /x", HTML],
    );
    same(
        c,
        "a_request_for_credentials_is_401",
        "header('WWW-Authenticate: Basic realm=\"x\"');",
        &[
            "Status: 401 Unauthorized",
            POWERED,
            "WWW-Authenticate: Basic realm=\"x\"",
            HTML,
        ],
    );
    same(
        c,
        "every_known_code_has_its_phrase_after_a_redirect_too",
        "header('Location: /x'); http_response_code(200);",
        &[POWERED, "Location: /x", HTML],
    );
    c.same("codes_get_the_phrases_of_php_fpm", &Setup::BASE, |t| {
        let request = t.page("http_response_code((int) $_GET['c']);");
        for code in (100..=120)
            .chain(200..=230)
            .chain(300..=310)
            .chain(400..=452)
            .chain(500..=512)
        {
            let reply = t.send_unrecorded(&request.clone().query(&format!("c={code}")));
            t.note(reply.headers().join(", "));
        }
    });
    c.same("a_very_long_status_line_is_cut", &Setup::BASE, |t| {
        let reply = t.php("header('HTTP/1.1 201 ' . str_repeat('A', 3000));");
        assert_eq!(reply.headers()[0].len(), 1023);
    });
}

fn types(c: &mut Cases) {
    let same = |c: &mut Cases, name: &str, code: &'static str, wanted: &'static [&'static str]| {
        lines(c, name, &Setup::BASE, code, wanted);
    };
    same(
        c,
        "a_text_type_gets_a_charset",
        "header('Content-Type: text/css');",
        &[POWERED, "Content-type: text/css;charset=UTF-8"],
    );
    same(
        c,
        "a_text_type_with_a_charset_is_left_alone",
        "header('content-TYPE: text/css; charset=latin1');",
        &[POWERED, "content-TYPE: text/css; charset=latin1"],
    );
    same(
        c,
        "another_type_is_left_alone",
        "header('Content-Type: application/json');",
        &[POWERED, "Content-Type: application/json"],
    );
    same(
        c,
        "the_type_stands_where_it_was_first_set",
        "header('X-A: 1'); header('Content-Type: image/png'); header('X-B: 2'); header('Content-Type: image/gif');",
        &[POWERED, "X-A: 1", "X-B: 2", "Content-Type: image/gif"],
    );
    same(
        c,
        "a_removed_type_is_not_replaced_by_the_default",
        "header('Content-Type: image/png'); header_remove('Content-Type');",
        &[POWERED],
    );
    same(
        c,
        "all_headers_can_be_removed",
        "header('X-A: 1'); header_remove();",
        &[HTML],
    );
    same(
        c,
        "the_charset_may_be_changed_by_the_script",
        "ini_set('default_charset', 'ISO-8859-1'); echo 1;",
        &[POWERED, "Content-type: text/html; charset=ISO-8859-1"],
    );
    same(
        c,
        "no_type_is_sent_if_it_is_empty",
        "ini_set('default_mimetype', ''); echo 1;",
        &[POWERED],
    );
    same(
        c,
        "not_modified_has_no_type",
        "http_response_code(304); header('ETag: \"x\"');",
        &["Status: 304 Not Modified", POWERED, "ETag: \"x\""],
    );
    same(
        c,
        "an_empty_type_of_not_modified_is_passed_on",
        "http_response_code(304); header('Content-Type:');",
        &["Status: 304 Not Modified", POWERED, "Content-Type:"],
    );
    same(
        c,
        "an_http_line_of_not_modified_has_no_type_whatever_code_follows",
        "header('HTTP/1.1 304 Not Modified'); http_response_code(404);",
        &["Status: 304 Not Modified", POWERED],
    );
    same(
        c,
        "an_http_line_that_is_not_of_304_has_its_type_whatever_code_follows",
        "header('HTTP/1.1 404 Nope'); http_response_code(304); header('Content-Type: text/x');",
        &["Status: 404 Nope", POWERED, "Content-type: text/x;charset=UTF-8"],
    );
    c.same("a_body_of_not_modified_is_left_to_the_web_server", &Setup::BASE, |t| {
        assert_eq!(
            t.php("http_response_code(304); header('Content-Type: text/css'); echo 'body';")
                .text(),
            "body"
        );
    });
    lines(
        c,
        "without_defaults_there_may_be_no_header_at_all",
        &QUIET,
        "echo 'x';",
        &[],
    );
    lines(
        c,
        "without_a_charset_a_text_type_stays_as_it_is",
        &QUIET,
        "header('Content-Type: text/css');",
        &["Content-Type: text/css"],
    );
}

fn fields(c: &mut Cases) {
    let same = |c: &mut Cases, name: &str, code: &'static str, wanted: &'static [&'static str]| {
        lines(c, name, &Setup::BASE, code, wanted);
    };
    same(
        c,
        "headers_are_sent_in_the_order_they_were_added",
        "header('X-C: 3'); header('X-A: 1'); header('X-B: 2'); header('X-A: 4'); header('X-A: 5', false);",
        &[POWERED, "X-C: 3", "X-B: 2", "X-A: 4", "X-A: 5", HTML],
    );
    same(
        c,
        "cookies_are_headers_of_their_own",
        "setcookie('a', 'b c', ['path' => '/x', 'secure' => true, 'samesite' => 'Lax']); setrawcookie('d', 'e');",
        &[
            POWERED,
            "Set-Cookie: a=b%20c; path=/x; secure; SameSite=Lax",
            "Set-Cookie: d=e",
            HTML,
        ],
    );
    same(
        c,
        "a_header_that_holds_a_line_break_is_refused",
        "header(\"X-A: 1\\r\\nX-Evil: 2\");",
        &[POWERED, HTML],
    );
    same(
        c,
        "an_empty_value_is_sent",
        "header('X-A:'); header('X-B: ');",
        &[POWERED, "X-A:", "X-B:", HTML],
    );
    same(
        c,
        "a_line_without_a_colon_is_sent_as_it_is",
        "header('no colon');",
        &[POWERED, "no colon", HTML],
    );
    c.same("a_header_of_ten_kilobytes_is_sent_whole", &Setup::BASE, |t| {
        assert_eq!(
            t.php("header('X-Long: ' . str_repeat('x', 10000)); echo 'body';")
                .header("X-Long")[0]
                .len(),
            10_000
        );
    });
    c.same("a_thousand_headers_are_sent", &Setup::BASE, |t| {
        let reply = t.php("for ($i = 0; $i < 1000; $i++) header(\"X-H$i: $i\"); echo 'body';");
        assert_eq!((reply.headers().len(), reply.text().as_str()), (1002, "body"));
    });
    c.same("a_header_after_output_is_too_late_and_reported", &Setup::BASE, |t| {
        let reply = t.php("echo 'x'; flush(); header('X-Late: 1'); var_dump(headers_sent($f, $l), $l);");
        assert!(reply.header("X-Late").is_empty());
        assert!(
            reply
                .errors()
                .contains("Cannot modify header information - headers already sent by")
        );
    });
    c.same("buffered_output_leaves_time_for_headers", &BUFFERED, |t| {
        let reply = t.php("echo 'x'; header('X-Late: 1'); var_dump(headers_sent());");
        assert_eq!(
            (reply.header("X-Late"), reply.text().as_str()),
            (vec!["1".to_owned()], "xbool(false)\n")
        );
    });
    c.same("headers_can_be_changed_until_the_first_byte", &Setup::BASE, |t| {
        let reply = t.php(
            "header_register_callback(function () { header('X-Callback: 1'); header_remove('X-Powered-By'); });
             header('X-A: 1'); print_r(headers_list()); print_r(headers_list());",
        );
        assert_eq!(reply.headers(), ["X-A: 1", HTML, "X-Callback: 1"]);
    });
    c.same("headers_of_one_request_are_not_sent_with_the_next", &Setup::BASE, |t| {
        let request = t.page("if (isset($_GET['set'])) { header('X-A: 1'); http_response_code(404); }");
        for _ in 0..6 {
            t.send(&request.clone().query("set"));
            let reply = t.send(&request);
            assert!(reply.status() == 200 && reply.header("X-A").is_empty());
        }
    });
}

fn methods(c: &mut Cases) {
    const LONG: &str = "header('X-A: 1'); echo str_repeat('x', 100000); file_put_contents('ran/to-the-end', 'yes');";
    c.same(
        "head_gets_headers_alone_and_the_script_runs_to_its_end",
        &Setup::BASE,
        |t| {
            t.writable("ran");
            let request = t.page(LONG).method("HEAD");
            let reply = t.send(&request);
            assert_eq!((reply.header("X-A"), reply.text().as_str()), (vec!["1".to_owned()], ""));
            assert!(t.root.join("ran/to-the-end").exists());
        },
    );
    c.same("head_in_lower_case_is_not_head", &Setup::BASE, |t| {
        let request = t.page("echo 'body';").method("head");
        assert_eq!(t.send(&request).text(), "body");
    });
    c.same(
        "head_on_a_kept_connection_leaves_the_next_answer_whole",
        &Setup::BASE,
        |t| {
            let request = t.page("echo 'body';").keep();
            let mut connection = t.connect();
            for (method, wanted) in [("HEAD", ""), ("GET", "body"), ("HEAD", ""), ("GET", "body")] {
                connection.send(&request.clone().method(method).bytes());
                assert_eq!(t.reply(&mut connection, 1).text(), wanted);
            }
        },
    );
    c.same("head_may_flush_and_fail", &Setup::BASE, |t| {
        let request = t
            .page("echo 'a'; flush(); echo 'b'; ob_flush(); no_such_function();")
            .method("HEAD");
        let reply = t.send(&request);
        assert_eq!(reply.text(), "");
        assert!(reply.errors().contains("no_such_function"));
    });
}

fn spellings(c: &mut Cases) {
    lines(
        c,
        "rfc2616_sends_http_lines_as_they_are",
        &RFC2616,
        "header('HTTP/1.1 404 Nope');",
        &["HTTP/1.1 404 Nope", POWERED, HTML],
    );
    lines(
        c,
        "rfc2616_sends_no_line_for_200_either",
        &RFC2616,
        "header('HTTP/1.0 200 Fine');",
        &[POWERED, HTML],
    );
    lines(
        c,
        "rfc2616_leaves_a_code_alone",
        &RFC2616,
        "http_response_code(404);",
        &["Status: 404 Not Found", POWERED, HTML],
    );
    lines(
        c,
        "rfc2616_still_sends_nothing_for_200",
        &RFC2616,
        "echo 1;",
        &[POWERED, HTML],
    );
    lines(
        c,
        "rfc2616_can_be_chosen_by_the_script",
        &Setup::BASE,
        "ini_set('cgi.rfc2616_headers', 1); header('HTTP/1.1 404 Nope');",
        &["HTTP/1.1 404 Nope", POWERED, HTML],
    );
    lines(
        c,
        "nph_sends_a_status_line_for_200_too",
        &NPH,
        "echo 1;",
        &["Status: 200 OK", POWERED, HTML],
    );
    lines(
        c,
        "nph_sends_other_codes_as_ever",
        &NPH,
        "http_response_code(404);",
        &["Status: 404 Not Found", POWERED, HTML],
    );
    lines(
        c,
        "nph_sends_an_http_line_with_200",
        &NPH,
        "header('HTTP/1.1 200 Fine');",
        &["Status: 200 Fine", POWERED, HTML],
    );
}
