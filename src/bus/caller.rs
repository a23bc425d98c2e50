//! Who may do what: root all, the pool's user may look, everybody else asks polkit.

use std::collections::HashMap;

use zbus::Connection;
use zbus::message::{Flags, Header};
use zbus::names::BusName;
use zbus::zvariant::Value;

/// What is not for everybody. The names are polkit's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// See what comes from requests.
    Inspect,
    /// Reload the pool.
    Reload,
}

impl Action {
    fn id(self) -> &'static str {
        match self {
            Action::Inspect => "org.phppool.inspect",
            Action::Reload => "org.phppool.reload",
        }
    }
}

/// Whether the caller may. `owner` is the pool's user, where that counts; `ask` lets polkit ask for a password, if the
/// caller has agreed to that.
pub async fn may(
    connection: &Connection,
    header: &Header<'_>,
    action: Action,
    pool: &str,
    owner: Option<u32>,
    ask: bool,
) -> bool {
    let Some(sender) = header.sender() else { return false };
    let Ok(bus) = zbus::fdo::DBusProxy::new(connection).await else {
        return false;
    };
    let uid = bus.get_connection_unix_user(BusName::from(sender.to_owned())).await;
    match uid {
        Ok(uid) if uid == 0 || Some(uid) == owner => true,
        Ok(_) => {
            let ask = ask && header.primary().flags().contains(Flags::AllowInteractiveAuth);
            polkit_says_yes(connection, sender.as_str(), action, pool, ask)
                .await
                .unwrap_or(false)
        }
        // It has gone.
        Err(_) => false,
    }
}

/// Without polkit nobody but root may.
async fn polkit_says_yes(
    connection: &Connection,
    sender: &str,
    action: Action,
    pool: &str,
    ask: bool,
) -> zbus::Result<bool> {
    let subject = ("system-bus-name", HashMap::from([("name", Value::from(sender))]));
    let details = HashMap::from([("pool", pool)]);
    let reply = connection
        .call_method(
            Some("org.freedesktop.PolicyKit1"),
            "/org/freedesktop/PolicyKit1/Authority",
            Some("org.freedesktop.PolicyKit1.Authority"),
            "CheckAuthorization",
            &(subject, action.id(), details, u32::from(ask), ""),
        )
        .await?;
    let (yes, _challenge, _details): (bool, bool, HashMap<String, String>) = reply.body().deserialize()?;
    Ok(yes)
}
