//! Where we read a configuration otherwise than php-fpm, and why: the one list, from which
//! `docs/differences-config.md` is written.

use std::fmt::Write as _;
use std::ops::Range;

use crate::support::server::Version;

/// One difference.
pub struct Difference {
    /// What it is about.
    pub what: &'static str,
    /// What php-fpm does.
    pub php_fpm: &'static str,
    /// What we do, and why.
    pub ours: &'static str,
    /// The files of the corpus that show it.
    pub cases: &'static [&'static str],
}

static DIFFERENCES: &[Difference] = &[
    Difference {
        what: "Places of errors",
        php_fpm: "After an `include` it counts lines on from the included file's, and the parser's errors name no file.",
        ours: "Each error names its own file and line.",
        cases: &["differs-line-after-include"],
    },
    Difference {
        what: "Numbers beyond 32 bits",
        php_fpm: "They wrap: `99999999999` is 1215752191.",
        ours: "They are refused with what is allowed; a limit of core files, which counts bytes, may be as large as the \
               kernel takes.",
        cases: &[
            "differs-number-wraps",
            "differs-trace-depth-wraps",
            "differs-rlimit-core-large",
            "differs-bits-wrap",
            "differs-user-range",
        ],
    },
    Difference {
        what: "Negative and empty numbers",
        php_fpm: "`-1` is taken where it means nothing, and an empty value or a sign alone is 0.",
        ours: "A number stands within its directive's range, or the file is refused.",
        cases: &[
            "differs-number-negative",
            "differs-number-empty",
            "differs-number-minus",
            "differs-backlog-negative",
            "differs-rlimit-files-negative",
            "differs-start-servers-negative",
            "differs-spawn-rate-unused",
        ],
    },
    Difference {
        what: "`process.priority = 64`",
        php_fpm: "64 is its own number for \"not set\", so it passes.",
        ours: "It is outside of -19 to 20 like any other.",
        cases: &["differs-priority-64"],
    },
    Difference {
        what: "Times that mean something else",
        php_fpm: "Only the last letter is looked at and the number is cut at the first strange character: `m` is 0, \
                  `5 minutes` 5 seconds, `-3` passes, and large ones wrap.",
        ours: "A time is a number with one unit, from 0 to 68 years.",
        cases: &[
            "differs-time-wraps",
            "differs-time-negative",
            "differs-time-unit-alone",
            "differs-time-words",
        ],
    },
    Difference {
        what: "Fractions of a second",
        php_fpm: "`1.5s` is 1 second, `1500ms` 1500 seconds.",
        ours: "Both are what they say: limits hold to the millisecond.",
        cases: &["differs-time-fraction", "differs-time-milliseconds"],
    },
    Difference {
        what: "`listen.mode`",
        php_fpm: "What is not octal ends the number: `abc` and an empty mode are 0, and nobody can connect. Bits that no socket \
                  needs (`1777`) are set.",
        ours: "Both are refused.",
        cases: &[
            "differs-mode-word",
            "differs-mode-digits",
            "differs-mode-empty",
            "differs-mode-sticky",
        ],
    },
    Difference {
        what: "Long paths of unix sockets",
        php_fpm: "They are cut at 107 bytes, and the socket is elsewhere.",
        ours: "They are refused.",
        cases: &["differs-socket-108-bytes"],
    },
    Difference {
        what: "Ports",
        php_fpm: "A bad port is found when the socket is made, not by `-t`, and letters after the digits are dropped.",
        ours: "It is found by reading, in the same words.",
        cases: &[
            "differs-port-high",
            "differs-port-alone-high",
            "differs-port-letters",
            "differs-port-status",
        ],
    },
    Difference {
        what: "Hosts",
        php_fpm: "What cannot be a host is looked up at start, and a unix path with a colon is taken for one.",
        ours: "It is refused by reading.",
        cases: &[
            "differs-host-missing",
            "differs-host-star",
            "differs-host-ipv6",
            "differs-socket-colon",
        ],
    },
    Difference {
        what: "An empty `ping.path`",
        php_fpm: "It passes, and then every worker dies at start and is replaced without a pause.",
        ours: "It is refused.",
        cases: &["differs-ping-path-empty"],
    },
    Difference {
        what: "An empty `user`",
        php_fpm: "It passes `-t` and fails at start.",
        ours: "It is no user: root is told so by `-t`, too.",
        cases: &["differs-user-empty"],
    },
    Difference {
        what: "An empty `prefix`",
        php_fpm: "Relative paths of the pool are then below `/`.",
        ours: "It is as though it were not set.",
        cases: &["differs-prefix-empty"],
    },
    Difference {
        what: "Other empty paths",
        php_fpm: "An empty `pid` is the folder that relative ones are below, and so is an empty setting of php.ini that names \
                  a file.",
        ours: "They are as though they were not set, or set to nothing.",
        cases: &["differs-empty-paths"],
    },
    Difference {
        what: "An empty `error_log`",
        php_fpm: "The folder of the log is taken for the log.",
        ours: "The message says what it is.",
        cases: &["differs-error-log-empty"],
    },
    Difference {
        what: "An empty `include`",
        php_fpm: "It is passed over.",
        ours: "It is refused: a variable that was not set should not make pools vanish.",
        cases: &["differs-include-empty"],
    },
    Difference {
        what: "A pool without a name",
        php_fpm: "`[]` is one.",
        ours: "It is refused: units, cgroups, metrics and log lines are named after the pool.",
        cases: &["differs-pool-unnamed"],
    },
    Difference {
        what: "Apostrophes",
        php_fpm: "A single quote that is not closed drops the rest of the line without a word: `don't` is `don`.",
        ours: "It is an error, with the advice to use double quotes.",
        cases: &["differs-apostrophe", "differs-apostrophe-dollar"],
    },
    Difference {
        what: "`''`",
        php_fpm: "The value is taken as empty, and then the line is refused for having none.",
        ours: "The message says what to write.",
        cases: &["differs-empty-single-quotes"],
    },
    Difference {
        what: "Bit expressions of words",
        php_fpm: "A word that is no number counts as 0: `a|b` is 0, and so is a misspelt constant.",
        ours: "It is an error, with the advice to quote the value.",
        cases: &["differs-bits-of-words", "differs-bits-unknown"],
    },
    Difference {
        what: "PHP's constants",
        php_fpm: "A word that is a constant of PHP or of any extension is replaced by its value, in keys as well.",
        ours: "The master has no PHP in it. It knows the `E_*` levels; a bare word `PHP_…` is an error, any other is text, \
               and so are keys.",
        cases: &["differs-php-constant", "differs-constant-as-key"],
    },
    Difference {
        what: "Blanks after a key",
        php_fpm: "They become part of it: `php_value[ a ]` sets `a `, which there is not.",
        ours: "They are dropped on both sides.",
        cases: &["differs-key-blanks"],
    },
    Difference {
        what: "Names in `env[]`",
        php_fpm: "A name with an `=` passes and cannot be set.",
        ours: "It is refused.",
        cases: &["differs-env-name"],
    },
    Difference {
        what: "Booleans in quotes",
        php_fpm: "In quotes, and from a variable, they must be small letters.",
        ours: "They may be in any case.",
        cases: &["differs-boolean-case"],
    },
    Difference {
        what: "Defaults of variables",
        php_fpm: "`${NAME:-else}` came with PHP 8.3.",
        ours: "It is understood whatever PHP serves the pool.",
        cases: &["differs-variable-default"],
    },
    Difference {
        what: "`E_ALL` with PHP 8.4",
        php_fpm: "30719: it is without `E_STRICT`, which is gone.",
        ours: "`-tt` says 32767 with every PHP, for files are read without PHP; the workers of 8.4 drop that bit from \
               `error_reporting`.",
        cases: &["constants", "php-settings"],
    },
    Difference {
        what: "Encodings",
        php_fpm: "Values are bytes.",
        ours: "Values are UTF-8, for they are shown as JSON, over D-Bus and in the journal; comments may be anything.",
        cases: &["differs-latin-1"],
    },
    Difference {
        what: "`events.mechanism`",
        php_fpm: "`pm = ondemand` wants epoll.",
        ours: "The name is accepted and has no effect, so every process manager works with each.",
        cases: &["differs-ondemand-poll"],
    },
    Difference {
        what: "`php_value[error_log] = syslog`",
        php_fpm: "The word is taken for a relative path, except in `php_admin_value`.",
        ours: "It is syslog in both.",
        cases: &["differs-php-value-syslog"],
    },
    Difference {
        what: "Directives that php-fpm does not have",
        php_fpm: "They are unknown.",
        ours: "They are in [the list of directives](directives.md), marked as ours.",
        cases: &[
            "differs-new-directives",
            "differs-new-directives-wrong",
            "differs-stop-timeout",
        ],
    },
];

/// Differences that `-t` does not show; the first half is what php-fpm does.
const UNSEEN: [(&str, &str, &str); 7] = [
    (
        "Number of errors",
        "It stops at the first one.",
        "All of them are reported, each with a hint.",
    ),
    (
        "Including",
        "An error in an included file is followed by `Unable to include …` for each file around it.",
        "The error's own place says it.",
    ),
    (
        "Logs",
        "`-t` creates and opens the error log, access logs and slowlogs, and writes its own line to the log.",
        "`-t` does, too. `php-pool check` opens nothing but the configuration.",
    ),
    (
        "`listen.allowed_clients`",
        "It knows single addresses, and a blank after a comma makes an entry wrong.",
        "It knows networks as well, and blanks do not count. A wrong entry is warned of at once and not only by each \
         worker.",
    ),
    (
        "`php_value` and `php_admin_value`",
        "They are set when PHP has started: what counts at its start (`opcache.memory_consumption`, `opcache.preload`, \
         `apc.shm_size`, `browscap`) has no effect in them.",
        "They count from PHP's start on, as php.ini's do; so a value with which PHP cannot start keeps the pool from \
         starting, and one that PHP refuses leaves PHP's default and not php.ini's. `extension_dir` is where the pool's own \
         `extension` is looked for, in both.",
    ),
    (
        "`access.format = json`",
        "Each line is the word.",
        "Each line is a JSON object.",
    ),
    (
        "`pm.status_listen` without `pm.status_path`",
        "The status page is `/`, on the pool's public socket as well.",
        "It is `/` on the status socket alone, though `-tt` prints it as php-fpm does.",
    ),
];

/// What the list says about a file of the corpus.
pub fn of(case: &str, php_fpm: Version) -> Option<&'static str> {
    DIFFERENCES
        .iter()
        .find(|difference| difference.cases.contains(&case))
        .filter(|_| versions(case).is_none_or(|versions| versions.contains(&php_fpm)))
        .map(|difference| difference.what)
}

/// What the files beside the corpus were written with, and later releases of it.
pub const RECORDED: Range<Version> = [8, 2, 0]..[8, 3, 0];

/// Cases that not every php-fpm differs in, and the versions that do; 8.2 and 8.4 have been looked at.
static NOT_ALWAYS: &[(&str, Range<Version>)] = &[
    ("differs-variable-default", [0, 0, 0]..[8, 3, 0]),
    ("differs-user-range", [0, 0, 0]..[8, 4, 0]),
    ("constants", [8, 4, 0]..[u32::MAX, 0, 0]),
    ("php-settings", [8, 4, 0]..[u32::MAX, 0, 0]),
];

/// The versions of php-fpm from which a case differs. None: all of them, or none.
pub fn versions(case: &str) -> Option<&'static Range<Version>> {
    let of = NOT_ALWAYS.iter().find(|(name, _)| *name == case);
    of.map(|(_, versions)| versions)
}

/// Every name in the list is that of a file.
pub fn check(cases: &[String]) -> Result<(), String> {
    let listed = DIFFERENCES.iter().flat_map(|difference| difference.cases);
    match listed.into_iter().find(|case| !cases.iter().any(|name| name == *case)) {
        Some(case) => Err(format!("differences.rs names {case}, and there is no such file")),
        None => Ok(()),
    }
}

/// The list as a document.
pub fn document() -> String {
    let mut text = String::from(
        "# Where a configuration is read otherwise than by php-fpm\n\n\
         `tests/config` reads a corpus of files with Debian's php-fpm 8.2 (`-tt`) and with php-pool, and compares verdict,\n\
         values and words. Whatever is not listed here is meant to be the same. This file is written by the test:\n\
         `UPDATE_DOCS=1 cargo test --test config -- documents`.\n\n\
         ## Shown by the corpus\n\n\
         | | php-fpm | php-pool | files of `tests/config/corpus` |\n|---|---|---|---|\n",
    );
    for Difference {
        what,
        php_fpm,
        ours,
        cases,
    } in DIFFERENCES
    {
        let cases = cases
            .iter()
            .map(|case| format!("`{case}`"))
            .collect::<Vec<_>>()
            .join(", ");
        writeln!(text, "| {what} | {php_fpm} | {ours} | {cases} |").expect("into a String");
    }
    text.push_str("\n## Not to be seen with `-tt`\n\n| | php-fpm | php-pool |\n|---|---|---|\n");
    for (what, php_fpm, ours) in UNSEEN {
        writeln!(text, "| {what} | {php_fpm} | {ours} |").expect("into a String");
    }
    text
}
