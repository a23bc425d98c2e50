//! The site under test: one pool, one wiki, two web servers. The wiki is installed by the first case that needs it.

use std::fs;
use std::sync::OnceLock;

use crate::Case;
use crate::support::browser::{Browser, Page, set};
use crate::support::server::Kind;
use crate::support::web::{Front, Web};
use crate::support::wiki::{self, PASSWORD, USER, Wiki};

/// Fewer than the connections that Apache keeps: a kept connection must not own a worker, as it does with php-fpm.
const WORKERS: u32 = 4;
const KEPT: u32 = 25;
const KEPT_FOR_PHP_FPM: u32 = 1;

/// What the wiki says to who may not do what was asked for.
pub const DENIED: &str = "have enough rights to continue";

pub const CASES: &[Case] = &[
    ("the_installer_makes_an_empty_folder_a_wiki", |site, front| {
        // The visitor runs the installer, unless another case was first; then it must know that all is done.
        let mut visitor = site.visitor(front);
        visitor.get("/install.php").expect("already exists");
        visitor
            .get("/doku.php")
            .expect_status(200)
            .expect("The wiki of the tests")
            .expect("</html>");
    }),
    ("a_wrong_password_is_refused", |site, front| {
        let mut visitor = site.visitor(front);
        log_in(&mut visitor, "wrong").expect("username or password was wrong");
        let page = visitor.get("/doku.php?do=admin");
        assert!(!page.text().contains("Configuration Settings"), "{}", page.text());
    }),
    ("an_editor_logs_in_and_out", |site, front| {
        let mut editor = site.editor(front);
        let page = editor.get("/doku.php?id=start");
        page.expect("Logged in as:").expect("Ä. D. Itor");
        editor.get("/doku.php?do=admin").expect("Configuration Settings");
        let text = page.text();
        let logout = text.split("do=logout&amp;sectok=").nth(1).expect("a link to leave by");
        let token = &logout[..logout.find('"').expect("the link ends")];
        editor.get(&format!("/doku.php?id=start&do=logout&sectok={token}"));
        let page = editor.get("/doku.php?id=start");
        assert!(!page.text().contains("Logged in as:"), "{}", page.text());
    }),
    ("folders_of_the_wiki_are_not_served", |site, front| {
        let mut visitor = site.visitor(front);
        for private in ["/conf/users.auth.php", "/data/pages/wiki/syntax.txt", "/inc/init.php"] {
            visitor.get(private).expect_status(403);
        }
    }),
];

pub struct Site {
    nginx: Web,
    apache: Web,
    installed: OnceLock<()>,
    wiki: Wiki,
}

impl Site {
    pub fn new() -> Self {
        let kind = Kind::under_test();
        let kept = match kind {
            Kind::PhpPool => KEPT,
            Kind::PhpFpm => KEPT_FOR_PHP_FPM,
        };
        let wiki = Wiki::start(kind, WORKERS).unwrap_or_else(|e| panic!("{e}"));
        for (name, script) in crate::php::SCRIPTS {
            fs::write(wiki.www.join(name), script).expect("the folder is ours");
        }
        let start = |front, keep| wiki.behind(front, keep, None).unwrap_or_else(|e| panic!("{e}"));
        Self {
            nginx: start(Front::Nginx, 0),
            apache: start(Front::Apache, kept),
            installed: OnceLock::new(),
            wiki,
        }
    }

    /// Ends everything. An error when a web server was not content with what PHP answered, or the pool lost a worker.
    pub fn stop(mut self) -> Result<(), String> {
        let said = self.nginx.log() + &self.apache.log();
        let complaints: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("upstream") || line.contains("proxy"))
            // Not complaints: a large answer, and what PHP itself has to say (nginx' and Apache's words for it).
            .filter(|line| !line.contains("buffered to a temporary file") && !line.contains("sent in stderr"))
            .filter(|line| !line.contains("AH01071: Got error '"))
            .collect();
        self.wiki.server.stop()?;
        if complaints.is_empty() {
            return Ok(());
        }
        Err(format!("the web servers complain:\n{}", complaints.join("\n")))
    }

    /// A new visitor of the installed wiki.
    pub fn visitor(&self, front: Front) -> Browser {
        let web = match front {
            Front::Nginx => &self.nginx,
            Front::Apache => &self.apache,
        };
        let mut browser = Browser::new(web.url());
        self.installed.get_or_init(|| wiki::install(&mut browser));
        Browser::new(web.url())
    }

    /// A new visitor who has logged in.
    pub fn editor(&self, front: Front) -> Browser {
        let mut browser = self.visitor(front);
        log_in(&mut browser, PASSWORD).expect_status(302);
        browser
    }
}

/// Sends the form by which one logs in.
fn log_in(browser: &mut Browser, password: &str) -> Page {
    let mut form = browser.get("/doku.php?id=start&do=login").form("dw__login");
    set(&mut form, "u", USER);
    set(&mut form, "p", password);
    browser.post("/doku.php?id=start", &form)
}
