//! php-fpm's command line, for a php-pool that is called as `php-fpm`.

#![forbid(unsafe_code)]

use std::path::PathBuf;

/// What is asked for instead of serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// `-h`
    Usage,
    /// `-v`
    Version,
    /// `-m`
    Modules,
    /// `-i`
    Info,
}

/// The options, as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `-c`
    pub ini: Option<PathBuf>,
    /// `-n`
    pub no_ini: bool,
    /// `-d`, each as it was given.
    pub defines: Vec<String>,
    /// `-e`
    pub extended_info: bool,
    /// The first of `-h -v -m`, which ends the line; else `-i`.
    pub show: Option<Show>,
    /// `-y`
    pub config: Option<PathBuf>,
    /// How often `-t` was given.
    pub test: u32,
    /// `-p`
    pub prefix: Option<PathBuf>,
    /// `-g`
    pub pid: Option<PathBuf>,
    /// `-R`
    pub allow_root: bool,
    /// `-D` (true) or `-F` (false), the last of them.
    pub daemonize: Option<bool>,
    /// `-O`
    pub force_stderr: bool,
}

/// A command line that makes no sense: the usage text and exit status 64 follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// No such option.
    #[error("there is no option '{0}'")]
    Unknown(String),
    /// An option without its argument.
    #[error("option '{0}' needs an argument")]
    Missing(String),
    /// A word that belongs to no option.
    #[error("'{0}' belongs to no option")]
    Stray(String),
}

/// Short name, long name, whether a value follows.
const OPTIONS: [(char, &str, bool); 17] = [
    ('c', "php-ini", true),
    ('n', "no-php-ini", false),
    ('d', "define", true),
    ('e', "profile-info", false),
    ('h', "help", false),
    ('?', "usage", false),
    ('i', "info", false),
    ('m', "modules", false),
    ('v', "version", false),
    ('y', "fpm-config", true),
    ('t', "test", false),
    ('p', "prefix", true),
    ('g', "pid", true),
    ('R', "allow-to-run-as-root", false),
    ('D', "daemonize", false),
    ('F', "nodaemonize", false),
    ('O', "force-stderr", false),
];

/// Reads the words after the program's name.
pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Options, UsageError> {
    let mut options = Options::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if options.is_over() {
            break;
        }
        if word == "--" {
            return match words.next() {
                Some(word) => options.stray(word),
                None => Ok(options),
            };
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let found = OPTIONS.iter().find(|(_, long, _)| *long == name);
            let Some((short, _, takes)) = found else {
                return Err(UsageError::Unknown(word));
            };
            let value = match (takes, value) {
                (true, None) => Some(words.next().ok_or(UsageError::Missing(word))?),
                (true, value) => value,
                (false, _) => None,
            };
            options.set(*short, value.unwrap_or_default());
        } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            for (at, letter) in letters.char_indices() {
                let found = OPTIONS.iter().find(|(short, ..)| *short == letter);
                let Some((_, _, takes)) = found else {
                    return Err(UsageError::Unknown(format!("-{letter}")));
                };
                if *takes {
                    let rest = &letters[at + letter.len_utf8()..];
                    let value = match rest.strip_prefix('=').unwrap_or(rest) {
                        "" => words.next().ok_or_else(|| UsageError::Missing(format!("-{letter}")))?,
                        value => value.to_owned(),
                    };
                    options.set(letter, value);
                    break;
                }
                options.set(letter, String::new());
                if options.is_over() {
                    break;
                }
            }
        } else {
            return options.stray(word);
        }
    }
    Ok(options)
}

impl Options {
    /// Whether what follows does not count: php-fpm answers these as soon as it comes to them.
    fn is_over(&self) -> bool {
        matches!(self.show, Some(Show::Usage | Show::Version | Show::Modules))
    }

    /// A word that is no option's ends the line; `-i` is answered all the same.
    fn stray(self, word: String) -> Result<Self, UsageError> {
        match self.show {
            Some(Show::Info) => Ok(self),
            _ => Err(UsageError::Stray(word)),
        }
    }

    fn set(&mut self, option: char, value: String) {
        match option {
            'h' | '?' => self.show = Some(Show::Usage),
            'i' => self.show = Some(Show::Info),
            'm' => self.show = Some(Show::Modules),
            'v' => self.show = Some(Show::Version),
            'c' => self.ini = Some(value.into()),
            'n' => self.no_ini = true,
            'd' => self.defines.push(value),
            'e' => self.extended_info = true,
            'y' => self.config = Some(value.into()),
            't' => self.test += 1,
            'p' => self.prefix = Some(value.into()),
            'g' => self.pid = Some(value.into()),
            'R' => self.allow_root = true,
            'D' => self.daemonize = Some(true),
            'F' => self.daemonize = Some(false),
            'O' => self.force_stderr = true,
            _ => unreachable!("every option of the table is handled"),
        }
    }
}

/// The usage text; `program` is how we were called.
pub fn usage(program: &str) -> String {
    format!(
        "Usage: {program} [-n] [-e] [-h] [-i] [-m] [-v] [-t] [-p <prefix>] [-g <pid>] [-c <file>] [-d foo[=bar]] [-y <file>] [-D] [-F [-O]]
  -c, --php-ini <path|file>     where php.ini is: the file, or its folder
  -n, --no-php-ini              read no php.ini
  -d, --define foo[=bar]        set php.ini's entry foo to bar
  -e, --profile-info            compile scripts with information for debuggers and profilers
  -h, --help                    this text
  -i, --info                    what phpinfo() says
  -m, --modules                 the PHP and Zend extensions that are loaded
  -v, --version                 PHP's version
  -p, --prefix <dir>            base of relative paths
  -g, --pid <file>              the pid file
  -y, --fpm-config <file>       the configuration
  -t, --test                    check the configuration and exit; twice: print it too
  -D, --daemonize               go into the background, whatever the configuration says
  -F, --nodaemonize             stay in the foreground, whatever the configuration says
  -O, --force-stderr            log to stderr in the foreground, even when it is no terminal
  -R, --allow-to-run-as-root    let pools run as root (do not)
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Options, UsageError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn every_way_of_writing_an_option_is_read() {
        let same = [
            "-y f -d a=b -nF",
            "--fpm-config=f --define a=b -n --nodaemonize",
            "-yf -da=b -Fn",
            "-y=f -d=a=b -D -F -n --",
        ];
        for line in same {
            let options = words(line).unwrap();
            assert_eq!(
                (options.config.unwrap(), options.defines, options.no_ini),
                ("f".into(), vec!["a=b".to_owned()], true)
            );
            assert_eq!(options.daemonize, Some(false), "{line}");
        }
        assert_eq!(words("-tt").unwrap().test, 2);
    }

    #[test]
    fn what_is_asked_for_first_is_answered() {
        for (line, show) in [
            ("-iv", Show::Version),
            ("-vx", Show::Version),
            ("-m -v stray", Show::Modules),
            ("-i stray", Show::Info),
        ] {
            assert_eq!(words(line).unwrap().show, Some(show), "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(
            words("--memory-limit=1G"),
            Err(UsageError::Unknown("--memory-limit=1G".into()))
        );
        assert_eq!(words("-x"), Err(UsageError::Unknown("-x".into())));
        assert_eq!(words("-y"), Err(UsageError::Missing("-y".into())));
        assert_eq!(words("-F stray"), Err(UsageError::Stray("stray".into())));
        assert_eq!(words("-- stray"), Err(UsageError::Stray("stray".into())));
    }
}
