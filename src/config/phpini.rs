//! php.ini: where it is, as php-fpm finds it, and what it says.
//!
//! The master only reads it for `${NAME}` in its own configuration; PHP reads it in the zygote, which is told by a
//! [`PhpIni`] where. libphp alone would look in the folder of the *embed* SAPI.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ini::{Parser, Statement};

/// The SAPI's own name, which goes before `php.ini` in a folder.
const OWN_NAME: &str = "php-fpm-fcgi.ini";

/// SAPI folders below `/etc/php/VERSION`, best first.
const FOLDERS: [&str; 3] = ["php-pool", "fpm", "embed"];

/// What decides which php.ini is read.
#[derive(Clone, Debug)]
pub struct Search {
    /// `-c`, or a pool's `php.ini`: a file, or a folder.
    pub path: Option<PathBuf>,
    /// `-n`: no php.ini and no scan folder; a file given by `-c` is still read.
    pub none: bool,
    /// `-d`, each as it was given.
    pub defines: Vec<String>,
    /// A pool's `php.scan_dir`; it comes before PHP_INI_SCAN_DIR.
    pub scan_dir: Option<String>,
    /// The environment: PHPRC, PHP_INI_SCAN_DIR, and `${NAME}` in php.ini.
    pub env: HashMap<OsString, OsString>,
    /// The folder of the executable, where PHP looks too.
    pub executable_dir: Option<PathBuf>,
    /// Where the versions' folders are: `/etc/php`.
    pub etc: PathBuf,
    /// PHP's version, `8.2`.
    pub version: String,
}

/// Which php.ini a worker's PHP reads: everything is found already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhpIni {
    /// The file, for `php_ini_path_override`. None with `none` unset: there is none where PHP would look.
    pub file_or_dir: Option<PathBuf>,
    /// The scan folders, for PHP_INI_SCAN_DIR. Empty: none. None: leave it to libphp.
    pub scan_dir: Option<String>,
    /// `-n`.
    pub none: bool,
    /// `-d`, for `ini_entries`: a name and the text after `=`, quoted where PHP quotes it.
    pub defines: Vec<(String, String)>,
}

impl Search {
    /// The search of a command without options: this process's environment, Debian's folders.
    pub fn new(version: impl Into<String>) -> Self {
        let executable = std::env::current_exe().ok();
        Search {
            path: None,
            none: false,
            defines: Vec::new(),
            scan_dir: None,
            env: std::env::vars_os().collect(),
            executable_dir: executable.and_then(|path| path.parent().map(Path::to_owned)),
            etc: PathBuf::from("/etc/php"),
            version: version.into(),
        }
    }

    fn env(&self, name: &str) -> Option<&OsString> {
        self.env.get(OsStr::new(name))
    }

    /// Finds php.ini and the scan folders.
    pub fn find(&self) -> PhpIni {
        let folder = self.sapi_folder();
        PhpIni {
            file_or_dir: self.file(folder.as_deref()),
            scan_dir: self.scan_dirs(folder.as_deref()),
            none: self.none,
            defines: self.defines.iter().map(|define| parse_define(define)).collect(),
        }
    }

    /// Debian's folder of this PHP version for us: our own, else php-fpm's, else embed's.
    fn sapi_folder(&self) -> Option<PathBuf> {
        let version = self.etc.join(&self.version);
        FOLDERS
            .iter()
            .map(|name| version.join(name))
            .find(|folder| folder.is_dir())
    }

    fn file(&self, sapi_folder: Option<&Path>) -> Option<PathBuf> {
        if let Some(path) = &self.path {
            return in_folder_or_file(path).or_else(|| Some(path.clone()));
        }
        if self.none {
            return None;
        }
        let phprc = self.env("PHPRC").filter(|path| !path.is_empty()).map(PathBuf::from);
        if let Some(file) = phprc.as_ref().filter(|path| path.is_file()) {
            return Some(file.clone());
        }
        let folders = [phprc.as_deref(), self.executable_dir.as_deref(), sapi_folder];
        // PHP looks for the SAPI's own name in every folder before it looks for php.ini in any.
        let named = |name: &'static str| folders.into_iter().flatten().map(move |folder| folder.join(name));
        named(OWN_NAME).chain(named("php.ini")).find(|path| path.is_file())
    }

    fn scan_dirs(&self, sapi_folder: Option<&Path>) -> Option<String> {
        if self.none {
            return Some(String::new());
        }
        let usual = sapi_folder.map(|folder| folder.join("conf.d").display().to_string());
        let asked = self.scan_dir.clone();
        let asked = asked.or_else(|| {
            self.env("PHP_INI_SCAN_DIR")
                .map(|list| list.to_string_lossy().into_owned())
        });
        match (asked, usual) {
            (Some(list), _) if list.is_empty() => Some(list),
            // An empty element is the usual folder.
            (Some(list), Some(usual)) => {
                let folders = list
                    .split(':')
                    .map(|folder| if folder.is_empty() { usual.as_str() } else { folder });
                Some(folders.collect::<Vec<_>>().join(":"))
            }
            (Some(list), None) => Some(list),
            (None, usual) => usual,
        }
    }
}

fn in_folder_or_file(path: &Path) -> Option<PathBuf> {
    if !path.is_dir() {
        return Some(path.to_owned());
    }
    [OWN_NAME, "php.ini"]
        .iter()
        .map(|name| path.join(name))
        .find(|file| file.is_file())
}

/// `-d NAME[=VALUE]`: without a value it is 1, and a value that begins with a special character is quoted.
fn parse_define(define: &str) -> (String, String) {
    match define.split_once('=') {
        None => (define.to_owned(), "1".to_owned()),
        Some((name, value)) => {
            let plain =
                value.is_empty() || value.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '"' | '\''));
            (
                name.to_owned(),
                if plain {
                    value.to_owned()
                } else {
                    format!("\"{value}\"")
                },
            )
        }
    }
}

impl PhpIni {
    /// The values that php.ini, the scan folders and `-d` give, for `${NAME}`; later ones hold. What cannot be read or
    /// parsed is PHP's to complain about.
    pub fn values(&self, env: &HashMap<OsString, OsString>) -> HashMap<String, String> {
        let mut values = HashMap::new();
        for content in self.contents() {
            read(&content, env, &mut values);
        }
        values
    }

    /// The names that stand in a `${NAME}`: what php.ini may ask of the environment.
    pub fn variables(&self) -> HashSet<String> {
        let names = RefCell::new(HashSet::new());
        let note = |name: &str| {
            names.borrow_mut().insert(name.to_owned());
            None
        };
        for content in self.contents() {
            Parser::new(&content, 1, &note).for_each(drop);
        }
        names.into_inner()
    }

    /// The files that PHP reads, in order.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self
            .file_or_dir
            .as_deref()
            .and_then(in_folder_or_file)
            .into_iter()
            .collect();
        for folder in self
            .scan_dir
            .iter()
            .flat_map(|list| list.split(':'))
            .filter(|folder| !folder.is_empty())
        {
            let entries = fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path());
            let mut found: Vec<PathBuf> = entries
                .filter(|path| path.extension() == Some(OsStr::new("ini")) && path.is_file())
                .collect();
            found.sort();
            files.extend(found);
        }
        files
    }

    /// What each file says, in order, and `-d` last.
    fn contents(&self) -> Vec<Vec<u8>> {
        let files = self.files();
        let defines = self
            .defines
            .iter()
            .map(|(name, value)| format!("{name}={value}\n").into_bytes());
        files
            .iter()
            .filter_map(|file| plain(file).ok())
            .chain(defines)
            .collect()
    }
}

/// A whole file; of what is none, a pipe for instance, nothing: its folder may be a tenant's, and the master does not wait for him.
fn plain(path: &Path) -> std::io::Result<Vec<u8>> {
    const MOST: u64 = 4 << 20;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let mut content = Vec::new();
    if file.metadata()?.is_file() {
        file.take(MOST).read_to_end(&mut content)?;
    }
    Ok(content)
}

/// Adds a file's values. `[PATH=…]` and `[HOST=…]` sections hold for some requests only; other sections mean nothing.
fn read(content: &[u8], env: &HashMap<OsString, OsString>, values: &mut HashMap<String, String>) {
    let known = values.clone();
    let variables = |name: &str| {
        known.get(name).cloned().or_else(|| {
            env.get(OsStr::new(name))
                .map(|value| value.to_string_lossy().into_owned())
        })
    };
    let mut for_some_requests = false;
    for (_, statement) in Parser::new(content, 1, &variables).map_while(Result::ok) {
        match statement {
            Statement::Section(name) => {
                let name = name.to_ascii_uppercase();
                for_some_requests = name.starts_with("PATH=") || name.starts_with("HOST=");
            }
            Statement::Entry {
                name,
                value: Some(value),
            } if !for_some_requests => {
                values.insert(name, value);
            }
            Statement::Entry { .. } | Statement::Element { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let tree = Tree(tempfile::tempdir().unwrap());
            for (name, content) in files {
                let path = tree.path(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            tree
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn text(&self, name: &str) -> String {
            self.path(name).display().to_string()
        }

        fn search(&self) -> Search {
            Search {
                path: None,
                none: false,
                defines: Vec::new(),
                scan_dir: None,
                env: HashMap::new(),
                executable_dir: None,
                etc: self.path("etc"),
                version: "8.2".into(),
            }
        }
    }

    fn env(pairs: &[(&str, String)]) -> HashMap<OsString, OsString> {
        pairs
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)))
            .collect()
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_holds_nobody_up() {
        let tree = Tree::new(&[("etc/8.2/fpm/php.ini", "a = 1")]);
        let found = || tree.search().find().values(&HashMap::new());
        assert_eq!(found().get("a").map(String::as_str), Some("1"));
        let path = tree.path("etc/8.2/fpm/php.ini");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(found().get("a"), None);
    }

    #[test]
    fn the_best_folder_of_debians_layout_is_taken() {
        let mut files = vec![("etc/8.2/embed/php.ini", "")];
        let tree = Tree::new(&files);
        assert_eq!(
            tree.search().find().file_or_dir,
            Some(tree.path("etc/8.2/embed/php.ini"))
        );
        files.push(("etc/8.2/fpm/php.ini", ""));
        let tree = Tree::new(&files);
        assert_eq!(tree.search().find().file_or_dir, Some(tree.path("etc/8.2/fpm/php.ini")));
        assert_eq!(tree.search().find().scan_dir, Some(tree.text("etc/8.2/fpm/conf.d")));
        files.push(("etc/8.2/php-pool/php.ini", ""));
        let tree = Tree::new(&files);
        assert_eq!(
            tree.search().find().file_or_dir,
            Some(tree.path("etc/8.2/php-pool/php.ini"))
        );
        // Another version has its own, or none.
        assert_eq!(
            Search {
                version: "8.4".into(),
                ..tree.search()
            }
            .find(),
            PhpIni::default()
        );
    }

    #[test]
    fn the_command_line_and_the_environment_come_first() {
        let tree = Tree::new(&[
            ("etc/8.2/fpm/php.ini", ""),
            ("rc/php.ini", ""),
            ("own/php-fpm-fcgi.ini", ""),
            ("own/php.ini", ""),
            ("x.ini", ""),
        ]);
        let with_env = Search {
            env: env(&[
                ("PHPRC", tree.text("rc")),
                ("PHP_INI_SCAN_DIR", format!("{}:", tree.text("scan"))),
            ]),
            ..tree.search()
        };
        let found = with_env.find();
        assert_eq!(found.file_or_dir, Some(tree.path("rc/php.ini")));
        assert_eq!(
            found.scan_dir,
            Some(format!("{}:{}", tree.text("scan"), tree.text("etc/8.2/fpm/conf.d")))
        );
        let file = Search {
            env: env(&[("PHPRC", tree.text("x.ini"))]),
            ..tree.search()
        };
        assert_eq!(file.find().file_or_dir, Some(tree.path("x.ini")));
        let option = Search {
            path: Some(tree.path("own")),
            ..with_env.clone()
        };
        assert_eq!(option.find().file_or_dir, Some(tree.path("own/php-fpm-fcgi.ini")));
        let none = Search {
            none: true,
            ..with_env.clone()
        };
        assert_eq!(none.find().file_or_dir, None);
        assert_eq!(none.find().scan_dir, Some(String::new()));
        let none_but_one = Search {
            path: Some(tree.path("x.ini")),
            ..none
        };
        assert_eq!(none_but_one.find().file_or_dir, Some(tree.path("x.ini")));
        let no_scan = Search {
            scan_dir: Some(String::new()),
            ..with_env
        };
        assert_eq!(no_scan.find().scan_dir, Some(String::new()));
        let pool = Search {
            scan_dir: Some("/a::/b".into()),
            ..tree.search()
        };
        assert_eq!(
            pool.find().scan_dir,
            Some(format!("/a:{}:/b", tree.text("etc/8.2/fpm/conf.d")))
        );
    }

    #[test]
    fn later_values_hold() {
        let tree = Tree::new(&[
            (
                "etc/8.2/fpm/php.ini",
                "; comment\n[PHP]\na = 1\nb = E_ALL & ~E_NOTICE\ntext = \"two\nlines\"\n[PATH=/x]\na = 2\n[Session]\nc = ${HOME}\nd=${a}",
            ),
            ("etc/8.2/fpm/conf.d/20-y.ini", "a = 20\n"),
            ("etc/8.2/fpm/conf.d/10-x.ini", "a = 10\n"),
            ("etc/8.2/fpm/conf.d/30-z.txt", "a = 30\n"),
        ]);
        let search = Search {
            defines: vec!["e=/x".into(), "f".into(), "g=$h".into()],
            ..tree.search()
        };
        let values = search.find().values(&env(&[("HOME", "/root".into())]));
        let get = |name: &str| values.get(name).map(String::as_str);
        assert_eq!(get("a"), Some("20"));
        assert_eq!(get("b"), Some("32759"));
        assert_eq!(get("text"), Some("two\nlines"));
        assert_eq!(get("c"), Some("/root"));
        assert_eq!((get("e"), get("f"), get("g")), (Some("/x"), Some("1"), Some("$h")));
    }

    #[test]
    fn defines_are_quoted_as_php_quotes_them() {
        let define = |text: &str| parse_define(text).1;
        assert_eq!(define("a"), "1");
        assert_eq!(define("a="), "");
        assert_eq!(define("a=b c"), "b c");
        assert_eq!(define("a=\"b\""), "\"b\"");
        assert_eq!(define("a=/b"), "\"/b\"");
        assert_eq!(define("a=-1"), "\"-1\"");
    }

    #[test]
    fn what_is_asked_of_the_environment_is_known_by_name() {
        let tree = Tree::new(&[
            (
                "php.ini",
                "memory_limit = ${MEMORY}\n;a = ${COMMENT}\nb = \"x${QUOTED:-y}\"\n[PATH=/srv]\nc = ${OTHER}\n",
            ),
            ("conf.d/1.ini", "d = ${SCANNED}\n"),
        ]);
        let ini = PhpIni {
            file_or_dir: Some(tree.path("php.ini")),
            scan_dir: Some(tree.text("conf.d")),
            none: false,
            defines: vec![("e".into(), "${DEFINED}".into())],
        };
        let wanted = ["MEMORY", "QUOTED", "OTHER", "SCANNED", "DEFINED"];
        assert_eq!(ini.variables(), wanted.map(str::to_owned).into());
    }
}
