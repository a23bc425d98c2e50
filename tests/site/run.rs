//! `./dev run`: the wiki of the site tests, to look at. Serves it through nginx and one pool until Ctrl-C.
//!
//! `PORT` chooses nginx' port; without it 8080 is taken, or a free one when somebody listens there.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

use std::error::Error;
use std::net::TcpListener;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use support::browser::Browser;
use support::server::{Kind, Server};
use support::web::Front;
use support::wiki::{self, Wiki};

const WORKERS: u32 = 4;
const USUAL_PORT: u16 = 8080;

fn main() -> Result<(), Box<dyn Error>> {
    let port = match std::env::var("PORT") {
        Ok(port) => Some(port.parse().map_err(|e| format!("PORT={port} is no port: {e}"))?),
        Err(_) => TcpListener::bind(("127.0.0.1", USUAL_PORT)).ok().map(|_| USUAL_PORT),
    };
    let mut wiki = Wiki::start(Kind::under_test(), WORKERS)?;
    let web = wiki.behind(Front::Nginx, 0, port)?;
    wiki::install(&mut Browser::new(web.url()));

    println!(
        "\nDokuWiki: {}/  (user {}, password {})",
        web.url(),
        wiki::USER,
        wiki::PASSWORD
    );
    println!(
        "{} serves the pool of {}",
        wiki.server.kind.name(),
        wiki.server.home.join("pool.conf").display()
    );
    println!("Ctrl-C ends it.\n");
    let outcome = follow(&wiki.server);
    drop(web);
    wiki.server.stop()?;
    outcome
}

/// Shows what the server says until somebody wants an end, or the server ends by itself.
fn follow(server: &Server) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut shown = 0;
        loop {
            tokio::select! {
                _ = interrupted.recv() => return Ok(()),
                _ = terminated.recv() => return Ok(()),
                _ = tick.tick() => {
                    let log = server.log();
                    print!("{}", &log[shown..]);
                    shown = log.len();
                    if server.has_ended() {
                        return Err("the server has ended by itself".into());
                    }
                }
            }
        }
    })
}
