//! nginx and Apache in front of a pool, each a process of its own with a configuration of its own on a loopback port.

use std::fmt::{self, Write as _};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::fcgi::Address;
use super::process::{Daemon, that_dies_with_us};
use super::server::free_port;

/// Which web server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    Nginx,
    Apache,
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Nginx => "nginx",
            Self::Apache => "apache",
        })
    }
}

/// What a web server serves, and how it reaches PHP.
#[derive(Clone, Debug)]
pub struct Site<'a> {
    /// The document root.
    pub www: &'a Path,
    /// Where the pool listens.
    pub pool: &'a Address,
    /// How many idle connections to the pool each web server process keeps; 0 opens a new one for every request.
    pub keep: u32,
    /// The loopback port to listen on; None takes a free one.
    pub port: Option<u16>,
    /// nginx alone: PATH_INFO names the script, as uwsgi wants it.
    pub script_as_path_info: bool,
}

/// A running web server; ended when dropped.
pub struct Web {
    pub port: u16,
    home: PathBuf,
    daemon: Daemon,
}

impl Web {
    /// Starts a web server whose files are in `home`, and waits until it accepts.
    pub fn start(front: Front, site: &Site, home: &Path) -> Result<Self, String> {
        fs::create_dir_all(home).map_err(|e| format!("{} cannot be made: {e}", home.display()))?;
        // Between finding a free port and using it somebody else may take it.
        let mut attempts = if site.port.is_some() { 1 } else { 5 };
        loop {
            attempts -= 1;
            match Self::start_once(front, site, home) {
                Err(e) if attempts > 0 && e.contains("in use") => {}
                outcome => return outcome,
            }
        }
    }

    fn start_once(front: Front, site: &Site, home: &Path) -> Result<Self, String> {
        let failed = |e: std::io::Error| format!("{front} cannot be started: {e}");
        let port = match site.port {
            Some(port) => port,
            None => free_port("127.0.0.1").map_err(failed)?,
        };
        let (configuration, mut command) = match front {
            Front::Nginx => (nginx(site, home, port), that_dies_with_us("TERM", "nginx")),
            Front::Apache => (apache(site, home, port), that_dies_with_us("TERM", "apache2")),
        };
        let file = home.join("web.conf");
        fs::write(&file, configuration).map_err(failed)?;
        match front {
            Front::Nginx => command.arg("-e").arg(home.join("error.log")).arg("-c").arg(&file),
            Front::Apache => command.args(["-D", "FOREGROUND", "-f"]).arg(&file),
        };
        let daemon = Daemon::start(command, home, || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(Self {
            port,
            home: home.to_owned(),
            daemon,
        })
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its processes.
    pub fn pids(&self) -> Vec<i32> {
        self.daemon.family().iter().map(|process| process.pid).collect()
    }

    /// What the web server has complained about.
    pub fn log(&self) -> String {
        self.daemon.output() + &fs::read_to_string(self.home.join("error.log")).unwrap_or_default()
    }
}

/// The parts of DokuWiki's tree that are nobody's business, as its own documentation asks for.
const PRIVATE: &str = "^/(data|conf|bin|inc|vendor)/";

fn nginx(site: &Site, home: &Path, port: u16) -> String {
    let home = home.display();
    let user = if geteuid().is_root() { "user www-data;" } else { "" };
    let pool = match site.pool {
        Address::Unix(path) => format!("unix:{}", path.display()),
        Address::Tcp(host, port) => format!("{host}:{port}"),
    };
    let (keep, keep_conn) = match site.keep {
        0 => (String::new(), ""),
        n => (format!("keepalive {n};"), "fastcgi_keep_conn on;"),
    };
    let path_info = if site.script_as_path_info {
        "$fastcgi_script_name"
    } else {
        "$fastcgi_path_info"
    };
    let mut temporary = String::new();
    for what in ["client_body", "fastcgi", "proxy", "scgi", "uwsgi"] {
        writeln!(temporary, "    {what}_temp_path {home}/{what};").expect("into a String");
    }
    format!(
        "{user}
daemon off;
worker_processes 2;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    include /etc/nginx/mime.types;
    access_log off;
{temporary}
    client_max_body_size 64m;
    upstream php {{ server {pool}; {keep} }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {www};
        index index.php;
        location ~ {PRIVATE} {{ deny all; }}
        location ~ [^/]\\.php(/|$) {{
            fastcgi_split_path_info ^(.+?\\.php)(/.*)$;
            include /etc/nginx/fastcgi.conf;
            fastcgi_param PATH_INFO {path_info};
            fastcgi_pass php;
            {keep_conn}
        }}
    }}
}}
",
        www = site.www.display(),
    )
}

fn apache(site: &Site, home: &Path, port: u16) -> String {
    let home = home.display();
    let www = site.www.display();
    let user = if geteuid().is_root() {
        "User www-data\nGroup www-data"
    } else {
        ""
    };
    // The part behind the pipe names the <Proxy> whose settings hold.
    let (handler, proxy) = match site.pool {
        Address::Unix(path) => (
            format!("proxy:unix:{}|fcgi://pool/", path.display()),
            "fcgi://pool/".to_owned(),
        ),
        Address::Tcp(host, port) => (format!("proxy:fcgi://{host}:{port}"), format!("fcgi://{host}:{port}")),
    };
    let reuse = match site.keep {
        0 => "enablereuse=off".to_owned(),
        n => format!("enablereuse=on max={n}"),
    };
    let mut modules = String::new();
    for module in ["mpm_event", "authz_core", "mime", "dir", "proxy", "proxy_fcgi"] {
        writeln!(
            modules,
            "LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so"
        )
        .expect("into a String");
    }
    format!(
        "{modules}
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
PidFile {home}/apache.pid
DefaultRuntimeDir {home}
Mutex file:{home} default
ErrorLog {home}/error.log
LogLevel warn
{user}
StartServers 1
ServerLimit 2
ThreadsPerChild 25
MaxRequestWorkers 50
KeepAliveTimeout 60
TypesConfig /dev/null
AddType text/css .css
AddType text/javascript .js
AddType image/png .png
AddType image/svg+xml .svg
DocumentRoot {www}
DirectoryIndex index.php
<Directory {www}>
    AllowOverride None
    Require all granted
</Directory>
<LocationMatch {PRIVATE}>
    Require all denied
</LocationMatch>
<FilesMatch \"\\.php$\">
    SetHandler \"{handler}\"
</FilesMatch>
<Proxy \"{proxy}\" {reuse}>
</Proxy>
"
    )
}

/// Fields as a form sends them.
pub fn urlencoded(fields: &[(String, String)]) -> String {
    let pairs: Vec<String> = fields
        .iter()
        .map(|(n, v)| format!("{}={}", encode(n), encode(v)))
        .collect();
    pairs.join("&")
}

/// Percent-encodes all but what is safe everywhere in a URL.
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
