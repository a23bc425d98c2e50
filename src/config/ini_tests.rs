use super::*;

fn variables(name: &str) -> Option<String> {
    match name {
        "HOME" => Some("/root".into()),
        "QUOTED" => Some("a;b\"c".into()),
        _ => None,
    }
}

fn value(text: &str) -> Result<String, String> {
    let line = format!("x = {text}\n");
    let mut parser = Parser::new(line.as_bytes(), 1, &variables);
    match parser.next() {
        Some(Ok((1, Statement::Entry { value: Some(value), .. }))) => {
            assert_eq!(parser.next(), None, "{text}");
            Ok(value)
        }
        Some(Err(error)) => Err(error.text),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn values_are_what_php_makes_of_them() {
    let cases = [
        ("a  b", "a  b"),
        ("a;b", "a"),
        ("a#b", "a#b"),
        ("\"a;b=c\"", "a;b=c"),
        (r#""a\"b""#, "a\"b"),
        (r#""a\\b""#, "a\\b"),
        (r#""\$""#, "$"),
        (r#""a\nb""#, "a\\nb"),
        (r#""a\""#, "a\\"),
        ("a \"b\"", "ab"),
        ("\"a\" b", "ab"),
        ("\"a\" 'b'", "ab"),
        ("'a' 'b'", "a b"),
        ("\"a\"b c\"d\"", "ab cd"),
        ("'a;b'", "a;b"),
        (r"'a\' b", r"a\ b"),
        ("E_ALL", "32767"),
        ("E_ALL foo", "32767 foo"),
        ("\"E_ALL\"", "E_ALL"),
        ("E_ALL.x", "E_ALL.x"),
        ("e_all", "e_all"),
        ("E_ALL & ~E_NOTICE", "32759"),
        ("E_ALL & ~(E_NOTICE | E_WARNING)", "32757"),
        ("1|6&2", "2"),
        ("~1 & 3", "2"),
        ("!0", "1"),
        ("!!5", "1"),
        ("\"1\"|\"2\"", "3"),
        ("(1)", "1"),
        ("(a b)", "a b"),
        ("${NOPE}|2", "2"),
        ("Yes", "1"),
        ("on ; comment", "1"),
        ("NONE", ""),
        ("null", ""),
        ("yesx", "yesx"),
        ("no-way", "no-way"),
        ("off.x", "off.x"),
        ("", ""),
        ("\"\"", ""),
        ("${HOME}", "/root"),
        ("a${HOME}b", "a/rootb"),
        ("\"${HOME} x\"", "/root x"),
        ("'${HOME}'", "${HOME}"),
        (r#""\${HOME}""#, "${HOME}"),
        (r"\${HOME}", "\\/root"),
        ("$${HOME}", "$${HOME}"),
        ("${ HOME }", "/root"),
        ("${NOPE:-else}", "else"),
        ("${HOME:-else}", "/root"),
        ("${QUOTED}", "a;b\"c"),
        ("$HOME", "$HOME"),
        ("a$", "a$"),
        ("a$;b", "a$;b"),
        ("[a]{b}<c>,d:e@f\\g`h?i*j", "[a]{b}<c>,d:e@f\\g`h?i*j"),
    ];
    for (text, wanted) in cases {
        assert_eq!(value(text).as_deref(), Ok(wanted), "{text}");
    }
}

#[test]
fn errors_are_phps() {
    let cases = [
        ("a=b", "syntax error, unexpected '='"),
        ("a(b)", "syntax error, unexpected '('"),
        ("1 !2", "syntax error, unexpected '!'"),
        ("yes|1", "syntax error, unexpected BOOL_TRUE"),
        ("yes please", "syntax error, unexpected BOOL_TRUE"),
        ("a no", "syntax error, unexpected BOOL_FALSE"),
        ("a null b", "syntax error, unexpected NULL_NULL"),
        ("1|", "syntax error, unexpected END_OF_LINE"),
        (
            "1|(2",
            "syntax error, unexpected END_OF_LINE, expecting '^' or '|' or '&' or ')'",
        ),
        (
            "\"a",
            "syntax error, unexpected end of file, expecting TC_DOLLAR_CURLY or TC_QUOTED_STRING or '\"'",
        ),
        ("${}", "syntax error, unexpected '}', expecting TC_VARNAME"),
        ("${HOME", "syntax error, unexpected end of file, expecting '}'"),
    ];
    for (text, wanted) in cases {
        assert_eq!(value(text), Err(wanted.to_owned()), "{text}");
    }
}

#[test]
fn what_php_drops_without_a_word_is_an_error() {
    for text in [
        "it's",
        "a'b",
        "''",
        "x''",
        "''x",
        "a|b",
        "0x10|1",
        "99999999999|1",
        "1 x|2",
        "PHP_VERSION",
        "a\0b",
    ] {
        assert!(value(text).is_err(), "{text}");
    }
    assert!(value(&"(".repeat(100_000)).is_err());
    assert!(value(&"!".repeat(100_000)).is_err());
}

fn statements(text: &str) -> Vec<(u32, Statement)> {
    Parser::new(text.as_bytes(), 1, &variables)
        .collect::<Result<_, _>>()
        .unwrap()
}

fn entry(name: &str, value: &str) -> Statement {
    Statement::Entry {
        name: name.into(),
        value: Some(value.into()),
    }
}

fn element(name: &str, key: &str, value: &str) -> Statement {
    Statement::Element {
        name: name.into(),
        key: key.into(),
        value: value.into(),
    }
}

#[test]
fn statements_are_read_with_their_lines() {
    let text = "\u{feff}; comment\r\n[www] a = b\n\n  us er\t=\tc ; d\r[\"x y\"];z\nname\nv[ a b ]=1\nv['k'] = 2\nv[]=\"3\n4\"\nlast = 5";
    let section = |name: &str| Statement::Section(name.into());
    assert_eq!(
        statements(text),
        [
            (2, section("www")),
            (2, entry("a", "b")),
            (4, entry("us er", "c")),
            (5, section("x y")),
            (
                6,
                Statement::Entry {
                    name: "name".into(),
                    value: None
                }
            ),
            (7, element("v", "a b", "1")),
            (8, element("v", "k", "2")),
            (9, element("v", "", "3\n4")),
            (11, entry("last", "5")),
        ]
    );
}

#[test]
fn an_error_has_its_line_and_name_and_ends_the_text() {
    let mut parser = Parser::new(b"a = 1\nb = 2 = 3\nc = 4", 10, &variables);
    assert_eq!(parser.next(), Some(Ok((10, entry("a", "1")))));
    let error = parser.next().unwrap().unwrap_err();
    assert_eq!((error.line, error.name.as_deref()), (11, Some("b")));
    assert_eq!(parser.next(), None);
}

#[test]
fn names_cannot_be_booleans_and_latin_1_is_for_comments() {
    let error = |text: &[u8]| Parser::new(text, 1, &variables).next().unwrap().unwrap_err().text;
    assert_eq!(error(b"yes = 1"), "syntax error, unexpected BOOL_TRUE");
    assert_eq!(error(b"[x"), "syntax error, unexpected end of file, expecting ']'");
    assert_eq!(error(b"a[x"), "syntax error, unexpected end of file, expecting ']'");
    assert_eq!(error(b"a[x] y"), "syntax error, unexpected 'y', expecting '='");
    assert_eq!(error(b"a = \xe4"), "the text is not UTF-8");
    assert_eq!(Parser::new(b"; \xe4", 1, &variables).next(), None);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// A value written so that it is read as it is.
    fn quote(value: &str) -> String {
        let mut out = String::from("\"");
        for c in value.chars() {
            if matches!(c, '"' | '\\' | '$' | '\'') {
                out.push('\\');
            }
            out.push(c);
        }
        out + "\""
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_loop(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let read = Parser::new(&text, 1, &variables).count();
            prop_assert!(read <= text.len());
        }

        #[test]
        fn no_likely_text_makes_it_panic_or_loop(text in "[ab=\\[\\]\"'$\\{\\}|&~!();, \t\r\n\\\\]{0,60}") {
            let read = Parser::new(text.as_bytes(), 1, &variables).count();
            prop_assert!(read <= text.len());
        }

        #[test]
        fn quoted_values_come_back(name in "[a-df-mp-x][a-z._]{1,20}", key in "[a-z.]{1,9}", text in "[^\0\r\n]{0,60}") {
            // A name like "true" is none.
            prop_assume!(boolean(name.as_bytes()).is_none());
            let line = format!("{name}={0}\n{name}[{key}] = {0} ; comment", quote(&text));
            let read = statements(&line);
            prop_assert_eq!(read, [(1, entry(&name, &text)), (2, element(&name, &key, &text))]);
        }

        #[test]
        fn plain_words_come_back(text in "[a-zA-Z0-9/._:@,#*-]{1,40}( [a-zA-Z0-9/._:@,#*-]{1,20}){0,3}") {
            let special = |word: &str| boolean(word.as_bytes()).is_some() || word.starts_with("E_") || word.starts_with("PHP_");
            prop_assume!(!text.split(' ').any(special));
            prop_assert_eq!(value(&text), Ok(text));
        }
    }
}
