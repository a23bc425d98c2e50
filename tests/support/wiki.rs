//! Debian's DokuWiki, as a private copy: what the package installed is read, never written.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{User, geteuid};
use tempfile::TempDir;

use super::browser::Browser;
use super::server::{self, Kind, Listen, Server, Setup, php_version};
use super::web::{Front, Site, Web};

const PACKAGE: &str = "/usr/share/dokuwiki";
const PACKAGE_CONF: &str = "/etc/dokuwiki";

/// The folders that DokuWiki's installer wants to find.
const DATA: [&str; 11] = [
    "attic",
    "cache",
    "index",
    "locks",
    "log",
    "media",
    "media_attic",
    "media_meta",
    "meta",
    "pages",
    "tmp",
];

/// Who may edit.
pub const USER: &str = "editor";
pub const PASSWORD: &str = "a pass phrase: with \"quotes\" & ümlauts";

/// What who installs the wiki fills into the form of its installer.
pub fn installation() -> Vec<(String, String)> {
    [
        ("submit", ""),
        ("l", "en"),
        ("d[title]", "The wiki of the tests"),
        ("d[acl]", "on"),
        ("d[superuser]", USER),
        ("d[fullname]", "Ä. D. Itor"),
        ("d[email]", "editor@example.org"),
        ("d[password]", PASSWORD),
        ("d[confirm]", PASSWORD),
        ("d[policy]", "1"),
        ("d[license]", "cc-by-sa"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// The wiki on a pool of its own.
pub struct Wiki {
    pub server: Server,
    /// The document root.
    pub www: PathBuf,
    /// The last to go: what the servers have open is in it.
    root: TempDir,
}

impl Wiki {
    /// Starts the pool; the wiki is as it is before its installer has run.
    pub fn start(kind: Kind, workers: u32) -> Result<Self, String> {
        let root = folder();
        let setup = setup(workers);
        let www = server::www(root.path(), setup);
        unpack(&www)?;
        let server = Server::start(kind, setup, root.path())?;
        Ok(Self { server, www, root })
    }

    /// Starts a web server in front of it; see [`Site`] for `keep` and `port`.
    pub fn behind(&self, front: Front, keep: u32, port: Option<u16>) -> Result<Web, String> {
        let site = Site {
            www: &self.www,
            pool: &self.server.address,
            keep,
            port,
            script_as_path_info: false,
        };
        Web::start(front, &site, &self.root.path().join(front.to_string()))
    }
}

/// What who installs DokuWiki does: looks at the form of install.php, sends it empty, is corrected, and fills it in.
pub fn install(browser: &mut Browser) {
    let form = browser.get("/install.php");
    form.expect_status(200).expect("DokuWiki Installer");
    let refused = browser.post("/install.php", &[("submit".into(), String::new())]);
    refused.expect("illegal or empty value");
    browser
        .post("/install.php", &installation())
        .expect("finished successfully");
}

/// A temporary folder that PHP's user may enter.
pub fn folder() -> TempDir {
    let folder = tempfile::Builder::new()
        .prefix("php-pool-site.")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir();
    folder.expect("a temporary folder can be made")
}

/// The pool that serves the wiki: Debian's own set of extensions with opcache, and uploads of a few MB.
pub fn setup(workers: u32) -> &'static Setup {
    let owner = if geteuid().is_root() {
        "listen.owner = www-data\nlisten.group = www-data\n"
    } else {
        ""
    };
    Box::leak(Box::new(Setup {
        name: "wiki",
        workers,
        listen: Listen::Unix,
        opcache: false, // conf.d says it already
        pool: owner,
        ini: "upload_max_filesize = 32M\npost_max_size = 40M\nmemory_limit = 256M\nopcache.file_update_protection = 0\nsession.save_path = \"{home}\"\n\
              sys_temp_dir = \"{home}\"\n",
        environment: debian_extensions(),
        ..Setup::BASE
    }))
}

/// The environment in which PHP loads what Debian has set up for php-fpm.
pub fn debian_extensions() -> &'static [(&'static str, &'static str)] {
    let folder = format!("/etc/php/{}/fpm/conf.d", php_version());
    Box::leak(Box::new([("PHP_INI_SCAN_DIR", &*folder.leak())]))
}

/// Makes `www` a fresh DokuWiki, as it is before its installer has run. PHP's user owns what the wiki writes.
pub fn unpack(www: &Path) -> Result<(), String> {
    let failed = |e: io::Error| format!("DokuWiki cannot be copied to {}: {e}", www.display());
    fs::create_dir_all(www).map_err(failed)?;
    // -L: plugins and templates are links to the machine's own.
    let status = Command::new("cp")
        .args(["-rL", "--", &format!("{PACKAGE}/."), &www.display().to_string()])
        .status()
        .map_err(failed)?;
    if !status.success() {
        return Err(format!(
            "cp of {PACKAGE} ended with {status}; is Debian's package dokuwiki installed?"
        ));
    }
    // Debian's preload file sends DokuWiki to /etc and /var/lib; without it, it keeps to its own tree, as upstream's.
    fs::remove_file(www.join("inc/preload.php")).map_err(failed)?;

    let (conf, data) = (www.join("conf"), www.join("data"));
    fs::create_dir_all(&conf).map_err(failed)?;
    for entry in fs::read_dir(PACKAGE_CONF).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        // Links lead to the machine's own users; local.php is what the installer writes.
        let own = name.to_string_lossy().contains("local.php");
        if entry.file_type().map_err(failed)?.is_file() && !own {
            fs::copy(entry.path(), conf.join(name)).map_err(failed)?;
        }
    }
    let main = conf.join("dokuwiki.php");
    let mut settings = fs::read_to_string(&main).map_err(failed)?;
    settings.push_str("\n$conf['savedir'] = './data';\n$conf['dnslookups'] = 0;\n");
    fs::write(&main, settings).map_err(failed)?;
    for folder in DATA {
        fs::create_dir_all(data.join(folder)).map_err(failed)?;
    }
    give_to_php(&conf).and_then(|()| give_to_php(&data)).map_err(failed)
}

/// Gives a tree to the user that PHP runs as, when that is another.
fn give_to_php(path: &Path) -> io::Result<()> {
    let Some(user) = php_user() else { return Ok(()) };
    chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    if path.is_dir() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(path)? {
            give_to_php(&entry?.path())?;
        }
    }
    Ok(())
}

/// The user of the pool where the master is root; else the pool runs as whoever runs the tests.
pub fn php_user() -> Option<User> {
    geteuid()
        .is_root()
        .then(|| User::from_name("www-data").ok().flatten().expect("Debian has www-data"))
}
