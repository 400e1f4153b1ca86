//! How a worker of a service is named: by its port, or by its address where two have the same port.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Names a worker: `8000`, or `127.0.0.4:8000`. In JSON a number or a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The only worker of its service with this port, 1-65535.
    Port(u16),
    /// The worker at this address.
    Address(SocketAddr),
}

impl At {
    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Port(port) => *port,
            Self::Address(at) => at.port(),
        }
    }

    /// Whether a worker at this address may be meant.
    #[must_use]
    pub fn is(&self, worker: SocketAddr) -> bool {
        match self {
            Self::Port(port) => *port == worker.port(),
            Self::Address(at) => one_spelling(*at) == one_spelling(worker),
        }
    }
}

/// `::1` and `127.0.0.1` lead to one worker: no two of a configuration have one port of both.
fn one_spelling(at: SocketAddr) -> SocketAddr {
    match at.ip() {
        IpAddr::V6(Ipv6Addr::LOCALHOST) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), at.port()),
        ip => SocketAddr::new(ip.to_canonical(), at.port()),
    }
}

impl From<u16> for At {
    fn from(port: u16) -> Self {
        Self::Port(port)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Address(at) => at.fmt(f),
        }
    }
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no port and no address; write 8000, or 127.0.0.1:8000");
        let at = match text.strip_prefix("localhost:") {
            Some(port) => {
                Self::Address(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse().map_err(|_| wrong())?))
            }
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => Self::Port(text.parse().map_err(|_| wrong())?),
            None => Self::Address(text.parse().map_err(|_| wrong())?),
        };
        if at.port() == 0 { Err(wrong()) } else { Ok(at) }
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Port(port) => to.serialize_u16(*port),
            Self::Address(at) => to.collect_str(at),
        }
    }
}

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = At;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a worker's port, 8000, or its address, \"127.0.0.1:8000\"")
            }

            fn visit_u64<E: de::Error>(self, port: u64) -> Result<At, E> {
                u16::try_from(port).map(At::Port).map_err(|_| E::custom(format!("{port} is no port; write 1 to 65535")))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<At, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_addresses() {
        let at = |text: &str| text.parse::<At>();
        assert_eq!(at("8000"), Ok(At::Port(8000)));
        assert_eq!(at("127.0.0.4:8000"), Ok(At::Address(([127, 0, 0, 4], 8000).into())));
        assert_eq!(at("localhost:8000"), Ok(At::Address(([127, 0, 0, 1], 8000).into())));
        assert_eq!(at("[::1]:8000").map(|at| at.is(([127, 0, 0, 1], 8000).into())), Ok(true));
        for wrong in ["", "0", "65536", "127.0.0.1", "127.0.0.1:0", "web:8000", "::1:8000", "-1", "8000-8001", "+80"] {
            assert!(at(wrong).is_err_and(|why| why.contains("write 8000, or 127.0.0.1:8000")), "{wrong}");
        }
    }

    #[test]
    fn an_address_is_one_worker_a_port_may_be_several() {
        let [one, other] = [([127, 0, 0, 1], 8000), ([127, 0, 0, 4], 8000)].map(SocketAddr::from);
        assert_eq!([one, other].map(|worker| At::Port(8000).is(worker)), [true, true]);
        assert_eq!([one, other].map(|worker| At::Address(other).is(worker)), [false, true]);
        assert!(!At::Port(8001).is(one));
    }

    #[test]
    fn as_json() {
        for at in [At::Port(8000), At::Address(([127, 0, 0, 4], 8000).into())] {
            let json = serde_json::to_string(&at).unwrap();
            assert_eq!(serde_json::from_str::<At>(&json).unwrap(), at, "{json}");
        }
        assert_eq!(serde_json::to_string(&At::Port(8000)).unwrap(), "8000");
        for wrong in ["65536", "-1", "1.5", "null", "\"web\"", "[8000]"] {
            assert!(serde_json::from_str::<At>(wrong).is_err(), "{wrong}");
        }
    }
}
