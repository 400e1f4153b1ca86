//! Services with two pools: which is current, how lanes are dialled, and what deploys have come to. Services with one pool
//! have no series here.

use super::{
    page::{Kind, Labels, Page, Value},
    snapshot::{ServiceSample, Sides},
};
use crate::{
    api::{LaneCounts, PoolStatus},
    service::moves::RESULTS,
};

/// What is not known is left out.
type OfPool = (&'static str, &'static str, fn(&PoolStatus) -> Option<Value>);

const OF_POOL: [OfPool; 7] = [
    ("deployer_pool_current", "1 for the pool that takes new connections which name no lane.", |pool| {
        Some(pool.current.into())
    }),
    ("deployer_pool_lane", "The lane of the pool's version; 0: it has none.", |pool| Some(u64::from(pool.lane).into())),
    (
        "deployer_pool_lane_open",
        "Whether everybody may dial the pool's lane: it is current, or has been and is not retired.",
        |pool| Some(pool.open_lane.into()),
    ),
    ("deployer_pool_workers_up", "Workers of the pool that are up.", |pool| Some(pool.up.into())),
    ("deployer_pool_workers", "Workers of the pool that are configured.", |pool| Some(pool.workers.into())),
    (
        "deployer_pool_flip_timestamp_seconds",
        "When the pool will be current, in seconds since 1970; missing where no flip to it is armed.",
        |pool| Some((pool.flips_at_ms? as f64 / 1000.0).into()),
    ),
    (
        "deployer_pool_former_connections",
        "Kept-alive connections to the pool that are older than the flip away from it; missing where nobody closes them.",
        |pool| Some(pool.former?.into()),
    ),
];

type Way = (&'static str, fn(&LaneCounts) -> u64);

const WAYS: [Way; 5] = [
    ("lane", |lanes| lanes.lane),
    ("preview", |lanes| lanes.preview),
    ("stale", |lanes| lanes.stale),
    ("unopened", |lanes| lanes.unopened),
    ("moved", |lanes| lanes.moved),
];

/// Writes them.
pub(super) fn write(page: &mut Page, services: &[ServiceSample]) {
    let of = |service: &ServiceSample| Labels::new(&[("service", &service.name)]);
    let all = services.iter().filter_map(|service| Some((of(service), service, service.sides.as_ref()?)));
    let all: Vec<_> = all.collect();
    pools(page, &all);
    let help = "connect() calls that went to the pool which their lane names (lane), or to it before it was current, by \
                who may (preview); and to the current pool, as the lane is retired or was never given (stale), or has \
                not been current yet (unopened), or a worker of the other pool was dialled (moved).";
    let mut family = page.family(Kind::Counter, "deployer_lane_connections_total", help);
    for (labels, _, Sides { lanes, .. }) in &all {
        WAYS.iter().for_each(|(way, value)| family.add_with(labels, "way", way, value(lanes)));
    }
    let help = "Deploys that have ended since the daemon was started, by how they did; they do not count as rolls.";
    let mut family = page.family(Kind::Counter, "deployer_deploys_total", help);
    for (labels, service, _) in &all {
        let counted = RESULTS.iter().zip(service.moved.deploys);
        counted.for_each(|((_, text), count)| family.add_with(labels, "result", text, count));
    }
    let help = "Flips to the new pool of a deploy since the daemon was started.";
    let mut family = page.family(Kind::Counter, "deployer_flips_total", help);
    all.iter().for_each(|(labels, service, _)| family.add(labels, service.moved.flips));
    let help = "Flips back to the old pool of a deploy since the daemon was started, asked for or not.";
    let mut family = page.family(Kind::Counter, "deployer_rollbacks_total", help);
    all.iter().for_each(|(labels, service, _)| family.add(labels, service.moved.rollbacks));
    let help = "1 while both versions of a deploy stand side by side after a flip, until one is retired.";
    let mut family = page.family(Kind::Gauge, "deployer_deploy_baking", help);
    all.iter().for_each(|(labels, _, sides)| family.add(labels, sides.bakes));
}

fn pools(page: &mut Page, all: &[(Labels, &ServiceSample, &Sides)]) {
    let each = all.iter().flat_map(|(labels, _, sides)| sides.pools.iter().map(move |pool| (labels, pool)));
    let each: Vec<_> = each.map(|(labels, pool)| (labels.and(&[("pool", &pool.pool)]), pool)).collect();
    for (name, help, value) in OF_POOL {
        let mut family = page.family(Kind::Gauge, name, help);
        for (labels, pool) in &each {
            if let Some(value) = value(pool) {
                family.add(labels, value);
            }
        }
    }
}
