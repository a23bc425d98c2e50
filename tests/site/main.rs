//! A real application on a pool of its own: Debian's DokuWiki, behind nginx and behind Apache.
//!
//! Every case runs behind both web servers; nginx opens a connection for each request, Apache's mod_proxy_fcgi keeps more
//! of them than there are workers. `PHP_POOL_ONLY=php-fpm` puts php-fpm in php-pool's place.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

mod php;
mod reading;
mod site;
mod writing;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use site::Site;
use support::web::Front;

/// A behaviour of the site behind one web server.
pub type Case = (&'static str, fn(&Site, Front));

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each case is a visitor, and a wiki has several at once.
    arguments.test_threads.get_or_insert(4);

    let site = Arc::new(Site::new());
    let cases = [site::CASES, writing::CASES, reading::CASES, php::CASES].concat();
    let mut trials = Vec::new();
    for front in [Front::Nginx, Front::Apache] {
        for &(name, case) in &cases {
            let site = Arc::clone(&site);
            trials.push(Trial::test(format!("{front}::{name}"), move || {
                case(&site, front);
                Ok(())
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);

    // Whatever the pool has lost or left behind is a failure of the run, although no single case is to blame.
    let fault = Arc::into_inner(site)
        .map_or(Err("a case still runs".into()), Site::stop)
        .err();
    if let Some(fault) = &fault {
        eprintln!("error: {fault}");
    }
    if conclusion.has_failed() || fault.is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
