//! The wiki of the site tests, and the status page, in a real browser: chromium without a screen, driven by chromedriver.
//!
//! A tier of its own that only runs by its name, as it needs 600 MB of packages. Pictures of the pages that the browser has
//! shown are left in `target/browser*.png`, to be looked at.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

mod chromium;

use std::fs;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use chromium::Chromium;
use support::browser::Browser;
use support::fcgi;
use support::server::{Kind, Server, Setup, www};
use support::web::{Front, Site, Web};
use support::wiki::{self, PASSWORD, USER, Wiki};

fn picture(name: &str) -> String {
    format!("{}/target/browser{name}.png", env!("CARGO_MANIFEST_DIR"))
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = vec![
        Trial::test("an_editor_logs_in_writes_a_page_and_sees_it", || {
            let mut wiki = Wiki::start(Kind::under_test(), 2)?;
            let outcome = visit(&wiki);
            wiki.server.stop()?;
            outcome
        }),
        Trial::test("the_status_page_is_read_on_a_desk_and_on_a_telephone", status_page),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

static STATUS: Setup = Setup {
    name: "status",
    workers: 3,
    pool: "listen.mode = 0666\npm.status_path = /status.php\n",
    ..Setup::BASE
};

/// While a request runs that would like to be more than text.
fn status_page() -> Result<(), Failed> {
    const HOSTILE: &str = "\"><script>alert(1)</script>&a='\\<img src=x onerror=alert(2)>";
    let root = wiki::folder();
    let www = www(root.path(), &STATUS);
    fs::create_dir_all(&www)?;
    fs::write(
        www.join("waits.php"),
        "<?php while (!file_exists(__DIR__ . '/go')) { usleep(5000); clearstatcache(); }",
    )?;
    let mut server = Server::start(Kind::under_test(), &STATUS, root.path())?;
    let script = www.join("waits.php").display().to_string();
    let long = format!("{HOSTILE}&long={}", "x".repeat(300));
    let params = [
        ("SCRIPT_FILENAME", script.as_str()),
        ("SCRIPT_NAME", "/waits.php"),
        ("REQUEST_METHOD", "GET"),
        ("QUERY_STRING", &long),
        ("HTTP_AUTHORIZATION", "Basic PGI+ZXZpbDwvYj46eA=="), // <b>evil</b>
    ];
    let mut waits = server.connect();
    assert!(waits.send(&fcgi::request(0, &params, b"")));

    let site = Site {
        www: &www,
        pool: &server.address,
        keep: 0,
        port: None,
        script_as_path_info: false,
    };
    let web = Web::start(Front::Nginx, &site, &root.path().join("web"))?;
    let profile = wiki::folder();
    let chromium = Chromium::start(profile.path())?;
    let looked_at = || -> Result<(), String> {
        chromium.wait_for("td", HOSTILE)?;
        chromium.wait_for("td", "<b>evil</b>")?;
        // Nothing of it has become a part of the page, and nothing stands out of it.
        chromium.wait_until("return document.querySelectorAll('script, img, td b').length === 0")?;
        chromium.wait_until("return document.documentElement.scrollWidth <= window.innerWidth")
    };
    chromium.open(&format!("{}/status.php?html&full", web.url()))?;
    let outcome = looked_at();
    chromium.picture(&picture("-status"))?;
    outcome?;
    // It comes again by itself.
    chromium.wait_until("window.seen = true; return true")?;
    chromium.wait_until("return window.seen === undefined && document.querySelector('dl') !== null")?;
    chromium.be_a_telephone()?;
    let outcome = looked_at();
    chromium.picture(&picture("-telephone"))?;
    outcome?;
    fs::write(www.join("go"), "")?;
    waits.reply(1);
    server.stop()?;
    Ok(())
}

fn visit(wiki: &Wiki) -> Result<(), Failed> {
    let web = wiki.behind(Front::Nginx, 4, None)?;
    wiki::install(&mut Browser::new(web.url()));
    let profile = wiki::folder();
    let chromium = Chromium::start(profile.path())?;

    chromium.open(&format!("{}/doku.php?id=start&do=login", web.url()))?;
    chromium.fill("#dw__login input[name=u]", USER)?;
    chromium.fill("#dw__login input[name=p]", PASSWORD)?;
    chromium.click("#dw__login button[type=submit]")?;
    chromium.wait_for(".user", "Logged in as:")?;

    chromium.open(&format!("{}/doku.php?id=start&do=edit", web.url()))?;
    chromium.fill(
        "#wiki__text",
        "====== Served by php-pool ======\n\n  * with **style**\n  * and scripts: λ 漢字 🐘\n",
    )?;
    chromium.click("#edbtn__save")?;
    chromium.wait_for("h1", "Served by php-pool")?;
    // Style sheets and scripts came from PHP too: the tools at the side are placed by the one and moved by the other.
    chromium.wait_until(
        "return jQuery('#dokuwiki__pagetools').css('position') === 'absolute' && document.readyState === 'complete'",
    )?;
    chromium.picture(&picture(""))?;
    Ok(())
}
