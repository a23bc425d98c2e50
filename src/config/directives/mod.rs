//! The table of directives: each stands here once, with its type, its default, what it allows and what it means.
//!
//! Reading a file, `-tt`, the error messages, the manual page and `docs/directives.md` all come from it. The order is
//! that of php-fpm's `-tt`; what php-fpm does not have follows at the end of each section.

#![forbid(unsafe_code)]

mod global;
mod pool;

use super::model::{Global, IniEntry, Pool};
use super::value::{Kind, Value};
use crate::log::Level;

pub use global::GLOBAL;
pub use pool::POOL;

/// Most processes a Linux system can have: the bound of everything that counts workers.
const PROCESSES: i64 = 4_194_304;

/// What holds when a directive is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// Nothing.
    None,
    /// This, written as in a file.
    Value(&'static str),
    /// This too, but `-tt` prints the second text.
    Hidden(&'static str, &'static str),
    /// What the sentence says; `-tt` prints what it came to.
    Derived(&'static str),
}

/// How `-tt` prints a directive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// As php-fpm prints its kind.
    Usual,
    /// A time without its unit.
    WithoutUnit,
    /// Not at all.
    Never,
}

/// One directive of the section `S` ([`Global`] or [`Pool`]).
pub struct Directive<S: 'static> {
    /// The name, as php-fpm spells it; arrays without brackets.
    pub name: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// What holds when it is not set.
    pub default: Default,
    /// What it means, in full sentences.
    pub doc: &'static str,
    /// Whether php-fpm has it.
    pub php_fpm: bool,
    /// How `-tt` prints it.
    pub shown: Shown,
    /// php-fpm's own words for a value that is out of range, `{}` being the value; they follow `[pool NAME]`.
    pub refusal: Option<(Level, &'static str)>,
    /// Where its value is kept; arrays and `include` have no field.
    pub field: Option<Access<S>>,
}

/// How a directive reaches its field.
pub struct Access<S: 'static> {
    /// Takes a value over.
    pub store: fn(&mut S, Value),
    /// The value there is.
    pub show: fn(&S) -> Option<Value>,
}

/// A section: [`Global`] or [`Pool`].
pub trait Section: Sized + 'static {
    /// Its directives.
    fn table() -> &'static [Directive<Self>];
    /// What was written in the file, for `-tt`.
    fn written(&self) -> &Vec<IniEntry>;
    /// The same, to add to.
    fn written_mut(&mut self) -> &mut Vec<IniEntry>;

    /// Looks a scalar directive up, in any case; arrays and `include` are found by their exact name alone.
    fn directive(name: &str) -> Option<&'static Directive<Self>> {
        Self::table().iter().find(|directive| match directive.kind {
            Kind::Array(_) | Kind::Include => false,
            _ => directive.name.eq_ignore_ascii_case(name),
        })
    }

    /// The text that was written for a directive.
    fn text_of(&self, name: &str) -> Option<&str> {
        self.written()
            .iter()
            .find(|entry| entry.key == name)
            .map(|entry| entry.value.as_str())
    }

    /// Notes what was written for a directive; the last one holds.
    fn write(&mut self, name: &str, value: String) {
        match self.written_mut().iter_mut().find(|entry| entry.key == name) {
            Some(entry) => entry.value = value,
            None => self.written_mut().push(IniEntry {
                key: name.to_owned(),
                value,
            }),
        }
    }

    /// Gives every directive its default.
    fn set_defaults(&mut self) {
        for directive in Self::table() {
            if let (Default::Value(text) | Default::Hidden(text, _), Some(field)) =
                (directive.default, &directive.field)
            {
                match directive.kind.parse(text) {
                    Ok(value) => (field.store)(self, value),
                    Err(refusal) => unreachable!("the default of {} is refused: {refusal:?}", directive.name),
                }
            }
        }
    }
}

impl Section for Global {
    fn table() -> &'static [Directive<Self>] {
        GLOBAL
    }
    fn written(&self) -> &Vec<IniEntry> {
        &self.written
    }
    fn written_mut(&mut self) -> &mut Vec<IniEntry> {
        &mut self.written
    }
}

impl Section for Pool {
    fn table() -> &'static [Directive<Self>] {
        POOL
    }
    fn written(&self) -> &Vec<IniEntry> {
        &self.written
    }
    fn written_mut(&mut self) -> &mut Vec<IniEntry> {
        &mut self.written
    }
}

impl<S> Directive<S> {
    const fn new(name: &'static str, kind: Kind, field: Access<S>, doc: &'static str) -> Self {
        Directive {
            name,
            kind,
            default: Default::None,
            doc,
            php_fpm: true,
            shown: Shown::Usual,
            refusal: None,
            field: Some(field),
        }
    }

    /// One without a field: an array, or `include`.
    const fn list(name: &'static str, kind: Kind, doc: &'static str) -> Self {
        Directive {
            name,
            kind,
            default: Default::None,
            doc,
            php_fpm: true,
            shown: Shown::Usual,
            refusal: None,
            field: None,
        }
    }

    const fn default(mut self, default: &'static str) -> Self {
        self.default = Default::Value(default);
        self
    }

    const fn hidden_default(mut self, default: &'static str, shown: &'static str) -> Self {
        self.default = Default::Hidden(default, shown);
        self
    }

    const fn derived(mut self, sentence: &'static str) -> Self {
        self.default = Default::Derived(sentence);
        self
    }

    const fn refusal(mut self, level: Level, text: &'static str) -> Self {
        self.refusal = Some((level, text));
        self
    }

    const fn shown(mut self, shown: Shown) -> Self {
        self.shown = shown;
        self
    }

    /// php-fpm does not have it.
    const fn ours(mut self) -> Self {
        self.php_fpm = false;
        self
    }
}

/// The access to a field of the section that the table is about.
macro_rules! field {
    ($($path:ident).+) => {
        Access { store: |section, value| section.$($path).+.store(value), show: |section| section.$($path).+.show() }
    };
}

/// The access to a limit of the pool's cgroup, by the kernel's file name.
macro_rules! cgroup {
    ($file:literal) => {
        Access {
            store: |pool, value| store_entry(&mut pool.cgroup, $file, value),
            show: |pool| show_entry(&pool.cgroup, $file),
        }
    };
}

/// The access of a directive that is kept as it was written until the whole section is known.
macro_rules! later {
    () => {
        Access {
            store: |_, _| (),
            show: |_| None,
        }
    };
}

use {cgroup, field, later};

/// How many changes of a letter make one name of another, up to a swap of neighbours; names are compared without case
/// and with `-` and `_` as `.`.
fn distance(a: &str, b: &str) -> usize {
    let plain = |name: &str| -> Vec<char> {
        name.chars()
            .map(|c| {
                if matches!(c, '-' | '_') {
                    '.'
                } else {
                    c.to_ascii_lowercase()
                }
            })
            .collect()
    };
    let (a, b) = (plain(a), plain(b));
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before_last[j - 2] + 1);
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// The directive of this section that a misspelt name most likely meant, if any is near enough.
pub fn nearest<S: Section>(name: &str) -> Option<&'static Directive<S>> {
    let allowed = (name.chars().count() / 4).clamp(1, 3);
    // A name of 100 characters is none of ours, and comparing costs its length.
    S::table()
        .iter()
        .filter(|_| name.len() <= 100)
        .map(|directive| (distance(name, directive.name), directive))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, directive)| directive)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
