//! Addresses to listen on and networks to listen to.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::model::{Listen, Network};

/// Size of `sun_path`, bytes: the path of a unix socket and its end.
const SUN_PATH: usize = 108;

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not from 1 to 65535; the words are php-fpm's.
    #[error("invalid port value '{0}'")]
    Port(String),
    /// `:9000`
    #[error("'{0}' names no host; a port alone listens on all addresses")]
    NoHost(String),
    /// Neither a name nor an address.
    #[error("'{0}' is neither a host name nor an address")]
    Host(String),
    /// php-fpm would look a host of that name up.
    #[error("the path '{0}' of a unix socket cannot hold a colon")]
    Colon(String),
    /// The kernel's limit: php-fpm 8.2 cuts without a word, later ones refuse in these.
    #[error(
        "cannot bind to UNIX socket '{0}' as path is too long (found length: {length}, maximal length: {SUN_PATH})",
        length = .0.len()
    )]
    TooLong(String),
}

/// Reads an address as php-fpm does: what holds a colon is `host:port`, what is all digits a port, the rest the path of
/// a unix socket, below `base` when it is relative.
pub fn parse(text: &str, base: &Path) -> Result<Listen, AddressError> {
    if text.starts_with('/') && text.contains(':') {
        return Err(AddressError::Colon(text.to_owned()));
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        let port = parse_port(port)?;
        let host = parse_host(host).ok_or_else(|| match host {
            "" => AddressError::NoHost(text.to_owned()),
            _ => AddressError::Host(host.to_owned()),
        })?;
        return Ok(Listen::Tcp { host, port });
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return parse_port(text).map(Listen::Port);
    }
    let path = match text.starts_with('/') {
        true => PathBuf::from(text),
        false => PathBuf::from(format!("{}/{text}", base.display())),
    };
    match path.as_os_str().len() {
        length if length >= SUN_PATH => Err(AddressError::TooLong(path.display().to_string())),
        _ => Ok(Listen::Unix(path)),
    }
}

/// What systemd makes of it when it listens there for a pool: it takes /var/run for /run, and no name of a host but the one that needs
/// no resolver.
pub fn held(address: &Listen) -> Listen {
    match address {
        Listen::Unix(path) => match path.strip_prefix("/var/run") {
            Ok(rest) => Listen::Unix(Path::new("/run").join(rest)),
            Err(_) => address.clone(),
        },
        Listen::Tcp { host, port } if host.eq_ignore_ascii_case("localhost") => Listen::Tcp {
            host: "127.0.0.1".to_owned(),
            port: *port,
        },
        Listen::Tcp { .. } | Listen::Port(_) => address.clone(),
    }
}

fn parse_port(text: &str) -> Result<u16, AddressError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if port > 0 && digits => Ok(port),
        _ => Err(AddressError::Port(text.to_owned())),
    }
}

/// A host without its brackets.
fn parse_host(text: &str) -> Option<String> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if bracketed.is_some() || text.contains(':') {
        let host = bracketed.unwrap_or(text);
        // A link-local address carries its interface: fe80::1%eth0.
        let address = host.split_once('%').map_or(host, |(address, _)| address);
        return address.parse::<Ipv6Addr>().ok().map(|_| host.to_owned());
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte) || !byte.is_ascii();
    (!text.is_empty() && text.bytes().all(is_name)).then(|| text.to_owned())
}

/// Reads `listen.allowed_clients`: its networks, and the words that are none. An empty word is none either: a list that is empty,
/// as a variable may be that was not set, allows nobody.
pub fn parse_networks(text: &str) -> (Vec<Network>, Vec<String>) {
    let mut networks = Vec::new();
    let mut wrong = Vec::new();
    for word in text.split(',').map(str::trim) {
        match parse_network(word) {
            Some(network) => networks.push(network),
            None => wrong.push(word.to_owned()),
        }
    }
    (networks, wrong)
}

fn parse_network(word: &str) -> Option<Network> {
    let (address, prefix) = match word.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
        None => (word, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(bits);
    if prefix > bits {
        return None;
    }
    // Clients that come over IPv4 are seen as such: ::ffff:192.0.2.1 is 192.0.2.1.
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) if bits == 128 && prefix >= 96 => Some(Network {
            address: v4,
            prefix: prefix - 96,
        }),
        _ => Some(Network { address, prefix }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Listen, AddressError> {
        parse(text, Path::new("/usr"))
    }

    fn tcp(host: &str, port: u16) -> Result<Listen, AddressError> {
        Ok(Listen::Tcp {
            host: host.into(),
            port,
        })
    }

    #[test]
    fn addresses_are_read_as_php_fpm_does() {
        assert_eq!(parsed("9000"), Ok(Listen::Port(9000)));
        assert_eq!(parsed("127.0.0.1:9000"), tcp("127.0.0.1", 9000));
        assert_eq!(parsed("localhost:9000"), tcp("localhost", 9000));
        assert_eq!(parsed("[::1]:9000"), tcp("::1", 9000));
        assert_eq!(parsed("::1:9000"), tcp("::1", 9000));
        assert_eq!(parsed("[fe80::1%lo]:80"), tcp("fe80::1%lo", 80));
        assert_eq!(parsed("/run/www.sock"), Ok(Listen::Unix("/run/www.sock".into())));
        assert_eq!(parsed("www.sock"), Ok(Listen::Unix("/usr/www.sock".into())));
    }

    #[test]
    fn what_php_fpm_bends_is_refused() {
        assert_eq!(parsed("69002"), Err(AddressError::Port("69002".into())));
        assert_eq!(parsed("0"), Err(AddressError::Port("0".into())));
        assert_eq!(parsed("127.0.0.1:9000x"), Err(AddressError::Port("9000x".into())));
        assert_eq!(parsed("127.0.0.1:"), Err(AddressError::Port("".into())));
        assert_eq!(parsed("127.0.0.1:+9"), Err(AddressError::Port("+9".into())));
        assert_eq!(parsed(":9000"), Err(AddressError::NoHost(":9000".into())));
        assert_eq!(parsed("*:9000"), Err(AddressError::Host("*".into())));
        assert_eq!(parsed("::1"), Err(AddressError::Host(":".into())));
        assert_eq!(parsed("/run/a:b"), Err(AddressError::Colon("/run/a:b".into())));
        let path = format!("/{}", "x".repeat(106));
        assert_eq!(parsed(&path), Ok(Listen::Unix(path.clone().into())));
        assert!(matches!(parsed(&format!("{path}x")), Err(AddressError::TooLong(_))));
    }

    #[test]
    fn networks_are_read() {
        let (networks, wrong) = parse_networks("127.0.0.1, 10.0.0.0/8,::1 ,2001:db8::/32,::ffff:192.0.2.1");
        let network = |address: &str, prefix| Network {
            address: address.parse().unwrap(),
            prefix,
        };
        assert_eq!(
            networks,
            [
                network("127.0.0.1", 32),
                network("10.0.0.0", 8),
                network("::1", 128),
                network("2001:db8::", 32),
                network("192.0.2.1", 32)
            ]
        );
        assert!(wrong.is_empty());
        let (networks, wrong) = parse_networks("xxx,10.0.0.0/33,::1/129,1.2.3");
        assert!(networks.is_empty());
        assert_eq!(wrong, ["xxx", "10.0.0.0/33", "::1/129", "1.2.3"]);
        assert_eq!(parse_networks(""), (vec![], vec![String::new()]));
    }
}
