//! What stands in the tables of a service, beside its words.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use deployer_common::{
    lanes::{FlipWord, LANE_NET},
    layout::{CallerRule, MAX_CALLERS, MAX_MEMBERS, Slot},
    word::{self, LimitsWord},
};

use super::Service;
use crate::{
    config,
    service::pools::{self, Told},
};

/// Has the workers of the current pool told their lane, where nobody ever has: the first deploy is still to come.
pub(super) fn tell_first(service: &Service, flip: FlipWord) {
    let Some(deploy) = &service.config.deploy else { return };
    let pool = service.current();
    let told = Told { lane: flip.lane(pool), version: None };
    let is_told = deploy.files[pool as usize & 1].exists();
    let tell = || if is_told { Ok(()) } else { pools::tell(&service.config, deploy, pool, &told) };
    // Workers may have come, or be of the other pool now.
    let links = || (0..2).try_for_each(|pool| pools::link(&service.config, deploy, pool));
    if let Err(error) = tell().and_then(|()| links()) {
        tracing::warn!(service = service.config.name, %error, "the workers cannot be told their lane");
    }
}

/// The lane that the workers of the first pool have been told, or 1: two pools may have been taken out of the configuration
/// and put in again.
pub(super) fn first_lane(service: &config::Service) -> u8 {
    let file = service.deploy.as_ref().map(|deploy| &deploy.files[0]);
    let told = file.and_then(|file| pools::told(file).ok()).unwrap_or_default();
    told.get("DEPLOYER_LANE").and_then(|lane| lane.parse().ok()).filter(|lane| *lane > 0).unwrap_or(1)
}

/// The address under which its lane addresses are entered, if it has any.
pub(in crate::service) fn lanes(service: &Service) -> Option<SocketAddr> {
    let [first, second] = LANE_NET;
    let port = service.config.address.filter(|_| service.config.deploy.is_some())?.port();
    Some(SocketAddr::from(([first, second, 0, 0], port)))
}

/// Whether these rules fit into a slot.
pub(super) fn has_room(callers: &[CallerRule]) -> Result<()> {
    if callers.len() > MAX_CALLERS {
        bail!("{} callers; the most is {MAX_CALLERS}", callers.len());
    }
    Ok(())
}

/// Whether an address is one of a service's lanes.
pub(crate) fn is_lane_of(service: &Service, at: SocketAddr) -> bool {
    let is_lane = matches!(at.ip(), std::net::IpAddr::V4(ip) if ip.octets().starts_with(&LANE_NET));
    is_lane && lanes(service).is_some_and(|lanes| lanes.port() == at.port())
}

pub(super) fn slot(service: &Service, callers: &[CallerRule], previewers: &[CallerRule]) -> Result<Slot> {
    has_room(callers)?;
    // Callers succeed each other for a while, and fill the room that there is; who previews can wait for that to end.
    let previewers = &previewers[..previewers.len().min(MAX_CALLERS - callers.len())];
    let second = service.pool(1).len();
    let mut slot = Slot {
        len: [(service.members().count() - second) as u16, second as u16],
        callers_len: callers.len() as u16,
        previewers_len: previewers.len() as u16,
        callers: [CallerRule { kind: 0, place: 0, id: 0 }; MAX_CALLERS],
        members: [0; MAX_MEMBERS],
    };
    for (place, rule) in slot.callers.iter_mut().zip(callers.iter().chain(previewers)) {
        *place = *rule;
    }
    for (member, worker) in slot.members.iter_mut().zip(service.members()) {
        *member = worker.index as u16;
    }
    Ok(slot)
}

pub(super) fn limits(service: &Service) -> LimitsWord {
    let config::Limits { min_up, cold_limit } = service.config.limits;
    LimitsWord::new(min_up as u16, cold_limit.as_millis() as u32)
}

pub(super) fn policy(service: &Service) -> word::Policy {
    match service.config.drain.policy {
        config::Policy::Steer => word::Policy::Steer,
        config::Policy::Refuse => word::Policy::Refuse,
    }
}
