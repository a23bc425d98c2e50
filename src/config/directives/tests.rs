use std::collections::HashSet;

use super::super::value::Refusal;
use super::*;

/// Every default, and both ends of every range, can be read, stored and shown again.
fn values_fit_their_fields<S: Section>(blank: fn() -> S) {
    let mut names = HashSet::new();
    for directive in S::table() {
        assert!(names.insert(directive.name), "{} stands twice", directive.name);
        let Some(field) = &directive.field else { continue };
        let mut texts: Vec<String> = match &directive.kind {
            Kind::Number(range) => vec![range.start().to_string(), range.end().to_string()],
            Kind::Choice(words, _) => words.iter().map(|word| (*word).to_owned()).collect(),
            Kind::Bool => vec!["yes".into(), "no".into()],
            Kind::Size => vec!["0".into(), "64M".into()],
            Kind::Time => vec!["0".into(), "1500ms".into()],
            Kind::Mode => vec!["0600".into()],
            Kind::Rlimit => vec!["0".into(), "unlimited".into(), "99999999999".into()],
            Kind::Facility => vec!["local7".into()],
            Kind::Version => vec!["8.2".into()],
            Kind::CgroupSize | Kind::CgroupCount | Kind::CgroupCpu => vec!["max".into()],
            Kind::CgroupWeight => vec!["100".into()],
            _ => vec!["/text".into()],
        };
        if let Default::Value(text) | Default::Hidden(text, _) = directive.default {
            texts.push(text.to_owned());
        }
        for text in texts {
            let mut section = blank();
            match directive.kind.parse(&text) {
                Ok(value) => (field.store)(&mut section, value),
                Err(Refusal::Malformed(reason) | Refusal::OutOfRange(reason)) => {
                    panic!("{} = {text}: {reason}", directive.name)
                }
            }
            _ = (field.show)(&section);
        }
    }
}

#[test]
fn every_directive_of_global_fits_its_field() {
    values_fit_their_fields(Global::default);
}

#[test]
fn every_directive_of_a_pool_fits_its_field() {
    values_fit_their_fields(Pool::default);
}

#[test]
fn a_misspelt_name_finds_its_directive() {
    let near = |name: &str| nearest::<Pool>(name).map(|directive| directive.name);
    assert_eq!(near("pm.max_childen"), Some("pm.max_children"));
    assert_eq!(near("pm_max_children"), Some("pm.max_children"));
    assert_eq!(near("listne"), Some("listen"));
    assert_eq!(near("Listen-Owner"), Some("listen.owner"));
    assert_eq!(near("request_terminate_timout"), Some("request_terminate_timeout"));
    assert_eq!(near("memory_limit"), None);
    assert_eq!(near("x"), None);
    assert_eq!(near(&"x".repeat(100_000)), None);
}

#[test]
fn docs_are_sentences() {
    let docs = GLOBAL
        .iter()
        .map(|d| (d.name, d.doc))
        .chain(POOL.iter().map(|d| (d.name, d.doc)));
    for (name, doc) in docs {
        assert!(
            doc.ends_with('.') && doc.starts_with(char::is_uppercase),
            "{name}: {doc}"
        );
    }
}
