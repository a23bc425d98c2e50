//! `-tt`: a configuration as php-fpm prints it, and after that what php-fpm does not have.

#![forbid(unsafe_code)]

use super::directives::{Default, Directive, Section, Shown};
use super::model::{Config, Pool, Rlimit};
use super::value::{Array, Kind, Value, format_seconds};

/// The lines of `-tt`, to be logged at level NOTICE.
pub fn dump(config: &Config) -> Vec<String> {
    let mut lines = vec!["[global]".to_owned()];
    lines.extend(entries(&config.global, |_| Vec::new()));
    lines.push(" ".to_owned());
    for pool in &config.pools {
        lines.push(format!("[{}]", pool.name));
        lines.extend(entries(pool, |array| elements(pool, array)));
        lines.push(" ".to_owned());
    }
    lines
}

fn entries<S: Section>(section: &S, elements: impl Fn(&Array) -> Vec<String>) -> Vec<String> {
    let mut lines = Vec::new();
    for directive in S::table() {
        match &directive.kind {
            _ if directive.shown == Shown::Never => {}
            Kind::Array(array) => lines.extend(elements(array)),
            _ => lines.push(format!("\t{} = {}", directive.name, text(section, directive))),
        }
    }
    lines
}

/// The lines of an array, in the order in which php-fpm applies them: the last one of the file first.
fn elements(pool: &Pool, array: &Array) -> Vec<String> {
    let settings = |name: &str, list: &[super::model::IniEntry]| {
        list.iter()
            .map(|entry| format!("\t{name}[{}] = {}", entry.key, entry.value))
            .collect()
    };
    match array {
        Array::Path => pool
            .access_suppress_path
            .iter()
            .map(|path| format!("\taccess.suppress_path[] = {path}"))
            .collect(),
        // As written, not as looked up.
        Array::Env => {
            let entries = pool.written.iter().filter(|entry| entry.key.starts_with("env["));
            entries
                .map(|entry| format!("\t{} = {}", entry.key, entry.value))
                .collect()
        }
        Array::Value { admin: false } => settings("php_value", &pool.php_value),
        Array::Value { admin: true } => settings("php_admin_value", &pool.php_admin_value),
        Array::Flag { .. } => Vec::new(),
    }
}

fn text<S: Section>(section: &S, directive: &Directive<S>) -> String {
    let shown = directive.field.as_ref().and_then(|field| (field.show)(section));
    let text = match shown {
        _ if directive.kind.is_text() => section.text_of(directive.name).map(str::to_owned),
        Some(Value::Bool(yes)) => Some(String::from(if yes { "yes" } else { "no" })),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(Value::Time(time)) if directive.shown == Shown::WithoutUnit => Some(format_seconds(time)),
        Some(Value::Time(time)) => Some(format!("{}s", format_seconds(time))),
        Some(Value::Rlimit(None)) => Some("0".to_owned()),
        Some(Value::Rlimit(Some(Rlimit::Unlimited))) => Some("-1".to_owned()),
        Some(Value::Rlimit(Some(Rlimit::Value(limit)))) => Some(limit.to_string()),
        Some(Value::Text(_) | Value::List(_)) | None => None,
    };
    text.unwrap_or_else(|| match directive.default {
        Default::Value(default) | Default::Hidden(_, default) => default.to_owned(),
        Default::None | Default::Derived(_) => "undefined".to_owned(),
    })
}
