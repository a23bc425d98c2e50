//! The wiki of the site tests in a real browser: chromium without a screen, driven by chromedriver.
//!
//! A tier of its own that only runs by its name, as it needs 600 MB of packages. The picture of the page that the browser
//! has shown is left in `target/browser.png`, to be looked at.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

mod chromium;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use chromium::Chromium;
use support::browser::Browser;
use support::server::Kind;
use support::web::Front;
use support::wiki::{self, PASSWORD, USER, Wiki};

const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/browser.png");

fn main() -> ExitCode {
    let trial = Trial::test("an_editor_logs_in_writes_a_page_and_sees_it", || {
        let mut wiki = Wiki::start(Kind::under_test(), 2)?;
        let outcome = visit(&wiki);
        wiki.server.stop()?;
        outcome
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
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
    chromium.picture(PICTURE)?;
    Ok(())
}
