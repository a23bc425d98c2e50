//! The program is replaced under load: the new one takes over in the same process, and no client notices.

use std::thread;
use std::time::{Duration, Instant};

use crate::reloads::{Stage, descriptors};
use crate::schedule;
use crate::support::Case;
use crate::support::fcgi::PATIENCE;
use crate::support::server::Setup;

pub const CASES: &[Case] = &[("upgrade::under_load_it_loses_and_stalls_nothing", under_load)];

fn under_load() {
    let stage = Stage::new(Setup {
        name: "upgrades",
        workers: 6,
        ..Setup::BASE
    });
    schedule::own_program(&stage.server.home);
    let master = schedule::master(&stage.server);
    let phases = ["without upgrades", "during upgrades"];
    let (upgrades, before) = stage.under_load(phases, 30, 3, schedule::upgrade);
    assert_eq!(schedule::master(&stage.server), master, "it is the same process");
    // What was handed from program to program has not grown.
    let deadline = Instant::now() + PATIENCE;
    while descriptors(master) > before + 8 {
        assert!(
            Instant::now() < deadline,
            "after {upgrades} upgrades the master has {} descriptors for {before}",
            descriptors(master)
        );
        thread::sleep(Duration::from_millis(10));
    }
    stage.stop();
}
