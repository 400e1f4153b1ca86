//! Addresses: how they are written, and that no two services or workers share one.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use deployer_common::lanes::LANE_NET;

use super::raw::{Value, quoted};

/// Most workers of a service.
const MOST: usize = 256;

/// The addresses of one key, with the value that names each.
pub(super) type Named<'a> = Vec<(SocketAddr, Value<'a>)>;

/// `workers`: ranges and addresses, in one text with commas between them or in a list.
pub(super) fn workers<'a>(value: &Value<'a>) -> Option<Named<'a>> {
    let items = if value.is_list() { value.list("a list")? } else { vec![value.clone()] };
    if items.is_empty() {
        return value.refuse("names no worker; write at least one, \"127.0.0.1:8000\"");
    }
    let mut all = Vec::new();
    let mut complete = true;
    for item in items {
        let Some(text) = item.text() else {
            complete = false;
            continue;
        };
        match ranges(text) {
            Ok(ranges) => all.extend(ranges.into_iter().map(|at| (at, item.clone()))),
            Err(reason) => {
                item.refuse::<()>(reason);
                complete = false;
            }
        }
    }
    if all.len() > MOST {
        return value.refuse(format!("names {} workers; write at most {MOST}", all.len()));
    }
    complete.then_some(all)
}

/// `spare`: as `workers`, with which there are no more than fit.
pub(super) fn spares<'a>(value: &Value<'a>, workers: Option<usize>) -> Option<Named<'a>> {
    let spares = self::workers(value)?;
    match workers.map(|workers| workers + spares.len()) {
        Some(all) if all > MOST => value.refuse(format!("makes {all} with the workers; write at most {MOST} together")),
        _ => Some(spares),
    }
}

/// `address`: one address.
pub(super) fn address(value: &Value<'_>) -> Option<SocketAddr> {
    let text = value.text()?;
    match range(text) {
        Ok((ip, ports)) if ports.start() == ports.end() => Some(SocketAddr::new(ip, *ports.start())),
        Ok((ip, ports)) => {
            let one = SocketAddr::new(ip, *ports.start());
            value.refuse(format!("{} is a range; write one address, {one}", quoted(text)))
        }
        Err(reason) => value.refuse(format!("{} {reason}", quoted(text))),
    }
}

/// `metrics.listen`: one address, which may be every address of this host.
pub(super) fn listen(value: &Value<'_>) -> Option<SocketAddr> {
    match value.text()?.parse::<SocketAddr>() {
        Ok(at) if at.ip().is_unspecified() && at.port() > 0 => Some(at),
        _ => address(value),
    }
}

/// An IPv4 socket cannot be steered to an IPv6 worker; an IPv6 socket reaches both.
pub(super) fn same_family(value: &Value<'_>, address: SocketAddr, workers: &[(SocketAddr, Value<'_>)]) {
    let stranger = workers.iter().find(|(worker, _)| address.is_ipv4() && worker.is_ipv6());
    if let Some((worker, _)) = stranger {
        value.refuse::<()>(format!(
            "{address} is IPv4, its worker {worker} is IPv6; \
             write an IPv6 address, \"[::1]:{}\", or IPv4 workers",
            address.port()
        ));
    }
}

/// A caller that dialled one worker may be steered to any other, and an IPv4 socket cannot go to an IPv6 address.
pub(super) fn one_family(workers: &[(SocketAddr, Value<'_>)]) {
    let Some((first, _)) = workers.first() else { return };
    if let Some((stranger, value)) = workers.iter().find(|(worker, _)| worker.is_ipv4() != first.is_ipv4()) {
        value.refuse::<()>(format!(
            "{stranger} is of another address family than {first}; write all workers of a service as IPv4 or all as IPv6"
        ));
    }
}

/// `127.0.0.1:8000,8002-8010,127.0.0.4:8000`: ports without an address are at the address before them, and at `127.0.0.1`
/// where there is none. The error is a whole sentence.
fn ranges(text: &str) -> Result<Vec<SocketAddr>, String> {
    let mut all = Vec::new();
    let mut before = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for item in text.split(',').map(str::trim) {
        let (ip, ports) = match ports_alone(item) {
            Some(ports) => (before, ports.map_err(|reason| format!("{} {reason}", quoted(item)))?),
            None => range(item).map_err(|reason| format!("{} {reason}", quoted(item)))?,
        };
        before = ip;
        all.extend(ports.map(|port| SocketAddr::new(ip, port)));
        if all.len() > MOST {
            return Err(format!("{} names more than {MOST} workers; write at most {MOST}", quoted(text)));
        }
    }
    Ok(all)
}

/// `8000` or `8002-8010`; `None`: it is something else.
fn ports_alone(text: &str) -> Option<Result<RangeInclusive<u16>, String>> {
    let is_ports = text.starts_with(|char: char| char.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    is_ports.then(|| first_to_last(text, Ipv4Addr::LOCALHOST.into()))
}

/// `IP:PORT` or `IP:FIRST-LAST`; an error goes on after the quoted text.
fn range(text: &str) -> Result<(IpAddr, RangeInclusive<u16>), String> {
    if text.starts_with("unix:") || text.starts_with('/') || text.starts_with('@') {
        return Err(
            "is a unix socket, and workers are reached by TCP: connections are steered by address and port; have \
                    the worker listen at an address of its own and write that, 127.0.0.1:8000"
                .to_owned(),
        );
    }
    if let Ok(ip) = host(text) {
        return Err(format!("has no port; write {}", SocketAddr::new(ip, 8000)));
    }
    let Some((before, ports)) = text.rsplit_once(':') else {
        return Err("is no address; write IP:PORT or IP:FIRST-LAST, 127.0.0.1:8000-8039".to_owned());
    };
    // Without brackets the last group of an IPv6 address would be taken for the port.
    if text.parse::<Ipv6Addr>().is_ok() || before.parse::<Ipv6Addr>().is_ok() {
        return Err("is an IPv6 address without brackets; write [::1]:8000".to_owned());
    }
    let ip = host(before)?;
    Ok((ip, first_to_last(ports, ip)?))
}

/// `PORT` or `FIRST-LAST`, at an address.
fn first_to_last(ports: &str, ip: IpAddr) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        let swapped = SocketAddr::new(ip, last);
        return Err(format!("ends before it begins; write {swapped}-{first}"));
    }
    if usize::from(last - first) >= MOST {
        let count = u32::from(last - first) + 1;
        return Err(format!("names {count} workers; write at most {MOST}"));
    }
    Ok(first..=last)
}

fn host(text: &str) -> Result<IpAddr, String> {
    let ip = if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        inner.parse::<Ipv6Addr>().map(IpAddr::V6).ok()
    } else if text == "localhost" {
        Some(Ipv4Addr::LOCALHOST.into())
    } else {
        text.parse::<Ipv4Addr>().map(IpAddr::V4).ok()
    };
    let Some(ip) = ip else {
        return Err(format!(
            "has no IP address before the port (the host name {} is not looked up, as what it stands for may change); \
             write the address, 127.0.0.1:8000 or [::1]:8000",
            quoted(text)
        ));
    };
    usable(ip)?;
    Ok(ip)
}

/// Only what one process of this machine can listen at and another connect to.
fn usable(ip: IpAddr) -> Result<(), String> {
    if let IpAddr::V6(v6) = ip {
        if let Some(v4) = v6.to_ipv4_mapped() {
            return Err(format!("is an IPv4 address in disguise; write {v4}"));
        }
        if v6.is_unicast_link_local() {
            return Err("is link-local and needs an interface; write [::1]".to_owned());
        }
    }
    if let IpAddr::V4(v4) = ip
        && v4.octets().starts_with(&LANE_NET)
    {
        return Err(
            "is no address to listen at: those of 127.77.0.0/16 are addresses of lanes; write 127.0.0.1".to_owned()
        );
    }
    if ip.is_unspecified() {
        let instead = if ip.is_ipv4() { "127.0.0.1" } else { "[::1]" };
        return Err(format!("is every address and none to connect to; write {instead}"));
    }
    if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err("is a group of machines; write an address of this one, 127.0.0.1".to_owned());
    }
    Ok(())
}

fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(0) => Err("has port 0, at which nobody can listen; write 1 to 65535".to_owned()),
        Ok(port) if digits => Ok(port),
        _ => Err(format!("has no port in {}; write 1 to 65535, or FIRST-LAST", quoted(text))),
    }
}

/// What an address is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Worker,
    Spare,
    Service,
    Metrics,
}

#[derive(Debug)]
struct Claim<'a> {
    addr: SocketAddr,
    purpose: Use,
    value: Value<'a>,
}

/// Every address of every service, to find those used twice.
#[derive(Debug, Default)]
pub(super) struct Claims<'a>(Vec<Claim<'a>>);

impl<'a> Claims<'a> {
    pub(super) fn workers(&mut self, workers: &[(SocketAddr, Value<'a>)]) {
        for (addr, value) in workers {
            self.0.push(Claim { addr: *addr, purpose: Use::Worker, value: value.clone() });
        }
    }

    pub(super) fn spares(&mut self, spares: &[(SocketAddr, Value<'a>)]) {
        for (addr, value) in spares {
            self.0.push(Claim { addr: *addr, purpose: Use::Spare, value: value.clone() });
        }
    }

    pub(super) fn service(&mut self, addr: SocketAddr, value: Value<'a>) {
        self.0.push(Claim { addr, purpose: Use::Service, value });
    }

    pub(super) fn metrics(&mut self, addr: SocketAddr, value: Value<'a>) {
        self.0.push(Claim { addr, purpose: Use::Metrics, value });
    }

    /// Reports addresses used twice at the later place, once for each pair of values that overlap.
    pub(super) fn check(mut self) {
        self.0.sort_by_key(|claim| claim.value.at());
        let mut first: BTreeMap<SocketAddr, &Claim<'a>> = BTreeMap::new();
        let mut overlaps: BTreeMap<(usize, usize), (&Claim<'a>, &Claim<'a>, usize)> = BTreeMap::new();
        for claim in &self.0 {
            let Some(earlier) = first.get(&one_spelling(claim.addr)) else {
                first.insert(one_spelling(claim.addr), claim);
                continue;
            };
            let pair = (claim.value.at(), earlier.value.at());
            overlaps.entry(pair).or_insert((claim, earlier, 0)).2 += 1;
        }
        // Who listens at every address leaves no other the port.
        for page in self.0.iter().filter(|claim| claim.purpose == Use::Metrics && claim.addr.ip().is_unspecified()) {
            let others = self.0.iter().filter(|claim| claim.purpose != Use::Metrics);
            if let Some(other) = others.into_iter().find(|claim| claim.addr.port() == page.addr.port()) {
                overlaps.entry((page.value.at(), other.value.at())).or_insert((page, other, 1));
            }
        }
        for (claim, earlier, count) in overlaps.into_values() {
            claim.refuse(earlier, count);
        }
    }
}

/// `localhost` is both 127.0.0.1 and ::1, and leads to one worker only.
fn one_spelling(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V6(Ipv6Addr::LOCALHOST) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), addr.port()),
        _ => addr,
    }
}

impl Claim<'_> {
    fn refuse(&self, earlier: &Self, count: usize) {
        let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
        let used = match earlier.purpose {
            Use::Worker => "a worker's in",
            Use::Spare => "a spare's in",
            Use::Service => "a service's in",
            Use::Metrics => "where metrics are served, by",
        };
        let instead = match (self.purpose, earlier.purpose) {
            (Use::Metrics, _) | (_, Use::Metrics) => "write another port for metrics",
            (Use::Worker, Use::Worker) => "write each worker once",
            (Use::Service, Use::Service) => "write an address of its own",
            (Use::Service, _) | (_, Use::Service) => "write a service address at which nobody listens",
            _ => "write a spare's address that nobody else has",
        };
        let (addr, place) = (self.addr, earlier.value.place());
        self.value.refuse::<()>(format!("{addr}{more} is already {used} {place}; {instead}"));
    }
}
