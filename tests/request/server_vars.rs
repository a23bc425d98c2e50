//! `$_SERVER`, `$_ENV`, `getenv()` and what else PHP makes of the parameters.

use crate::harness::{Case, Cases, Request};
use crate::support::fcgi::{AUTHORIZER, FILTER};
use crate::support::server::Setup;

/// The pool's environment is the master's, and more.
static INHERITED: Setup = Setup {
    name: "inherited",
    opcache: false,
    pool: "clear_env = no\nenv[FROM_POOL] = pool\nenv[COPIED] = $FROM_MASTER\nenv[MISSING] = $NOT_THERE\n\
           env[SERVER_NAME] = of-pool\nenv[HTTP_PROXY] = http://real.example\n",
    ini: "variables_order = EGPCS\nregister_argc_argv = 1\n",
    environment: &[("FROM_MASTER", "master"), ("OTHER", "a b")],
    ..Setup::BASE
};

/// The pool's environment is empty but for `env[]`, and `$_SERVER` is made for every request.
static CLEARED: Setup = Setup {
    name: "cleared",
    pool: "env[FROM_POOL] = pool\nenv[HOME] = /nowhere\n",
    ini: "variables_order = EGPCS\nauto_globals_jit = 0\n",
    environment: &[("FROM_MASTER", "master")],
    ..Setup::BASE
};

pub fn cases() -> Vec<Case> {
    Cases::of("server_vars", |c| {
        superglobals(c);
        odd_parameters(c);
        environment(c);
    })
}

fn superglobals(c: &mut Cases) {
    c.same(
        "server_holds_the_parameters_in_reverse_order_then_what_php_adds",
        &Setup::BASE,
        |t| {
            let reply =
                t.php("foreach ($_SERVER as $k => $v) echo $k, '=', is_string($v) ? $v : gettype($v), \"\\n\";");
            let text = reply.text();
            let names: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
            let wanted = [
                "USER",
                "HOME",
                "HTTP_HOST",
                "REDIRECT_STATUS",
                "SERVER_NAME",
                "SERVER_PORT",
                "SERVER_ADDR",
                "REMOTE_PORT",
                "REMOTE_ADDR",
                "SERVER_SOFTWARE",
                "GATEWAY_INTERFACE",
                "REQUEST_SCHEME",
                "SERVER_PROTOCOL",
                "DOCUMENT_ROOT",
                "DOCUMENT_URI",
                "REQUEST_URI",
                "SCRIPT_NAME",
                "CONTENT_LENGTH",
                "CONTENT_TYPE",
                "REQUEST_METHOD",
                "QUERY_STRING",
                "SCRIPT_FILENAME",
                "FCGI_ROLE",
                "PHP_SELF",
                "REQUEST_TIME_FLOAT",
                "REQUEST_TIME",
            ];
            assert_eq!(names, wanted);
            assert!(text.contains("FCGI_ROLE=RESPONDER\n") && text.contains("PHP_SELF=/index.php\n"));
        },
    );
    c.same(
        "a_compiled_script_without_server_leaves_it_to_be_made_when_asked_by_name",
        &Setup::BASE,
        |t| {
            let reply = t.php("$name = '_' . 'SERVER'; echo isset($GLOBALS[$name]) ? 'there' : 'not there';");
            assert_eq!(reply.text(), "not there");
        },
    );
    c.same("without_jit_server_is_always_there", &CLEARED, |t| {
        let reply = t.php("$name = '_' . 'SERVER'; echo isset($GLOBALS[$name]) ? 'there' : 'not there';");
        assert_eq!(reply.text(), "there");
    });
    c.same("each_role_is_named_in_fcgi_role", &Setup::BASE, |t| {
        let request = t.page("echo $_SERVER['FCGI_ROLE'];");
        assert_eq!(t.send(&request).text(), "RESPONDER");
        assert_eq!(
            t.send(&Request {
                role: AUTHORIZER,
                ..request.clone()
            })
            .text(),
            "AUTHORIZER"
        );
        assert_eq!(
            t.send(&Request {
                role: FILTER,
                ..request
            })
            .text(),
            "FILTER"
        );
    });
    c.same("the_request_time_is_the_time_of_the_request", &Setup::BASE, |t| {
        let reply = t.php(
            "usleep(20000); $f = $_SERVER['REQUEST_TIME_FLOAT']; $i = $_SERVER['REQUEST_TIME'];
             echo $f < microtime(true) && $f > microtime(true) - 60 ? 'float ' : \"float? $f \";
             echo $i === (int) $f ? 'same' : \"$i $f\";",
        );
        assert_eq!(reply.text(), "float same");
    });
    c.same("the_query_string_becomes_get_and_request", &Setup::BASE, |t| {
        let request = t
            .page("var_dump($_GET, $_REQUEST);")
            .query("a=1&b[]=x&b[]=y&c%5Bk%5D=%C3%A4&d+e=&f.g=h&novalue");
        let reply = t.send(&request);
        assert!(reply.text().contains("[\"d_e\"]=>\n  string(0) \"\"") && reply.text().contains("[\"f_g\"]"));
    });
    c.same("the_cookie_header_becomes_cookie", &Setup::BASE, |t| {
        let request = t
            .page("var_dump($_COOKIE);")
            .set("HTTP_COOKIE", "a=1; b=%20x; a=2;c; d[k]=v");
        assert!(
            t.send(&request)
                .text()
                .starts_with("array(4) {\n  [\"a\"]=>\n  string(1) \"1\"")
        );
    });
    c.same("max_input_vars_cuts_the_query_and_warns", &Setup::BASE, |t| {
        let query: Vec<String> = (0..1002).map(|n| format!("v{n}=1")).collect();
        let request = t.page("echo count($_GET);").query(&query.join("&"));
        let reply = t.send(&request);
        assert_eq!(reply.text(), "1000");
        assert!(
            reply.errors().contains("Input variables exceeded 1000"),
            "{}",
            reply.errors()
        );
    });
    c.same("filter_input_sees_the_parameters", &Setup::BASE, |t| {
        let request = t
            .page("var_dump(filter_input(INPUT_SERVER, 'SERVER_PORT', FILTER_VALIDATE_INT), filter_input(INPUT_GET, 'x'));")
            .query("x=%3Cy");
        assert_eq!(t.send(&request).text(), "int(80)\nstring(2) \"<y\"\n");
    });
    c.same("the_sapi_is_fpm_fcgi", &Setup::BASE, |t| {
        let reply = t.php(
            "var_dump(PHP_SAPI, php_sapi_name(), defined('STDIN'), defined('STDOUT'), defined('STDERR'),
                extension_loaded('cgi-fcgi'), function_exists('fastcgi_finish_request'),
                function_exists('apache_request_headers'), function_exists('getallheaders'),
                function_exists('fpm_get_status'), function_exists('dl'), ini_get('html_errors'),
                function_exists('cli_set_process_title'), get_extension_funcs('cgi-fcgi'));",
        );
        assert!(
            reply
                .text()
                .starts_with("string(8) \"fpm-fcgi\"\nstring(8) \"fpm-fcgi\"\nbool(false)\n")
        );
    });
    c.same("phpinfo_shows_the_settings_of_cgi_as_php_fpm_does", &Setup::BASE, |t| {
        t.php(
            "ob_start(); phpinfo(INFO_MODULES);
             preg_match_all('~<td class=\"e\">((?:cgi|fastcgi|fpm)\\..*)~', ob_get_clean(), $all); echo implode(\"\\n\", $all[1]);",
        );
    });
    c.differs(
        "env_is_no_copy_of_the_server_variables",
        &INHERITED,
        "With E in variables_order, php-fpm 8.2 gives a script that uses $_SERVER a copy of it as $_ENV, with PHP_SELF, argv and \
         REQUEST_TIME; for us it is the environment and the request's parameters in any case.",
        |t| {
            let reply = t.php("echo json_encode([isset($_SERVER['PHP_SELF']), isset($_ENV['PHP_SELF'])]), $_ENV['SCRIPT_NAME'];");
            assert_eq!(reply.text(), format!("[true,{}]/index.php", !t.is_php_pool()));
        },
    );
    c.differs(
        "a_name_of_three_bytes_is_as_any_other",
        &Setup::BASE,
        "php-fpm does not find a parameter whose name is three bytes long by getenv(), and of two with one such name it takes the \
         first; for us they are as all others, of which the last counts.",
        |t| {
            let request = t.page("echo json_encode([getenv('ABC'), $_SERVER['ABC'], $_SERVER['ABCD']]);");
            let params = [("ABC", "one"), ("ABCD", "one"), ("ABC", "two"), ("ABCD", "two")];
            let request = params.iter().fold(request, |request, (name, value)| request.add(name, value));
            let wanted = if t.is_php_pool() {
                r#"["two","two","two"]"#
            } else {
                r#"[false,"one","two"]"#
            };
            assert_eq!(t.send(&request).text(), wanted);
        },
    );
    c.differs(
        "a_name_or_value_ends_at_its_nul_everywhere",
        &Setup::BASE,
        "No web server passes a NUL on. php-fpm cuts a name or value there in $_SERVER, and shows it whole in getallheaders() and in \
         getenv() without a name; we cut it there, too, so that what is checked is what is used.",
        |t| {
            let request = t
                .page("echo json_encode([$_SERVER['HTTP_X_A'], getallheaders()['X-A'], getenv()['HTTP_X_A']]);")
                .set("HTTP_X_A", "one\0two");
            let wanted = if t.is_php_pool() {
                r#"["one","one","one"]"#
            } else {
                r#"["one","one\u0000two","one\u0000two"]"#
            };
            assert_eq!(t.send(&request).text(), wanted);
        },
    );
    c.differs(
        "a_script_of_apaches_proxy_is_cut_to_its_length_everywhere",
        &Setup::BASE,
        "Apache's SetHandler and ProxyPass name the script as proxy:fcgi://HOST/PATH. php-fpm shows the path; in getenv() without a \
         name what was behind it follows, after a NUL.",
        |t| {
            let request = t.page("echo json_encode([$_SERVER['SCRIPT_FILENAME'], getenv()['SCRIPT_FILENAME']], JSON_UNESCAPED_SLASHES);");
            let path = format!("{}/index.php", t.www());
            let request = request.set("SCRIPT_FILENAME", format!("proxy:fcgi://localhost{path}"));
            let reply = t.send(&request);
            let cut = format!("[\"{path}\",\"{path}\"]");
            if t.is_php_pool() {
                assert_eq!(reply.text(), cut);
            } else {
                assert!(reply.text().starts_with(&format!("[\"{path}\",\"{path}\\u0000")), "{reply}");
            }
        },
    );
    c.differs(
        "php_is_that_of_libphp",
        &Setup::BASE,
        "Debian builds libphp with pcntl and chroot(), and with another PHP_CONFIG_FILE_PATH (php.ini is read where php-fpm reads \
         it); PHP_BINARY is php-pool-worker.",
        |t| {
            let reply = t.php(
                "foreach (['pcntl_fork', 'chroot'] as $name) echo function_exists($name) ? 'there ' : 'none ';
                 echo basename(PHP_BINARY), ' ', basename(PHP_CONFIG_FILE_PATH);",
            );
            if t.is_php_pool() {
                assert_eq!(reply.text(), "there there php-pool-worker embed");
            } else {
                assert!(reply.text().starts_with("none none php-fpm"), "{reply}");
            }
        },
    );
    c.same("phpinfo_says_fpm_fastcgi", &Setup::BASE, |t| {
        let request = t.page(
            "ob_start(); phpinfo(INFO_GENERAL); $all = strip_tags(ob_get_clean());
             preg_match('/Server API[^\\n]*/', $all, $m); echo $m[0];",
        );
        assert_eq!(t.send(&request).text(), "Server API FPM/FastCGI ");
    });
    c.same("the_settings_of_the_module_are_those_of_php_fpm", &Setup::BASE, |t| {
        let reply = t.php(
            "foreach (ini_get_all() as $name => $of) {
                if (preg_match('/^(cgi|fastcgi|fpm)\\./', $name)) {
                    echo $name, ' = ', var_export($of['global_value'], true), ' access ', $of['access'], \"\\n\";
                }
             }",
        );
        assert!(
            reply.text().contains("cgi.fix_pathinfo = '1' access 4\n"),
            "{}",
            reply.text()
        );
    });
    c.same("argv_is_the_query_string_if_it_is_registered", &INHERITED, |t| {
        let request = t
            .page("var_dump($_SERVER['argv'], $_SERVER['argc']);")
            .query("one+two=2+%20three");
        assert!(t.send(&request).text().contains("string(5) \"two=2\""));
        let none = t
            .page("var_dump($_SERVER['argv'], $_SERVER['argc'], isset($argv));")
            .query("");
        t.send(&none);
    });
}

fn odd_parameters(c: &mut Cases) {
    /// The parameters between two that mark their place.
    const AROUND: &str = "$keys = array_keys($_SERVER); $from = array_search('LAST', $keys); \
                          $to = array_search('FIRST', $keys); \
                          var_dump(array_slice($_SERVER, $from, $to - $from + 1, true));";
    let odd = |c: &mut Cases, name: &str, params: Vec<(Vec<u8>, Vec<u8>)>, wanted: &'static str| {
        c.same(name, &Setup::BASE, move |t| {
            let mut request = t.page(AROUND).add("FIRST", "1");
            for (name, value) in &params {
                request = request.add(name, value);
            }
            let reply = t.send(&request.add("LAST", "2"));
            assert!(reply.text().contains(wanted), "{}", reply.text());
        });
    };
    let of = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec()))
            .collect()
    };
    odd(
        c,
        "of_two_parameters_of_one_name_the_last_wins",
        of(&[("A", "1"), ("B", "2"), ("A", "3")]),
        "\"3\"",
    );
    odd(
        c,
        "a_parameter_without_a_value_is_empty",
        of(&[("EMPTY", "")]),
        "[\"EMPTY\"]=>\n  string(0) \"\"",
    );
    odd(
        c,
        "a_parameter_without_a_name_is_ignored",
        of(&[("", "x"), ("A", "1"), ("", "")]),
        "array(3)",
    );
    odd(
        c,
        "names_with_dots_and_blanks_get_underscores",
        of(&[("a.b c", "1"), ("x-y", "2")]),
        "[\"a_b_c\"]",
    );
    odd(
        c,
        "names_with_brackets_become_arrays",
        of(&[("arr[k]", "1"), ("arr[]", "2"), ("open[", "3")]),
        "array(2)",
    );
    odd(
        c,
        "names_are_told_apart_by_case",
        of(&[("name", "1"), ("Name", "2"), ("NAME", "3")]),
        "array(5)",
    );
    odd(
        c,
        "bytes_that_are_not_utf_8_pass_through",
        vec![(b"BYTES".to_vec(), (1..=255).collect())],
        "[\"BYTES\"]=>\n  string(255)",
    );
    odd(
        c,
        "a_zero_byte_ends_a_value_as_it_does_in_php_fpm",
        vec![
            (b"ZERO".to_vec(), b"before\0after".to_vec()),
            (b"NA\0ME".to_vec(), b"v".to_vec()),
        ],
        "ZERO",
    );
    odd(
        c,
        "a_value_of_64_kilobytes_arrives_whole",
        vec![(b"LONG".to_vec(), vec![b'x'; 65000])],
        "string(65000)",
    );
    odd(
        c,
        "a_name_of_1000_bytes_arrives_whole",
        vec![(vec![b'N'; 1000], b"v".to_vec())],
        "string(1) \"v\"",
    );
    odd(
        c,
        "a_thousand_parameters_arrive_in_order",
        (0..1000)
            .map(|n| (format!("P{n}").into_bytes(), n.to_string().into_bytes()))
            .collect(),
        "array(1002)",
    );
    c.same("lengths_of_127_and_128_bytes_are_both_understood", &Setup::BASE, |t| {
        let mut request = t.page(
            "foreach ($_SERVER as $k => $v) if (str_starts_with($k, 'L')) echo strlen($k), ' ', strlen($v), \"\\n\";",
        );
        for length in [126, 127, 128, 129, 255, 256] {
            request = request.add(format!("L{}", "n".repeat(length - 1)), "v".repeat(length));
        }
        assert_eq!(
            t.send(&request).text(),
            "256 256\n255 255\n129 129\n128 128\n127 127\n126 126\n"
        );
    });
    c.same(
        "a_request_without_the_usual_parameters_still_runs_its_script",
        &Setup::BASE,
        |t| {
            let script = t.file(
                "bare.php",
                "<?php unset($_SERVER['REQUEST_TIME'], $_SERVER['REQUEST_TIME_FLOAT']); var_dump($_SERVER, $_GET);",
            );
            let request = Request::bare()
                .set("SCRIPT_FILENAME", script.display().to_string())
                .set("REQUEST_METHOD", "GET");
            assert!(t.send(&request).text().contains("[\"PHP_SELF\"]=>\n  string(0) \"\""));
        },
    );
    c.same("without_a_script_name_path_info_is_php_self", &Setup::BASE, |t| {
        let script = t.file(
            "self.php",
            "<?php var_dump($_SERVER['PHP_SELF'], $_SERVER['PATH_INFO']);",
        );
        let request = Request::bare()
            .set("SCRIPT_FILENAME", script.display().to_string())
            .set("REQUEST_METHOD", "GET")
            .set("PATH_INFO", "/extra/path");
        assert!(t.send(&request).text().starts_with("string(11) \"/extra/path\""));
    });
    c.same("an_unusual_method_reaches_the_script", &Setup::BASE, |t| {
        let request = t.page("echo $_SERVER['REQUEST_METHOD'];");
        for method in ["OPTIONS", "PROPFIND", "get", "X-!#", "DELETE"] {
            assert_eq!(t.send(&request.clone().method(method)).text(), method);
        }
    });
    c.same("a_request_without_a_method_gets_an_empty_answer", &Setup::BASE, |t| {
        let request = t.page("echo 'never';").unset("REQUEST_METHOD");
        let reply = t.send(&request);
        assert_eq!((reply.status(), reply.text()), (200, String::new()));
    });
    c.same("a_request_without_any_parameter_is_answered", &Setup::BASE, |t| {
        let reply = t.send(&Request::bare());
        assert_eq!(reply.text(), "");
        assert!(reply.end.is_some());
    });
}

fn environment(c: &mut Cases) {
    c.same("a_cleared_environment_holds_the_pools_variables_and_the_users", &CLEARED, |t| {
        let reply = t.php("$e = getenv(); foreach ($_SERVER as $k => $v) unset($e[$k]); var_dump($e, array_slice($_SERVER, 0, 3), count($_ENV) > 20);");
        assert!(reply.text().contains("[\"FROM_POOL\"]=>\n  string(4) \"pool\""), "{}", reply.text());
        assert!(reply.text().contains("[\"HOME\"]=>\n  string(8) \"/nowhere\"") && !reply.text().contains("master"));
    });
    c.same("an_environment_not_cleared_holds_the_masters_variables_too", &INHERITED, |t| {
        let reply = t.php(
            "$wanted = ['FROM_MASTER', 'OTHER', 'FROM_POOL', 'COPIED', 'MISSING', 'PHP_INI_SCAN_DIR'];
             foreach ($wanted as $name) { echo $name, ' '; var_dump(getenv($name), $_SERVER[$name] ?? null, $_ENV[$name] ?? null); }",
        );
        assert!(reply.text().starts_with("FROM_MASTER string(6) \"master\"\n"), "{}", reply.text());
    });
    c.same("a_parameter_overrides_an_environment_variable", &INHERITED, |t| {
        let reply = t.php("var_dump($_SERVER['SERVER_NAME'], $_ENV['SERVER_NAME'], getenv('SERVER_NAME'), getenv('SERVER_NAME', true));");
        assert!(reply.text().starts_with("string(11) \"example.org\"\n"), "{}", reply.text());
    });
    c.same("getenv_knows_environment_and_parameters", &CLEARED, |t| {
        let request = t
            .page("var_dump(getenv('FROM_POOL'), getenv('QUERY_STRING'), getenv('NOTHING'), getenv('FCGI_ROLE'), isset(getenv()['SCRIPT_NAME']), isset(getenv()['PHP_SELF']));")
            .query("q");
        assert!(t.send(&request).text().starts_with("string(4) \"pool\"\nstring(1) \"q\"\nbool(false)\n"));
    });
    c.same(
        "a_variable_put_by_a_script_is_gone_in_the_next_request",
        &Setup::BASE,
        |t| {
            let request =
                t.page("var_dump(getenv('PUT')); putenv('PUT=' . getmypid()); var_dump(getenv('PUT') == getmypid());");
            for _ in 0..12 {
                assert_eq!(t.send(&request).text(), "bool(false)\nbool(true)\n");
            }
        },
    );
    c.same("a_proxy_header_is_no_environment_variable", &CLEARED, |t| {
        let request = t
            .page("var_dump(isset($_SERVER['HTTP_PROXY']), isset($_ENV['HTTP_PROXY']), getenv('HTTP_PROXY'), getallheaders());")
            .set("HTTP_PROXY", "http://evil.example");
        let text = t.send(&request).text();
        assert!(text.starts_with("bool(false)\nbool(false)\nbool(false)\n"), "{text}");
    });
    c.same(
        "the_real_proxy_variable_stands_where_a_header_claims_to_be_it",
        &INHERITED,
        |t| {
            let request = t
                .page("var_dump($_SERVER['HTTP_PROXY'], $_ENV['HTTP_PROXY'], getenv('HTTP_PROXY'));")
                .set("HTTP_PROXY", "http://evil.example");
            let text = t.send(&request).text();
            assert!(text.starts_with("string(19) \"http://real.example\"\n"), "{text}");
        },
    );
    c.differs(
        "a_proxy_header_is_not_among_all_variables_either",
        &CLEARED,
        "php-fpm hides a Proxy header from getenv('HTTP_PROXY') and $_SERVER, and shows it in getenv() without a name and in \
         filter_input(); we hide it there too (httpoxy).",
        |t| {
            let request = t
                .page("echo getenv()['HTTP_PROXY'] ?? 'hidden', filter_input(INPUT_SERVER, 'HTTP_PROXY') ?? 'hidden';")
                .set("HTTP_PROXY", "http://evil.example");
            let hidden = t.send(&request).text() == "hiddenhidden";
            assert_eq!(hidden, t.is_php_pool());
        },
    );
    c.same("getenv_without_a_name_is_all_variables", &Setup::BASE, |t| {
        let text = t.php("echo join(' ', array_keys(getenv()));").text();
        assert!(
            text.contains("USER") && text.contains("SCRIPT_NAME") && text.contains("FCGI_ROLE"),
            "{text}"
        );
    });
    c.same("filter_input_sees_the_environment", &CLEARED, |t| {
        let code = "foreach ([INPUT_ENV, INPUT_SERVER] as $of) foreach (['SERVER_PORT', 'FROM_POOL', 'NOT'] as $name)
                        echo var_export(filter_input($of, $name), true), ' ';";
        assert_eq!(t.php(code).text(), "'80' 'pool' NULL '80' NULL NULL ");
    });
    c.same("env_is_empty_unless_variables_order_names_it", &Setup::BASE, |t| {
        assert_eq!(t.php("var_dump($_ENV);").text(), "array(0) {\n}\n");
    });
}
