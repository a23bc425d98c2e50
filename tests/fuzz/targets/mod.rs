//! What each target does with hostile bytes. Shared by the bounded run (`main.rs`) and the coverage-guided long one
//! (`libfuzzer.rs`). A target panics when something is wrong that it would notice.

mod api;
mod config;
mod control;
mod fastcgi;
mod log;
mod request;
mod scoreboard;
mod status;
mod trace;

/// A target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder below `corpus/`.
    pub name: &'static str,
    /// What is done with one input.
    pub run: fn(&[u8]),
    /// Words that mean something to the parser at hand.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "fastcgi",
        run: fastcgi::input,
        words: fastcgi::WORDS,
    },
    Target {
        name: "connection",
        run: fastcgi::connection,
        words: fastcgi::WORDS,
    },
    Target {
        name: "get_values",
        run: fastcgi::get_values,
        words: fastcgi::WORDS,
    },
    Target {
        name: "script",
        run: request::script,
        words: request::WORDS,
    },
    Target {
        name: "ini",
        run: config::ini,
        words: config::WORDS,
    },
    Target {
        name: "config",
        run: config::file,
        words: config::WORDS,
    },
    Target {
        name: "values",
        run: config::values,
        words: config::WORDS,
    },
    Target {
        name: "control",
        run: control::messages,
        words: &[],
    },
    Target {
        name: "scoreboard",
        run: scoreboard::memory,
        words: &[],
    },
    Target {
        name: "trace",
        run: trace::memory,
        words: &[],
    },
    Target {
        name: "question",
        run: api::question,
        words: api::WORDS,
    },
    Target {
        name: "status",
        run: status::pages,
        words: status::WORDS,
    },
    Target {
        name: "access_log",
        run: log::access,
        words: log::WORDS,
    },
    Target {
        name: "output",
        run: log::output,
        words: log::WORDS,
    },
    Target {
        name: "log_line",
        run: log::line,
        words: log::WORDS,
    },
];

/// Takes an input apart. When it is used up there are zeros and empty texts.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// A text of up to 255 bytes, whose length stands before it.
    fn text(&mut self) -> &'a [u8] {
        let length = self.byte() as usize;
        let (text, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        text
    }

    fn string(&mut self) -> String {
        String::from_utf8_lossy(self.text()).into_owned()
    }
}
