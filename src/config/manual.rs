//! The manual of directives, printed from their table: `docs/directives.md` and php-pool.conf(5).

#![forbid(unsafe_code)]

use super::directives::{Default, Directive, GLOBAL, POOL};
use super::value::{Array, Kind};

/// What the manual says of the form of a file; the paragraphs of both editions. `` ` `` marks code.
const DIALECT: [&str; 6] = [
    "A file is read line by line. `[global]` begins what is about the whole, `[NAME]` what is about the pool of that name; \
     lines before any section are global. `name = value` sets a directive, `name[key] = value` adds to an array, and `;` \
     begins a comment anywhere outside quotes. Of a directive that is set twice the last line holds, of an array's key the \
     first.",
    "A value ends with its line, and blanks around it do not count. Quotes are needed for a text that holds one of \
     `= ; & | ^ ~ ! ( ) \" '` or one of the words yes, no, on, off, true, false, none and null. In double quotes `\\\"`, `\\\\` \
     and `\\$` stand for the second character; in single quotes nothing is special. Outside quotes `|`, `&`, `^`, `~` and `!` \
     compute with whole numbers and PHP's levels: `E_ALL & ~E_NOTICE`. (`E_ALL` is 32767 with every PHP; 8.4, whose \
     own is 30719, drops the bit of `E_STRICT` from `error_reporting`.)",
    "`${NAME}` is replaced by the setting NAME of php.ini or of the command line's `-d`, else by the variable NAME of the \
     environment; `${NAME:-else}` has a default. `$pool` is the pool's name in every text.",
    "Times are whole or have a fraction, in seconds unless `ms`, `s`, `m`, `h` or `d` follows. Sizes are in bytes unless \
     `K`, `M` or `G` follows.",
    "`include = PATTERN` reads files in place of the line, in the order of their names, five deep at most.",
    "A relative path is below the pool's `prefix`, else the command line's `-p`, else `/usr`; that of `pid` and `error_log` \
     below `-p`, else `/var`.",
];

/// How a directive is written in a heading.
fn spelling<S>(directive: &Directive<S>) -> String {
    match directive.kind {
        Kind::Array(Array::Path) => format!("{}[]", directive.name),
        Kind::Array(_) => format!("{}[NAME]", directive.name),
        _ => directive.name.to_owned(),
    }
}

/// What holds when it is not set, as a sentence.
fn default<S>(directive: &Directive<S>) -> Option<String> {
    match directive.default {
        Default::None => None,
        Default::Value(text) | Default::Hidden(text, _) => Some(format!("Default: `{text}`.")),
        Default::Derived(sentence) => Some(format!("Default: {sentence}.")),
    }
}

/// `docs/directives.md`.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Directives\n\nEvery directive of a configuration. Those marked *php-pool* are ours, all others are php-fpm's. \
         This file is printed from\nthe table in `src/config/directives`: `UPDATE_DOCS=1 cargo test --test config -- documents`.\n\n\
         ## The form of a file\n",
    );
    for paragraph in DIALECT {
        text.push_str(&format!("\n{paragraph}\n"));
    }
    text.push_str("\n## The section `[global]`\n");
    GLOBAL
        .iter()
        .for_each(|directive| text.push_str(&markdown_entry(directive)));
    text.push_str("\n## The section of a pool\n");
    POOL.iter()
        .for_each(|directive| text.push_str(&markdown_entry(directive)));
    text
}

fn markdown_entry<S>(directive: &Directive<S>) -> String {
    let ours = if directive.php_fpm { "" } else { " *php-pool*" };
    let default = default(directive)
        .map(|default| format!(" {default}"))
        .unwrap_or_default();
    let (name, doc) = (spelling(directive), directive.doc);
    format!(
        "\n### `{name}`{ours}\n\n{doc}{default} Allowed: {}.\n",
        directive.kind.allowed()
    )
}

/// php-pool.conf(5), for man.
pub fn man_page() -> String {
    let mut text = String::from(
        ".\\\" Printed from the table in src/config/directives.\n.TH PHP-POOL.CONF 5 \"\" \"php-pool\" \"File formats\"\n\
         .SH NAME\nphp-pool.conf, php-fpm.conf \\- configuration of PHP pools\n.SH DESCRIPTION\n",
    );
    for (index, paragraph) in DIALECT.iter().enumerate() {
        text.push_str(if index > 0 { ".PP\n" } else { "" });
        text.push_str(&roff(paragraph));
    }
    text.push_str(".SH \"THE SECTION [global]\"\n");
    GLOBAL.iter().for_each(|directive| text.push_str(&man_entry(directive)));
    text.push_str(".SH \"THE SECTION OF A POOL\"\nWhat is marked (php-pool) is not known to php-fpm.\n");
    POOL.iter().for_each(|directive| text.push_str(&man_entry(directive)));
    text.push_str(".SH \"SEE ALSO\"\n.BR php-pool (8),\n.BR php-fpm8.2 (8)\n");
    text
}

fn man_entry<S>(directive: &Directive<S>) -> String {
    let ours = if directive.php_fpm { "" } else { " (php-pool)" };
    let mut text = format!(
        ".TP\n.B {}{ours}\n{}",
        roff(&spelling(directive)).trim_end(),
        roff(directive.doc)
    );
    text.push_str(&default(directive).map(|default| roff(&default)).unwrap_or_default());
    text.push_str(&roff(&format!("Allowed: {}.", directive.kind.allowed())));
    text
}

/// A paragraph for roff: what is special is escaped, code becomes bold.
fn roff(paragraph: &str) -> String {
    let mut text = String::new();
    let mut bold = false;
    for c in paragraph.chars() {
        match c {
            '`' => {
                text.push_str(if bold { "\\fR" } else { "\\fB" });
                bold = !bold;
            }
            '\\' => text.push_str("\\e"),
            '-' => text.push_str("\\-"),
            '~' => text.push_str("\\(ti"),
            '^' => text.push_str("\\(ha"),
            '\'' => text.push_str("\\(aq"),
            '"' => text.push_str("\\(dq"),
            _ => text.push(c),
        }
    }
    // A line that begins with a point or an apostrophe is a request to roff.
    let guard = if text.starts_with('.') { "\\&" } else { "" };
    format!("{guard}{text}\n")
}
