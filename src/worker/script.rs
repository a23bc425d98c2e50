//! Which script a request is for: the parameters as web servers send them, and as `$_SERVER` shows them.
//!
//! php-fpm's rules to the letter: applications and web server configurations have grown around them. Pure but for
//! the questions it asks of [`Files`].

use super::params::Params;

/// What has to be known of the file system.
pub trait Files {
    /// Whether the path resolves to anything (PHP's realpath cache may answer).
    fn resolves(&self, path: &[u8]) -> bool;
    /// Whether it is a regular file.
    fn is_file(&self, path: &[u8]) -> bool;
}

/// The settings that matter.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// cgi.fix_pathinfo
    pub fix_pathinfo: bool,
    /// cgi.discard_path
    pub discard_path: bool,
    /// Whether the path info that Apache leaves in a file's name becomes PATH_INFO decoded: in php-fpm since 8.4.
    pub decodes_path_info: bool,
    /// doc_root
    pub doc_root: Option<Vec<u8>>,
}

/// The outcome; the parameters are changed alongside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The file to run; None: there is none, or its path is not acceptable.
    pub path: Option<Vec<u8>>,
    /// The request's uri: what matches status and ping paths, becomes PHP_SELF and is logged.
    pub uri: Option<Vec<u8>>,
    /// It is known already that no such file exists.
    pub missing: bool,
    /// SCRIPT_FILENAME or PATH_TRANSLATED was there; without either nothing else of the request is looked at.
    pub named: bool,
}

/// Whether a path of the request is relative.
pub fn is_relative(params: &Params) -> bool {
    ["SCRIPT_FILENAME", "PATH_TRANSLATED"].into_iter().any(|name| {
        params
            .get(name)
            .is_some_and(|path| !path.starts_with(b"/") && strip_proxy_prefix(path).is_none())
    })
}

/// Works out the script of a request.
pub fn resolve(params: &mut Params, settings: &Settings, files: &dyn Files) -> Script {
    let own = |params: &Params, name: &str| params.get(name).map(<[u8]>::to_vec);
    let mut filename = own(params, "SCRIPT_FILENAME");
    let translated = own(params, "PATH_TRANSLATED");
    let name = own(params, "SCRIPT_NAME");
    if filename.is_none() && translated.is_none() {
        return Script::default();
    }

    if let (Some(software), Some(name), Some(info)) = (params.get("SERVER_SOFTWARE"), &name, own(params, "PATH_INFO"))
        && software.starts_with(b"Microsoft-IIS")
        && let Some(rest) = info.strip_prefix(name.as_slice())
    {
        params.set(b"ORIG_PATH_INFO", &info);
        if rest.is_empty() {
            params.remove("PATH_INFO")
        } else {
            params.set(b"PATH_INFO", rest)
        }
    }

    let mut apache = false;
    if let Some(given) = &filename
        && let Some(authority) = strip_proxy_prefix(given)
    {
        let mut path = given.clone();
        if let Some(slash) = authority.iter().position(|&byte| byte == b'/') {
            path = authority[slash..].to_vec();
            apache = true;
        }
        let path = path.split(|&byte| byte == b'?').next().unwrap_or_default().to_vec();
        params.set(b"SCRIPT_FILENAME", &path);
        filename = Some(path);
    }

    let info = own(params, "PATH_INFO");
    if !settings.fix_pathinfo {
        let path = match translated {
            Some(translated) if !settings.discard_path || filename.is_none() => Some(translated),
            _ => filename,
        };
        return Script {
            path: path.filter(|path| acceptable(path)),
            uri: info.or(name),
            missing: false,
            named: true,
        };
    }

    let facts = Facts {
        filename,
        translated,
        name,
        info,
        apache,
        decodes: settings.decodes_path_info,
    };
    Fixing {
        params,
        facts,
        files,
        script: Script {
            named: true,
            ..Script::default()
        },
    }
    .run(settings)
}

/// `proxy:fcgi://` and `proxy:balancer://`, as Apache's mod_proxy_fcgi puts before a path.
fn strip_proxy_prefix(path: &[u8]) -> Option<&[u8]> {
    [&b"proxy:fcgi://"[..], b"proxy:balancer://"].iter().find_map(|prefix| {
        let (head, rest) = path.split_at_checked(prefix.len())?;
        head.eq_ignore_ascii_case(prefix).then_some(rest)
    })
}

/// No `..` component.
fn acceptable(path: &[u8]) -> bool {
    !path.split(|&byte| byte == b'/').any(|part| part == b"..")
}

/// The parameters as they came.
struct Facts {
    filename: Option<Vec<u8>>,
    translated: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
    info: Option<Vec<u8>>,
    apache: bool,
    decodes: bool,
}

/// cgi.fix_pathinfo=1.
struct Fixing<'a> {
    params: &'a mut Params,
    facts: Facts,
    files: &'a dyn Files,
    script: Script,
}

impl Fixing<'_> {
    fn run(mut self, settings: &Settings) -> Script {
        if self.params.get("DOCUMENT_ROOT").is_none()
            && let Some(root) = &settings.doc_root
        {
            self.params.set(b"DOCUMENT_ROOT", root);
        }
        let redirect = self.params.get("REDIRECT_URL").map(<[u8]>::to_vec);
        let mut path = self
            .facts
            .filename
            .clone()
            .or_else(|| self.facts.translated.clone())
            .unwrap_or_default();
        let mut name = self.facts.name.clone();
        // Apache's mod_action: SCRIPT_FILENAME is the program, PATH_TRANSLATED the script.
        let mut path_is_translated = false;
        if !self.facts.apache
            && let (Some(translated), Some(url)) = (&self.facts.translated, &redirect)
            && *translated != path
        {
            path_is_translated = true;
            path = translated.clone();
            name = Some(url.clone());
        }

        if !path.is_empty() && (path.ends_with(b"/") || !self.files.resolves(&path)) {
            path = self.split(path, &name);
        } else {
            if self.facts.filename.as_ref() != Some(&path) {
                self.move_away("SCRIPT_FILENAME", self.facts.filename.clone());
                self.params.set(b"SCRIPT_FILENAME", &path);
            }
            if !self.facts.apache && redirect.is_some() {
                for (parameter, value) in [
                    ("PATH_INFO", self.facts.info.clone()),
                    ("PATH_TRANSLATED", self.facts.translated.clone()),
                ] {
                    if value.is_some() {
                        self.move_away(parameter, value);
                        self.params.remove(parameter);
                    }
                }
                if path_is_translated {
                    // Where the name stays the same, too.
                    self.move_away("SCRIPT_NAME", self.facts.name.clone());
                }
            }
            self.set_name(name);
        }
        if !self.script.missing && acceptable(&path) {
            self.script.path = Some(path);
        }
        self.script
    }

    /// The value a parameter had is kept under ORIG_ and its name.
    fn move_away(&mut self, name: &str, value: Option<Vec<u8>>) {
        if let Some(value) = value {
            self.params.set(format!("ORIG_{name}").as_bytes(), &value);
        }
    }

    fn set_name(&mut self, name: Option<Vec<u8>>) {
        if name != self.facts.name {
            self.move_away("SCRIPT_NAME", self.facts.name.clone());
            if let Some(name) = &name {
                self.params.set(b"SCRIPT_NAME", name);
            }
        }
        self.script.uri = name;
    }

    /// The path does not resolve: looks for a file in front of it, whose tail is PATH_INFO. Returns the file.
    fn split(&mut self, path: Vec<u8>, name: &Option<Vec<u8>>) -> Vec<u8> {
        let mut end = path.len();
        while let Some(slash) = last_separator(&path[..end]) {
            end = slash;
            if self.files.is_file(&path[..end]) {
                self.found(&path, end, name);
                if self.script.uri.is_none() {
                    self.set_name(name.clone());
                }
                return path[..end].to_vec();
            }
        }
        self.move_away("SCRIPT_FILENAME", self.facts.filename.clone());
        self.params.remove("SCRIPT_FILENAME");
        self.script.missing = true;
        self.set_name(name.clone());
        path
    }

    /// `path[..end]` is the file.
    fn found(&mut self, path: &[u8], end: usize, name: &Option<Vec<u8>>) {
        let (file, tail) = path.split_at(end);
        let given = self.facts.info.clone();
        let mut new_info = if self.facts.apache {
            // Apache sends no PATH_INFO, or one that is decoded.
            (!tail.is_empty() && given.as_deref() != Some(tail)).then(|| tail.to_vec())
        } else {
            given
                .as_ref()
                .filter(|info| info.len() > tail.len())
                .map(|info| info[info.len() - tail.len()..].to_vec())
        };
        let mut name = name.clone();
        if let Some(info) = &mut new_info {
            if let Some(given) = &given {
                self.move_away("PATH_INFO", Some(given.clone()));
                // From Apache the tail was taken of the file's name, and PATH_INFO is left whole.
                let cut = if self.facts.apache { 0 } else { info.len() };
                let head = given[..given.len().saturating_sub(cut)].to_vec();
                if self.facts.name.as_ref() != Some(&head) {
                    self.move_away("SCRIPT_NAME", self.facts.name.clone());
                    self.params.set(b"SCRIPT_NAME", &head);
                }
                self.script.uri = Some(head);
            } else if self.facts.apache {
                if let Some(short) = name.as_ref().and_then(|name| without_tail(name, info)) {
                    self.move_away("SCRIPT_NAME", self.facts.name.clone());
                    self.params.set(b"SCRIPT_NAME", &short);
                    self.script.uri = Some(short.clone());
                    name = Some(short);
                }
                if self.facts.decodes {
                    *info = url_decode(info);
                    // What a web server sends ends at a NUL, too.
                    info.truncate(info.iter().position(|&byte| byte == 0).unwrap_or(info.len()));
                }
            }
            self.params.set(b"PATH_INFO", info);
        }
        if self.facts.filename.as_deref() != Some(file) {
            self.move_away("SCRIPT_FILENAME", self.facts.filename.clone());
            self.params.set(b"SCRIPT_FILENAME", file);
        }
        let info = new_info.or(given).unwrap_or_default();
        let root = self
            .params
            .get("DOCUMENT_ROOT")
            .map(|root| root.strip_suffix(b"/").unwrap_or(root).to_vec());
        let base = match (root, name) {
            (Some(root), _) => root,
            (None, Some(name)) if contains(file, &name) => file[..file.len() - name.len()].to_vec(),
            _ => return,
        };
        self.move_away("PATH_TRANSLATED", self.facts.translated.clone());
        self.params.set(b"PATH_TRANSLATED", &[base, info].concat());
    }
}

/// The name without the path info at its end, which may stand there decoded.
fn without_tail(name: &[u8], info: &[u8]) -> Option<Vec<u8>> {
    let strip = |tail: &[u8]| {
        name.strip_suffix(tail)
            .filter(|rest| !rest.is_empty())
            .map(<[u8]>::to_vec)
    };
    strip(info).or_else(|| info.contains(&b'%').then(|| strip(&url_decode(info))).flatten())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

fn last_separator(path: &[u8]) -> Option<usize> {
    path.iter()
        .rposition(|&byte| byte == b'/')
        .or_else(|| path.iter().rposition(|&byte| byte == b'\\'))
}

/// A `+` stays what it is: this is a path.
fn url_decode(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|&byte| (byte as char).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(text.get(at + 1)), digit(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Site;

    impl Files for Site {
        fn resolves(&self, path: &[u8]) -> bool {
            matches!(
                path,
                b"/w/info.php" | b"/w/dir" | b"/w/img.txt" | b"/usr/lib/cgi-bin/php"
            )
        }
        fn is_file(&self, path: &[u8]) -> bool {
            matches!(path, b"/w/info.php" | b"/w/img.txt")
        }
    }

    /// Parameters in, and of the result what is named: `path`, `uri`, or parameters (`-`: gone).
    fn check(given: &[(&str, &str)], expected: &[(&str, &str)]) {
        check_with(Settings::default(), given, expected);
    }

    fn check_with(settings: Settings, given: &[(&str, &str)], expected: &[(&str, &str)]) {
        let mut params = Params::default();
        params.read(b"", "RESPONDER");
        for (name, value) in given {
            params.set(name.as_bytes(), value.as_bytes());
        }
        let settings = Settings {
            fix_pathinfo: true,
            ..settings
        };
        let script = resolve(&mut params, &settings, &Site);
        let text = |value: Option<&[u8]>| value.map_or("-".into(), |v| String::from_utf8_lossy(v).into_owned());
        for (name, value) in expected {
            let got = match *name {
                "path" => text(script.path.as_deref()),
                "uri" => text(script.uri.as_deref()),
                name => text(params.get(name)),
            };
            assert_eq!(got, *value, "{name} of {given:?}");
        }
    }

    #[test]
    fn a_plain_script_is_left_alone() {
        check(
            &[
                ("SCRIPT_FILENAME", "/w/info.php"),
                ("SCRIPT_NAME", "/info.php"),
                ("PATH_INFO", "/a/b"),
                ("DOCUMENT_ROOT", "/w"),
            ],
            &[
                ("path", "/w/info.php"),
                ("uri", "/info.php"),
                ("PATH_INFO", "/a/b"),
                ("PATH_TRANSLATED", "-"),
                ("ORIG_PATH_INFO", "-"),
            ],
        );
    }

    #[test]
    fn path_info_is_split_off() {
        let whole = "/info.php/a/b";
        check(
            &[
                ("SCRIPT_FILENAME", "/w/info.php/a/b"),
                ("SCRIPT_NAME", whole),
                ("PATH_INFO", whole),
                ("DOCUMENT_ROOT", "/w"),
            ],
            &[
                ("path", "/w/info.php"),
                ("uri", "/info.php"),
                ("SCRIPT_NAME", "/info.php"),
                ("PATH_INFO", "/a/b"),
                ("PATH_TRANSLATED", "/w/a/b"),
                ("ORIG_SCRIPT_NAME", whole),
                ("ORIG_PATH_INFO", whole),
                ("ORIG_SCRIPT_FILENAME", "/w/info.php/a/b"),
            ],
        );
        check(
            &[
                ("SCRIPT_FILENAME", "/w/info.php/a/b"),
                ("SCRIPT_NAME", whole),
                ("DOCUMENT_ROOT", "/w"),
            ],
            &[
                ("path", "/w/info.php"),
                ("uri", whole),
                ("PATH_INFO", "-"),
                ("PATH_TRANSLATED", "/w"),
            ],
        );
        check(
            &[
                ("SCRIPT_FILENAME", "/w/info.php/a/b"),
                ("SCRIPT_NAME", whole),
                ("PATH_INFO", whole),
            ],
            &[("uri", "/info.php"), ("PATH_INFO", "/a/b"), ("PATH_TRANSLATED", "-")],
        );
    }

    #[test]
    fn apache_is_understood() {
        check(
            &[
                ("SCRIPT_FILENAME", "proxy:fcgi://h:9000/w/info.php/a/b"),
                ("SCRIPT_NAME", "/info.php/a/b"),
                ("DOCUMENT_ROOT", "/w"),
            ],
            &[
                ("path", "/w/info.php"),
                ("uri", "/info.php"),
                ("PATH_INFO", "/a/b"),
                ("ORIG_SCRIPT_NAME", "/info.php/a/b"),
            ],
        );
        check(
            &[
                ("SCRIPT_FILENAME", "proxy:fcgi://h/w/info.php/pa%20th/x"),
                ("SCRIPT_NAME", "/info.php/pa th/x"),
            ],
            &[("uri", "/info.php"), ("PATH_INFO", "/pa%20th/x")],
        );
        check_with(
            Settings {
                decodes_path_info: true,
                ..Settings::default()
            },
            &[
                ("SCRIPT_FILENAME", "proxy:fcgi://h/w/info.php/pa%20th/%78%zz%00y"),
                ("SCRIPT_NAME", "/info.php/pa%20th/%78%zz%00y"),
                ("DOCUMENT_ROOT", "/w"),
            ],
            &[
                ("uri", "/info.php"),
                ("PATH_INFO", "/pa th/x%zz"),
                ("PATH_TRANSLATED", "/w/pa th/x%zz"),
            ],
        );
        check(
            &[("SCRIPT_FILENAME", "proxy:fcgi://h/w/info.php?x=1")],
            &[("path", "/w/info.php")],
        );
        check(&[("SCRIPT_FILENAME", "proxy:fcgi://h")], &[("path", "-")]);
        check(
            &[
                ("SCRIPT_FILENAME", "/usr/lib/cgi-bin/php"),
                ("SCRIPT_NAME", "/cgi-bin/php"),
                ("PATH_INFO", "/info.php/a"),
                ("PATH_TRANSLATED", "/w/info.php/a"),
                ("REDIRECT_URL", "/info.php/a"),
                ("DOCUMENT_ROOT", "/w"),
            ],
            &[
                ("path", "/w/info.php"),
                ("uri", "/info.php"),
                ("PATH_INFO", "/a"),
                ("PATH_TRANSLATED", "/w/a"),
            ],
        );
    }

    #[test]
    fn what_is_missing_or_climbs_is_refused() {
        check(
            &[("SCRIPT_FILENAME", "/w/nope.php"), ("SCRIPT_NAME", "/nope.php")],
            &[
                ("path", "-"),
                ("SCRIPT_FILENAME", "-"),
                ("ORIG_SCRIPT_FILENAME", "/w/nope.php"),
                ("uri", "/nope.php"),
            ],
        );
        check(&[("SCRIPT_FILENAME", "/w/d/../info.php")], &[("path", "-")]);
        check(&[("SCRIPT_NAME", "/info.php")], &[("path", "-"), ("uri", "-")]);
    }
}
