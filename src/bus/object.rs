//! What the pools look like on the bus: paths, properties, methods, signals, introspection.
//!
//! Written by hand over zbus's messages, and not with its object server: the objects are those of a folder that changes,
//! and all properties of an answer are of one look at the master.

use std::collections::HashMap;
use std::fmt::Write as _;

use thiserror::Error;
use zbus::message::{Flags, Header};
use zbus::names::InterfaceName;
use zbus::zvariant::{DynamicType, ObjectPath, Value};
use zbus::{Connection, Message};

use super::caller::{Action, may};
use super::pool::{Look, Pools};
use crate::api::{Answer, ApiError, Happened};
use crate::scoreboard::Stage;
use crate::status::ProcessStatus;
use crate::trace::slowlog::calls;

/// The interface of a pool.
const POOL: &str = "org.phppool.Pool1";

/// The object manager's path.
const ROOT: &str = "/org/phppool";

/// Above the pools.
const POOLS: &str = "/org/phppool/pool";

/// Most calls of a backtrace.
const MOST_CALLS: u32 = 1000;

/// Its definition, as the package installs it.
const DEFINITION: &str = include_str!("../../units/dbus/org.phppool.Pool1.xml");

const STANDARD: &str = r#" <interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect"><arg name="data" type="s" direction="out"/></method>
 </interface>
 <interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
 </interface>
"#;

const MANAGER: &str = r#" <interface name="org.freedesktop.DBus.ObjectManager">
  <method name="GetManagedObjects"><arg name="objects" type="a{oa{sa{sv}}}" direction="out"/></method>
 </interface>
"#;

const PROPERTIES: &str = r#" <interface name="org.freedesktop.DBus.Properties">
  <method name="Get">
   <arg name="interface" type="s" direction="in"/><arg name="name" type="s" direction="in"/><arg name="value" type="v" direction="out"/>
  </method>
  <method name="GetAll">
   <arg name="interface" type="s" direction="in"/><arg name="values" type="a{sv}" direction="out"/>
  </method>
  <method name="Set">
   <arg name="interface" type="s" direction="in"/><arg name="name" type="s" direction="in"/><arg name="value" type="v" direction="in"/>
  </method>
 </interface>
"#;

/// Why a call is answered with an error.
#[derive(Debug, Error)]
enum Problem {
    #[error("there is no object {0}")]
    Object(String),
    #[error("there is no interface {0} here")]
    Interface(String),
    #[error("there is no method {0}")]
    Method(String),
    #[error("there is no property {0}")]
    Property(String),
    #[error("properties of a pool are read, not written; its file is what is edited")]
    ReadOnly,
    #[error("the arguments are not understood: {0}")]
    Arguments(#[source] zbus::Error),
    #[error("that is for {0} and those whom polkit lets")]
    Denied(&'static str),
    #[error("nothing runs of the pool {0}: it is stopped, asleep until its next request, or does not start")]
    NotRunning(String),
    #[error("the master does not answer: {0}")]
    Hung(String),
    #[error("the reload failed, the pool serves on as it was: {0}")]
    Reload(String),
    #[error("the process {0} is no worker of the pool with a request")]
    NoRequest(u32),
    #[error("{0}")]
    Trace(String),
    #[error(transparent)]
    Bus(#[from] zbus::Error),
}

impl Problem {
    fn name(&self) -> &'static str {
        match self {
            Problem::Object(_) => "org.freedesktop.DBus.Error.UnknownObject",
            Problem::Interface(_) => "org.freedesktop.DBus.Error.UnknownInterface",
            Problem::Method(_) => "org.freedesktop.DBus.Error.UnknownMethod",
            Problem::Property(_) => "org.freedesktop.DBus.Error.UnknownProperty",
            Problem::ReadOnly => "org.freedesktop.DBus.Error.PropertyReadOnly",
            Problem::Arguments(_) => "org.freedesktop.DBus.Error.InvalidArgs",
            Problem::Denied(_) => "org.freedesktop.DBus.Error.AccessDenied",
            Problem::NotRunning(_) => "org.phppool.Error.NotRunning",
            Problem::Hung(_) => "org.phppool.Error.Hung",
            Problem::Reload(_) => "org.phppool.Error.ReloadFailed",
            Problem::NoRequest(_) => "org.phppool.Error.NoRequest",
            Problem::Trace(_) | Problem::Bus(_) => "org.freedesktop.DBus.Error.Failed",
        }
    }

    fn of(error: ApiError, pool: &str) -> Self {
        match error {
            ApiError::Asleep(_) | ApiError::Down(_) => Problem::NotRunning(pool.to_owned()),
            other => Problem::Hung(other.to_string()),
        }
    }
}

type Properties = HashMap<&'static str, Value<'static>>;

/// Answers calls.
pub struct Service {
    connection: Connection,
    pools: Pools,
}

/// What a path stands for.
enum Object {
    /// A step on the way to the pools; the names below it.
    Step(Vec<String>),
    Pool(String),
}

impl Service {
    /// For calls on a connection.
    pub fn new(connection: Connection, pools: Pools) -> Self {
        Self { connection, pools }
    }

    /// Answers a call, whatever becomes of it.
    pub async fn answer(&self, message: &Message) {
        let header = message.header();
        let Err(problem) = self.dispatch(message, &header).await else {
            return;
        };
        if !header.primary().flags().contains(Flags::NoReplyExpected) {
            // Who asked may have gone.
            let _ = self
                .connection
                .reply_error(&header, problem.name(), &problem.to_string())
                .await;
        }
    }

    /// Says on the bus what has happened. What came from a request is not for all who listen.
    pub async fn tell(&self, event: &Happened) {
        let result = match event {
            Happened::WorkerExited { pool, pid, how, .. } => {
                self.signal(pool, "WorkerExited", &(pid.unsigned_abs(), how.as_str()))
                    .await
            }
            Happened::SlowRequest {
                pool,
                pid,
                milliseconds,
                ..
            } => {
                self.signal(pool, "SlowRequest", &(pid.unsigned_abs(), *milliseconds))
                    .await
            }
            Happened::MaxChildrenReached { pool, limit } => self.signal(pool, "MaxChildrenReached", limit).await,
        };
        // The loop sees for itself that the bus has gone.
        drop(result);
    }

    async fn signal<B>(&self, pool: &str, name: &str, body: &B) -> zbus::Result<()>
    where
        B: serde::Serialize + DynamicType,
    {
        let to_all = None::<zbus::names::BusName<'_>>;
        self.connection
            .emit_signal(to_all, path_of(pool), POOL, name, body)
            .await
    }

    async fn reply<B>(&self, header: &Header<'_>, body: &B) -> Result<(), Problem>
    where
        B: serde::Serialize + DynamicType,
    {
        if header.primary().flags().contains(Flags::NoReplyExpected) {
            return Ok(());
        }
        Ok(self.connection.reply(header, body).await?)
    }

    async fn dispatch(&self, message: &Message, header: &Header<'_>) -> Result<(), Problem> {
        let path = header.path().map_or("/", |path| path.as_str());
        let member = header.member().map_or("", |member| member.as_str());
        let interface = header.interface().map(InterfaceName::as_str);
        let object = self.object(path).ok_or_else(|| Problem::Object(path.to_owned()))?;
        match (interface, &object) {
            (Some("org.freedesktop.DBus.Peer"), _) if member == "Ping" => self.reply(header, &()).await,
            (Some("org.freedesktop.DBus.Introspectable"), object) if member == "Introspect" => {
                self.reply(header, &introspect(path, object)).await
            }
            (Some("org.freedesktop.DBus.ObjectManager"), _) if path == ROOT && member == "GetManagedObjects" => {
                self.managed_objects(header).await
            }
            (Some("org.freedesktop.DBus.Properties"), Object::Pool(name)) => {
                self.properties(message, header, name, member).await
            }
            (Some(POOL) | None, Object::Pool(name)) => self.method(message, header, name, member).await,
            (
                None
                | Some(
                    "org.freedesktop.DBus.Peer"
                    | "org.freedesktop.DBus.Introspectable"
                    | "org.freedesktop.DBus.ObjectManager",
                ),
                _,
            ) => Err(Problem::Method(member.to_owned())),
            (Some(other), _) => Err(Problem::Interface(other.to_owned())),
        }
    }

    fn object(&self, path: &str) -> Option<Object> {
        let step = |below: &str| Some(Object::Step(vec![below.to_owned()]));
        match path {
            "/" => step("org"),
            "/org" => step("phppool"),
            ROOT => step("pool"),
            POOLS => Some(Object::Step(
                self.pools.names().iter().map(|name| escape(name)).collect(),
            )),
            path => {
                let name = unescape(path.strip_prefix(POOLS)?.strip_prefix('/')?)?;
                self.pools.has(&name).then_some(Object::Pool(name))
            }
        }
    }

    async fn managed_objects(&self, header: &Header<'_>) -> Result<(), Problem> {
        let looks = self.pools.look_at_all(&self.connection).await;
        let objects: HashMap<ObjectPath<'_>, HashMap<&str, Properties>> = looks
            .iter()
            .map(|(name, look)| (path_of(name), HashMap::from([(POOL, properties(name, look))])))
            .collect();
        self.reply(header, &objects).await
    }

    async fn properties(
        &self,
        message: &Message,
        header: &Header<'_>,
        pool: &str,
        member: &str,
    ) -> Result<(), Problem> {
        let body = message.body();
        let known = |interface: &str| match interface {
            POOL | "" => Ok(()),
            other => Err(Problem::Interface(other.to_owned())),
        };
        match member {
            "Get" => {
                let (interface, property): (&str, &str) = body.deserialize().map_err(Problem::Arguments)?;
                known(interface)?;
                if !DEFINITION.contains(&format!("<property name=\"{property}\"")) {
                    return Err(Problem::Property(property.to_owned()));
                }
                let look = self.pools.look(&self.connection, pool).await;
                match (properties(pool, &look).remove(property), look) {
                    (Some(value), _) => self.reply(header, &value).await,
                    (None, Look::Hung(reason)) => Err(Problem::Hung(reason)),
                    (None, _) => Err(Problem::Property(property.to_owned())),
                }
            }
            "GetAll" => {
                known(body.deserialize().map_err(Problem::Arguments)?)?;
                let look = self.pools.look(&self.connection, pool).await;
                self.reply(header, &properties(pool, &look)).await
            }
            "Set" => Err(Problem::ReadOnly),
            other => Err(Problem::Method(other.to_owned())),
        }
    }

    async fn method(&self, message: &Message, header: &Header<'_>, pool: &str, member: &str) -> Result<(), Problem> {
        match member {
            "ListWorkers" => {
                let (workers, owner) = match self.pools.look(&self.connection, pool).await {
                    Look::Awake(status) => (status.snapshot.processes, status.uid),
                    Look::Away { .. } => (Vec::new(), None),
                    Look::Hung(reason) => return Err(Problem::Hung(reason)),
                };
                let requests = may(&self.connection, header, Action::Inspect, pool, owner, false).await;
                let workers: Vec<_> = workers.into_iter().map(|worker| describe(worker, requests)).collect();
                self.reply(header, &workers).await
            }
            "Reload" => {
                if !may(&self.connection, header, Action::Reload, pool, None, true).await {
                    return Err(Problem::Denied("root"));
                }
                match self.pools.reload(pool).await {
                    Ok(()) => self.reply(header, &()).await,
                    Err(ApiError::Refused(reason)) => Err(Problem::Reload(reason)),
                    Err(error) => Err(Problem::of(error, pool)),
                }
            }
            "Backtrace" => {
                let pid: u32 = message.body().deserialize().map_err(Problem::Arguments)?;
                let owner = match self.pools.look(&self.connection, pool).await {
                    Look::Awake(status) => status.uid,
                    _ => None,
                };
                if !may(&self.connection, header, Action::Inspect, pool, owner, true).await {
                    return Err(Problem::Denied("root, the pool's user"));
                }
                let answer = self.pools.trace(pool, MOST_CALLS).await;
                let Answer::Traces { traces } = answer.map_err(|error| Problem::of(error, pool))? else {
                    return Err(Problem::Hung("an unexpected answer".to_owned()));
                };
                let found = traces.into_iter().find(|traced| u32::try_from(traced.pid) == Ok(pid));
                let traced = found.ok_or(Problem::NoRequest(pid))?;
                match traced.backtrace {
                    Some(trace) => self.reply(header, &calls(&trace, MOST_CALLS)).await,
                    None => Err(Problem::Trace(traced.problem.unwrap_or_default())),
                }
            }
            other => Err(Problem::Method(other.to_owned())),
        }
    }
}

/// All that is known of a pool: of one whose master hangs only that.
fn properties(name: &str, look: &Look) -> Properties {
    let mut all: Properties = HashMap::from([("Name", Value::from(name.to_owned()))]);
    let (state, pm, generation, pool) = match look {
        Look::Awake(status) => (
            status.state.name(),
            status.snapshot.pm.name(),
            status.generation,
            Some(&status.snapshot),
        ),
        Look::Away { state, pm } => (*state, *pm, 0, None),
        Look::Hung(_) => {
            all.insert("State", Value::from("hung"));
            return all;
        }
    };
    let count = |of: fn(&crate::status::Snapshot) -> u32| Value::from(pool.map_or(0, of));
    let total = |of: fn(&crate::status::Snapshot) -> u64| Value::from(pool.map_or(0, of));
    all.extend([
        ("State", Value::from(state)),
        ("ProcessManager", Value::from(pm)),
        ("Generation", Value::from(generation)),
        ("StartTime", total(|pool| pool.start_time.max(0).unsigned_abs())),
        ("AcceptedConnections", total(|pool| pool.accepted)),
        ("ListenQueue", count(|pool| pool.listen_queue)),
        ("MaxListenQueue", count(|pool| pool.max_listen_queue)),
        ("ListenQueueLength", count(|pool| pool.listen_queue_len)),
        ("IdleProcesses", count(|pool| pool.idle)),
        ("ActiveProcesses", count(|pool| pool.active)),
        ("TotalProcesses", count(|pool| pool.idle.saturating_add(pool.active))),
        ("MaxActiveProcesses", count(|pool| pool.max_active)),
        ("MaxChildrenReached", count(|pool| pool.max_children_reached)),
        ("SlowRequests", total(|pool| pool.slow_requests)),
    ]);
    all
}

fn describe(worker: ProcessStatus, requests: bool) -> Properties {
    let state = match worker.stage {
        Stage::None => "starting",
        Stage::Idle => "idle",
        _ => "active",
    };
    let mut all = HashMap::from([
        ("Pid", Value::from(worker.pid.unsigned_abs())),
        ("State", Value::from(state)),
        ("Requests", Value::from(worker.requests)),
        ("StartTime", Value::from(worker.start_time.max(0).unsigned_abs())),
        ("RequestDuration", Value::from(worker.request_duration)),
        ("LastRequestCPU", Value::from(worker.last_request_cpu)),
        ("LastRequestMemory", Value::from(worker.last_request_memory)),
    ]);
    if requests {
        // A string on the bus holds no NUL.
        let text = |text: String| Value::from(text.replace('\0', "\u{fffd}"));
        all.extend([
            ("Method", text(worker.method)),
            ("URI", text(worker.uri)),
            ("Query", text(worker.query)),
            ("Script", text(worker.script)),
            ("User", text(worker.user)),
            ("ContentLength", Value::from(worker.content_length)),
        ]);
    }
    all
}

fn introspect(path: &str, object: &Object) -> String {
    let mut text = String::from("<node>\n");
    text += STANDARD;
    match object {
        Object::Step(below) => {
            if path == ROOT {
                text += MANAGER;
            }
            for name in below {
                let _ = writeln!(text, " <node name=\"{name}\"/>");
            }
        }
        Object::Pool(_) => {
            text += PROPERTIES;
            let from = DEFINITION.find(" <interface").expect("it defines one");
            text += &DEFINITION[from..DEFINITION.rfind("</node>").expect("it ends")];
        }
    }
    text + "</node>\n"
}

fn path_of(pool: &str) -> ObjectPath<'static> {
    ObjectPath::try_from(format!("{POOLS}/{}", escape(pool))).expect("an escaped name is a label")
}

/// A name as a label of a path, as sd_bus_path_encode() does it: what is no letter and no digit, and a digit at the
/// beginning, becomes `_` and its code.
fn escape(name: &str) -> String {
    let mut label = String::new();
    for (index, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => label.push(char::from(byte)),
            b'0'..=b'9' if index > 0 => label.push(char::from(byte)),
            byte => write!(label, "_{byte:02x}").expect("a String takes everything"),
        }
    }
    label
}

/// The name of a label that [`escape`] has made.
fn unescape(label: &str) -> Option<String> {
    let mut name = Vec::new();
    let mut bytes = label.bytes();
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'_' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    // One object has one path.
    String::from_utf8(name).ok().filter(|name| escape(name) == label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_its_label_stand_for_each_other() {
        for (name, label) in [
            ("www", "www"),
            ("my-app.v2", "my_2dapp_2ev2"),
            ("1st_one", "_31st_5fone"),
        ] {
            assert_eq!(escape(name), label);
            assert_eq!(unescape(label).as_deref(), Some(name));
        }
        for label in ["my_2Dapp", "_77ww", "a_2", "a_zz", "a-b", "_c3", "_c3_28"] {
            assert_eq!(unescape(label), None, "{label}");
        }
    }

    #[test]
    fn the_definition_names_each_property_and_its_type() {
        let look = Look::Away {
            state: "asleep",
            pm: "static",
        };
        let all = properties("www", &look);
        for (name, value) in &all {
            let line = format!("<property name=\"{name}\" type=\"{}\"", value.value_signature());
            assert!(DEFINITION.contains(&line), "{line}");
        }
        assert_eq!(DEFINITION.matches("<property ").count(), all.len());
    }
}
