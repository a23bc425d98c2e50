//! Users and groups of a pool, resolved once by the master: names mean nothing inside a chroot.
#![forbid(unsafe_code)]

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::Pool;

/// Why a pool's user cannot be had.
#[derive(Debug, Error)]
pub enum UserError {
    /// No such user.
    #[error("cannot get uid for user '{0}'")]
    Uid(String),
    /// No such group.
    #[error("cannot get gid for group '{0}'")]
    Gid(String),
    /// Root without `-R`.
    #[error("please specify user and group other than root")]
    Root,
}

/// Who the workers of a pool are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User, group and supplementary groups to become; None: stay.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// `USER` of their environment.
    pub name: Option<String>,
    /// `HOME` of their environment.
    pub home: Option<Vec<u8>>,
}

/// The uid that a name or digits mean.
///
/// # Errors
/// When there is no such user.
pub fn uid(name: &str) -> Result<u32, UserError> {
    match digits(name) {
        Some(uid) => Ok(uid),
        None => find_user(name).map(|user| user.uid.as_raw()),
    }
}

/// The gid that a name or digits mean.
///
/// # Errors
/// When there is no such group.
pub fn gid(name: &str) -> Result<u32, UserError> {
    match digits(name) {
        Some(gid) => Ok(gid),
        None => {
            let found = Group::from_name(name).ok().flatten();
            found
                .map(|group| group.gid.as_raw())
                .ok_or_else(|| UserError::Gid(name.to_owned()))
        }
    }
}

/// The user of a name that is no number.
///
/// # Errors
/// When there is none.
pub fn find_user(name: &str) -> Result<User, UserError> {
    User::from_name(name)
        .ok()
        .flatten()
        .ok_or_else(|| UserError::Uid(name.to_owned()))
}

/// All digits: a number, not a name.
pub fn digits(name: &str) -> Option<u32> {
    name.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| name.parse().ok())
        .flatten()
}

/// Resolves the user and group of a pool.
///
/// # Errors
/// When one does not exist, or is root without `allow_root`.
pub fn resolve(pool: &Pool, allow_root: bool) -> Result<Identity, UserError> {
    if !Uid::effective().is_root() {
        let me = User::from_uid(Uid::effective()).ok().flatten();
        return Ok(Identity {
            user: None,
            name: me.as_ref().map(|user| user.name.clone()),
            home: me.map(|user| user.dir.into_os_string().into_encoded_bytes()),
        });
    }
    let Some(name) = &pool.user else {
        // Only with -R: the configuration is refused otherwise.
        let user = pool
            .group
            .as_deref()
            .map(gid)
            .transpose()?
            .map(|gid| (0, gid, vec![gid]));
        return Ok(Identity {
            user,
            ..Identity::default()
        });
    };
    let number = digits(name);
    let known = match number {
        Some(uid) => User::from_uid(Uid::from_raw(uid)).ok().flatten(),
        None => Some(find_user(name)?),
    };
    let uid = number
        .or(known.as_ref().map(|user| user.uid.as_raw()))
        .unwrap_or_default();
    let primary = known.as_ref().map(|user| user.gid.as_raw());
    let gid = match &pool.group {
        Some(group) => gid(group)?,
        None => primary.unwrap_or(Gid::current().as_raw()),
    };
    if !allow_root && (uid == 0 || gid == 0) {
        return Err(UserError::Root);
    }
    let account = known.as_ref().and_then(|user| CString::new(user.name.as_str()).ok());
    let groups = account
        .and_then(|account| nix::unistd::getgrouplist(&account, Gid::from_raw(gid)).ok())
        .map_or_else(|| vec![gid], |groups| groups.into_iter().map(Gid::as_raw).collect());
    let named = known.filter(|_| number.is_none());
    Ok(Identity {
        user: Some((uid, gid, groups)),
        name: named.as_ref().map(|user| user.name.clone()),
        home: named.map(|user| user.dir.into_os_string().into_encoded_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(user: Option<&str>, group: Option<&str>) -> Pool {
        Pool {
            user: user.map(str::to_owned),
            group: group.map(str::to_owned),
            ..Pool::default()
        }
    }

    #[test]
    fn digits_are_a_number_and_nothing_else_is() {
        assert_eq!(
            (digits("12"), digits("1a"), digits("99999999999")),
            (Some(12), None, None)
        );
        assert_eq!(gid("4242").unwrap(), 4242);
        assert_eq!(
            uid("nosuch").unwrap_err().to_string(),
            "cannot get uid for user 'nosuch'"
        );
        assert_eq!(
            gid("nosuch").unwrap_err().to_string(),
            "cannot get gid for group 'nosuch'"
        );
    }

    #[test]
    fn a_user_brings_groups_and_home() {
        if !Uid::effective().is_root() {
            assert_eq!(resolve(&pool(Some("nosuch"), None), false).unwrap().user, None);
            return;
        }
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let named = resolve(&pool(Some("nobody"), None), false).unwrap();
        let (uid, gid, groups) = named.user.unwrap();
        assert_eq!((uid, gid), (nobody.uid.as_raw(), nobody.gid.as_raw()));
        assert!(groups.contains(&gid));
        assert_eq!(named.name.as_deref(), Some("nobody"));
        let numbered = resolve(&pool(Some(&uid.to_string()), None), false).unwrap();
        assert_eq!((numbered.user, numbered.name), (Some((uid, gid, groups)), None));
        assert!(matches!(
            resolve(&pool(Some("root"), None), false),
            Err(UserError::Root)
        ));
        assert!(matches!(
            resolve(&pool(Some("nobody"), Some("0")), false),
            Err(UserError::Root)
        ));
        assert_eq!(resolve(&pool(None, None), true).unwrap().user, None);
    }
}
