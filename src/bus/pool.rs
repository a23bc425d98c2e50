//! The pools: their files, what their masters say, and where there is no master, what systemd says.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use zbus::Connection;
use zbus::zvariant::OwnedObjectPath;

use crate::api::{self, Answer, ApiError, Client, FRESH, PoolStatus, Question};
use crate::config::{self, LoadOptions};
use crate::generator;

/// A master that does not answer by then hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest reload that is waited for: the longest start of PHP, and a little.
const LONGEST_RELOAD: Duration = Duration::from_secs(660);

/// Where the pools are.
#[derive(Clone, Debug)]
pub struct Pools {
    files: PathBuf,
    run: PathBuf,
    said: Arc<Mutex<HashMap<String, Said>>>,
}

/// What the master of a pool has said last, and when. Who asks while it is asked waits for the same answer.
type Said = Arc<tokio::sync::Mutex<Option<(Instant, Option<Look>)>>>;

/// What is seen of a pool.
#[derive(Clone, Debug)]
pub enum Look {
    /// Its master answers.
    Awake(Box<PoolStatus>),
    /// There is no master.
    Away {
        /// What systemd says.
        state: &'static str,
        /// `pm` of its file.
        pm: &'static str,
    },
    /// Its master does not answer.
    Hung(String),
}

impl Pools {
    /// `files` are the pools', `run` has the control sockets.
    pub fn new(files: &Path, run: &Path) -> Self {
        Self {
            files: files.to_owned(),
            run: run.to_owned(),
            said: Arc::default(),
        }
    }

    /// The names of all pools, in order. A file that cannot name a unit is none.
    pub fn names(&self) -> Vec<String> {
        let files = generator::pool_files(&self.files);
        let names = files
            .iter()
            .filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned()));
        names.filter(|name| generator::unit::check_name(name).is_ok()).collect()
    }

    /// Whether there is such a pool.
    pub fn has(&self, name: &str) -> bool {
        generator::unit::check_name(name).is_ok() && self.file(name).is_file()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.join(format!("{name}.conf"))
    }

    /// Asks the master. Nothing is woken: a pool that sleeps has no control socket.
    async fn ask(&self, name: &str, question: Question, limit: Duration) -> Result<Answer, ApiError> {
        let path = self.control(name);
        let asked = tokio::task::spawn_blocking(move || Client::connect(&path)?.ask(&question, Some(limit)));
        asked.await.expect("the client does not panic")
    }

    fn control(&self, name: &str) -> PathBuf {
        self.run.join(name).join("control")
    }

    /// Looks at one pool.
    pub async fn look(&self, connection: &Connection, name: &str) -> Look {
        match self.status(name).await {
            Some(look) => look,
            None => {
                let units = Units::ask(connection, name).await;
                self.away(&units, name)
            }
        }
    }

    /// Looks at all.
    pub async fn look_at_all(&self, connection: &Connection) -> Vec<(String, Look)> {
        let names = self.names();
        let mut asked = JoinSet::new();
        for (index, name) in names.iter().cloned().enumerate() {
            let pools = self.clone();
            asked.spawn(async move { (index, pools.status(&name).await) });
        }
        let mut looks: Vec<Option<Look>> = names.iter().map(|_| None).collect();
        for (index, look) in asked.join_all().await {
            looks[index] = look;
        }
        let units = Units::ask(connection, "*").await;
        let looks = names.into_iter().zip(looks).map(|(name, look)| {
            let look = look.unwrap_or_else(|| self.away(&units, &name));
            (name, look)
        });
        looks.collect()
    }

    fn said(&self, name: &str) -> Said {
        let mut all = self.said.lock().expect("nobody panics with it");
        all.entry(name.to_owned()).or_default().clone()
    }

    /// What the master says, or has said a moment ago: everybody may ask as often as he likes. None: there is none.
    async fn status(&self, name: &str) -> Option<Look> {
        let said = self.said(name);
        let mut said = said.lock().await;
        match &*said {
            Some((at, look)) if at.elapsed() < FRESH => look.clone(),
            _ => {
                let look = self.status_now(name).await;
                *said = Some((Instant::now(), look.clone()));
                look
            }
        }
    }

    async fn status_now(&self, name: &str) -> Option<Look> {
        match self.ask(name, Question::Status, PATIENCE).await {
            Ok(Answer::Status { pools }) => {
                let found = pools.into_iter().find(|pool| pool.snapshot.pool == name);
                found.map(|status| Look::Awake(Box::new(status)))
            }
            Ok(other) => Some(Look::Hung(format!("an unexpected answer: {other:?}"))),
            Err(ApiError::Asleep(_) | ApiError::Down(_)) => None,
            Err(error) => Some(Look::Hung(error.to_string())),
        }
    }

    fn away(&self, units: &Units, name: &str) -> Look {
        let options = LoadOptions {
            env: HashMap::new(),
            ..LoadOptions::new(self.file(name))
        };
        let (pools, _) = config::read(&options);
        let pm = pools.first().map_or("", |pool| pool.pm.name());
        let state = units.state(name);
        Look::Away { state, pm }
    }

    /// Has the master read its file again and start new workers, as `systemctl reload` does.
    ///
    /// # Errors
    /// When it fails, or there is no master.
    pub async fn reload(&self, name: &str) -> Result<(), ApiError> {
        let path = self.control(name);
        let asked = tokio::task::spawn_blocking(move || api::reload(&path, true, Some(LONGEST_RELOAD)));
        let result = asked.await.expect("the client does not panic");
        // Who has reloaded it sees the difference.
        self.said(name).lock().await.take();
        result
    }

    /// What the workers do that have a request.
    ///
    /// # Errors
    /// When there is no master, or it does not answer.
    pub async fn trace(&self, name: &str, depth: u32) -> Result<Answer, ApiError> {
        self.ask(name, Question::Trace { depth }, PATIENCE).await
    }
}

/// What systemd says of the pools' units: active state and substate of each.
struct Units(HashMap<String, (String, String)>);

impl Units {
    /// `pool` is a name, or `*` for all. Without a systemd on the bus nothing is known.
    async fn ask(connection: &Connection, pool: &str) -> Self {
        type Unit = (
            String,
            String,
            String,
            String,
            String,
            String,
            OwnedObjectPath,
            u32,
            String,
            OwnedObjectPath,
        );
        let patterns = ["service", "socket"].map(|kind| format!("php-pool@{pool}.{kind}"));
        let reply = connection
            .call_method(
                Some("org.freedesktop.systemd1"),
                "/org/freedesktop/systemd1",
                Some("org.freedesktop.systemd1.Manager"),
                "ListUnitsByPatterns",
                &(Vec::<String>::new(), patterns.to_vec()),
            )
            .await;
        let units = reply.and_then(|reply| reply.body().deserialize::<Vec<Unit>>());
        let units = units.unwrap_or_default().into_iter();
        Self(
            units
                .map(|(name, _, _, active, sub, ..)| (name, (active, sub)))
                .collect(),
        )
    }

    fn state(&self, pool: &str) -> &'static str {
        let of = |kind| {
            let unit = self.0.get(&format!("php-pool@{pool}.{kind}"));
            unit.map_or(("", ""), |(active, sub)| (active.as_str(), sub.as_str()))
        };
        match (of("service"), of("socket")) {
            // Its last start failed, and the next one comes by itself.
            (("failed", _) | ("activating", "auto-restart" | "auto-restart-queued"), _) => "failed",
            (("activating" | "active" | "reloading", _), _) => "starting",
            (("deactivating", _), _) => "stopping",
            (_, ("active", _)) => "asleep",
            _ => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    #[test]
    fn however_often_everybody_asks_a_master_is_asked_twice_a_second() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("www")).unwrap();
        let listener = UnixListener::bind(dir.path().join("www/control")).unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = BufReader::new(&stream).read_line(&mut String::new());
                count.fetch_add(1, SeqCst);
                let answer = api::Versioned {
                    version: api::VERSION,
                    message: Answer::Pong,
                };
                let _ = writeln!(&stream, "{}", serde_json::to_string(&answer).unwrap());
            }
        });
        let pools = Pools::new(dir.path(), dir.path());
        let began = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..100 {
                let pools = pools.clone();
                tasks.spawn(async move { pools.status("www").await });
            }
            assert!(
                tasks
                    .join_all()
                    .await
                    .iter()
                    .all(|look| matches!(look, Some(Look::Hung(_))))
            );
            let before = asked.load(SeqCst);
            assert!(u128::from(before) <= 1 + began.elapsed().as_millis() / FRESH.as_millis());
            // A reload asks the master, and whoever asks then gets a new answer.
            let _ = pools.reload("www").await;
            pools.status("www").await;
            assert_eq!(asked.load(SeqCst), before + 2);
        });
    }

    #[test]
    fn a_pool_without_a_master_is_in_the_state_that_its_units_show() {
        let state = |service: (&str, &str), socket: &str| {
            let units = [
                ("php-pool@www.service", service),
                ("php-pool@www.socket", (socket, "")),
                ("php-pool@other.socket", ("active", "")),
            ];
            let units = units.map(|(name, (active, sub))| (name.to_owned(), (active.to_owned(), sub.to_owned())));
            Units(units.into()).state("www")
        };
        assert_eq!(state(("inactive", "dead"), "active"), "asleep");
        assert_eq!(state(("inactive", "dead"), "inactive"), "stopped");
        assert_eq!(state(("failed", "failed"), "active"), "failed");
        assert_eq!(state(("activating", "auto-restart"), "active"), "failed");
        assert_eq!(state(("activating", "start"), "active"), "starting");
        assert_eq!(state(("deactivating", "stop-sigterm"), "active"), "stopping");
        assert_eq!(Units(HashMap::new()).state("www"), "stopped");
    }
}
