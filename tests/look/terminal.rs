//! A program in a terminal of its own: what it shows, by another terminal's reading of it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};

use crate::{PATIENCE, wait_for};

pub struct Terminal {
    child: Child,
    keys: File,
    parser: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    /// Runs a program in a terminal of this size.
    pub fn run(mut command: Command, rows: u16, columns: u16) -> Self {
        let window = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&window), None).unwrap();
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command
            .stdin(end(&pty.slave))
            .stdout(end(&pty.slave))
            .stderr(end(&pty.slave));
        let child = command.env("TERM", "xterm-256color").spawn().unwrap();
        drop((command, pty.slave));
        let size = |cells| NonZero::new(cells).expect("a terminal has a size");
        let parser = Arc::new(Mutex::new(vt100::Parser::new(size(rows), size(columns), 0)));
        let (mut screen, keys) = (File::from(pty.master.try_clone().unwrap()), File::from(pty.master));
        let shown = parser.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                shown.lock().unwrap().process(&buffer[..count]);
            }
        });
        Self { child, keys, parser }
    }

    pub fn text(&self) -> String {
        self.parser.lock().unwrap().screen().contents()
    }

    /// Waits until the screen shows a text.
    pub fn shows(&self, text: &str) {
        self.shows_that(&format!("{text:?}"), |screen| screen.contains(text));
    }

    pub fn shows_that(&self, what: &str, wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.text()) {
            assert!(
                Instant::now() < deadline,
                "not within {PATIENCE:?}: {what} on the screen:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for its end; its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        wait_for("the program's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
