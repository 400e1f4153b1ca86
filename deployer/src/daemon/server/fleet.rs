//! What is asked of the fleet.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path as Name, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};

use super::{Answer, Shared, Who, parse};
use crate::{
    api::{Done, FleetDeploy, FleetRoll, ServiceFleet},
    daemon::{Daemon, error::Refusal},
};

/// All below `/v1/fleet`.
pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/fleet", get(status))
        .route("/v1/fleet/services/{name}", get(service))
        .route("/v1/fleet/services/{name}/deploy", post(deploy))
        .route("/v1/fleet/services/{name}/roll", post(roll))
        .route("/v1/fleet/services/{name}/abort", post(abort))
        .route("/v1/fleet/services/{name}/rollback", post(rollback))
        .route("/v1/fleet/services/{name}/resume", post(resume))
        .route("/v1/fleet/services/{name}/accept-shrink", post(accept_shrink))
        .route("/v1/fleet/hosts/{host}/{what}", post(host))
}

async fn status(State(daemon): Shared) -> Response {
    Json(daemon.fleet_status().await).into_response()
}

async fn service(State(daemon): Shared, Name(name): Name<String>) -> Answer<ServiceFleet> {
    daemon.fleet_service(&name).await.map(Json)
}

async fn deploy(State(daemon): Shared, Name(name): Name<String>, who: Who, body: Bytes) -> Response {
    let run = async {
        let asked: FleetDeploy = parse(&body)?;
        asked.is_sound().map_err(Refusal::usage)?;
        daemon.fleet_deploy_asked(&name, asked, who.0.0).await
    };
    run.await.map(Json).into_response()
}

async fn roll(State(daemon): Shared, Name(name): Name<String>, who: Who, body: Bytes) -> Response {
    let run = async {
        let asked: FleetRoll = parse(&body)?;
        asked.hosts(1).map_err(Refusal::usage)?;
        daemon.fleet_roll_asked(&name, asked, who.0.0).await
    };
    run.await.map(Json).into_response()
}

async fn abort(State(daemon): Shared, Name(name): Name<String>, who: Who) -> Answer<Done> {
    daemon.fleet_abort(&name, who.0.0).await.map(Json)
}

async fn rollback(State(daemon): Shared, Name(name): Name<String>, who: Who) -> Answer<Done> {
    daemon.fleet_rollback(&name, who.0.0).await.map(Json)
}

async fn resume(State(daemon): Shared, Name(name): Name<String>, who: Who) -> Answer<Done> {
    daemon.fleet_resume(&name, who.0.0).await.map(Json)
}

async fn accept_shrink(State(daemon): Shared, Name(name): Name<String>, who: Who) -> Answer<Done> {
    daemon.fleet_accept_shrink(&name, who.0.0).await.map(Json)
}

async fn host(State(daemon): Shared, Name((host, what)): Name<(String, String)>, who: Who) -> Answer<Done> {
    if !["enable", "drain", "forget"].contains(&what.as_str()) {
        return Err(Refusal::usage(format!("nobody can {what} a host; write enable, drain or forget")));
    }
    daemon.fleet_host(&host, &what, who.0.0).await.map(Json)
}
